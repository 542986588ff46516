"""The bandit: its value, its modes, and that the exact samples follow exp(Q/temperature)."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffac.envs.four_modes import CENTRES, FourModes, exact_samples, value
from diffac.errors import UsageError


@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_to_complain_about() -> None:
    check_env(gym.make("diffac/FourModes-v0").unwrapped, skip_render_check=True)


def test_every_action_is_worth_its_value() -> None:
    env = FourModes()
    env.reset(seed=0)
    for mode, centre in enumerate(CENTRES):
        obs, reward, terminated, truncated, info = env.step(centre)
        assert reward == pytest.approx(1 + 2 * np.exp(-12.5) + np.exp(-25))
        assert (obs, terminated, truncated, info) == ([0], True, False, {"mode": mode})
    assert env.step(np.zeros(2))[4] == {"mode": -1}
    assert env.step(np.array([2.0, 0.5]))[1] == pytest.approx(float(value(np.array([1.0, 0.5]))))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_exact_samples(temperature: float) -> None:
    """Mean value and share near a centre, against a midpoint rule over the box with other cells."""
    samples = exact_samples(40_000, temperature=temperature)
    grid = np.stack(np.meshgrid(*[(np.arange(301) + 0.5) / 301 * 2 - 1] * 2), -1).reshape(-1, 2)
    density = np.exp(value(grid) / temperature)
    expected = (density * value(grid)).sum() / density.sum()
    assert value(samples).mean() == pytest.approx(expected, abs=0.01)
    near = np.linalg.norm(samples[:, None] - CENTRES, axis=-1) < 0.3
    of_grid = np.linalg.norm(grid[:, None] - CENTRES, axis=-1) < 0.3
    np.testing.assert_allclose(near.mean(0), density @ of_grid / density.sum(), atol=0.01)
    assert np.abs(samples).max() <= 1


@pytest.mark.parametrize("wrong", [{"count": 0}, {"cells": 0}, {"temperature": 0.0}])
def test_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        exact_samples(**{"count": 3, **wrong})
