"""NumPy's numbers and paths are accepted wherever a number or a path is, and are written down as plain ones."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import yaml

import diffac.runs.recipes
from diffac.agent import Agent
from diffac.errors import UsageError
from diffac.runs.configs import RECIPE, config_yaml, make_config, read_config
from diffac.runs.folder import create_run
from diffac.training.config import ActorCriticConfig, TrainConfig
from diffac.training.evaluation import evaluate
from diffac.values import plain, vars_of

INTEGERS = (np.int8, np.int32, np.int64, np.uint8, np.uint64, np.array)
FLOATS = (np.float16, np.float32, np.float64, np.longdouble, np.array)


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("number", FLOATS)
def test_numbers_of_numpy_become_plain(integer: Any, number: Any, tmp_path: Path) -> None:
    config = ActorCriticConfig(
        total_timesteps=integer(100), num_envs=integer(4), learning_starts=integer(40), batch_size=integer(8),
        buffer_size=integer(100), seed=integer(3), updates_per_env_step=number(0.5), gamma=number(0.75),
        updates_per_call=integer(2), asynchronous=np.False_, hidden_sizes=np.array([16, 8]), run_root=tmp_path / "runs",
        env_id=np.str_("Pendulum-v1"),
        env_kwargs={"g": number(0.25), "n": integer(1), "path": Path("a/b"), "t": (1, 2)},
    )  # fmt: skip
    types = {name: type(value) for name, value in vars_of(config).items()}
    assert set(types.values()) <= {int, float, bool, str, tuple, dict, type(None)}
    assert config.hidden_sizes == (16, 8)
    assert config.env_kwargs == {"g": 0.25, "n": 1, "path": "a/b", "t": [1, 2]}
    json.dumps(plain(vars_of(config)))
    folder = create_run(config, "sac")
    name, values = read_config(folder / "config.yaml")
    assert make_config(ActorCriticConfig, values, "f") == config
    assert yaml.safe_load(config_yaml(config, name))[RECIPE] == "sac"
    assert dataclasses.replace(config, seed=np.int64(5)).seed == 5


def test_single_precision_is_written_as_it_is() -> None:
    config = ActorCriticConfig(learning_rate=np.float32(3e-4))
    assert type(config.learning_rate) is float
    assert np.float32(config.learning_rate) == np.float32(3e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": "3"}, "num_envs must be a whole number, got '3'"),
        ({"num_envs": 2.5}, "num_envs must be a whole number, got 2.5"),
        ({"num_envs": np.float32(2.5)}, "num_envs must be a whole number, got .*2.5"),
        ({"num_envs": True}, "num_envs must be a whole number, got True"),
        ({"num_envs": None}, "num_envs must be a whole number, got null"),
        ({"num_envs": np.array([1, 2])}, "num_envs must be a whole number, got"),
        ({"asynchronous": 1}, "asynchronous must be true or false, got 1"),
        ({"updates_per_env_step": "fast"}, "updates_per_env_step must be a number, got 'fast'"),
        ({"env_id": 3}, "env_id must be a text, got 3"),
        ({"run_root": 3}, "run_root must be a text, got 3"),
        ({"matmul_precision": "float16"}, "matmul_precision must be one of "),
        ({"wrappers": "a:b"}, "wrappers must be a list"),
    ],
)
def test_other_types_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**fields)


def test_a_run_takes_numpy(tmp_path: Path) -> None:
    config = fakes.config(num_envs=np.int64(4), updates_per_env_step=np.float32(0.5), run_root=tmp_path)
    assert config == fakes.config(run_root=str(tmp_path))


def test_an_agent_takes_numpy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    overrides = {"seed": np.int64(3), "gain": np.float32(0.5), "run_root": tmp_path, "num_envs": np.uint8(4)}
    agent = Agent.from_recipe("fake", "fakes:Random-v0", **overrides)
    agent.learn(np.int64(40)).learn(np.int32(60))
    agent.save(tmp_path / "saved")
    again = Agent.load(str(tmp_path / "saved"))
    assert again.config == agent.config
    assert again.num_timesteps == agent.num_timesteps == 100
    again.learn(np.int64(8))


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.array])
def test_evaluations_take_numpy(integer: Any) -> None:
    one, other = (
        evaluate(fakes.FakeEngine(), fakes.FakeState(), "fakes:Random-v0", num_episodes=i(3), seed=i(7), num_envs=i(2))
        for i in (integer, int)
    )
    np.testing.assert_array_equal(one.returns, other.returns)
