"""A run that was stopped, however it was stopped, becomes what it would have become."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import numpy as np
import pytest
import yaml
from conftest import load_backend
from program import PATHS, TESTS

import diffac.runs.recipes
from diffac.commands.main import main
from diffac.data.replay import ReplayBuffer
from diffac.errors import UsageError
from diffac.noise import draw
from diffac.parts.inputs import entry
from diffac.runs.checkpointer import Checkpointer
from diffac.runs.checkpoints import Checkpoint, read_checkpoint
from diffac.runs.configs import make_config
from diffac.runs.folder import lock
from diffac.runs.recipes import load_recipe
from diffac.runs.resume import resume
from diffac.runs.store import Store
from diffac.system.signals import Interrupted
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult, train

CODE = """
import sys, signal, fake_recipe, diffac.commands.exit_codes as e, diffac.commands.script as c
signal.signal(signal.SIGINT, signal.default_int_handler)
with e.exit_code() as code:
    c.run_recipe(fake_recipe, name='fake')
sys.exit(code.value)
"""


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is registered as a third party's; runs go to an empty folder."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)


class StopAt:
    """Asks the run to stop after a number of calls."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0

    def raise_if_requested(self) -> None:
        if self.left < 0:
            raise Interrupted(signal.SIGTERM)


@dataclasses.dataclass
class Ran:
    """What a run has come to."""

    arrays: dict[str, np.ndarray]
    contents: Transition
    lines: list[tuple[int, dict[str, float]]]
    result: TrainResult


def play(
    folder: Path | None,
    make: Any,
    config: TrainConfig,
    *,
    stop_after: int | None = None,
    say: Any = None,
    backend: Any = None,
) -> Ran | None:
    """Trains, or goes on from the newest checkpoint of a folder; None: the run was stopped, and is saved.

    Args:
        folder: None: without checkpoints.
        make: the learner and its first state.
        config: arguments.
        stop_after: steps of all environments; None: to the end.
        say: as `Checkpointer`.
        backend: the codec; None: the learner.
    """
    learner, state = make()
    codec, writer, buffers = backend or learner, fakes.ListWriter(), []

    def replay(*sizes: int, **given: Any) -> ReplayBuffer:
        buffers.append(ReplayBuffer(*sizes, **given))
        return buffers[0]

    checkpointer = None
    if folder is not None:
        checkpoint, refused = Store(folder / "checkpoints").newest("x")
        assert refused == []
        stop = None if stop_after is None else StopAt(stop_after)
        checkpointer = Checkpointer(
            folder, codec,
            interval=config.checkpoint_interval, info={"run_id": "x"}, checkpoint=checkpoint, stop=stop,
            **({} if say is None else {"say": say}),
        )  # fmt: skip
    try:
        result = train(learner, state, config, writer=writer, replay=replay, checkpointer=checkpointer)
    except Interrupted:
        (folder / "lines.json").write_text(json.dumps(lines_of(folder) + writer.lines)) if folder else None
        return None
    earlier = lines_of(folder) if folder else []
    return Ran(codec.to_arrays(result.state), buffers[0].contents(), earlier + writer.lines, result)


def lines_of(folder: Path) -> list[Any]:
    path = folder / "lines.json"
    return json.loads(path.read_text()) if path.exists() else []


def assert_same(a: Ran | None, b: Ran | None) -> None:
    """Learner, replay memory, evaluations and metrics agree in every bit; only times may differ."""
    assert a is not None
    assert b is not None
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype, name
        np.testing.assert_array_equal(array, b.arrays[name], err_msg=name)
    for mine, theirs in zip(a.contents[:5], b.contents[:5], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert len(a.result.evaluations) == len(b.result.evaluations)
    for mine, theirs in zip(a.result.evaluations, b.result.evaluations, strict=True):
        assert mine[:2] == theirs[:2]
        np.testing.assert_array_equal(mine.returns, theirs.returns)
        np.testing.assert_array_equal(mine.lengths, theirs.lengths)
    assert [without_times(line) for line in a.lines] == [without_times(line) for line in b.lines]


def without_times(line: Any) -> Any:
    step, metrics = line
    kept = {name: value for name, value in metrics.items() if not name.startswith("time/")}
    return step, kept, metrics.get("time/total_timesteps")


def fake() -> tuple[fakes.FakeEngine, fakes.FakeState]:
    return fakes.FakeEngine(), fakes.FakeState()


# the loop


@pytest.mark.parametrize("fields", [{}, {"num_envs": 7, "updates_per_env_step": 0.7}, {"buffer_size": 30}])
@pytest.mark.parametrize("env_id", ["fakes:Random-v0", "fakes:Saving-v0"])
def test_resumed_equals_uninterrupted(env_id: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Stopped at every step of all environments in turn: before learning, between two lines of metrics, at the end."""
    config = fakes.config(env_id=env_id, checkpoint_interval=50, **fields)
    whole = play(None, fake, config)
    for stop_after in range(0, 120 // config.num_envs - 1, 3):
        folder = tmp_path / str(stop_after)
        assert play(folder, fake, config, stop_after=stop_after) is None
        assert_same(play(folder, fake, config), whole)


def test_stopped_at_every_step(tmp_path: Path) -> None:
    config = fakes.config(checkpoint_interval=1000)
    whole = play(None, fake, config)
    for _ in range(29):
        assert play(tmp_path, fake, config, stop_after=0) is None
    assert_same(play(tmp_path, fake, config), whole)


@pytest.mark.parametrize("env_id", ["fakes:Random-v0", "fakes:Opaque-v0"])
@pytest.mark.parametrize("interval", [1, 13, 60])
def test_checkpoints_do_not_change_training(env_id: str, interval: int, tmp_path: Path) -> None:
    whole = play(None, fake, fakes.config(env_id=env_id))
    assert_same(play(tmp_path, fake, fakes.config(env_id=env_id, checkpoint_interval=interval)), whole)


def test_asynchronous_environments_go_on(tmp_path: Path) -> None:
    """Saved by processes, restored in processes, or in this one."""
    whole = play(None, fake, fakes.config())
    config = fakes.config(asynchronous=True)
    for number, then in enumerate((config, fakes.config())):
        assert play(tmp_path / str(number), fake, config, stop_after=14) is None
        assert_same(play(tmp_path / str(number), fake, then), whole)


def test_environments_that_cannot_be_saved_restart_and_it_is_said(tmp_path: Path) -> None:
    config, said = fakes.config(env_id="fakes:Opaque-v0"), []
    assert play(tmp_path, fake, config, stop_after=14) is None
    (path,) = Store(tmp_path / "checkpoints").paths()
    reason = "Opaque.engine is a object, which is not data"
    assert read_checkpoint(path).manifest["environments"] == f"restart: {reason}"
    ran = play(tmp_path, fake, config, say=said.append)
    assert said == [f"the environments begin new episodes, because they could not be saved: {reason}"]
    assert ran is not None
    assert len(ran.contents.reward) == 120
    np.testing.assert_array_equal(ran.contents.next_obs[:, 0], ran.contents.obs[:, 0])  # no step crosses the restart


def test_checkpoints_are_written_when_they_should(tmp_path: Path) -> None:
    seen = []

    class Watch(Checkpointer):
        def save(self, snapshot: Any) -> None:
            super().save(snapshot)
            seen.append(snapshot.host["env_step"])

    config = fakes.config(checkpoint_interval=50)
    learner, state = fake()
    train(learner, state, config, checkpointer=Watch(tmp_path, learner, interval=50, info={"run_id": "x"}))
    assert seen == [52, 100, 120, 120]  # before the evaluation at the end, and after it
    assert [path.name for path in Store(tmp_path / "checkpoints").paths()] == [
        "step_000000000120-2",
        "step_000000000100",
    ]


def test_the_best_policy_is_kept(tmp_path: Path) -> None:
    """By mean return; of two equal ones the first; and it survives a resume that goes back behind it."""
    learner = fakes.FakeEngine()
    checkpointer = Checkpointer(tmp_path, learner, interval=50, info={"run_id": "x"})
    for step, mean in [(10, 1.0), (20, 3.0), (30, 3.0), (40, 2.0)]:
        checkpointer.after_evaluation(step, step // 2, mean, fakes.FakeState(weight=step))

    def best() -> Checkpoint:
        (path,) = (tmp_path / "best").iterdir()
        found = Store(tmp_path / "best").best()
        assert found is not None
        assert found.folder == path
        return found

    assert (best().env_step, best().manifest["mean_reward"]) == (20, 3.0)
    assert best().learner_arrays()["weight"] == 20
    again = Checkpointer(tmp_path, learner, interval=50, info={"run_id": "x"})
    again.after_evaluation(10, 5, 2.5, fakes.FakeState(weight=1))
    assert best().env_step == 20
    again.after_evaluation(10, 5, 4.0, fakes.FakeState(weight=2))
    assert best().env_step == 10


def test_other_replay_memories_are_refused(tmp_path: Path) -> None:
    class Strange:
        def __init__(self, *_: int, **given: float) -> None: ...

    learner, state = fake()
    with pytest.raises(UsageError, match="cannot hold a Strange; it must offer what NumberedReplay says"):
        train(
            learner, state, fakes.config(),
            replay=Strange, checkpointer=Checkpointer(tmp_path, learner, interval=5, info={}),
        )  # type: ignore[arg-type]  # fmt: skip


# real learners


def real(module: str, name: str, **fields: Any) -> tuple[Any, TrainConfig, Any]:
    """Learner maker, configuration and backend of a tiny run."""
    recipe = importlib.import_module(f"diffac_recipes.{module}")
    backend = load_backend(name)
    tiny = {"hidden_sizes": (8, 8), "num_diffusion_steps": 2, "num_candidates": 2, "num_particles": 3}
    tiny |= {"temperature_interval": 7, "backend": name, "env_id": "InvertedPendulum-v5", "total_timesteps": 120}
    tiny |= {"num_envs": 3, "learning_starts": 30, "batch_size": 8, "buffer_size": 80, "updates_per_env_step": 0.5}
    tiny |= {"eval_interval": 60, "eval_episodes": 2, "log_interval": 20, "checkpoint_interval": 10**6, **fields}
    known = {field.name for field in dataclasses.fields(recipe.Config)}
    config = recipe.Config(**{key: value for key, value in tiny.items() if key in known})

    def make() -> tuple[Any, Any]:
        dims = {"InvertedPendulum-v5": (4, 1), "HalfCheetah-v5": (17, 6)}[config.env_id]
        learner, actor, critic = recipe.build(config, *dims)
        return backend.Engine(learner), learner.init(actor, critic)

    return make, config, backend


@pytest.mark.parametrize(
    "recipe",
    ["sac", "sdac", "dipo", *(pytest.param(name, marks=pytest.mark.soak) for name in ("dacer2", "dacer", "dpmd"))],
)
@pytest.mark.parametrize("name", ["torch", "equinox"])
def test_resumed_equals_uninterrupted_in_mujoco(recipe: str, name: str, tmp_path: Path) -> None:
    """Stopped twice: before learning and in the middle, in the middle of episodes."""
    pytest.importorskip("mujoco")
    make, config, backend = real(recipe, name)
    whole = play(None, make, config, backend=backend)
    assert play(tmp_path, make, config, stop_after=5, backend=backend) is None
    assert play(tmp_path, make, config, stop_after=15, backend=backend) is None
    assert_same(play(tmp_path, make, config, backend=backend), whole)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["torch", "equinox"])
def test_resumed_equals_uninterrupted_on_half_cheetah(name: str, tmp_path: Path) -> None:
    """More than an episode of 1,000 steps in each environment, and a replay memory that overflows."""
    pytest.importorskip("mujoco")
    fields = {"env_id": "HalfCheetah-v5", "total_timesteps": 4500, "learning_starts": 1000, "buffer_size": 3000}
    fields |= {"hidden_sizes": (64, 64), "eval_interval": 2250, "eval_episodes": 1, "updates_per_env_step": 0.2}
    make, config, backend = real("sdac", name, **fields, batch_size=32, log_interval=100)
    whole = play(None, make, config, backend=backend)
    for steps in (200, 400, 611):
        assert play(tmp_path, make, config, stop_after=steps, backend=backend) is None
    assert_same(play(tmp_path, make, config, backend=backend), whole)


@pytest.mark.parametrize("recipe", ["sac", "sdac", "dipo"])
@pytest.mark.parametrize(("first", "then"), [("torch", "equinox"), ("equinox", "torch")])
def test_a_run_goes_on_in_the_other_backend(
    recipe: str, first: str, then: str, tmp_path: Path, both: SimpleNamespace
) -> None:
    """From the same weights and Adam states: the first update after the switch agrees to 1e-5, with the same noise."""
    pytest.importorskip("mujoco")
    make, config, backend = real(recipe, first)
    assert play(tmp_path, make, config, stop_after=25, backend=backend) is None
    make_other, config_other, other = real(recipe, then)
    found, _ = Store(tmp_path / "checkpoints").newest("x")
    assert found is not None
    buffer = ReplayBuffer(config.buffer_size, 4, 1)
    after: list[dict[str, np.ndarray]] = []
    for make_one, one in ((make, backend), (make_other, other)):
        engine, state = make_one()
        state, host = Checkpointer(
            tmp_path, one, interval=1, info={"run_id": "x"}, checkpoint=found
        ).restore(state, buffer)  # fmt: skip
        assert host is not None
        assert host["updates"] == one.to_arrays(state)["updates"] > 10
        batches = buffer.sample(np.random.default_rng(0), 1, 8)
        batch = entry(batches, 0)
        noise = draw(np.random.default_rng(1), engine.learner.noise_spec((8, 1)), float)
        state, _ = engine.step(state, batch, noise)
        after.append(one.to_arrays(state))
    assert after[0].keys() == after[1].keys()
    for name, array in after[0].items():
        np.testing.assert_allclose(array, after[1][name], rtol=1e-5, atol=1e-7, err_msg=name)
    ran = play(tmp_path, make_other, config_other, backend=other)
    assert ran is not None
    assert ran.arrays["updates"] == config.total_updates


# the command line


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *argv],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def the_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*/fake/*/seed*")
    return run


SHORT = ["--total-timesteps", "400", "--log-interval", "15", "--checkpoint-interval", "40", "--eval-interval", "70"]
LONG = ["--total-timesteps", "3000", "--log-interval", "35", "--checkpoint-interval", "100", "--eval-interval", "170"]


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_runs_agree(one: Path, other: Path) -> None:
    assert table(one) == table(other)
    with np.load(one / "evaluations.npz") as a, np.load(other / "evaluations.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    last, last_other = (Store(run / "checkpoints").newest()[0] for run in (one, other))
    best, best_other = (Store(run / "best").best() for run in (one, other))
    for mine, theirs in ((last, last_other), (best, best_other)):
        assert mine is not None
        assert theirs is not None
        assert mine.env_step == theirs.env_step
        a, b = mine.learner_arrays(), theirs.learner_arrays()
        assert all((a[name] == b[name]).all() for name in a)
        assert a.keys() == b.keys()


def trained(tmp_path: Path, *argv: str) -> Path:
    assert main(["train", "fake", *(argv or SHORT)]) == 0
    return the_run(tmp_path)


def stopped(tmp_path: Path, *argv: str, signum: int) -> Path:
    """A run that a signal has stopped soon after it began."""
    process = start(tmp_path, *argv)
    while not list(tmp_path.glob("runs/*/fake/*/seed*/checkpoints/step_*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signum)
    code, _, err = finish(process)
    assert code == 128 + signum, err
    last = err.splitlines()[-1]
    assert last.startswith(f"interrupted; what was written until then is in {tmp_path}/runs/")
    assert "; go on from step " in last
    assert f"with: diffac resume {the_run(tmp_path)}" in last
    return the_run(tmp_path)


@pytest.mark.parametrize(("signum", "mode"), [(signal.SIGTERM, "--no-asynchronous"), (signal.SIGINT, "--asynchronous")])
def test_signals_write_a_checkpoint(signum: int, mode: str, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    run = stopped(tmp_path / "part", *LONG, mode, signum=signum)
    found, refused = Store(run / "checkpoints").newest()
    assert found is not None
    assert refused == []
    assert 0 < found.env_step < 3000
    assert resume(run, load_recipe) is not None
    assert_runs_agree(run, trained(tmp_path, *LONG))


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    process = start(tmp_path, "--env-id", "fakes:Failinghang-v0", *SHORT)
    while not list(tmp_path.glob("runs/*/fake/*/seed*/metrics.csv")):
        time.sleep(0.01)
    time.sleep(1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert finish(process)[0] == 130


def kill_and_resume(tmp_path: Path, kills: int, rng: random.Random) -> int:
    """kill -9 at random moments, again and again; what comes of it is the uninterrupted run.

    Returns:
        How often the run was killed before its end: all `kills` unless the machine hurries at the wrong moment.
    """
    argv = [*LONG, "--total-timesteps", str(1000 * kills)]
    begin = time.monotonic()
    whole = trained(tmp_path, *argv)
    seconds = time.monotonic() - begin
    (tmp_path / "part").mkdir()
    process = start(tmp_path / "part", *argv)
    for killed in range(kills):
        while not (runs := list((tmp_path / "part").glob("runs/*/fake/*/seed*/metrics.csv"))):
            time.sleep(0.005)
        run = runs[0].parent
        if killed:
            line = process.stdout.readline() if process.stdout else ""
            if line.startswith("the run is complete"):
                assert finish(process)[0] == 0
                break
            assert line.startswith("fake on "), process.communicate()
        time.sleep(rng.uniform(0, seconds / kills))
        process.kill()
        process.communicate()
        _, refused = Store(run / "checkpoints").newest()
        assert refused == []
        process = start(tmp_path / "part", "resume", str(run))
    else:
        killed = kills
        assert finish(process)[0] == 0
    assert_runs_agree(run, whole)
    return killed


def test_kill_9_and_resume(tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, 3, random.Random(0)) > 0


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kill_9_and_resume_thirty_times(tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, 30, random.Random(1)) == 30


def back_to(run: Path, number: int) -> int:
    """Removes the newest checkpoints, as if the run had been killed before; the step that it goes on from."""
    store = Store(run / "checkpoints")
    for path in store.paths()[:number]:
        shutil.rmtree(path)
    found, _ = store.newest()
    return 0 if found is None else found.env_step


@pytest.mark.parametrize("number", [1, 2])
def test_metrics_and_evaluations_have_no_duplicates(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a kill the log is ahead of the last checkpoint, or there is none yet."""
    run = trained(tmp_path)
    shutil.copytree(run, tmp_path / "whole")
    assert back_to(run, number) == {1: 360, 2: 0}[number]
    with (run / "metrics.csv").open("a") as file:
        file.write("399,12")  # a line that was not finished
    assert main(["resume", str(run)]) == 0
    assert_runs_agree(run, tmp_path / "whole")
    assert ("from step 360 of 400" in capsys.readouterr().out) == (number == 1)
    entries = json.loads((run / "manifest.json").read_text())["resumed"]
    assert [entry["env_step"] for entry in entries] == [{1: 360, 2: 0}[number]]


def test_a_complete_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "lock"}
    assert main(["resume", str(run)]) == 0
    assert "the run is complete: 400 environment steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "lock"} == before


def test_a_run_that_was_moved_goes_on(tmp_path: Path) -> None:
    run = trained(tmp_path)
    shutil.copytree(run, tmp_path / "whole")
    back_to(run, 1)
    shutil.move(run, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "runs")
    assert main(["resume", str(tmp_path / "elsewhere")]) == 0
    assert_runs_agree(tmp_path / "elsewhere", tmp_path / "whole")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path)
    shutil.copytree(run, tmp_path / "whole")
    last = Store(run / "checkpoints").paths()[0]
    (last / "learner.safetensors").write_bytes(b"")
    assert main(["resume", str(run)]) == 0
    err = capsys.readouterr().err
    assert f"note: checkpoint {last} is damaged: learner.safetensors has 0 bytes, not " in err
    assert f"note: the damaged checkpoint is now {last.with_name('damaged-' + last.name)}" in err
    assert_runs_agree(run, tmp_path / "whole")


def test_no_checkpoint_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path)
    for path in Store(run / "checkpoints").paths():
        (path / "run.json").unlink()
    assert main(["resume", str(run)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: none of the 2 checkpoints of ")
    assert len(Store(run / "checkpoints").paths()) == 2  # nothing was touched


def test_a_checkpoint_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path)
    shutil.move(run, tmp_path / "one")
    shutil.rmtree(tmp_path / "runs")
    other = trained(tmp_path, *SHORT, "--seed", "1")
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(tmp_path / "one/checkpoints", other / "checkpoints")
    assert main(["resume", str(other)]) == 2
    assert "belongs to another run" in capsys.readouterr().err


def test_two_processes_on_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    process = start(tmp_path, *LONG, "--total-timesteps", "10000000")
    while not (found := list(tmp_path.glob("runs/*/fake/*/seed*/metrics.csv"))):
        time.sleep(0.01)
    run = found[0].parent
    assert main(["resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert f"{run} is in use by process {process.pid} on " in err
    assert err.count("\n") == 1
    process.kill()
    process.communicate()
    with lock(run):  # the lock has died with the process
        pass


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["train", "fake", "--run-root", "file"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"error: cannot make the folder of the run in {tmp_path}/file/")
    assert err.endswith("choose another --run-root")

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **kwargs)

    real = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert main(["resume", str(run)]) == 2
    assert capsys.readouterr().err == f"error: cannot write to {run}: Permission denied\n"


def test_a_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """In a checkpoint, and in the metrics: one sentence, and the run can go on."""
    whole = trained(tmp_path)
    shutil.move(whole, tmp_path / "whole")
    shutil.rmtree(tmp_path / "runs")
    calls = [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 40:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["train", "fake", *SHORT]) == 1
    run = the_run(tmp_path)
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: the ")
    assert "No space left on device; " in err
    assert err.endswith(f"with: diffac resume {run}")
    assert main(["resume", str(run)]) == 0
    assert_runs_agree(run, tmp_path / "whole")


@pytest.mark.parametrize("how", ["raise", "hang", "die"])
def test_an_environment_that_fails_loses_nothing(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--env-id", f"fakes:Failing{how}-v0", "--asynchronous", "--step-timeout", "1", *SHORT, "--num-envs", "4"]
    assert main(["train", "fake", *argv]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    assert " at its step 30 (counted over all episodes)" in err
    assert "; go on from step 80 with: diffac resume " in err
    found, _ = Store(the_run(tmp_path) / "checkpoints").newest()
    assert found is not None
    assert found.env_step == 80


def test_a_clock_that_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path)
    shutil.move(whole, tmp_path / "whole")
    shutil.rmtree(tmp_path / "runs")
    real, begin = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: 2 * begin - real() - 1e6)
    run = trained(tmp_path)
    back_to(run, 1)
    monkeypatch.setattr(time, "time", lambda: real() - 1e7)
    assert main(["resume", str(run)]) == 0
    assert_runs_agree(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": 2.0}, "says gain: 2.0, but the run was trained with 1.0; put it back"),
        ({"seed": 5}, "says seed: 5, but the run was trained with 0"),
        ({"gian": 2.0}, "did you mean 'gain'?"),
    ],
)
def test_a_changed_configuration_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path)
    back_to(run, 1)
    before = (run / "metrics.csv").read_bytes()
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    assert main(["resume", str(run)]) == 2
    assert message in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before


def test_how_checkpoints_are_written_may_change(tmp_path: Path) -> None:
    run = trained(tmp_path)
    shutil.copytree(run, tmp_path / "whole")
    back_to(run, 1)
    path = run / "config.yaml"
    change = {"checkpoint_interval": 7, "asynchronous": True, "progress": False}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    assert main(["resume", str(run)]) == 0
    assert_runs_agree(run, tmp_path / "whole")


@pytest.mark.parametrize("first", ["torch", "equinox"])
def test_resume_in_the_other_backend(
    first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], both: SimpleNamespace
) -> None:
    """Through the command line; afterwards the run belongs to the other backend."""
    then = {"torch": "equinox", "equinox": "torch"}[first]
    argv = ["sac", "--backend", first, "--env-id", "Pendulum-v1", "--hidden-sizes", "8", "8", "--no-progress"]
    argv += ["--total-timesteps", "300", "--learning-starts", "100", "--batch-size", "8", "--num-envs", "2"]
    argv += ["--checkpoint-interval", "140", "--eval-interval", "300", "--eval-episodes", "1"]
    assert main(["train", *argv]) == 0
    (run,) = tmp_path.glob("runs/*/sac/*/seed*")
    step = back_to(run, 1)
    capsys.readouterr()
    assert main(["resume", str(run), "--backend", then]) == 0
    captured = capsys.readouterr()
    assert f"note: the run goes on in {then} from the weights and optimiser states of {first}" in captured.err
    assert f"backend {then}" in captured.out
    assert yaml.safe_load((run / "config.yaml").read_text())["backend"] == then
    assert json.loads((run / "manifest.json").read_text())["resumed"][0]["env_step"] == step == 280
    assert main(["resume", str(run)]) == 0
    assert main(["resume", str(run), "--backend", "tensorflow"]) in (0, 2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resume"], "diffac resume needs RUN: Folder of the run"),
        (["resume", "nowhere"], "nowhere is not the folder of a run"),
        (["resume", "."], " is not the folder of a run"),
    ],
)
def test_mistakes_cost_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# configurations


def test_a_configuration_is_replayed(tmp_path: Path) -> None:
    run = trained(tmp_path, "--gain", "2.5", "--hidden-sizes", "3", *SHORT)
    config = str(run / "config.yaml")
    assert main(["train", "--config", config, "--seed", "3"]) == 0
    assert main(["train", "fake", f"--config={config}", "--gain", "4", "--seed", "4"]) == 0
    made = {path.parent.name[:5]: yaml.safe_load(path.read_text()) for path in tmp_path.rglob("config.yaml")}
    assert made["seed3"] == made["seed0"] | {"seed": 3}
    assert made["seed4"] == made["seed0"] | {"seed": 4, "gain": 4.0}
    assert next(iter(made["seed0"])) == "recipe"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: fake\ngian: 2.0", "unknown key in c.yaml: 'gian'; did you mean 'gain'?"),
        ("recipe: fake\ntotal_timestep: 2", "did you mean 'total_timesteps'?"),
        ("recipe: fake\ngain: much", "c.yaml: gain must be a number, got 'much'"),
        ("recipe: fake\ngain: 3e-4", "c.yaml: gain must be a number, got '3e-4' (write 0.0003: "),
        ("recipe: fake\ngain: true", "c.yaml: gain must be a number, got True"),
        ("recipe: fake\nseed: 1.5", "c.yaml: seed must be a whole number, got 1.5"),
        ("recipe: fake\nseed: null", "c.yaml: seed must be a whole number, got null"),
        ("recipe: fake\nasynchronous: 1", "c.yaml: asynchronous must be true or false, got 1"),
        ("recipe: fake\nenv_id: 7", "c.yaml: env_id must be a text, got 7"),
        ("recipe: fake\nhidden_sizes: 7", "c.yaml: hidden_sizes must be a list, each entry a whole number, got 7"),
        ("recipe: fake\nhidden_sizes: [7, a]", "hidden_sizes must be a list, each entry a whole number, got [7, 'a']"),
        ("recipe: fake\nupdates_per_call: x", "updates_per_call must be a whole number or null, got 'x'"),
        ("recipe: fake\nlearning_starts: 90", "c.yaml: learning_starts must be less than total_timesteps (80)"),
        ("recipe: fakke\nseed: 1", "unknown recipe 'fakke'; did you mean 'fake'?"),
        ("recipe: sac\nactivation: mihs", "c.yaml: activation must be one of mish, gelu, relu, silu, tanh, got 'mihs'"),
        ("seed: 1", "c.yaml must name its recipe, as in `recipe: sac`"),
        ("- 1", "c.yaml must hold lines like `seed: 0`, got list"),
        ("recipe: [", "c.yaml is no YAML: "),
        (None, "c.yaml cannot be read: No such file or directory"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_made(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    assert main(["train", "--config", "c.yaml"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["c.yaml"])


def test_a_configuration_beside_other_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("recipe: fake\n")
    assert main(["train", "sac", "--config", "c.yaml"]) == 2
    assert "c.yaml is a configuration of fake, not of sac" in capsys.readouterr().err
    assert main(["train", "--config", "c.yaml", "--preset", "loud"]) == 2
    assert "--config holds all values" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@dataclasses.dataclass(frozen=True)
class Odd:
    """Fields of the rarer kinds."""

    pair: tuple[int, str] = (1, "a")
    maybe: float | None = None
    other: Any = None


def test_rarer_types() -> None:
    assert make_config(Odd, {"pair": [2, "b"], "maybe": 3, "other": {"x": 1}}, "f") == Odd((2, "b"), 3.0, {"x": 1})
    for bad in ({"pair": [2]}, {"pair": ["b", 2]}, {"maybe": "x"}):
        with pytest.raises(UsageError, match=f"f: {next(iter(bad))} must be"):
            make_config(Odd, bad, "f")


def test_a_recipe_that_is_a_script_is_resumed_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never silently by the installed recipe of the same name."""
    script = tmp_path / "mine.py"
    script.write_text((TESTS / "fake_recipe.py").read_text().replace("gain: float = 1.0", "gain: float = 7.0"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}

    def python(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "mine.py", *argv]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert python(*SHORT).returncode == 0
    run = the_run(tmp_path)
    back_to(run, 1)
    assert main(["resume", str(run)]) == 1
    said = capsys.readouterr().err
    assert f"was trained by a script, '{script}' according to its manifest.json;" in said
    assert said.endswith(f" with the arguments: resume {run}\n")
    assert main(["train", "--config", str(run / "config.yaml")]) == 1
    assert capsys.readouterr().err.endswith(f" with the arguments: --config {run / 'config.yaml'}\n")
    done = python("resume", str(run))
    assert done.returncode == 0, done.stderr
    assert "from step 360 of 400" in done.stdout
