"""Environments as people have them: what gymnasium lets pass works, or is refused in a sentence that says where."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import fakes
import gymnasium as gym
import numpy as np
import odd
import pytest

import diffac.runs.recipes
from diffac.agent import Agent
from diffac.data.environments import make_envs
from diffac.data.stepper import VectorStepper
from diffac.data.vectors import close
from diffac.errors import RunError, UsageError
from diffac.training.evaluation import Evaluator, evaluate

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def roll(env_id: str, steps: int = 20, num_envs: int = 2, asynchronous: bool = False) -> list[Any]:
    """Results of steps with the largest, the smallest and random actions."""
    envs = make_envs(env_id, num_envs, asynchronous=asynchronous)
    rng = np.random.default_rng(0)
    try:
        stepper = VectorStepper(envs, timeout=60)
        first = stepper.reset(range(num_envs))
        shape = (num_envs, stepper.action_dim)
        actions = [np.ones(shape), -np.ones(shape), np.zeros(shape), *rng.uniform(-1, 1, (steps, *shape))]
        return [first, *(stepper.step(action) for action in actions[:steps])]
    finally:
        close(envs)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an agent of the fake recipe for an environment."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    return lambda env_id, **overrides: Agent.from_recipe("fake", env_id, **overrides)


# actions


class Bold(fakes.FakeEngine):
    """Acts at the bounds and beyond."""

    dim = 1

    def act(self, state: Any, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
        choices = np.float32([-1, 1, -1.5, 7, 0.3, np.nextafter(np.float32(1), 2)])
        return np.resize(np.roll(choices, len(self.acted)), (len(obs), noise["start"].shape[-1])).astype(np.float32)


@pytest.mark.parametrize("name", ["Insidefloat16", "Insidefloat32", "Insidefloat64", "Constant"])
def test_actions_stay_in_the_box(name: str, agent: Any) -> None:
    """In training, evaluation and `predict`; the environment raises an error otherwise, and for another dtype."""
    roll(f"odd:{name}-v0", 60)
    evaluate(Bold(), fakes.FakeState(), f"odd:{name}-v0", num_episodes=4, seed=0)
    env = gym.make(f"odd:{name}-v0", disable_env_checker=True)
    player = agent(f"odd:{name}-v0")
    player.learner = Bold()
    obs, _ = env.reset()
    for _ in range(5):
        env.step(player.predict(obs)[0])
    (row,) = player.predict(obs[None])[0]
    env.step(row)


def test_actions_stay_in_the_box_asynchronously() -> None:
    roll("odd:Insidefloat32-v0", 10, 1, asynchronous=True)


# info


@BOTH
def test_info_may_hold_anything(asynchronous: bool) -> None:
    results = roll("odd:Infos-v0", 30, 3, asynchronous)
    assert sum(len(result.episodes) for result in results[1:]) > 3


# what reset and step return


@pytest.mark.parametrize("name", odd.BREACHES)
def test_breaches_are_named(name: str) -> None:
    _, method, message = odd.BREACHES[name]
    with pytest.raises(
        RunError, match=f"^environment 'odd:{name}-v0' breaks the contract of {method}: .*{message}"
    ) as e:
        roll(f"odd:{name}-v0")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("name", ["ObsRow", "ResetAlone", "StepFour", "Reward1"])
def test_breaches_are_named_asynchronously(name: str, recwarn: pytest.WarningsRecorder) -> None:
    _, method, message = odd.BREACHES[name]
    with pytest.raises(RunError, match=f"^environment 'odd:{name}-v0' breaks the contract of {method}: .*{message}"):
        roll(f"odd:{name}-v0", 5, 2, asynchronous=True)
    assert not [str(warning.message) for warning in recwarn if "Traceback" in str(warning.message)]


@pytest.mark.parametrize("name", odd.ALIKE)
def test_the_same_in_other_types_is_no_breach(name: str) -> None:
    assert len(roll(f"odd:{name}-v0", 6)) == 7


def test_a_reset_of_old_gym_is_named() -> None:
    with pytest.raises(RunError, match=r"'odd:OldReset-v0' raised TypeError in reset: .*gymnasium calls reset\(seed="):
        roll("odd:OldReset-v0")


@BOTH
def test_errors_come_in_one_line(asynchronous: bool, recwarn: pytest.WarningsRecorder) -> None:
    """Whatever they hold: gymnasium would format the message with `%`, and wait forever for one that has no pickle."""
    with pytest.raises(RunError) as raised:
        roll("odd:Percent-v0", 3, 2, asynchronous)
    said = r"environment .odd:Percent-v0. raised Unpicklable in step: .* items and much more \(odd\.py, line \d+\), at"
    assert re.match(said, str(raised.value))
    assert "\n" not in str(raised.value)
    assert not [str(warning.message) for warning in recwarn if "Traceback" in str(warning.message)]


# observations


@pytest.mark.parametrize("name", odd.OBSERVED)
def test_observations_become_rows(name: str, agent: Any) -> None:
    space, obs, row = odd.OBSERVED[name]
    first, result, *_ = roll(f"odd:Sees{name}-v0", 1)
    for rows in (first, result.obs, result.transition.next_obs):
        np.testing.assert_array_equal(rows, [np.float32(row)] * 2)
        assert rows.dtype == np.float32
    assert agent(f"odd:Sees{name}-v0").predict(obs)[0].shape == (1,)
    # gymnasium's own order, so that what was learned before goes on fitting
    assert gym.spaces.flatdim(space) == len(row)
    if space.contains(obs):
        np.testing.assert_array_equal(np.float32(gym.spaces.flatten(space, obs)), np.float32(row))


@pytest.mark.parametrize("name", odd.MISFITS)
def test_what_is_no_observation_is_named(name: str, agent: Any) -> None:
    _, obs, message = odd.MISFITS[name]
    said = f"^environment 'odd:Sees{name}-v0' breaks the contract of reset: the .*{message}"
    with pytest.raises(RunError, match=said):
        roll(f"odd:Sees{name}-v0")
    if name not in ("ChoiceVector", "ScalarVector"):  # which are several observations
        with pytest.raises(UsageError, match="does not fit"):
            agent(f"odd:Sees{name}-v0").predict(obs)


def test_several_observations_are_checked_too(agent: Any) -> None:
    counts = agent("odd:SeesCounts-v0")
    assert counts.predict([[1, 2], [3, 4], [5, 6]])[0].shape == (3, 1)
    with pytest.raises(UsageError, match=r"whole numbers of dtype int64, got 1\.5"):
        counts.predict([[1, 2], [1.5, 4]])
    with pytest.raises(UsageError, match="got nan"):
        counts.predict([[1, np.nan], [1, 4]])
    choices = agent("odd:SeesChoice-v0")
    assert choices.predict(np.array([0, 2, 1]))[0].shape == (3, 1)
    with pytest.raises(UsageError, match="must choose from"):
        choices.predict(np.array([0, 3]))


@pytest.mark.parametrize("obs", [[np.nan, 0, 0], [[0, 0, 0], [0, np.inf, 0]]])
def test_predict_refuses_what_is_not_finite(obs: Any, agent: Any) -> None:
    with pytest.raises(UsageError, match="not finite"):
        agent("fakes:Terminates-v0").predict(obs)


# spaces and instances


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_space": gym.spaces.Box(0, np.inf, (2,))}, "without finite bounds"),
        ({"action_space": gym.spaces.Box(-np.inf, 0, (2,))}, "without finite bounds"),
        ({"action_space": gym.spaces.Box(np.float32([0, 0]), np.float32([1, np.inf]))}, "without finite bounds"),
        ({"action_space": gym.spaces.Box(-np.finfo(np.float32).max, 1, (2,))}, "without finite bounds"),
        ({"action_space": gym.spaces.Box(-1e300, 1e300, (2,), np.float64)}, "without finite bounds"),
        ({"action_space": gym.spaces.Box(-1, 1, (0,))}, "holds no number"),
        ({"action_space": gym.spaces.Box(-1, 1, ())}, "Box action space with one axis"),
        ({"action_space": gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (1,))})}, "Box action space with one axis"),
        ({"action_space": gym.spaces.MultiDiscrete([2, 3])}, "Box action space with one axis"),
        ({"action_space": gym.spaces.MultiBinary(2)}, "Box action space with one axis"),
        ({"observation_space": gym.spaces.Box(-1, 1, (0,))}, "holds no number"),
        ({"observation_space": gym.spaces.Box(-1, 1, (3, 0))}, "holds no number"),
        ({"observation_space": gym.spaces.Dict({})}, "cannot flatten"),
        ({"observation_space": gym.spaces.Graph(gym.spaces.Box(-1, 1, (1,)), None)}, "cannot flatten"),
        ({"observation_space": "a text"}, "cannot flatten"),
    ],
)
def test_spaces_that_cannot_be_used_are_refused(arguments: dict[str, Any], message: str) -> None:
    gym.register("Strange-v99", fakes.Strange, kwargs=arguments)
    try:
        with pytest.raises(UsageError, match=f"environment 'Strange-v99' has .*{message}"):
            make_envs("Strange-v99", 1)
    finally:
        del gym.registry["Strange-v99"]


@BOTH
def test_environments_that_differ_are_refused(asynchronous: bool) -> None:
    with pytest.raises(UsageError, match="made as 'odd:Differing-v0' differ"):
        make_envs("odd:Differing-v0", 3, asynchronous=asynchronous)


def test_an_id_of_the_script_and_processes(tmp_path: Path) -> None:
    """The environment's process starts afresh and has never heard of it."""
    gym.register("OnlyHere-v0", fakes.Counter)
    try:
        close(make_envs("OnlyHere-v0", 2))
        with pytest.raises(UsageError, match=r"unknown environment 'OnlyHere-v0'.*asynchronous.*'module:id'"):
            make_envs("OnlyHere-v0", 2, asynchronous=True)
    finally:
        del gym.registry["OnlyHere-v0"]


# seeds


def test_seeds_of_evaluation_are_below_two_to_the_31() -> None:
    """Simulators in C take no more; those that were below it stay what they were."""
    with Evaluator("fakes:Random-v0", num_episodes=10, seed=0) as evaluator:
        for seed in (0, 1, 2**31, 2**40, 10**30):
            evaluator.seed = seed
            raw = np.random.SeedSequence(seed).spawn(2)[0].generate_state(10)
            assert all(0 <= found < 2**31 for found in evaluator.env_seeds)
            small = raw < 2**31
            np.testing.assert_array_equal(np.array(evaluator.env_seeds)[small], raw[small])
            assert len(set(evaluator.env_seeds)) == 10
