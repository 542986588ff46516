"""Seeds that train together become what they become alone, and the end of one is not the end of the others."""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import io
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_recipe
import fakes
import numpy as np
import pytest
import yaml
from conftest import load_backend
from rich.console import Console

import diffac.recipes
from diffac.checkpoints import Checkpoint, Store
from diffac.cli import main
from diffac.lanes import Closed, Lanes, OneByOne, group_of, in_lanes
from diffac.logging.seeds import SeedsConsole
from diffac.protocols import Transition
from diffac.recipes import load_recipe

TINY: dict[str, Any] = {"num_envs": 2, "batch_size": 4, "hidden_sizes": (8, 8), "learning_starts": 4}
OWN: dict[str, dict[str, Any]] = {
    "sac": {},
    "dacer": {"num_diffusion_steps": 2, "temperature_interval": 10},
    "dacer2": {"num_diffusion_steps": 2, "temperature_interval": 10},
    "sdac": {"num_diffusion_steps": 2, "num_candidates": 2, "num_particles": 3, "temperature_interval": 10},
    "dpmd": {"num_diffusion_steps": 2, "num_candidates": 2, "temperature_interval": 10},
}
"""Recipe -> what makes it small."""


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is registered as a third party's; runs go to an empty folder."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.recipes.GROUP)]
    monkeypatch.setattr(diffac.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)


def patched(monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int], change: Callable[[Any], Any]) -> None:
    """Seeds of the recipe `fake` get the learner that `change` makes of theirs."""
    build = fake_recipe.build

    def other(config: Any, obs_dim: int, action_dim: int) -> tuple[Any, Any, Any]:
        learner, actor, critic = build(config, obs_dim, action_dim)
        return (change(learner) if config.seed in seeds else learner), actor, critic

    monkeypatch.setattr(fake_recipe, "build", other)


def folders(root: Path = Path("runs")) -> dict[int, Path]:
    """Seed -> folder of its run."""
    found = {yaml.safe_load(path.read_text())["seed"]: path.parent for path in root.absolute().rglob("config.yaml")}
    return dict(sorted(found.items()))


def last(folder: Path) -> Checkpoint:
    checkpoint, refused = Store(folder / "checkpoints").newest()
    assert checkpoint is not None
    assert refused == []
    return checkpoint


def assert_close(one: Any, other: Any, rtol: float) -> None:
    """Arrays of the same names agree, each relative to its greatest number."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        scale = float(np.abs(array).max(initial=1e-30))
        np.testing.assert_allclose(other[name], array, rtol=0, atol=rtol * scale, err_msg=name)


def metrics(folder: Path) -> list[dict[str, float]]:
    """All lines of a run, without times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell and not name.startswith("time/")}
            for row in csv.DictReader(file)
        ]


def assert_same_runs(one: Path, other: Path, rtol: float) -> None:
    """Configuration, learner, replay memory, metrics and evaluations agree."""
    left, right = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (one, other))
    assert {**left, "run_root": None} == {**right, "run_root": None}
    a, b = last(one), last(other)
    assert (a.env_step, a.manifest["updates"]) == (b.env_step, b.manifest["updates"])
    assert_close(a.learner_arrays(), b.learner_arrays(), rtol)
    rows = [np.concatenate([np.load(path) for path in sorted(c.folder.glob("replay_*.npy"))]) for c in (a, b)]
    assert_close(*({name: np.asarray(r[name], float) for name in r.dtype.names} for r in rows), rtol)
    lines = metrics(one), metrics(other)
    assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
    for mine, theirs in zip(*lines, strict=True):
        for name, value in mine.items():
            np.testing.assert_allclose(theirs[name], value, rtol=rtol, atol=rtol, err_msg=name)
    with np.load(one / "evaluations.npz") as mine, np.load(other / "evaluations.npz") as theirs:
        assert_close(dict(mine), dict(theirs), rtol)
    assert Store(one / "best").best().env_step == Store(other / "best").best().env_step


# --- the learner ---


def built(recipe: str, backend: str, seeds: int) -> tuple[list[Any], list[Any]]:
    """Learners and their first states, in float32."""
    module, b = load_recipe(recipe), importlib.import_module(f"diffac_{backend}")
    learners, states = [], []
    for seed in range(seeds):
        config = module.Config(**TINY, **OWN[recipe], seed=seed, backend=backend, total_timesteps=100)
        learner, actor, critic = module.build(config, 3, 2)
        state = learner.init(actor, critic)
        arrays = b.to_arrays(state)
        arrays = {n: a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
        learners.append(learner)
        states.append(b.from_arrays(state, arrays))
    return learners, states


def batches(rng: np.random.Generator, updates: int = 3, size: int = 4) -> Transition:
    def numbers(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (updates, size, *shape)).astype(np.float32)

    return Transition(numbers(3), numbers(2), numbers(), numbers(3), rng.random((updates, size)) < 0.2)


FORMS = [(recipe, False) for recipe in OWN] + [(recipe, True) for recipe in ("sac", "dacer2")]
"""Recipe, and whether operations are done for all seeds at once; compiling takes long, so not every pair is here."""


@pytest.mark.parametrize(("recipe", "vectorised"), FORMS)
def test_each_seed_is_trained_as_alone(recipe: str, vectorised: bool) -> None:
    """30 updates in float32, temperature included: parameters, optimisers, metrics, actions."""
    backend = load_backend("equinox")
    from diffac_equinox.seeds import StackedSeeds

    seeds, fused = 2, 3 if recipe == "sac" else 1
    learners, states = built(recipe, "equinox", seeds)
    group = StackedSeeds(learners[0], states, vectorised=vectorised)
    _, alone = built(recipe, "equinox", seeds)
    rng = np.random.default_rng(0)
    for call in range(30 // fused):
        given = [batches(rng, fused) for _ in range(seeds)]
        keys = [100 * seed + call for seed in range(seeds)]
        together = group.update(given, keys)
        for seed, learner in enumerate(learners):
            alone[seed], own = learner.update(alone[seed], given[seed], keys[seed])
            assert own.names == together[seed].names
            np.testing.assert_allclose(together[seed].numbers, own.numbers, rtol=1e-5, atol=1e-6)
    spec = learners[0].act_noise_spec((4, 2))
    noise = [diffac.draw(rng, spec) for _ in range(seeds)]
    obs = [rng.uniform(-1, 1, (4, 3)).astype(np.float32) for _ in range(seeds)]
    actions = group.act(obs, noise)
    for seed, learner in enumerate(learners):
        mine = backend.to_arrays(alone[seed])
        assert all(array.dtype in (np.float32, np.int32, np.uint32, bool) for array in mine.values())
        assert_close(mine, backend.to_arrays(group.state(seed)), 1e-5)
        np.testing.assert_allclose(actions[seed], learner.act(alone[seed], obs[seed], noise[seed]), atol=1e-5)


def test_a_seed_that_has_ended_changes_nothing_for_the_others() -> None:
    backend = load_backend("equinox")
    results = []
    for ended in (False, True):
        learners, states = built("sac", "equinox", 2)
        group = group_of(learners, states)
        rng = np.random.default_rng(0)
        group.update([batches(rng), batches(rng)], [1, 2])
        pair: list[Any] = [batches(rng), batches(rng)]
        group.update([None, pair[1]] if ended else pair, [None if ended else 3, 4])
        spec = learners[0].act_noise_spec((4, 2))
        draws: list[Any] = [diffac.draw(rng, spec) for _ in range(2)]
        obs: list[Any] = [np.ones((4, 3), np.float32)] * 2
        action = group.act([None, obs[1]] if ended else obs, [None, draws[1]] if ended else draws)[1]
        results.append({**backend.to_arrays(group.state(1)), "action": action})
    assert_close(*results, rtol=0)


def test_what_cannot_be_trained_together_is_trained_one_by_one() -> None:
    load_backend("equinox")
    learners, states = built("sac", "equinox", 2)
    other, _ = built("dacer", "equinox", 1)
    assert not isinstance(group_of(learners, states), OneByOne)
    learners, states = built("sac", "equinox", 2)
    assert isinstance(group_of([learners[0], *other], states), OneByOne)
    states[1], _ = learners[1].update(states[1], batches(np.random.default_rng(0)), 0)
    with pytest.raises(diffac.UsageError, match="equally many updates"):
        group_of(learners, states)


# --- whole runs ---

RUN = ["train", "sac", "--env-id", "Pendulum-v1", "--total-timesteps", "60", "--learning-starts", "20"]
RUN += ["--hidden-sizes", "8", "8", "--batch-size", "4", "--num-envs", "2", "--log-interval", "10"]
RUN += ["--eval-interval", "30", "--eval-episodes", "2", "--checkpoint-interval", "60"]


def test_runs_are_those_of_the_seeds_alone(backend: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run = [*RUN, "--backend", backend.name]
    assert main([*run, "--seed", "3", "--num-seeds", "2", "--run-root", "together"]) == 0
    captured = capsys.readouterr()
    assert "seeds 3 to 4 together" in captured.out
    assert captured.out.count("final return") == 2
    assert ("takes as long" in captured.err) == (backend.name == "torch")
    together = folders(Path("together"))
    assert list(together) == [3, 4]
    for seed, folder in together.items():
        assert "num_seeds" not in yaml.safe_load((folder / "config.yaml").read_text())
        assert main([*run, "--seed", str(seed), "--run-root", "alone"]) == 0
        assert_same_runs(folders(Path("alone"))[seed], folder, 0.0 if backend.name == "torch" else 1e-5)


@pytest.mark.parametrize("flags", [[], ["--asynchronous"]], ids=["synchronous", "asynchronous"])
def test_environments_in_processes(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The fake learner goes one by one; it needs no framework."""
    run = ["train", "fake", "--num-envs", "2", "--log-interval", "20", "--checkpoint-interval", "40"]
    assert main([*run, "--num-seeds", "2", *flags, "--run-root", "together"]) == 0
    assert ("4 processes of environments" in capsys.readouterr().out) == bool(flags)
    for seed in (0, 1):
        assert main([*run, "--seed", str(seed), *flags, "--run-root", "alone"]) == 0
        assert_same_runs(folders(Path("alone"))[seed], folders(Path("together"))[seed], 0.0)


def test_a_seed_that_diverges_ends_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def diverge(learner: Any) -> Any:
        learner.losses = {5: {"critic_loss": float("nan")}}
        return learner

    run = ["train", "fake", "--log-interval", "5", "--checkpoint-interval", "20"]
    assert main([*run, "--seed", "2", "--run-root", "alone"]) == 0
    patched(monkeypatch, [1], diverge)
    assert main([*run, "--num-seeds", "3"]) == 1
    captured = capsys.readouterr()
    assert "seed 1 has failed, the others go on: training diverged" in captured.err
    *_, what, error = captured.err.splitlines()
    assert what.startswith("note: seed 1: training diverged: the critic's loss")
    assert error == "error: 1 of 3 seeds failed"
    assert "mean over 2 seeds" in captured.out
    found = folders()
    assert [last(folder).env_step for folder in found.values()] == [80, 40, 80]
    assert_same_runs(folders(Path("alone"))[2], found[2], 0.0)


def test_an_environment_that_fails_ends_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """Here that of all seeds."""
    run = ["train", "fake", "--env-id", "fakes:Failingraise-v0", "--total-timesteps", "200"]
    assert main([*run, "--num-seeds", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("the gears are stuck") == 4
    assert "error: 2 of 2 seeds failed" in captured.err
    assert "mean over" not in captured.out


class Killer(fakes.FakeLearner):
    """Sends its process a signal at its third update."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum, self.calls = signum, 0

    def update(self, state: Any, batches: Any, key: int) -> Any:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), self.signum)
        return super().update(state, batches, key)


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Tests that a shell has started in the background ignore Ctrl-C, and so would the runs in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(signum: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every seed saves itself, and each goes on alone to what it would have become."""
    assert main(["train", "fake", "--num-seeds", "2", "--run-root", "whole"]) == 0
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patched(patch, [1], lambda _: Killer(signum))
        assert main(["train", "fake", "--num-seeds", "2"]) == code
    assert signal.getsignal(signum) == before
    found = folders()
    message = capsys.readouterr().err
    for seed, folder in found.items():
        assert 20 < last(folder).env_step < 80
        assert f"seed {seed}: interrupted; what was written until then is in {folder}; go on from step" in message
        assert f"diffac resume {folder}" in message
        assert main(["resume", str(folder)]) == 0
        assert_same_runs(folders(Path("whole"))[seed], folder, 0.0)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    patched(monkeypatch, [0, 1], lambda _: Killer(signal.SIGINT))
    assert main(["train", "fake", "--num-seeds", "2"]) == 130
    assert capsys.readouterr().err.count(f"diffac resume {Path('runs').absolute()}") == 2
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name.startswith("lane")]


class Mistaken(fakes.FakeLearner):
    """Has a mistake in its program that shows at the fourth step with its policy."""

    calls = 0

    def act_noise_spec(self, shape: tuple[int, ...], *, deterministic: bool = False) -> dict[str, Any]:
        self.calls += 1
        return {} if self.calls < 4 and 1 / 0 else super().act_noise_spec(shape, deterministic=deterministic)


def test_a_mistake_in_a_program_stops_all_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, [1], lambda _: Mistaken())
    with pytest.raises(ZeroDivisionError):
        main(["train", "fake", "--num-seeds", "3"])
    found = folders()
    assert [len(Store(folder / "checkpoints").paths()) for folder in found.values()] == [1, 0, 1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-seeds", "0"], "num_seeds must be at least 1, got 0"),
        (["--num-seeds", "2", "--track", "wandb"], "--track wandb follows one run in a process, not 2"),
        (["--num-seeds", "2", "--env-id", "fakes:Rondom-v0"], "unknown environment"),
        (["--num-seeds", "two"], "two"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "fake", *argv]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fake", "--help"]) == 0
    assert "--num-seeds" in capsys.readouterr().out
    assert main([]) == 0
    assert "--num-seeds" in capsys.readouterr().out


# --- lanes and display ---


class Recorder:
    """A group that writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def update(self, batches: Any, keys: Any) -> Any:
        self.calls.append(list(keys))
        if "bad" in keys:
            raise ZeroDivisionError
        return [key and key * 10 for key in keys]

    def act(self, obs: Any, noise: Any) -> Any:
        raise NotImplementedError

    def state(self, index: int) -> Any:
        return index


def ask(keys: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
    """What lanes get that ask for updates with these keys, and the calls that are made."""
    group = Recorder()
    lanes, answers = Lanes(group, len(keys)), [[] for _ in keys]

    def work(lane: int) -> None:
        for key in keys[lane]:
            try:
                answers[lane].append(lanes.together(lane, "update", None, key))
            except ZeroDivisionError:
                answers[lane].append("error")
        answers[lane].append(lanes.alone(lane, lambda group: group.state(lane)))

    in_lanes(lanes, [lambda lane=lane: work(lane) for lane in range(len(keys))])
    return answers, group.calls


def test_lanes_meet_and_leave() -> None:
    answers, calls = ask([[1, 2, 3], [4], [5, 6]])
    assert calls == [[1, 4, 5], [2, None, 6], [3, None, None]]
    assert answers == [[10, 20, 30, 0], [40, 1], [50, 60, 2]]


def test_an_error_of_a_joint_call_is_everybodys() -> None:
    answers, calls = ask([[1, 2], ["bad", 3]])
    assert answers == [["error", 20, 0], ["error", 30, 1]]
    assert len(calls) == 2


def test_lanes_are_told_when_nobody_serves_them() -> None:
    lanes = Lanes(Recorder(), 2)
    told = []

    def waits() -> None:
        try:
            lanes.together(0, "update", None, 1)
        except Closed:
            told.append(0)
            with pytest.raises(Closed):
                lanes.alone(0, lambda group: None)

    def breaks(group: Any) -> None:
        raise KeyboardInterrupt

    def interrupts() -> None:
        with pytest.raises(Closed):
            lanes.alone(1, breaks)
        told.append(1)

    with pytest.raises(KeyboardInterrupt):
        in_lanes(lanes, [waits, interrupts])
    assert sorted(told) == [0, 1]


@pytest.mark.parametrize(
    ("failed", "shown"),
    [
        (False, ["100/1000", "2 seeds  return 15  eval 8 (7..9)  steps/s 200  updates/s 40"]),
        (True, ["400/1000", "1 of 2 seeds  return 20  eval 7 (7..7)  steps/s 100  updates/s 20"]),
    ],
)
def test_bar(failed: bool, shown: list[str]) -> None:
    out = io.StringIO()
    console = SeedsConsole([3, 4], 1000, console=Console(file=out, force_terminal=True, width=140))
    console.writer(3).write(200, {**LINE, "eval/mean_reward": 9.0})
    console.writer(4).write(100, {**LINE, "rollout/ep_rew_mean": 20.0, "eval/mean_reward": 7.0})
    if failed:
        console.drop(3)
        console.writer(3).write(300, LINE)
        console.writer(4).write(400, {})
    console.close()
    final = re.sub("\x1b[^A-Za-z]*[A-Za-z]", "", out.getvalue()).split("\r")[-1]
    assert [text in final for text in shown] == [True, True], final


def test_plain_lines() -> None:
    out = io.StringIO()
    console = SeedsConsole([3, 4], 1000, bar=False, console=Console(file=out, force_terminal=True, width=140))
    console.writer(4).write(100, LINE)
    console.close()
    assert out.getvalue() == "seed 4: 100/1,000 steps  return 10  critic 1  steps/s 100  updates/s 20\n"


LINE = {"rollout/ep_rew_mean": 10.0, "time/fps": 100.0, "time/updates_per_second": 20.0, "train/critic_loss": 1.0}


def test_trees_without_arrays_are_stacked_too() -> None:
    """The noise of a policy that needs none."""
    load_backend("equinox")
    from diffac_equinox.seeds import _stack

    assert _stack([{}, None, {}]) == {}
