"""Checkpoints: whole or refused, written once and shared, and safe whatever interrupts their writing."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fakes
import gymnasium as gym
import numpy as np
import pytest
from benchmarks.protocol import memory
from program import PATHS

import diffac.runs.store as store_module
from diffac.data.env_states import restore_env, save_env
from diffac.data.environments import make_envs
from diffac.data.replay import ReplayBuffer
from diffac.data.stepper import VectorStepper
from diffac.data.vectors import close
from diffac.errors import RunError, UsageError
from diffac.protocols import Transition
from diffac.runs.checkpoints import Checkpoint, read_checkpoint
from diffac.runs.store import Store
from diffac.training.snapshot import Snapshot

MUJOCO = [
    "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup", "Hopper", "Walker2d", "Swimmer", "Reacher", "Pusher",
    "InvertedPendulum", "InvertedDoublePendulum",
]  # fmt: skip
HOST = {"environments": {"restart": None}, "numbers": [1, 2.5, float("inf")], "big": 2**127, "array": np.arange(3.0)}


def rows(first: int, count: int) -> Transition:
    i = np.arange(first, first + count, dtype=np.float32)
    return Transition(
        i[:, None] + np.zeros(3, np.float32), -i[:, None], 2 * i, i[:, None] + np.ones(3), i % 3 == 0, i % 5 == 0
    )


def write(store: Store, buffer: ReplayBuffer, previous: Checkpoint | None = None, run_id: str = "a") -> Checkpoint:
    info = {"run_id": run_id, "env_step": buffer.added, "updates": 7}
    arrays = {"weight": np.full((2, 2), buffer.added, np.float32), "count": np.int32(3)}
    return store.write(info, arrays, Snapshot(None, buffer, HOST), previous)


def filled(store: Store, times: int = 2, capacity: int = 50, count: int = 20) -> list[Checkpoint]:
    buffer, written = ReplayBuffer(capacity, 3, 1), [None]
    for _ in range(times):
        buffer.add(rows(buffer.added, count))
        written.append(write(store, buffer, written[-1]))
    return written[1:]


def assert_holds(checkpoint: Checkpoint, added: int, capacity: int = 50) -> None:
    buffer = ReplayBuffer(capacity, 3, 1)
    checkpoint.restore_replay(buffer)
    assert buffer.added == added
    size = min(added, capacity)
    for mine, theirs in zip(buffer.contents()[:5], rows(added - size, size)[:5], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # the same row in the same place of the ring, or sampling would change
    assert buffer.chunk(added - 1, added).reward[0] == 2 * (added - 1)
    arrays = checkpoint.learner_arrays()
    assert arrays["weight"].tolist() == [[added] * 2] * 2
    assert (arrays["count"].shape, arrays["count"].dtype) == ((), np.int32)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoints")
    for checkpoint in filled(store):
        assert_holds(read_checkpoint(checkpoint.folder, "a"), checkpoint.env_step)
        host = checkpoint.host()
        assert host["numbers"] == HOST["numbers"]
        assert host["big"] == HOST["big"]
        np.testing.assert_array_equal(host["array"], HOST["array"])
    files = {path.suffix for path in store.folder.rglob("*") if path.is_file()}
    assert files == {".json", ".npy", ".safetensors"}


@pytest.mark.parametrize("seed", range(4))
def test_any_rhythm_of_steps_and_checkpoints(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows, many, more than the memory holds, none; files of several pieces."""
    monkeypatch.setattr("diffac.runs.replay_files.CHUNK", 200)
    rng, store, buffer, previous = random.Random(seed), Store(tmp_path), ReplayBuffer(50, 3, 1), None
    for _ in range(12):
        for _ in range(rng.randrange(5)):
            buffer.add(rows(buffer.added, rng.randrange(30)))
        if (previous is not None and buffer.added == previous.env_step) or not buffer.added:
            continue
        previous = write(store, buffer, previous)
        found, refused = store.newest("a")
        assert found is not None
        assert refused == []
        assert_holds(found, buffer.added)
    assert len(store.paths()) <= 2


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    first, second, third, last = filled(Store(tmp_path, keep=9), times=4)
    names = [[name for _, _, name in c.manifest["replay"]["segments"]] for c in (first, second, third, last)]
    assert [len(entry) for entry in names] == [1, 2, 3, 3]  # 80 rows are added, 50 are kept: the first file goes
    assert names[2][:2] == names[1]
    for name in names[2][:2]:
        assert (second.folder / name).samefile(third.folder / name)
    row = 3 * 4 + 4 + 4 + 3 * 4 + 1
    assert all(0 < first.manifest["files"][name]["size"] - 20 * row <= 512 for name in names[0])


def test_two_are_kept_and_share_nothing_with_the_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    filled(store, times=5)
    assert [path.name for path in store.paths()] == ["step_000000000100", "step_000000000080"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000000080", "step_000000000100"]
    for path in store.paths():
        assert_holds(read_checkpoint(path), int(path.name[5:]))


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = filled(Store(tmp_path))
    shutil.rmtree(first.folder)
    assert_holds(read_checkpoint(second.folder), 40)


def test_a_checkpoint_can_be_carried_away(tmp_path: Path) -> None:
    *_, last = filled(Store(tmp_path / "run"))
    shutil.copytree(last.folder, tmp_path / "elsewhere" / last.folder.name)
    shutil.rmtree(tmp_path / "run")
    assert_holds(read_checkpoint(tmp_path / "elsewhere" / last.folder.name, "a"), 40)


def files_of(checkpoint: Checkpoint) -> list[str]:
    return ["manifest.json", *checkpoint.manifest["files"]]


def own(path: Path) -> None:
    """Cuts a file off from its hard links, as a damage to one of two checkpoints would."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "empty"])
def test_damage_is_refused_and_the_one_before_is_used(damage: str, number: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = filled(store)
    path = second.folder / files_of(second)[number]
    own(path)
    data = path.read_bytes()
    middle = len(data) // 2
    if damage == "remove":
        path.unlink()
    else:
        changed = bytes([data[middle] ^ 1])
        path.write_bytes(
            {"truncate": data[:-3], "alter": data[:middle] + changed + data[middle + 1 :], "empty": b""}[damage]
        )
    found, refused = store.newest("a")
    assert found is not None
    assert found.folder == first.folder
    ((where, reason),) = refused
    assert where == second.folder
    assert str(second.folder) in reason
    assert "\n" not in reason
    if path.name != "manifest.json":
        assert path.name in reason
    aside = store.set_aside(where)
    assert aside.is_dir()
    assert store.paths() == [first.folder]


def test_foreign_and_newer_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = filled(Store(tmp_path))
    with pytest.raises(RunError, match=r"belongs to another run \(a\)"):
        read_checkpoint(last.folder, "b")
    with pytest.raises(UsageError, match="is no checkpoint: it has no manifest"):
        read_checkpoint(tmp_path)
    (last.folder / "manifest.json").write_text(json.dumps({"format": "something", "sha256": ""}))
    with pytest.raises(RunError, match=r"manifest\.json is not what diffac writes"):
        read_checkpoint(last.folder)
    monkeypatch.setattr(store_module, "VERSION", 2)
    *_, last = filled(Store(tmp_path / "new"))
    monkeypatch.setattr(store_module, "VERSION", 1)
    with pytest.raises(RunError, match="newer diffac; upgrade"):
        read_checkpoint(last.folder)


def test_transitions_of_another_environment_are_refused(tmp_path: Path) -> None:
    *_, last = filled(Store(tmp_path))
    with pytest.raises(RunError, match="transitions of another environment"):
        last.restore_replay(ReplayBuffer(50, 4, 1))
    with pytest.raises(RunError, match="memory of 50 transitions"):
        last.restore_replay(ReplayBuffer(60, 3, 1))


def test_no_array_file_may_hold_objects(tmp_path: Path) -> None:
    """Even one whose checksum is right: loading it would execute code."""
    *_, last = filled(Store(tmp_path))
    name = last.manifest["replay"]["segments"][0][2]
    own(last.folder / name)
    np.save(last.folder / name, np.array([print], object), allow_pickle=True)
    with pytest.raises(RunError, match=r"holds no transitions: .*objects"):
        last.restore_replay(ReplayBuffer(50, 3, 1))


def test_a_clock_that_goes_backwards_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    buffer, previous = ReplayBuffer(50, 3, 1), None
    for i in range(4):
        monkeypatch.setattr(time, "time", lambda i=i: 1e9 - 1000 * i)
        buffer.add(rows(buffer.added, 5))
        previous = write(store, buffer, previous)
        for path in previous.folder.iterdir():
            os.utime(path, (1e9 - 1000 * i, 1e9 - 1000 * i))
        os.utime(previous.folder, (1e9 - 1000 * i, 1e9 - 1000 * i))
    found, _ = store.newest()
    assert found is not None
    assert found.env_step == 20
    assert [path.name for path in store.paths()] == ["step_000000000020", "step_000000000015"]


@pytest.mark.parametrize("call", ["write", "fsync", "link", "rename", "mkdir"])
def test_a_full_disk_leaves_the_checkpoint_before(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th call fails, for every n until none does."""
    store = Store(tmp_path / "checkpoints")
    buffer = ReplayBuffer(50, 3, 1)
    buffer.add(rows(0, 20))
    first = write(store, buffer)
    buffer.add(rows(20, 20))
    real = {
        "write": store_module.write_file, "fsync": os.fsync, "link": os.link, "rename": Path.rename, "mkdir": Path.mkdir
    }[call]  # fmt: skip
    failures = 0
    for failing in range(1, 12):
        left = [failing]

        def fail(*args: Any, left: list[int] = left, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if call == "write":
                    Path(args[0]).write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        owner, name = {
            "write": (store_module, "write_file"), "fsync": (os, "fsync"), "link": (os, "link"),
            "rename": (Path, "rename"), "mkdir": (Path, "mkdir"),
        }[call]  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with contextlib.suppress(RunError):
                write(store, buffer, first)
                break
        failures += 1
        found, refused = store.newest("a")
        assert found is not None
        assert refused == []
        assert_holds(found, found.env_step)
        if found.env_step == 20:
            assert [path.name for path in store.folder.iterdir()] == ["step_000000000020"]
        else:  # everything was in place, only the folder was not known to be on the disk
            shutil.rmtree(found.folder)
    assert failures >= 1
    found, _ = store.newest("a")
    assert found is not None
    assert_holds(found, 40)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a file system")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        store, buffer, previous = Store(tmp_path / "checkpoints"), ReplayBuffer(100_000, 3, 1), None
        caught = None
        while caught is None:
            buffer.add(rows(buffer.added, 1000))
            try:
                previous = write(store, buffer, previous)
            except RunError as error:
                caught = str(error)
        assert "could not be written to" in caught
        assert caught.endswith("No space left on device")
        found, refused = store.newest("a")
        assert found is not None
        assert found.env_step == buffer.added - 1000 > 0
        assert refused == []
        assert_holds(found, buffer.added - 1000, 100_000)
        assert not list(store.folder.glob("new-*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


WRITER = """
import sys
from test_checkpoints import ReplayBuffer, Store, rows, write
store = Store(sys.argv[1])
store.clean()
buffer = ReplayBuffer(3000, 3, 1)
previous, _ = store.newest("a")
if previous is not None:
    previous.restore_replay(buffer)
print("ready", flush=True)
while True:
    buffer.add(rows(buffer.added, 700))
    previous = write(store, buffer, previous)
    print(buffer.added, flush=True)
"""


def kill_while_writing(folder: Path, kills: int, rng: random.Random) -> None:
    """After every kill -9 the checkpoint that was confirmed last, or a newer one, is there and whole."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *PATHS])}
    store, confirmed = Store(folder), 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")
        process.wait()
        process.stdout.close()
        confirmed = max([confirmed, *map(int, lines[:-1])])
        found, refused = store.newest("a")
        assert refused == []
        if confirmed:
            assert found is not None
            assert found.env_step >= confirmed
        if found is not None:
            assert_holds(found, found.env_step, 3000)
    assert confirmed > 0
    found, _ = store.newest("a")
    assert found is not None
    buffer = ReplayBuffer(3000, 3, 1)
    found.restore_replay(buffer)
    buffer.add(rows(buffer.added, 1))
    write(store, buffer, found)
    store.clean()
    assert len(list(folder.iterdir())) == 2  # what the kills have left is gone


def test_kill_9_while_writing(tmp_path: Path) -> None:
    kill_while_writing(tmp_path, 4, random.Random(0))


@pytest.mark.soak
def test_kill_9_while_writing_thirty_times(tmp_path: Path) -> None:
    kill_while_writing(tmp_path, 30, random.Random(1))


# environments


class Attributes(gym.Env):
    """Holds one of everything that counts as data."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.space = gym.spaces.Dict(
            {"a": gym.spaces.Box(-1, 1, (1,)), "b": gym.spaces.Tuple((gym.spaces.Discrete(9),))}
        )
        self.function = len

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        rng = self.np_random
        self.own = np.random.default_rng(rng.integers(100))
        self.space.seed(int(rng.integers(100)))
        self.array = rng.random(3)
        self.view = self.array[1:]
        self.nest = {"a": (1, 2.5, [rng.random()]), 3: {"b": None}}
        self.queue = collections.deque([rng.random()], maxlen=3)
        self.numbers = {1, 2}
        self.scalar = np.float32(rng.random())
        return self.array[:2], {}

    def values(self) -> list[Any]:
        self.array[1] += 1
        self.queue.append(self.own.random())
        drawn = [self.np_random.random(), self.own.random(), self.space.sample()["b"][0], self.action_space.sample()]
        return [*drawn[:3], *self.array, *self.view, str(self.nest), list(self.queue), self.numbers, self.scalar]


def test_everything_that_is_data_is_restored() -> None:
    env, other = Attributes(), Attributes()
    env.reset(seed=1)
    env.values()
    saved = save_env(env)
    expected = [env.values() for _ in range(3)]
    other.reset(seed=2)
    restore_env(other, saved)
    assert [other.values() for _ in range(3)] == expected
    assert type(other.scalar) is np.float32
    assert type(other.nest["a"]) is tuple


def test_what_is_not_data_is_named() -> None:
    env = fakes.Opaque()
    env.reset(seed=0)
    with pytest.raises(RunError, match=r"Opaque\.engine is a object, which is not data"):
        save_env(env)
    with pytest.raises(RunError, match="built of Counter, the saved one of Attributes"):
        restore_env(fakes.Counter(), {"layers": [{"class": "Attributes"}]})


def assert_goes_on(env_id: str, steps: int, *, asynchronous: bool = False) -> None:
    """Environments that were restored and those that were saved step alike, over the ends of episodes."""
    rng = np.random.default_rng(0)
    one = VectorStepper(make_envs(env_id, 2, asynchronous=asynchronous))
    other = VectorStepper(make_envs(env_id, 2))
    try:
        one.reset([0, 1])
        for _ in range(steps):
            one.step(rng.uniform(-1, 1, (2, one.action_dim)))
        assert other.restore(one.save(), [5, 6]) is None
        for _ in range(steps):
            action = rng.uniform(-1, 1, (2, one.action_dim))
            a, b = one.step(action), other.step(action)
            for mine, theirs in zip([*a.transition[:5], a.obs], [*b.transition[:5], b.obs], strict=True):
                np.testing.assert_array_equal(mine, theirs)
            assert a.episodes == b.episodes
    finally:
        close(one.envs)
        close(other.envs)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("env_id", ["fakes:Random-v0", "fakes:Saving-v0"])
def test_environments_go_on(env_id: str, asynchronous: bool) -> None:
    assert_goes_on(env_id, 33, asynchronous=asynchronous)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_classic_environments_go_on(env_id: str) -> None:
    assert_goes_on(env_id, 230)


@pytest.mark.parametrize("name", MUJOCO)
def test_mujoco_goes_on(name: str) -> None:
    """All of them: Ant and Humanoid read positions that MuJoCo computed in the step before."""
    pytest.importorskip("mujoco")
    assert_goes_on(f"{name}-v5", 60)


def test_environments_that_cannot_be_saved_restart() -> None:
    one, other = (VectorStepper(make_envs("fakes:Opaque-v0", 2)) for _ in range(2))
    one.reset([0, 1])
    for _ in range(3):
        one.step(np.zeros((2, 1)))
    saved = one.save()
    assert saved["restart"] == "Opaque.engine is a object, which is not data"
    assert other.restore(saved, [5, 6]) == saved["restart"]
    assert (other.obs[:, 1] == 0).all()
    assert all(episode.length < 10 for _ in range(12) for episode in other.step(np.zeros((2, 1))).episodes)


@pytest.mark.parametrize(
    ("env_id", "asynchronous", "message"),
    [
        (
            "Failingraise",
            False,
            r"raised ValueError in step: the gears are stuck \(fakes\.py, line \d+\), at its step 30",
        ),
        (
            "Failingraise",
            True,
            r"raised ValueError in step: the gears are stuck \(fakes\.py, line \d+\), at its step 30",
        ),
        ("Failinghang", True, "did not answer within 0.5 s at its step 30 .* it hangs, or step_timeout is too short"),
        ("Failingdie", True, r"process of environment \d has died \(exit code -9\) at its step 30"),
        ("Brokenobs", True, "returned a non-finite observation at its step 3"),
    ],
)
def test_failing_environments_are_one_sentence(env_id: str, asynchronous: bool, message: str) -> None:
    stepper = VectorStepper(
        make_envs(f"fakes:{env_id}-v0", 2, asynchronous=asynchronous), timeout=0.5 if "hang" in env_id else 60
    )
    begin = time.perf_counter()
    try:
        stepper.reset([0, 1])
        with pytest.raises(RunError, match=message):
            collections.deque(stepper.step(np.zeros((2, 1))) for _ in range(40))
    finally:
        close(stepper.envs)
    assert time.perf_counter() - begin < 30


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_a_full_replay_memory_costs_seconds(tmp_path: Path) -> None:
    """1,000,000 transitions of HalfCheetah: what is new is written, and no second copy of the rest comes to memory."""
    rng = np.random.default_rng(0)

    def some(count: int) -> Transition:
        obs, action = rng.random((2, count, 17), np.float32), rng.random((count, 6), np.float32)
        return Transition(obs[0], action, action[:, 0], obs[1], action[:, 1] < 0.01, action[:, 1] > 0.99)

    buffer, previous, store = ReplayBuffer(1_000_000, 17, 6), None, Store(tmp_path)
    for _ in range(20):
        buffer.add(some(50_000))
    Path("/proc/self/clear_refs").write_text("5")  # else the peak may be an earlier test's, or a parent's
    held, _ = memory()
    for count in (1_000_000, 50_000, 50_000):
        begin = time.perf_counter()
        written = store.write({"run_id": "a", "env_step": buffer.added}, {}, Snapshot(None, buffer, HOST), previous)
        seconds = time.perf_counter() - begin
        old = [] if previous is None else previous.manifest["files"]
        new = [entry["size"] for name, entry in written.manifest["files"].items() if name not in old]
        print(f"{sum(new) / 2**20:.0f} MiB in {seconds:.2f} s")
        transitions = count * (2 * 17 + 6 + 1) * 4 + count * 2  # of float32, and of two flags
        assert transitions <= sum(new) < transitions + 2**16
        assert seconds < 30
        previous = written
        buffer.add(some(50_000))
    _, peak = memory()
    assert (peak - held) / 2**20 < 64
