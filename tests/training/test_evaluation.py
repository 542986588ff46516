"""Evaluation: complete episodes, unscaled, without bias and without a trace in training."""

from __future__ import annotations

import fakes
import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.training.evaluation import Evaluator, evaluate


def test_returns_are_sums_of_the_environments_rewards() -> None:
    result = evaluate(fakes.FakeEngine(), fakes.FakeState(), "fakes:Terminates-v0", num_episodes=7, seed=0, num_envs=3)
    np.testing.assert_array_equal(result.returns, [150.0] * 7)
    np.testing.assert_array_equal(result.lengths, [5] * 7)


def test_no_bias_to_short_episodes() -> None:
    """The first episodes that end are short; a fixed share for each environment keeps the mean length of 5.5."""
    learner, state = fakes.FakeEngine(), fakes.FakeState()
    with Evaluator("fakes:Random-v0", num_episodes=10, seed=0) as evaluator:
        means = []
        for seed in range(150):
            evaluator.seed = seed
            means.append(evaluator(learner, state).lengths.mean())
    assert abs(np.mean(means) - 5.5) < 0.25


def test_every_call_is_the_same_and_explores_not() -> None:
    learner, state = fakes.FakeEngine(), fakes.FakeState()
    with Evaluator("fakes:Random-v0", num_episodes=4, seed=3) as evaluator:
        first = evaluator(learner, state)
        acted, learner.acted = learner.acted, []
        second = evaluator(learner, state)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(acted, learner.acted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any(learner.explored)
    other = evaluate(learner, state, "fakes:Random-v0", num_episodes=4, seed=4)
    assert (other.lengths != first.lengths).any()


@pytest.mark.parametrize(("num_episodes", "num_envs", "used"), [(3, None, 3), (25, None, 10), (5, 2, 2)])
def test_environments_share_the_episodes(num_episodes: int, num_envs: int | None, used: int) -> None:
    learner = fakes.FakeEngine()
    result = evaluate(
        learner, fakes.FakeState(), "fakes:Random-v0", num_episodes=num_episodes, seed=0, num_envs=num_envs
    )
    assert len(result.returns) == len(result.lengths) == num_episodes
    assert learner.acted[0].shape == (used, 1)


def test_no_episodes_are_refused() -> None:
    with pytest.raises(UsageError, match="num_episodes must be at least 1, got 0"):
        Evaluator("fakes:Random-v0", num_episodes=0, seed=0)
