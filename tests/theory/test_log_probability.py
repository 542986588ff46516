"""LogProbability with an exact denoiser: exact as the times get dense, and how far off with the 20 published ones.

Noises fill space evenly, so that what is left is the error of the sum over times alone.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.noise import Noise, NoiseSpec, Normal
from diffac.parts.schedules import TabularSchedule, cosine_schedule
from diffac.protocols import Policy, Rollout
from theory.exact import Mixture, even_normals, orders
from theory.test_sampling import MIXTURES, exact_denoiser

pytestmark = pytest.mark.theory

LAWS = {"Gaussian": Mixture(np.ones(1), np.array([[0.1]]), np.array([0.15])), "mixture": MIXTURES[2]}
ACTIONS = {
    "Gaussian": np.array([[-0.2], [0.05], [0.3]]),
    "mixture": np.array([[-0.35, 0.1], [0.0, 0.0], [0.3, 0.2], [0.5, -0.5]]),
}
PUBLISHED = {0.25: -0.03, 0.09: -0.09, 0.01: -0.41, 0.001: -1.18}
"""Variance of a Gaussian -> by how much its log-probability is missed in each dimension, mean over its actions."""


class Given:
    """A sampler whose actions are its noise."""

    def noise_spec(self, shape: tuple[int, ...]) -> NoiseSpec:
        return {"action": Normal(shape)}

    def rollout(self, policy: Policy, obs: Any, noise: Noise) -> Rollout:
        return Rollout(noise["action"])

    def __call__(self, policy: Policy, obs: Any, noise: Noise) -> Any:
        return noise["action"]


def estimated(
    backend: ModuleType, law: Mixture, table: TabularSchedule, actions: np.ndarray, noises: np.ndarray
) -> np.ndarray:
    """The log-probability [batch] of actions [batch act], with noises [num_noises batch act] at each time."""
    tools = backend.testing
    sampler = backend.LogProbability(Given(), table, len(noises))
    noise = {"inner": {"action": actions}, "noises": np.broadcast_to(noises, (table.num_steps, *noises.shape)).copy()}
    policy = Policy(exact_denoiser(backend, law, table))
    rollout = tools.compiled(sampler.rollout)(policy, *tools.to_backend((np.zeros((len(actions), 1)), noise)))
    return tools.to_numpy(rollout.log_prob)


def exact(law: Mixture, actions: np.ndarray) -> np.ndarray:
    """The mixture's log-density [batch]."""
    d = actions.shape[-1]
    square = ((actions[:, None] - law.centre) ** 2).sum(-1) / law.std**2
    return np.log((law.weight * np.exp(-square / 2) / (2 * np.pi * law.std**2) ** (d / 2)).sum(-1))


def even_in_log_snr(num_steps: int) -> TabularSchedule:
    """Times evenly spread in the log-SNR, from 12 to -12."""
    signal = 1 / (1 + np.exp(-np.linspace(12, -12, num_steps)))
    return TabularSchedule(np.sqrt(signal), np.sqrt(1 - signal))


@pytest.mark.parametrize("name", LAWS)
def test_exact_as_the_times_get_dense(backend: ModuleType, name: str) -> None:
    """The error is of first order in the distance of the times."""
    law, actions = LAWS[name], ACTIONS[name]
    noises = even_normals(11, actions.shape[1:])
    noises /= np.sqrt((noises**2).mean(0))  # else what they lack counts at all of the times with little noise
    noises = np.repeat(noises[:, None], len(actions), axis=1)
    errors = np.array(
        [
            np.abs(estimated(backend, law, even_in_log_snr(steps), actions, noises) - exact(law, actions)).max()
            for steps in (61, 121, 241, 481, 961)
        ]
    )
    order = orders(errors)
    print(f"{backend.name}, {name}: errors {errors.round(4)}, orders {order.round(2)}")
    assert (np.abs(order - 1) < 0.1).all()
    assert errors[-1] < 0.03


def bias(table: TabularSchedule, variance: float, square: Any) -> Any:
    """Of the sum over the times for N(0, variance), at actions with these squares; `variance` is their mean.

    With v = s variance + 1 - s a noise is missed by s variance / v eps - sqrt(s (1 - s)) / v action.
    """
    s = table.alphas**2
    weight = (np.append(1.0, s[:-1]) - s) / (2 * s * (1 - s))
    v = s * variance + 1 - s
    error = (s * variance / v) ** 2 + s * (1 - s) / v**2 * np.expand_dims(square, -1)
    return (weight * (s - error)).sum(-1) + (np.log(variance) - 1 + square / variance) / 2


@pytest.mark.parametrize("variance", PUBLISHED)
def test_bias_of_the_published_times(backend: ModuleType, variance: float) -> None:
    """What the docstring and the recipe's page say: log pi is too small, so entropy is overstated."""
    table = cosine_schedule(20, start=0.001, end=0.9946)
    assert bias(table, variance, variance) == pytest.approx(PUBLISHED[variance], abs=0.005)
    dense = [bias(cosine_schedule(steps, start=0.001, end=0.9946), variance, variance) for steps in (20, 40, 80, 160)]

    pairs = even_normals(14, (2,))
    actions, noises = np.sqrt(variance) * pairs[:, :1], pairs[None, :, 1:]
    law = Mixture(np.ones(1), np.zeros((1, 1)), np.sqrt([variance]))
    inside = np.abs(actions[:, 0]) < 1
    measured = (estimated(backend, law, table, actions, noises) - exact(law, actions))[inside].mean()
    expected = bias(table, variance, actions[:, 0] ** 2)[inside].mean()
    print(f"{backend.name}, {variance}: {measured:.4f}, {expected:.4f}; 20, 40, 80, 160 times {np.round(dense, 3)}")
    assert (np.diff(dense) > 0).all()
    # A twentieth of the widest law lies outside the box; clipped predictions then miss by less than it expects.
    assert measured == pytest.approx(expected, abs=0.01 if variance == 0.25 else 0.001)
