"""Checkpoints and run folders that somebody prepared, with checksums that are right: one sentence, nothing else.

A checkpoint of a real run is changed in one place and signed again, in every place of its manifest, its JSON and its
arrays, with values of every kind.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_recipe
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import diffac.runs.recipes
from diffac.agent import Agent
from diffac.commands.main import main
from diffac.commands.train import parse
from diffac.data.env_states import restore_env, save_env
from diffac.data.environments import make_envs
from diffac.data.replay import ReplayBuffer
from diffac.errors import RunError, UsageError
from diffac.runs.checkpoints import read_checkpoint
from diffac.runs.store import Store
from diffac.training.snapshot import check_host

STREAMS = ("envs", "random_actions", "acting", "replay", "updates", "evaluation")
ABSENT = object()
VALUES = [ABSENT, None, True, -1, 0.5, 2**70, "x", "../../x", "\x1b[31m", [], [1], [[1], [2]], {}, {"x": 1}]
"""Put in place of every value in turn."""
FREE = (
    ("config",),
    ("environments", "envs"),
    ("environments", "restart"),
    ("log", "sums"),
    ("log", "seconds"),
    ("log", "metrics"),
    ("versions",),
)
"""Parts that may hold entries of any name, or that are looked at where they are used."""


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 160 steps that was stopped at step 120, with the checkpoints before it."""
    with monkeypatch.context() as patch:
        patch.setattr(Store.__init__, "__defaults__", (40,))
        argv = ["--total-timesteps", "160", "--checkpoint-interval", "40", "--eval-interval", "40"]
        assert main(["train", "fake", "--no-progress", "--num-envs", "4", "--buffer-size", "100", *argv]) == 0
    (found,) = Path().glob("runs/*/fake/*/seed*")
    for path in Store(
        found / "checkpoints"
    ).paths():  # at each step there is one before its evaluation and one after it
        if path.name not in ("step_000000000080", "step_000000000120"):
            shutil.rmtree(path)
    return found


def newest(run: Path) -> Path:
    return run / "checkpoints/step_000000000120"


def own_files(folder: Path) -> None:
    """Cuts the files off from those of other checkpoints, which are hard links."""
    for path in folder.iterdir():
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)


def sign(folder: Path, manifest: Any = None) -> None:
    """Makes all checksums right."""
    if manifest is None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            data = (folder / name).read_bytes()
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest.pop("sha256", None)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is a value: of lists only in the first entry."""
    if path:
        yield path
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from places(value, (*path, name))
    elif isinstance(tree, list) and tree:
        yield from places(tree[0], (*path, 0))


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    node = tree
    for name in path[:-1]:
        node = node[name]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def look_at_everything(folder: Path) -> None:
    """What a run looks at before it goes on."""
    checkpoint = read_checkpoint(folder)
    _ = checkpoint.config, checkpoint.entry("versions")
    check_host(checkpoint.host(), "run.json", num_envs=4, obs_dim=3)
    checkpoint.check_replay(100, 3, 1)
    checkpoint.restore_replay(ReplayBuffer(100, 3, 1))
    checkpoint.learner_arrays()


def same_kind(old: Any, new: Any) -> bool:
    """Whether the new value may well be right."""
    if isinstance(old, int | float) and not isinstance(old, bool):
        return isinstance(new, int | float) and not isinstance(new, bool)
    return new is not ABSENT and type(old) is type(new)


@pytest.mark.parametrize("file", ["manifest.json", "run.json"])
def test_every_value_of_another_kind_is_refused(file: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = newest(run)
    own_files(folder)
    look_at_everything(folder)
    tree = json.loads((folder / file).read_text())
    tried = refused = 0
    accepted = []
    for path in list(places(tree)):
        for value in VALUES:
            if value == at(tree, path) and type(value) is type(at(tree, path)):
                continue
            new = changed(tree, path, value)
            tried += 1
            if file == "manifest.json":
                if path == ("sha256",):
                    (folder / file).write_text(json.dumps(new))
                else:
                    sign(folder, new)
            else:
                (folder / file).write_text(json.dumps(new))
                sign(folder)
            try:
                look_at_everything(folder)
            except UsageError as error:
                refused += str(error).isprintable()
            else:
                if not same_kind(at(tree, path), value) and not any(path[: len(part)] == part for part in FREE):
                    accepted.append((path, value))
            (folder / file).write_text(json.dumps(tree))
            sign(folder)
    with capsys.disabled():
        print(f"\n{file}: {refused} of {tried} refused", end=" ")
    optional = [(("environments",), ABSENT), (("evaluations", 0), ABSENT), (("log", "when", 0), ABSENT)]
    optional += [(("log", "episodes", 0), ABSENT)]
    assert [entry for entry in accepted if entry not in optional] == []
    assert tried > 300


BAD_ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "missing": lambda a: None,
    "of another shape": lambda a: np.zeros((*a.shape, 2), a.dtype),
    "of bools": lambda a: np.zeros(a.shape, bool),
    "NaN": lambda a: np.full(a.shape, np.nan),
    "infinite": lambda a: np.full(a.shape, np.inf, np.float32),
    "of another kind": lambda a: np.zeros(a.shape, np.int64 if a.dtype.kind == "f" else np.float64),
    "negative": lambda a: np.full(a.shape, -1, a.dtype) if a.dtype.kind != "u" else None,
}


@pytest.mark.parametrize("how", BAD_ARRAYS)
def test_arrays_of_another_kind_are_refused(how: str, run: Path) -> None:
    folder = newest(run)
    own_files(folder)
    path = folder / "run.safetensors"
    arrays = load_file(path)
    for name, array in arrays.items():
        if name.startswith("/environments/envs") or (name.startswith("/log/metrics") and "of " not in how):
            continue
        if how == "negative" and not name.endswith("lengths"):
            continue
        new = BAD_ARRAYS[how](array)
        save_file({key: value for key, value in (arrays | {name: new}).items() if value is not None}, path)
        sign(folder)
        if how in ("of bools", "of another kind") and name.startswith("/log/metrics"):
            continue
        with pytest.raises(UsageError):
            look_at_everything(folder)


def set_json(file: str, *path: Any, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tree = changed(json.loads((folder / file).read_text()), path, value)
        if file == "manifest.json":
            sign(folder, tree)
        else:
            (folder / file).write_text(json.dumps(tree))
            sign(folder)

    return change


def set_text(file: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_text(text)
        sign(folder)

    return change


def set_array(file: str, name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = load_file(folder / file) | {name: value}
        save_file({key: array for key, array in arrays.items() if array is not None}, folder / file)
        sign(folder)

    return change


def point_past_the_data(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    sign(folder, changed(manifest, ("replay", "added"), 10**6))


def lie_about_rows(folder: Path) -> None:
    path = folder / "replay_000000000080_000000000120.npy"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(40,)", b"(10**12,)".replace(b"10**12", b"999"), 1)[: len(data)])
    sign(folder)


def nan_rows(folder: Path) -> None:
    path = folder / "replay_000000000080_000000000120.npy"
    rows = np.load(path)
    rows["obs"][3] = np.nan
    np.save(path, rows)
    sign(folder)


def strange_bools(folder: Path) -> None:
    path = folder / "replay_000000000080_000000000120.npy"
    rows = np.load(path)
    rows["terminated"].view(np.uint8)[5] = 7
    np.save(path, rows)
    sign(folder)


def a_link(folder: Path) -> None:
    path = folder / "learner.safetensors"
    path.rename(folder.parent.parent / "elsewhere")
    path.symlink_to("../../elsewhere")


def a_pipe(folder: Path) -> None:
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")


def leave_the_folder(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    first, end, name = manifest["replay"]["segments"][-1]
    outside = "../../../x.npy"
    shutil.copy(folder / name, folder / outside)
    manifest["files"][outside] = manifest["files"].pop(name)
    manifest["replay"]["segments"][-1] = [first, end, outside]
    sign(folder, manifest)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "deep run.json": set_text("run.json", "[" * 10**5),
    "many digits": set_text("run.json", '{"env_step": ' + "1" * 5000 + "}"),
    "run.json of nothing": set_text("run.json", "{}"),
    "run.json of text": set_text("run.json", "hello"),
    "no safetensors": set_text("learner.safetensors", "hello"),
    "no safetensors of the run": set_text("run.safetensors", ""),
    "a safetensors header that lies": set_text("learner.safetensors", "\x7f" * 8 + "{}"),
    "added past the data": point_past_the_data,
    "no transitions": set_json("manifest.json", "replay", "segments", value=[]),
    "another capacity": set_json("manifest.json", "replay", "capacity", value=99),
    "rows that are not there": lie_about_rows,
    "NaN in the transitions": nan_rows,
    "strange bools": strange_bools,
    "segments elsewhere": leave_the_folder,
    "a link": a_link,
    "a pipe": a_pipe,
    "a recipe of nobody": set_json("manifest.json", "config", "recipe", value=3),
    "no environment": set_json("manifest.json", "config", "env_id", value=[1]),
    "a count of environments": set_json("manifest.json", "config", "num_envs", value=2**70),
    "an unknown field": set_json("manifest.json", "config", "x", value=1),
    "no arrays": set_array("learner.safetensors", "weight", None),
    "NaN in the learner": set_array("learner.safetensors", "weight", np.array(np.nan)),
    "bools in the learner": set_array("learner.safetensors", "weight", np.array(True)),
    "a negative count": set_array("learner.safetensors", "updates", np.array(-5, np.int32)),
    "a list of counts": set_array("learner.safetensors", "updates", np.array([1, 2], np.int32)),
    "another generator": set_json("run.json", "streams", "acting", "bit_generator", value="test"),
}


def signed(run: Path, case: str) -> Path:
    folder = newest(run)
    own_files(folder)
    HOSTILE[case](folder)
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_resume_falls_back(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = signed(run, case)
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    captured = capsys.readouterr()
    assert "from step 80 of 160" in captured.out
    assert "note: the damaged checkpoint is now " in captured.err
    assert (folder.parent / f"damaged-{folder.name}").exists()


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_else_to_go_on_from(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = signed(run, case)
    for name in ("best", "checkpoints/step_000000000080"):
        shutil.rmtree(run / name)
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: none of the 1 checkpoints")
    code = main(["evaluate", str(run), "--episodes", "1"])
    assert code in (0, 2)  # some hold a policy all the same
    assert len(capsys.readouterr().err.splitlines()) <= (code == 2) + 1  # and what module is imported
    try:
        agent = Agent.load(folder)
        assert agent.predict(np.zeros(3))[0].shape == (1,)
        agent.learn(8)
        agent.close()
    except UsageError:
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 1), ("reset", 1), ("np_random", 1), ("__class__", 1), ("env", 1),
        ("_np_random", {"kind": "generator", "state": {"kind": "dict", "items": [["bit_generator", "test"]]}}),
    ],
)  # fmt: skip
def test_attributes_of_environments(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can set data of an environment, and nothing else; no name is looked up in a module."""
    monkeypatch.setattr(np.random, "test", lambda: pytest.fail("code of a file's choice has run"), raising=False)
    envs: Any = make_envs("fakes:Random-v0", 1)
    envs.reset(seed=[0])
    env = envs.envs[0].unwrapped
    state = save_env(env)
    state["layers"][0]["attributes"][name] = value
    with pytest.raises((RunError, UsageError)):
        restore_env(env, state)
    envs.close()


def test_every_name_that_is_written_is_a_link(run: Path) -> None:
    """Whatever a run writes on resume, evaluate or export: nothing outside its folder is made or changed."""
    victim = Path("victim").absolute()
    victim.mkdir()
    (victim / "file").write_text("precious")
    names = ["lock", "metrics.csv", "metrics.jsonl", "evaluations.npz", "config.yaml", "manifest.json"]
    places = [*names, *(f"new-{name}" for name in names), "metrics.csv.new"]
    places += ["checkpoints/new-step_000000000160", "checkpoints/old-step_000000000080", "best/new-step_000000000160"]
    places += ["checkpoints", "best", "evaluations", "videos", "exports"]
    for place in places:
        for target in ("file", "made"):
            copied = Path("copy")
            shutil.copytree(run, copied, symlinks=True)
            path = copied / place
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            folder = place in ("checkpoints", "best", "evaluations", "videos", "exports")
            path.symlink_to(victim if folder else victim / target)
            main(["resume", str(copied)])
            main(["evaluate", str(copied), "--episodes", "1"])
            assert [found.name for found in victim.iterdir()] == ["file"], place
            assert (victim / "file").read_text() == "precious", place
            shutil.rmtree(copied)


def test_garbage_in_the_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("metrics.csv", "metrics.jsonl"):
        with (run / name).open("ab") as file:
            file.write(b"\0" * 5000 + b"\n\xff\xfe\n1,2\n[]\n" + b"[" * 5000 + b"\n" + b"x" * 200_000 + b"\n123")
    assert main(["resume", str(run)]) == 0
    assert "held lines that are none of its own" in capsys.readouterr().err
    assert (run / "damaged-metrics.csv").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert lines[-1]["step"] == 160
    assert b"\0" not in (run / "metrics.csv").read_bytes()


def test_leftovers_of_a_complete_run(run: Path) -> None:
    assert main(["resume", str(run)]) == 0
    for name in ("checkpoints/old-step_000000000080", "best/new-step_000000000080"):
        (run / name).mkdir()
        (run / name / "file").write_text("")
    assert main(["resume", str(run)]) == 0
    assert not list(run.glob("*/old-*")) + list(run.glob("*/new-*"))


@pytest.mark.parametrize("left", [["config.yaml"], ["config.yaml", "new-manifest.json"], ["new-config.yaml"]])
def test_killed_before_its_manifest(left: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its configuration it begins, without it is cleaned away."""
    folder = Path("half")
    folder.mkdir()
    for name in left:
        shutil.copy(run / name.removeprefix("new-"), folder / name)
    capsys.readouterr()
    if "config.yaml" in left:
        assert main(["resume", str(folder)]) == 0
        assert "it begins now" in capsys.readouterr().err
        assert "from step" not in capsys.readouterr().out
        assert not list(folder.glob("new-*"))
        assert Store(folder / "checkpoints").newest()[0] is not None
    else:
        assert main(["resume", str(folder)]) == 2
        assert capsys.readouterr().err.endswith("it is removed, train anew\n")
        assert not folder.exists()


@pytest.mark.parametrize("root", ["/tmp/hostile-runs", "../elsewhere", "a/../../elsewhere", "link/x"])
def test_a_configuration_chooses_no_folder(root: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link").symlink_to("/tmp")
    text = (run / "config.yaml").read_text()
    Path("given.yaml").write_text(text.replace("run_root: runs", f"run_root: {root}"))
    capsys.readouterr()
    arguments = parse(fake_recipe, ["--config", "given.yaml", "--run-root", "runs"], "fake")[0]
    assert arguments.run_root == "runs"
    with pytest.raises(UsageError, match="add --run-root"):
        parse(fake_recipe, ["--config", "given.yaml"], "fake")


def test_only_what_can_be_read_is_written() -> None:
    """Else a checkpoint of our own would be refused: such environments restart."""
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    for value in (np.zeros(2, complex), np.array(["x"]), np.datetime64(3, "D"), 10**45, "\ud800", deep):
        envs: Any = make_envs("fakes:Random-v0", 1)
        envs.reset(seed=[0])
        envs.envs[0].unwrapped.extra = value
        with pytest.raises(RunError):
            save_env(envs.envs[0].unwrapped)
        envs.close()
