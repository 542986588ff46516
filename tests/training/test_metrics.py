"""What is logged: every name is explained, every number is right, nothing that is not finite passes unseen."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import gymnasium as gym
import numpy as np
import pytest
import yaml
from conftest import load_backend

from diffac.commands.main import main
from diffac.data.replay import ReplayBuffer
from diffac.errors import UsageError
from diffac.logging import JsonlWriter, TrackerWriter
from diffac.parts.metrics import columns
from diffac.protocols import Batch, Transition
from diffac.runs.checkpointer import Checkpointer
from diffac.runs.engine import start_engine
from diffac.runs.logs import rewind
from diffac.runs.store import Store
from diffac.training.interval_log import IntervalLog
from diffac.training.loop import train
from diffac.training.nonfinite import DivergenceError, diverged
from diffac_recipes import RECIPES, sac

PAGE = (Path(__file__).parents[2] / "docs/use/metrics.md").read_text()
TINY = {
    "total_timesteps": 60,
    "num_envs": 4,
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 100,
    "updates_per_env_step": 0.5,
    "eval_interval": 30,
    "eval_episodes": 1,
    "log_interval": 20,
    "hidden_sizes": (8, 8),
}


class Huge(fakes.Counter):
    """`Counter` whose rewards are finite, but not their squares in float32, from the 60th step on."""

    total = 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.total += 1
        obs, reward, *rest = super().step(action)
        return obs, 1e30 if self.total > 60 else reward, *rest


if "Huge-v0" not in gym.registry:
    gym.register("Huge-v0", Huge)


def lines_of(recipe: str, backend: str) -> list[tuple[int, dict[str, float]]]:
    """The lines of a run of milliseconds."""
    module, writer = importlib.import_module(RECIPES[recipe]), fakes.ListWriter()
    small = {"env_id": "fakes:Random-v0", "backend": backend, **TINY, "temperature_interval": 4}
    small |= {"num_diffusion_steps": 2, "num_candidates": 2, "num_particles": 2}
    names = {field.name for field in dataclasses.fields(module.Config)}
    config = module.Config(**{name: value for name, value in small.items() if name in names})
    engine, state = start_engine(module, config, 3, 1)
    train(engine, state, config, writer=writer)
    return writer.lines


# every name


def test_every_logged_name_is_explained() -> None:
    """From runs of all recipes; and no name is explained that nothing logs."""
    load_backend("torch")
    logged = {name for recipe in RECIPES for _, metrics in lines_of(recipe, "torch") for name in metrics}
    rows = re.findall(r"^\| (`\w+/.*?) \|", PAGE, re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`(\w+/\w+)`", row)]
    assert len(explained) == len(set(explained)) > 40
    assert logged == set(explained)


def test_explanations_have_all_columns() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `\w+/", line)]
    assert rows
    for row in rows:
        name, unit, meaning, *_ = cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5, name
        assert unit, name
        assert meaning, name


def test_both_backends_log_the_same_names() -> None:
    load_backend("torch")
    load_backend("equinox")
    torch, equinox = ([set(metrics) for _, metrics in lines_of("sac", name)] for name in ("torch", "equinox"))
    assert torch == equinox


# numbers of the host


def test_columns() -> None:
    table = columns([{"a": 1}, {"b": np.float32(0.5), "a": np.nan}, {}])
    assert table.keys() == {"a", "b"}
    np.testing.assert_array_equal(table["a"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(table["b"], [np.nan, 0.5, np.nan])
    assert columns([]) == {}
    rows = [{name: float(10 * i + j) for j, name in enumerate("abcd") if (i + j) % 3} for i in range(7)]
    for name, column in columns(rows).items():
        np.testing.assert_array_equal(column, [row.get(name, np.nan) for row in rows])


def test_age_of_sampled_transitions() -> None:
    """Against the numbers that the transitions carry themselves, while the ring fills and after it has turned."""
    buffer, rng, number = ReplayBuffer(10, 1, 1), np.random.default_rng(0), 0
    for _ in range(9):
        ids = np.arange(number, number + 3, dtype=np.float32)
        number += 3
        buffer.add(
            Transition(
                ids[:, None], np.zeros((3, 1), np.float32), ids, ids[:, None], np.zeros(3, bool), np.zeros(3, bool)
            )
        )
        batch = buffer.sample(rng, 2, 3)
        assert buffer.sampled_age == pytest.approx((number - 1 - batch.reward).mean())


def test_replay_metrics() -> None:
    writer = fakes.ListWriter()
    config = fakes.config(total_timesteps=2000, buffer_size=400, log_interval=400, eval_interval=2000)
    train(fakes.FakeEngine(), fakes.FakeState(), config, writer=writer)
    assert [size for _, size in writer.column("train/replay_size")] == [400] * 5
    for _, age in writer.column("train/replay_age")[1:]:
        assert age == pytest.approx(199.5, abs=10)


def test_clipped_fraction_is_of_the_policys_actions() -> None:
    """Half of them are at a bound; the random ones before learning_starts do not count."""

    class Bang(fakes.FakeEngine):
        def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
            return np.array([[-1.0], [0.5], [1.5], [0.0]], np.float32)

    writer = fakes.ListWriter()
    train(Bang(), fakes.FakeState(), fakes.config(num_envs=4, eval_episodes=4), writer=writer)
    assert writer.column("rollout/clipped_fraction") == [(60, 0.5), (80, 0.5), (100, 0.5), (120, 0.5)]


def test_fractions_of_time_add_up() -> None:
    writer = fakes.ListWriter()
    train(fakes.FakeEngine(), fakes.FakeState(), fakes.config(), writer=writer)
    for _, metrics in writer.lines:
        if "time/fps" in metrics:
            parts = [metrics[f"time/{name}_fraction"] for name in ("act", "env", "update", "other")]
            assert min(parts) >= 0
            assert sum(parts) == pytest.approx(1)


def interval(rows: list[tuple[dict[str, float], int, int]]) -> IntervalLog:
    log = IntervalLog(columns)
    log.go_on()
    for metrics, env_step, updates in rows:
        log.keep(metrics, env_step, updates)
    return log


def test_an_interval_survives_its_checkpoint() -> None:
    """Saved in the middle and restored, also through JSON's types: the same means, over the same calls."""
    rows = [({"a": 1.0, "b": 2.0}, 4, 2), ({"a": 4.0}, 8, 4), ({"a": 1.0, "c": 7.0}, 12, 6)]
    whole, half = interval(rows), interval(rows[:2])
    for log in (whole, half):
        log.average("rollout/x", np.array([True, False, False]))
    saved = half.save()
    resumed = IntervalLog(columns)
    resumed.restore(saved)
    resumed.go_on()
    for log in (half, resumed):
        log.keep(*rows[2])
        log.average("rollout/x", 1.0)
    whole.average("rollout/x", 1.0)
    lines = [{n: v for n, v in log.flush(12, 6).items() if n[:5] != "time/"} for log in (whole, half, resumed)]
    assert lines[0] == lines[1] == lines[2]
    assert lines[0] == {"rollout/x": 0.5, "train/a": 2.0, "train/b": 2.0, "train/c": 7.0, "train/updates": 6}


def test_seconds_count_only_while_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wall and processor time, across a pause and a checkpoint; the interval's rates see the same seconds."""
    now = {"perf_counter": 100.0, "process_time": 7.0}

    def passes(wall: float, cores: float) -> None:
        now["perf_counter"] += wall
        now["process_time"] += cores

    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])
    log = IntervalLog(columns)
    passes(50, 1)  # before it begins
    log.go_on()
    passes(10, 4)
    saved = log.save()
    passes(2, 1)
    log.pause()
    passes(30, 20)
    log.go_on()
    passes(8, 3)
    lines = [log.flush(200, 0)]
    resumed = IntervalLog(columns)
    resumed.restore(saved)
    passes(1, 1)
    resumed.go_on()
    passes(10, 4)
    lines.append(resumed.flush(200, 0))
    for line in lines:
        assert (line["time/time_elapsed"], line["time/core_seconds"], line["time/fps"]) == (20, 8, 10)


def test_the_first_number_that_is_not_finite_is_told() -> None:
    good = {"critic_nonfinite": 0.0, "actor_nonfinite": np.nan}
    assert interval([(good, 4, 10), (good, 8, 20)]).nonfinite() is None
    found = interval(
        [(good, 4, 10), (good | {"actor_nonfinite": 0.5}, 8, 20), (good | {"critic_nonfinite": 1.0}, 12, 30)]
    )
    assert found.nonfinite() == (
        "the actor's loss or gradient was NaN or infinite in one of the updates 11 to 20 (environment step 8)"
    )
    single = interval([(good, 4, 1), ({"critic_nonfinite": 1.0}, 8, 2), ({"state_nonfinite": 1.0}, 8, 2)])
    assert single.nonfinite() == "the critic's loss or gradient was NaN or infinite in update 2 (environment step 8)"
    state = interval([({"state_nonfinite": 1.0}, 9, 1200)])
    assert (
        state.nonfinite()
        == "a number of the learner's state was NaN or infinite after update 1,200 (environment step 9)"
    )


def test_counts_are_not_logged() -> None:
    log = interval([({"critic_nonfinite": 0.0, "critic_loss": 1.0}, 4, 1)])
    assert [name for name in log.flush(4, 1) if name[:6] == "train/"] == ["train/critic_loss", "train/updates"]


# what is not finite


def test_the_message_names_what_is_spoilt() -> None:
    arrays = {f"a{i}": np.full(2, np.nan if i % 2 else 1.0) for i in range(10)}
    text = str(diverged("x is NaN", arrays))
    assert "x is NaN; 5 of the learner's 10 arrays are not finite now: a1, a3, a5, ...;" in text
    assert "all 1 arrays of the learner are still finite" in str(diverged("x", {"a": np.ones(1)}))


def run_in_float32(backend: Any, **fields: Any) -> tuple[list[tuple[int, float]], str]:
    """(critic losses that were logged, message) of a run of SAC that diverges."""
    small = {**TINY, "total_timesteps": 2000, "updates_per_env_step": 1.0, "eval_interval": 2000} | fields
    config = sac.Config(backend=backend.name, **small)
    learner, *networks = sac.build(config, 3, 1)
    arrays = [{name: array.astype(np.float32) for name, array in backend.to_arrays(net).items()} for net in networks]
    networks = [backend.from_arrays(net, single) for net, single in zip(networks, arrays, strict=True)]
    writer = fakes.ListWriter()
    with pytest.raises(DivergenceError) as caught:
        train(backend.Engine(learner), learner.init(*networks), config, writer=writer)
    return writer.column("train/critic_loss"), str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"env_id": "Huge-v0"}, {"env_id": "fakes:Random-v0", "learning_rate": 1e18}], ids=["rewards", "rate"]
)
def test_divergence_stops_both_backends(backend: Any, fields: dict[str, Any]) -> None:
    """Four updates are fused, so the first bad one hides among good ones; what was logged before is finite."""
    losses, message = run_in_float32(backend, **fields)
    assert np.isfinite([loss for _, loss in losses]).all()
    found = re.match(
        r"training diverged: the (\w+)'s loss or gradient was NaN or infinite in one of the updates (\d+) to (\d+) "
        r"\(environment step (\d+)\); (\d+) of the learner's \d+ arrays are not finite now: (actor|critic|target)",
        message,
    )
    assert found, message
    first, last, step = (int(found[i]) for i in (2, 3, 4))
    assert last - first == 3
    if "learning_rate" not in fields:
        assert found[1] == "critic"
        assert 240 <= step <= 280  # the 61st step of each of the four environments, and its first samples
        assert len(losses) >= 10


def test_an_action_that_is_not_finite_stops_the_run() -> None:
    class Lost(fakes.FakeEngine):
        def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
            return super().act(state, obs, noise) * (np.nan if state.updates >= 6 else 1)

    with pytest.raises(DivergenceError, match=r"an action was NaN or infinite at environment step 5[26]; all 3 arrays"):
        train(Lost(), fakes.FakeState(), fakes.config())


class Exploding(fakes.FakeEngine):
    """Its weight is infinite after a number of updates; its losses say nothing."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.limit = updates

    def update(self, state: Any, batches: Batch, key: int) -> tuple[Any, dict[str, Any]]:
        state, metrics = super().update(state, batches, key)
        if state.updates >= self.limit:
            state.weight = np.inf
        return state, metrics

    def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
        return np.zeros((len(obs), 1), np.float32)


def test_a_parameter_that_is_not_finite_stops_the_run() -> None:
    expected = (
        r"a number of the learner's state was NaN or infinite after update 18 \(environment step 80\); 1 of .*: weight;"
    )
    with pytest.raises(DivergenceError, match=expected):
        train(Exploding(15), fakes.FakeState(), fakes.config())


def test_no_checkpoint_of_what_is_not_finite(tmp_path: Path) -> None:
    """The run saves more often than it logs; the good checkpoints and the good policy stay as they were."""
    learner = Exploding(15)
    keeper = Checkpointer(tmp_path, learner, interval=8, info={"run_id": "a", "config": {}, "versions": {}})  # type: ignore[arg-type]
    config = fakes.config(log_interval=120, eval_interval=16)
    with pytest.raises(DivergenceError, match=r"when a checkpoint was due at environment step \d+; 1 of .*: weight;"):
        train(learner, fakes.FakeState(), config, checkpointer=keeper)
    for store in (Store(tmp_path / "checkpoints"), Store(tmp_path / "best")):
        newest, refused = store.newest()
        assert newest is not None
        assert not refused
        assert np.isfinite(newest.learner_arrays()["weight"])
        assert newest.manifest["updates"] < 15
    assert Store(tmp_path / "checkpoints").paths()[0].name == "step_000000000072"


def test_the_command_line_names_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fake_recipe

    monkeypatch.setitem(RECIPES, "fake", "fake_recipe")
    monkeypatch.setattr(fake_recipe, "build", lambda *_: (Exploding(8), 1, 1))
    arguments = ["train", "fake", "--backend", "torch", "--run-root", str(tmp_path), "--no-progress"]
    assert main([*arguments, "--log-interval", "80", "--checkpoint-interval", "25"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"the last good checkpoint is \S+/step_000000000050, from where it would diverge again$", error)
    assert main([*arguments, "--log-interval", "5"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("; there was no checkpoint yet")


# files


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        writer = JsonlWriter(path)
        writer.write(step, {"a": 0.1 * step, "b": np.inf})
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": step, "a": 0.1 * step, "b": None}
        writer.close()
        writer.close()
    assert len(path.read_text().splitlines()) == 2


def test_json_lines_are_rewound(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "a": 1}\n{"step": 20}\n{"step": 20, "b": 2}\n{"step": 30}\n{"step": 40, "a"')
    rewind(tmp_path, 20, [])
    assert path.read_text() == '{"step": 10, "a": 1}\n{"step": 20}\n{"step": 20, "b": 2}\n'
    path.write_text('{"step": 10}\nsomething else\n')
    rewind(tmp_path, 20, [])  # garbage, of a power failure perhaps, is left out and kept beside
    assert path.read_text() == '{"step": 10}\n'
    assert (tmp_path / "damaged-metrics.jsonl").read_text() == '{"step": 10}\nsomething else\n'


# trackers


class Tracked:
    """What a tracker's `init` returns."""

    def __init__(self, **options: Any) -> None:
        self.options, self.lines, self.finished = options, [], 0

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in place of the package, with the runs that were started."""
    module = types.ModuleType(request.param)
    module.runs = []  # type: ignore[attr-defined]

    def init(*, project: str, name: str, config: dict, resume: str, **own: Any) -> Tracked:
        assert set(own) == ({"id", "dir"} if request.param == "wandb" else set())
        module.runs.append(Tracked(project=project, name=name, config=config, resume=resume, **own))
        return module.runs[-1]

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.setitem(RECIPES, "fake", "fake_recipe")
    return module


def train_fake(root: Path, *more: str) -> int:
    return main(["train", "fake", "--backend", "torch", "--run-root", str(root), "--no-progress", *more])


def test_a_tracker_gets_everything(tracker: Any, tmp_path: Path) -> None:
    assert train_fake(tmp_path, "--track", tracker.__name__, "--seed", "3", "--log-interval", "20") == 0
    (run,) = tracker.runs
    (folder,) = (path.parent for path in tmp_path.rglob("config.yaml"))
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **metrics} for step, metrics in run.lines] == written
    assert {"time/fps", "train/critic_loss", "eval/mean_reward"} <= {name for line in written for name in line}
    run_id = json.loads((folder / "manifest.json").read_text())["run_id"]
    assert run.options["name"] == f"fake fakes:Random-v0 seed3 {run_id[:8]}"
    assert run.options["project"] == "diffac"
    assert run.options["resume"] == "allow"
    assert run.options["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert run.options.get("id", run_id) == run_id
    assert run.finished == 1


def test_a_resumed_run_goes_on_in_its_place(tracker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train_fake(tmp_path, "--track", tracker.__name__) == 0
    (config,) = tmp_path.rglob("config.yaml")
    for checkpoint in (config.parent / "checkpoints").iterdir():  # as if it had been killed before the first one
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    assert main(["resume", str(config.parent)]) == 0
    first, second = tracker.runs
    assert first.options == second.options
    losses = [[m["train/critic_loss"] for _, m in run.lines if "train/critic_loss" in m] for run in tracker.runs]
    assert losses[0] == losses[1]


def test_a_missing_tracker_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "fake", "fake_recipe")
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        assert train_fake(tmp_path, "--track", name) == 2
        assert f"python -m pip install 'diffac[{name}]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "fake", "fake_recipe")
    assert main(["train", "fake", "--track", "mlflow"]) == 2
    assert "wandb" in capsys.readouterr().err


def raising(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


def exiting(*_: Any, **__: Any) -> Any:
    raise SystemExit("no network")


@pytest.mark.parametrize(("method", "fails"), [("log", raising), ("finish", raising), ("log", exiting)])
def test_a_tracker_that_fails_is_left_alone(
    tracker: Any, method: str, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    writer = start(tracker, said.append)
    (run,) = tracker.runs
    writer.write(1, {"a": 1.0})
    monkeypatch.setattr(run, method, fails)
    for step in (2, 3):
        writer.write(step, {"a": 1.0})
    writer.close()
    writer.close()
    (text,) = said
    assert text == f"{tracker.__name__} has failed (no network) and gets no more metrics; metrics.csv holds all of them"
    assert [step for step, _ in run.lines] == ([1] if method == "log" else [1, 2, 3])


def test_a_tracker_that_does_not_start_is_an_error(tracker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "init", raising)
    with pytest.raises(UsageError, match=f"{tracker.__name__} does not start: no network; "):
        start(tracker, print)


def start(tracker: Any, say: Callable[[str], Any]) -> TrackerWriter:
    return TrackerWriter(tracker.__name__, run_name="r", run_id="i", config={"seed": 1}, folder=Path("f"), say=say)


def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, where it is installed."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setitem(RECIPES, "fake", "fake_recipe")
    assert train_fake(tmp_path, "--track", "wandb") == 0
    (log,) = tmp_path.rglob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 60
    while b"eval/mean_reward" not in log.read_bytes():  # its own process writes the last part after `finish`
        assert time.monotonic() < end
        time.sleep(0.1)
