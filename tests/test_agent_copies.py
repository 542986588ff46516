"""Copies of an `Agent`, by `copy` and by pickle, in this process and in another one."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_recipe
import fakes
import gymnasium as gym
import numpy as np
import pytest

from diffac.agent import Agent
from diffac.errors import RunError, UsageError
from diffac.training.callbacks import Callback
from diffac.training.state import Training

SMALL: dict[str, Any] = {
    "hidden_sizes": (8,), "total_timesteps": 60, "learning_starts": 20, "batch_size": 8, "num_envs": 2,
    "buffer_size": 30, "eval_interval": 40, "eval_episodes": 1, "log_interval": 20, "updates_per_env_step": 0.5,
}  # fmt: skip
OBS = np.linspace(-1, 1, 6).reshape(2, 3)


def pickled(agent: Agent) -> Agent:
    return pickle.loads(pickle.dumps(agent))


WAYS: dict[str, Callable[[Agent], Agent]] = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": pickled}


@pytest.fixture(params=WAYS)
def copied(request: pytest.FixtureRequest) -> Callable[[Agent], Agent]:
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def fake(env_id: str = "fakes:Random-v0", **fields: Any) -> Agent:
    return Agent.from_recipe(fake_recipe, env_id, **{"num_envs": 4, "buffer_size": 30, **fields})


def assert_same(one: Agent, other: Agent) -> None:
    """Policy, counters, evaluations and the random numbers of `predict` are equal."""
    arrays, others = (agent._codec.to_arrays(agent.state) for agent in (one, other))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert (one.num_timesteps, repr(one)) == (other.num_timesteps, repr(other))
    for mine, theirs in zip(one.evaluations, other.evaluations, strict=True):
        np.testing.assert_array_equal(mine.returns, theirs.returns)
    np.testing.assert_array_equal(one.predict(OBS)[0], other.predict(OBS)[0])


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_is_the_same_agent_with_buffers_of_its_own(backend: Any, way: str) -> None:
    """Before the first `learn`, in the midst, with a replay memory that has turned, and at the end."""
    agent = Agent.from_recipe("sac", "fakes:Random-v0", backend=backend.name, **SMALL)
    copies = [WAYS[way](agent)]
    agent.predict(OBS)
    copies[0].predict(OBS)
    for steps in (10, 34, None):
        agent.learn(steps)
        copies.append(WAYS[way](agent))
        assert_same(copies[-1], agent)
    for one in copies[:-1]:
        one.learn()
        np.testing.assert_array_equal(one.evaluations[-1].returns, agent.evaluations[-1].returns)
        for name, array in backend.to_arrays(agent.state).items():
            np.testing.assert_array_equal(array, backend.to_arrays(one.state)[name], err_msg=name)
    for one in (copies[-1], agent):
        one.learn(20)
    assert_same(copies[-1], agent)


@pytest.mark.parametrize("steps", [None, 8, 40, 52, 80])
def test_training_one_does_not_change_the_other(copied: Callable[[Agent], Agent], steps: int | None) -> None:
    agent = fake()
    if steps is not None:
        agent.learn(steps)
    before = pickle.dumps(agent)
    first, second = copied(agent), copied(agent)
    first.learn(40)
    assert pickle.loads(before).state.keys == agent.state.keys
    agent.learn(40)
    second.learn(40)
    assert first.state.keys == second.state.keys == agent.state.keys
    assert_same(first, agent)
    agent.close()
    first.learn(40)


def test_a_copy_of_a_copy(copied: Callable[[Agent], Agent]) -> None:
    agent = fake().learn(40)
    again = copied(copied(agent))
    assert again.num_timesteps == 40
    again.save("again")
    assert Agent.load("again", recipe=fake_recipe).learn().state.keys == agent.learn().state.keys
    assert again.learn().state.keys == agent.state.keys


def test_a_loaded_agent(copied: Callable[[Agent], Agent]) -> None:
    """With its replay memory, which the copy takes along, and without one."""
    agent = fake().learn(40)
    agent.save("agent")
    agent.save("policy", replay=False)
    one = copied(Agent.load("agent", recipe=fake_recipe))
    agent.learn()
    agent.save("agent")  # what it was loaded from has gone
    assert one.num_timesteps == 40
    assert one.learn().state.keys == agent.state.keys
    loaded = Agent.load("policy", recipe=fake_recipe)
    one = copied(loaded)
    assert_same(one, loaded)
    one.save("other", replay=False)
    (manifest,) = Path("other").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["env_step"] == 40
    assert one.learn().state.keys == loaded.learn().state.keys


def test_a_closed_agent(copied: Callable[[Agent], Agent]) -> None:
    agent = fake().learn(40)
    agent.close()
    one = copied(agent)
    assert_same(one, agent)
    one.save("one", replay=False)
    for call in (one.learn, lambda: one.save("one")):
        with pytest.raises(RunError, match="has been closed or broken off"):
            call()


def test_environments_that_cannot_be_saved_begin_new_episodes(copied: Callable[[Agent], Agent]) -> None:
    agent = fake("fakes:Opaque-v0").learn(40)
    one = copied(agent)
    assert one.state.keys == agent.state.keys
    with pytest.warns(UserWarning, match="the environments begin new episodes, .* Opaque.engine is a object"):
        one.learn()
    assert one.num_timesteps == 80


def normalised(env: gym.Env) -> gym.Env:
    return gym.wrappers.NormalizeObservation(env)


@pytest.mark.filterwarnings("ignore:environment .* keeps running statistics")
def test_statistics_of_wrappers_go_along(copied: Callable[[Agent], Agent]) -> None:
    agent = fake(wrappers=(f"{__name__}:normalised",)).learn(40)
    one = copied(agent)
    agent.learn()
    assert one.learn().state.keys == agent.state.keys
    assert one.state.weight == agent.state.weight


def test_a_copy_in_a_callback(copied: Callable[[Agent], Agent]) -> None:
    copies: list[Agent] = []

    class Copies(Callback):
        def on_step(self, training: Training) -> None:
            if training.env_step in (12, 48):
                copies.append(copied(agent))

    agent = fake()
    agent.learn(callback=Copies())
    for one, steps in zip(copies, (12, 48), strict=True):
        assert one.num_timesteps == steps
        assert one.learn().state.keys == agent.state.keys


class Copied(fakes.Counter):
    """`Counter` whose step copies the agent."""

    agent: Agent | None = None

    def step(self, action: np.ndarray) -> Any:
        if self.agent is not None:
            WAYS[self.way](self.agent)
        return super().step(action)

    way = "deepcopy"


fakes.register("Copied", Copied)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_within_a_step_is_refused(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = fake("fakes:Copied-v0")
    monkeypatch.setattr(Copied, "agent", agent)
    monkeypatch.setattr(Copied, "way", way)
    what = "copy" if way == "deepcopy" else "pickle"
    with pytest.raises(RunError, match=f"^{what} was called while learn of the same agent is running; .* or in a call"):
        agent.learn()


def test_a_pickle_holds_no_code_but_names_of_diffac_and_numpy() -> None:
    names = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            names.append(f"{module}.{name}")
            return super().find_class(module, name)

    Unpickler(io.BytesIO(pickle.dumps(fake().learn(40)))).load()
    assert "diffac.agent.Agent" in names
    assert {name.partition(".")[0] for name in names} <= {"diffac", "numpy", "collections"}, names


def test_a_recipe_that_no_other_process_can_import() -> None:
    module = ModuleType("made_here")
    vars(module).update({name: getattr(fake_recipe, name) for name in ("Config", "build", "PRESETS", "ENV_CONSTANTS")})
    agent = Agent.from_recipe(module).learn(40)
    with pytest.raises(UsageError, match="'made_here' imports another one or none; write the recipe into a file"):
        pickle.dumps(agent)
    assert copy.deepcopy(agent).learn().state.keys == agent.learn().state.keys


@pytest.mark.parametrize("missing", ["fake_recipe", "fakes"])
def test_a_pickle_without_what_it_names(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(fake())
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=f"{missing}"):
        pickle.loads(data)


@pytest.mark.parametrize("given", [fakes.Counter(), fakes.Counter, lambda: fakes.Counter(), 3])
def test_an_environment_in_place_of_its_name(given: Any) -> None:
    """So no agent holds what could not be pickled."""
    with pytest.raises(UsageError, match=r"env_id must be the name of an environment, .*; gymnasium\.register"):
        Agent.from_recipe(fake_recipe, given)
    with pytest.raises(UsageError, match="env_kwargs must be names with plain data"):
        fake(env_kwargs={"length": given if given != 3 else {1}})


def test_cloudpickle() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    agent = fake().learn(40)
    assert cloudpickle.loads(cloudpickle.dumps(agent)).learn().state.keys == agent.learn().state.keys


def learned(agent: Agent) -> list[int]:
    return agent.learn().state.keys


def test_another_process() -> None:
    """That shares nothing with this one."""
    agent = fake().learn(40)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        keys = pool.apply(learned, (agent,))
    assert keys == agent.learn().state.keys
