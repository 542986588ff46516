"""Variants of an environment without registering one: its arguments, its wrappers, and a module beside the program."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fakes
import gymnasium as gym
import numpy as np
import pytest
import yaml

import diffac.data.code_by_name
import diffac.runs.recipes
from diffac.agent import Agent
from diffac.commands.main import main
from diffac.data.environments import make_envs
from diffac.data.stepper import VectorStepper
from diffac.data.vectors import close
from diffac.errors import UsageError
from diffac.training.evaluation import evaluate

MODULE = """
import gymnasium as gym
import fakes
gym.register("Point-v0", fakes.Counter, kwargs={{"length": {length}}})

def tenfold(env):
    return gym.wrappers.TransformReward(env, lambda reward: 10 * reward)

def plus_one(env):
    return gym.wrappers.TransformReward(env, lambda reward: reward + 1)

def nothing(env):
    pass

def broken(env):
    raise ValueError("no such wheel")

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An empty current folder, the recipe `fake`, and no trace of what was imported."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(diffac.data.code_by_name, "_origins", {})
    monkeypatch.setattr(diffac.data.code_by_name, "_folders", set())
    monkeypatch.setattr(diffac.data.code_by_name, "_told", set())
    yield
    forget()


def forget() -> None:
    """As in a new program."""
    sys.modules.pop("beside", None)
    gym.registry.pop("Point-v0", None)
    sys.path[:] = [entry for entry in sys.path if entry not in diffac.data.code_by_name._folders]
    diffac.data.code_by_name._folders.clear()
    diffac.data.code_by_name._origins.clear()
    diffac.data.code_by_name._told.clear()


def beside(length: int = 3) -> None:
    Path("beside.py").write_text(MODULE.format(length=length))


def trained(*argv: str) -> tuple[int, Path | None]:
    code = main(["train", "fake", "--no-progress", "--eval-interval", "40", "--num-envs", "4", *argv])
    found = sorted(Path().glob("runs/*/fake/*/seed*"))
    return code, found[-1] if found else None


def lengths(run: Path) -> set[int]:
    return set(np.load(run / "evaluations.npz")["ep_lengths"].ravel().tolist())


# arguments


def test_arguments_reach_every_environment(capsys: pytest.CaptureFixture[str]) -> None:
    """Of training, evaluation, resume, `evaluate` and the agent; and stand in the configuration."""
    code, run = trained("--env-id", "fakes:Random-v0", "--env-kwargs", "length=3", "end=truncated")
    assert code == 0
    assert run is not None
    assert lengths(run) == {3}
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["env_kwargs"] == {"length": 3, "end": "truncated"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["rollout/ep_len_mean"] for row in rows if "rollout/ep_len_mean" in row} <= {3.0}
    assert main(["evaluate", str(run)]) == 0
    assert "length 3.0 +- 0.0" in capsys.readouterr().out
    assert main(["train", "--config", str(run / "config.yaml"), "--no-progress"]) == 0
    agent = Agent.load(run)
    assert agent.config.env_kwargs == {"length": 3, "end": "truncated"}
    again = Agent.from_recipe("fake", "fakes:Random-v0", env_kwargs={"length": 4}).learn()
    assert set(again.evaluations[-1].lengths) == {4}
    again.save("saved")
    assert Agent.load("saved").config.env_kwargs == {"length": 4}


def test_arguments_of_gymnasium_itself() -> None:
    result = evaluate(
        fakes.FakeEngine(), fakes.FakeState(), "fakes:Terminates-v0", num_episodes=3, seed=0,
        env_kwargs={"max_episode_steps": 2},
    )  # fmt: skip
    assert set(result.lengths) == {2}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_arguments_of_vector_environments(asynchronous: bool) -> None:
    options: Any = {"env_kwargs": {"length": np.int64(2)}, "wrappers": ("odd:doubled", "odd:plus_one")}
    envs = make_envs("fakes:Terminates-v0", 2, asynchronous=asynchronous, **options)
    try:
        stepper = VectorStepper(envs)
        stepper.reset([0, 1])
        assert not stepper.step(np.zeros((2, 1))).episodes
        result = stepper.step(np.zeros((2, 1)))
        np.testing.assert_array_equal(result.transition.reward, [41, 41])  # (2 * 10) * 2 + 1: the innermost first
        assert [episode.length for episode in result.episodes] == [2, 2]
    finally:
        close(envs)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200", 200), ("0.5", 0.5), ("1e-3", 0.001), ("-1", -1), ("False", False), ("false", False), ("True", True),
        ("None", None), ("null", None), ("text", "text"), ("./a=b.xml", "./a=b.xml"), ("'3'", "3"), ("", None),
        ("(0.2, 1.0)", [0.2, 1.0]), ("[1, 2]", [1, 2]), ("[0.7, .inf]", [0.7, float("inf")]), ("{'a': 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_how_arguments_are_typed(text: str, value: Any) -> None:
    import fake_recipe

    from diffac.commands.train import parse

    config, _ = parse(fake_recipe, ["--env-kwargs", f"x={text}", "y=2", "--seed", "5"], "fake")
    assert config.env_kwargs == {"x": value, "y": 2}
    assert type(config.env_kwargs["x"]) is type(value)
    assert config.seed == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": object()}, "env_kwargs must be names with plain data"),
        ({"x": [1, {2: 3}]}, "env_kwargs must be names with plain data"),
        ({1: 2}, "env_kwargs must be names with plain data"),
        ([("x", 1)], "env_kwargs must be names with plain data"),
        ({"x": lambda: 0}, "env_kwargs must be names with plain data"),
        ({"a b": 1}, "got 'a b'"),
        ({"id": "x"}, "got 'id'"),
    ],
)
def test_arguments_are_plain_data(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fakes.config(env_kwargs=given)


def test_arguments_that_the_environment_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = trained("--env-id", "fakes:Random-v0", "--env-kwargs", "lenght=3")
    assert code == 2
    assert "error: environment 'fakes:Random-v0' takes no 'lenght', which env_kwargs give it" in capsys.readouterr().err
    code, _ = trained("--env-id", "fakes:Random-v0", "--env-kwargs", "length")
    assert code == 2
    assert "name=value" in "".join(capsys.readouterr())


# wrappers and modules


def test_what_is_typed_may_lie_in_the_current_folder() -> None:
    beside()
    code, run = trained("--env-id", "beside:Point-v0", "--wrappers", "beside:tenfold", "beside:plus_one")
    assert code == 0
    assert run is not None
    assert lengths(run) == {3}
    returns = np.load(run / "evaluations.npz")["results"]
    np.testing.assert_array_equal(returns, np.full_like(returns, 10 * (10 + 20 + 30) + 3))
    assert yaml.safe_load((run / "config.yaml").read_text())["wrappers"] == ["beside:tenfold", "beside:plus_one"]


def test_what_is_typed_in_a_script_may_lie_in_the_current_folder() -> None:
    beside(length=4)
    agent = Agent.from_recipe("fake", "beside:Point-v0", wrappers=["beside:tenfold"]).learn()
    assert set(agent.evaluations[-1].lengths) == {4}


def test_environments_in_processes_find_it_too() -> None:
    beside()
    envs = make_envs("beside:Point-v0", 2, asynchronous=True, wrappers=["beside:plus_one"])
    try:
        stepper = VectorStepper(envs)
        stepper.reset([0, 1])
        np.testing.assert_array_equal(stepper.step(np.zeros((2, 1))).transition.reward, [11, 11])
    finally:
        close(envs)


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_file_names_is_not_looked_for_in_the_current_folder(
    wrapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    beside()
    names = (
        ["--env-id", "fakes:Random-v0", "--wrappers", "beside:tenfold"] if wrapped else ["--env-id", "beside:Point-v0"]
    )
    code, run = trained(*names)
    assert code == 0
    assert run is not None
    shutil.rmtree(run / "checkpoints")  # so that `resume` begins anew
    for command in (["resume", str(run)], ["evaluate", str(run)], ["train", "--config", f"{run}/config.yaml"]):
        forget()
        capsys.readouterr()
        assert main(command) == 2, command
        *_, announced, refused = capsys.readouterr().err.splitlines()
        assert "importing the module 'beside', which" in announced
        assert "lies in the current folder, where nothing is looked for that a file names" in refused
        assert "beside" not in sys.modules
    forget()
    with pytest.raises(UsageError, match="lies in the current folder"):
        Agent.load(run)
    forget()
    capsys.readouterr()
    sys.path.append(str(Path().absolute()))  # as PYTHONPATH does it
    assert main(["evaluate", str(run)]) == 0
    err = capsys.readouterr().err
    assert "note: importing the module 'beside', which " in err
    assert err.count("wrapped by 'beside:tenfold', which") == wrapped


def test_typed_again_it_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    beside()
    _, run = trained("--env-id", "beside:Point-v0")
    forget()
    assert main(["evaluate", str(run), "--env-id", "beside:Point-v0"]) == 0
    assert "importing" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beside", "named module:function, got 'beside'"),
        ("beside:a.b", "named module:function"),
        ("../beside:tenfold", "named module:function"),
        ("beside:", "named module:function"),
        ("nowhere:tenfold", "wrapper 'nowhere:tenfold' cannot be imported: No module named 'nowhere'"),
        ("beside:missing", "wrapper 'beside:missing' is no function: its module has no such name"),
        ("beside:NUMBER", "wrapper 'beside:NUMBER' is no function"),
        ("beside:nothing", "wrapper 'beside:nothing' must return an environment of gymnasium, got a NoneType"),
        ("beside:broken", r"wrapper 'beside:broken' raised ValueError: no such wheel \(beside.py, line \d+\)"),
        ("gymnasium.wrappers:TimeLimit", "wrapper 'gymnasium.wrappers:TimeLimit' raised TypeError: "),
    ],
)
def test_wrappers_that_are_none(name: str, message: str) -> None:
    beside()
    with pytest.raises(UsageError, match=message):
        make_envs("fakes:Random-v0", 1, wrappers=[name])


def test_a_module_that_cannot_be_imported() -> None:
    Path("beside.py").write_text("1 / 0")
    with pytest.raises(
        UsageError, match=r"importing the module 'beside' raised ZeroDivisionError: .* \(beside.py, line 1\)"
    ):
        make_envs("beside:Point-v0", 1)
