"""`diffac evaluate`: what it plays, prints and writes, and that it says what is wrong."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from program import PATHS, TESTS

import diffac.commands.evaluate
import diffac.runs.recipes
from diffac.agent import Agent
from diffac.commands.evaluate import SEED
from diffac.commands.main import main
from diffac.errors import RunError, UsageError
from diffac.reports.reading import read_runs
from diffac.runs.store import Store
from diffac.training.evaluation import Evaluation, evaluate

SHORT = ["--num-envs", "4", "--eval-interval", "40", "--env-id", "fakes:Named-v0", "--seed", "13"]  # best at step 40


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is registered as a third party's; runs go to an empty folder."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)


def trained(*argv: str, recipe: str = "fake") -> Path:
    assert main(["train", recipe, "--no-progress", *SHORT, *argv]) == 0
    (found,) = Path.cwd().glob(f"runs/*/{recipe}/*/seed*")
    return found


def written(run: Path) -> list[dict[str, Any]]:
    """All evaluations of a run."""
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]


def test_the_best_policy_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "13"]) == 0
    out = capsys.readouterr().out
    agent = Agent.load(run)
    expected = evaluate(agent.engine, agent.state, "fakes:Named-v0", num_episodes=13, seed=SEED)
    (about,) = written(run)
    assert about["returns"] == expected.returns.tolist()
    assert about["lengths"] == expected.lengths.tolist()
    assert about["mean_return"] == expected.returns.mean()
    assert about["std_return"] == expected.returns.std()
    assert (about["min_length"], about["max_length"]) == (expected.lengths.min(), expected.lengths.max())
    assert (about["env_step"], about["updates"], about["seed"]) == (40, agent.state.updates, SEED)
    assert (about["backend"], about["trained_with"], about["deterministic"]) == ("none", "none", True)
    assert about["run_id"] == json.loads((run / "manifest.json").read_text())["run_id"]
    assert {"numpy", "gymnasium"} <= about["versions"].keys()
    returns = expected.returns
    assert (
        f"return {returns.mean():.1f} +- {returns.std():.1f}, min {returns.min():.1f}, max {returns.max():.1f}" in out
    )
    assert f"length {expected.lengths.mean():.1f} +- " in out
    assert f"13 episodes, exploration noise off, seed {SEED} (environments: {about['env_seeds'][0]}, " in out
    assert out.splitlines()[:2] == [
        "fake on fakes:Named-v0, backend none",
        f"best policy of step 40, {run}/best/step_000000000040",
    ]
    assert out.splitlines()[-1] == f"{run}/evaluations/best_step40_none_seed{SEED}.json"
    with (run / f"evaluations/best_step40_none_seed{SEED}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["return"]) for row in rows] == about["returns"]
    assert [int(row["environment"]) for row in rows] == [0, 0, 1, 1, 2, 2, *range(3, 10)]
    assert [int(row["environment_seed"]) for row in rows][::2][:3] == about["env_seeds"][:3]


def test_which_policy_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    assert main(["evaluate", str(run), "--checkpoint", "last", "--no-deterministic", "--seed", "5"]) == 0
    assert "\npolicy of step 80, " in (out := capsys.readouterr().out)
    assert "10 episodes, exploration noise on, seed 5 " in out
    assert main(["evaluate", str(run), "--checkpoint", "last", "--seed", "5"]) == 0
    assert main(["evaluate", str(run / "checkpoints"), "--seed", "5"]) == 0
    noisy, quiet = sorted(written(run), key=lambda about: about["deterministic"])
    assert (noisy["env_step"], quiet["env_step"]) == (80, 80)
    assert noisy["env_seeds"] == quiet["env_seeds"]
    assert noisy["returns"] != quiet["returns"] == written(run / "checkpoints")[0]["returns"]


def test_nothing_is_overwritten() -> None:
    """Neither evaluations nor anything else of the run; reports do not mind."""
    run = trained()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for _ in range(3):
        assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    names = sorted(path.name for path in (run / "evaluations").iterdir())
    stem = f"best_step40_none_seed{SEED}"
    assert names == sorted(f"{stem}{number}.{suffix}" for number in ("", "_2", "_3") for suffix in ("csv", "json"))
    assert {path: path.read_bytes() for path in before} == before
    runs, skipped = read_runs(["runs"])
    assert (len(runs), skipped) == (1, [])


def test_the_seeds_are_not_those_of_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("--seed", str(SEED))
    means = np.load(run / "evaluations.npz", allow_pickle=False)["results"]
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert written(run)[0]["returns"] not in means.tolist()


@pytest.mark.parametrize(("first", "then"), [("torch", "equinox"), ("equinox", "torch")])
def test_the_other_backend(first: str, then: str, both: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--hidden-sizes", "8", "--total-timesteps", "80", "--learning-starts", "20", "--batch-size", "8"]
    run = trained("--backend", first, "--eval-episodes", "2", *small, recipe="sac")
    for backend in (first, then):
        assert main(["evaluate", str(run), "--backend", backend, "--episodes", "4"]) == 0
        assert f"sac on fakes:Named-v0, backend {backend}\n" in capsys.readouterr().out
    one, other = written(run)
    assert {one["backend"], other["backend"]} == {first, then}
    assert one["trained_with"] == other["trained_with"] == first
    np.testing.assert_allclose(one["returns"], other["returns"], rtol=1e-4)


def test_a_saved_agent(tmp_path: Path) -> None:
    Agent.from_recipe("fake", num_envs=4).learn(40).save(tmp_path / "agent")
    assert main(["evaluate", "agent", "--episodes", "2"]) == 0
    assert [path.name for path in sorted((tmp_path / "agent").iterdir())] == ["evaluations", "step_000000000040"]
    assert Agent.load(tmp_path / "agent").num_timesteps == 40
    assert written(tmp_path / "agent")[0]["env_step"] == 40


def test_another_environment(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("--env-id", "fakes:Random-v0")
    assert main(["evaluate", str(run), "--env-id", "fakes:Terminates-v0", "--episodes", "3"]) == 0
    assert "fake on fakes:Terminates-v0, " in capsys.readouterr().out
    assert written(run)[0]["lengths"] == [5, 5, 5]


@pytest.mark.parametrize("problem", [RunError("no screen"), UsageError("no package"), None])
def test_videos(problem: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The renderer is chosen before there are environments; what cannot be drawn costs a sentence."""
    run, calls = trained(), []

    def record(act: Any, env_id: str, path: Path, *, seed: int, **_: Any) -> Evaluation:
        calls.append((env_id, path, seed))
        assert act(np.zeros((1, 5), np.float32)).shape == (1, 1)
        if problem is not None:
            raise problem
        return Evaluation(np.array([7.25]), np.array([3]))

    def find(*arguments: Any) -> Any:
        assert calls == ["chosen"]
        return real(*arguments)

    real = diffac.commands.evaluate.find_checkpoint
    monkeypatch.setattr(diffac.commands.evaluate, "record_video", record)
    monkeypatch.setattr(diffac.commands.evaluate, "find_checkpoint", find)
    monkeypatch.setattr(diffac.commands.evaluate, "choose_renderer", lambda: calls.append("chosen"))
    capsys.readouterr()
    assert main(["evaluate", str(run), "--video", "--episodes", "2", "--seed", "3"]) == 0
    path = run / "videos/best_step40_none_seed3.mp4"
    assert calls == ["chosen", ("fakes:Named-v0", path, 3)]
    captured = capsys.readouterr()
    if problem is None:
        assert captured.out.endswith(f"{path}, an episode with return 7.2\n")
        assert captured.err == ""
    else:
        assert captured.err == f"note: no video: {problem}\n"
    assert len(written(run)) == 1


def test_a_real_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or the sentence, where this machine cannot draw."""
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio_ffmpeg")
    Agent.from_recipe("fake", "InvertedPendulum-v5", num_envs=2).save(tmp_path / "agent")
    assert main(["evaluate", "agent", "--video", "--episodes", "1"]) == 0
    videos = list((tmp_path / "agent").glob("videos/*.mp4"))
    if not videos:
        assert "note: no video: InvertedPendulum-v5 cannot be drawn" in capsys.readouterr().err
        pytest.skip("this machine cannot draw")
    assert videos[0].stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "diffac evaluate needs RUN: Folder of the run"),
        (["nowhere"], "nowhere is no folder; give that of a run"),
        (["."], " holds neither a run nor a saved agent nor a checkpoint"),
        (["RUN", "--episodes", "0"], "num_episodes must be at least 1, got 0"),
        (["RUN", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["RUN", "--checkpoint", "worst"], "--checkpoint must be one of best, last or null, got 'worst'"),
        (["RUN", "--env-id", "fakes:Rondom-v0"], "unknown environment 'fakes:Rondom-v0'"),
        (["EMPTY"], "has no checkpoint yet; the first is written after eval_interval or checkpoint_interval steps"),
        (["EMPTY", "--checkpoint", "best"], "has no checkpoint yet"),
        (["LAST", "--checkpoint", "best"], "has no best policy, because no evaluation has taken place"),
    ],
)
def test_mistakes_cost_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    shutil.copytree(run, "LAST")
    shutil.rmtree("LAST/best")
    shutil.copytree("LAST", "EMPTY")
    shutil.rmtree("EMPTY/checkpoints")
    assert main(["evaluate", *(str(run) if word == "RUN" else word for word in argv)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(Path().rglob("evaluations")) == []


def test_damage(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    (Store(run / "best").paths()[0] / "manifest.json").write_text("{")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--checkpoint", "best"]) == 2
    assert re.search(
        r"^error: checkpoint .* is damaged: manifest.json is not what diffac writes$", capsys.readouterr().err
    )
    assert main(["evaluate", str(run)]) == 0
    assert re.search(r"^note: checkpoint .* is used instead$", (captured := capsys.readouterr()).err)
    assert "\npolicy of step 80, " in captured.out


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers are on the screen before they are lost."""
    run = trained()

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 1
    captured = capsys.readouterr()
    assert "\nreturn " in captured.out
    assert captured.err == f"error: the evaluation cannot be written to {run}/evaluations: Permission denied\n"


def test_a_script_evaluates_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never the installed recipe of the same name."""
    script = tmp_path / "mine.py"
    shutil.copy(TESTS / "fake_recipe.py", script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}

    def python(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "mine.py", *argv]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert python(*SHORT).returncode == 0
    (run,) = Path().glob("runs/*/fake/*/seed*")
    assert main(["evaluate", str(run)]) == 1
    assert f"was trained with '{script}', which has no registered name" in capsys.readouterr().err
    done = python("evaluate", str(run), "--episodes", "2")
    assert done.returncode == 0, done.stderr
    assert len(written(run)) == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    assert "--no-deterministic" in capsys.readouterr().out
    assert main([]) == 0
    assert "evaluate RUN" in capsys.readouterr().out


def test_exploration_is_off_unless_asked_for() -> None:
    for deterministic in (True, False):
        learner = fakes.FakeEngine()
        with diffac.Evaluator("fakes:Random-v0", num_episodes=2, seed=0, deterministic=deterministic) as evaluator:
            evaluator(learner, fakes.FakeState())
        assert any(learner.explored) != deterministic
