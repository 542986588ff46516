"""Paths mean what they meant when they were given, wherever an environment goes; `~` is a home folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_recipe
import pytest

from diffac import Agent, reports
from diffac.commands import evaluate as evaluate_command
from diffac.commands import export as export_command
from diffac.commands import report as report_command
from diffac.commands.exit_codes import exit_code
from diffac.commands.script import run_recipe
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute, expanded
from diffac.logging import CsvWriter, JsonlWriter, TensorBoardWriter
from diffac.reports.videos import record_video
from diffac.runs import checkpointer as keeping
from diffac.runs.checkpointer import Checkpointer
from diffac.runs.checkpoints import read_checkpoint
from diffac.runs.configs import read_config
from diffac.runs.find import find_checkpoint
from diffac.runs.resume import resume
from diffac.runs.store import Store
from diffac.system.signals import Interrupted
from diffac.training.evaluation import Evaluator

FAST = ("--eval-interval", "40", "--checkpoint-interval", "20")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; `elsewhere` beside it is where environments go, `home` is that of the user."""
    for name in ("here", "elsewhere", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def wandering(here: Path, when: str) -> list[str]:
    folder = here.parent / "elsewhere"
    return [*FAST, "--env-id", "fakes:Wandering-v0", "--env-kwargs", f"folder={folder}", f"when={when}"]


def assert_stayed(here: Path) -> None:
    assert Path.cwd() == here
    assert not any((here.parent / "elsewhere").iterdir())


def only_run(root: Path) -> Path:
    (run,) = root.glob("*/fake/*/seed*")
    return run


@pytest.mark.parametrize("when", ["make", "reset", "step"])
def test_a_run_stays_where_it_began_and_is_found_again(here: Path, when: str) -> None:
    with pytest.raises(Interrupted):
        run_recipe(fake_recipe, [*wandering(here, when), "--eval-interval", "5", "--fail", "interrupt"], "fake")
    assert_stayed(here)
    run = only_run(Path("runs"))
    assert f"run_root: runs{os.linesep}" in (run / "config.yaml").read_text()
    with pytest.raises(Interrupted):
        resume(run, lambda _: fake_recipe)
    assert_stayed(here)
    for name in ("metrics.csv", "metrics.jsonl", "evaluations.npz", "best", "checkpoints", "lock"):
        assert (run / name).exists()
    evaluate_command.main([str(run), "--episodes", "2"], fake_recipe)
    assert_stayed(here)
    assert len(list((run / "evaluations").iterdir())) == 2
    with contextlib.suppress(UsageError):  # nothing of a fake learner can be exported, or drawn
        evaluate_command.main([str(run), "--episodes", "1", "--video"], fake_recipe)
    assert_stayed(here)


@pytest.mark.parametrize("when", ["make", "reset", "step"])
def test_an_agent_saves_where_its_user_is(here: Path, when: str) -> None:
    env_kwargs = {"folder": str(here.parent / "elsewhere"), "when": when}
    agent = Agent.from_recipe(fake_recipe, "fakes:Wandering-v0", env_kwargs=env_kwargs)
    agent.learn(40).save("saved")
    loaded = Agent.load("saved", recipe=fake_recipe)
    for one in (agent, loaded):
        one.learn(20).learn(20)
        one.save(Path("again"))
    assert_stayed(here)
    assert Store("again").newest()[0].env_step == 80  # type: ignore[union-attr]
    with Evaluator("fakes:Wandering-v0", num_episodes=2, seed=0, env_kwargs=env_kwargs) as evaluator:
        evaluator(agent.engine, agent.state)
        assert_stayed(here)


def test_an_environment_whose_folder_is_removed_does_not_take_ours(here: Path) -> None:
    env_kwargs = {"folder": str(here.parent / "elsewhere"), "when": "make"}
    agent = Agent.from_recipe(fake_recipe, "fakes:Wandering-v0", env_kwargs=env_kwargs)
    agent.learn(20)
    (here.parent / "elsewhere").rmdir()
    with contextlib.suppress(Exception):
        agent.learn(20)
    assert Path.cwd() == here


def test_a_home_folder_may_be_typed_everywhere(here: Path) -> None:
    home = here.parent / "home"
    run_recipe(fake_recipe, ["--run-root", "~/runs", *FAST], "fake")
    run = only_run(home / "runs")
    assert "run_root: ~/runs" in (run / "config.yaml").read_text()
    typed = f"~/{run.relative_to(home)}"
    run_recipe(fake_recipe, ["resume", typed], "fake")
    resume(typed, lambda _: fake_recipe)
    evaluate_command.main([typed, "--episodes", "1"], fake_recipe)
    assert len(list((run / "evaluations").iterdir())) == 2
    run_recipe(fake_recipe, ["--config", f"{typed}/config.yaml", "--run-root", "~/again"], "fake")
    assert only_run(home / "again")
    report_command.main([f"fake={typed}", "~/again", "--out", "~/report"])
    assert (home / "report" / "report.html").exists()
    for folder in ("~/saved", Path("~/saved")):
        Agent.load(typed, recipe=fake_recipe).save(folder)
        assert Agent.load(folder, recipe=fake_recipe).checkpoint.folder.is_relative_to(home)  # type: ignore[union-attr]
    assert not list(here.iterdir())


NOBODY = "~nobody-of-this-name/x"
TYPED: dict[str, Callable[[str], object]] = {
    "train": lambda path: run_recipe(fake_recipe, ["--run-root", path, *FAST], "fake"),
    "config": lambda path: run_recipe(fake_recipe, ["--config", path], "fake"),
    "read_config": read_config,
    "resume": lambda path: run_recipe(fake_recipe, ["resume", path], "fake"),
    "running.resume": lambda path: resume(path, lambda _: fake_recipe),
    "evaluate": lambda path: evaluate_command.main([path], fake_recipe),
    "export": lambda path: export_command.main([path, "--format", "torch"], fake_recipe),
    "export --out": lambda path: export_command.main(["run", "--format", "torch", "--out", path], fake_recipe),
    "report": lambda path: reports.make_report([path]),
    "load": Agent.load,
    "save": lambda path: Agent.from_recipe(fake_recipe).save(path),
    "find_checkpoint": find_checkpoint,
    "read_checkpoint": read_checkpoint,
    "Store": Store,
    "Checkpointer": lambda path: Checkpointer(path, None, interval=1, info={}),  # type: ignore[arg-type]
    "CsvWriter": CsvWriter,
    "JsonlWriter": JsonlWriter,
    "TensorBoardWriter": TensorBoardWriter,
    "record_video": lambda path: record_video(lambda obs: obs, "fakes:Random-v0", path),
}


@pytest.mark.parametrize("name", TYPED)
def test_the_home_folder_of_nobody_is_refused_and_nothing_is_made(here: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no user 'nobody-of-this-name'"):
        TYPED[name](NOBODY)
    assert not list(here.iterdir())


def test_a_folder_may_be_called_like_a_home(here: Path) -> None:
    (here / "~odd").mkdir()
    assert absolute("~odd/x") == here / "~odd" / "x"
    assert absolute("./~") == here / "~"
    assert expanded("runs") == Path("runs")


@pytest.mark.parametrize("root", ["~", "~/x", "~root/x"])
def test_a_file_chooses_no_home_folder(here: Path, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("given.yaml").write_text(f"recipe: fake\nrun_root: {root!r}\n")
    with exit_code() as code:
        run_recipe(fake_recipe, ["--config", "given.yaml"], "fake")
    assert code.value == 2
    assert f"given.yaml says run_root: {root!r}" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["given.yaml"]
    assert not list((here.parent / "home").iterdir())


def test_without_a_current_folder_a_relative_path_is_refused(here: Path) -> None:
    here.rmdir()
    with pytest.raises(UsageError, match="the current folder does not exist any more"):
        absolute("runs")
    assert absolute("/runs") == Path("/runs")


@pytest.mark.parametrize("fate", ["renamed", "deleted", "replaced"])
def test_the_folder_of_a_run_is_not_made_anew(
    here: Path, fate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence; what was saved lies where the folder is now, and goes on there."""
    write, away = JsonlWriter.write, []

    def meddle(writer: JsonlWriter, step: int, metrics: Any) -> None:
        """Somebody tidies up while the run goes on."""
        write(writer, step, metrics)
        folder = writer.path.parent
        if step == 45 and not away:
            away.append(folder)
            if fate == "deleted":
                shutil.rmtree(folder)
            else:
                folder.rename("moved")
            if fate == "replaced":
                folder.mkdir()

    monkeypatch.setattr(JsonlWriter, "write", meddle)
    options = [*FAST, "--log-interval", "5", "--no-progress"]
    with exit_code() as code:
        run_recipe(fake_recipe, options, "fake")
    assert code.value == 1
    (folder,) = away
    said = capsys.readouterr().err
    what = "deleted or replaced" if fate == "deleted" else f"renamed to {here / 'moved'}"
    assert f"the folder of the run, {folder}, was {what} meanwhile; nothing more is written" in said
    assert (f"go on from step 40 with: diffac resume {here / 'moved'}" in said) == (fate != "deleted")
    assert "Traceback" not in said
    if fate == "replaced":
        assert list(folder.iterdir()) == []
    else:
        assert not folder.exists()
    if fate != "deleted":
        resumed = resume(here / "moved", lambda name: fake_recipe)
        assert resumed is not None
        assert resumed.evaluations[-1].env_step == 80


def test_a_run_looks_for_its_folder_every_second(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seconds = here / "run", [0.0]
    run.mkdir()
    monkeypatch.setattr(keeping.time, "monotonic", lambda: seconds[0])
    checkpointer = Checkpointer(run, fake_recipe, interval=100, info={})
    assert not checkpointer.due(0, 1, False)
    run.rename(here / "moved")
    assert not checkpointer.due(1, 2, False)
    seconds[0] = 1.5
    with pytest.raises(RunError, match=r"was renamed to .*moved meanwhile; nothing more is written"):
        checkpointer.due(2, 3, False)
    assert checkpointer.find_folder() == here / "moved"
