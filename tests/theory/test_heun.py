"""HeunSampler on the exact velocity of a Gaussian: its error falls with the square of the step, Euler's with the step.

The flow of N(m, c^2 I) is linear, and its paths are known: x_s = (1 - s) m + std(s) z with std(s)^2 = (1 - s)^2 c^2 +
s^2, so a start z ends in the action m + c z. Nothing is clipped: every prediction lies inside.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.parts.schedules import TabularSchedule, flow_schedule
from diffac.protocols import Policy
from theory.exact import Mixture, orders

pytestmark = pytest.mark.theory

GAUSSIAN = Mixture(np.ones(1), np.array([[0.1, -0.2]]), np.array([0.25]))
START = np.random.default_rng(0).uniform(-1.5, 1.5, (40, 2))
EXACT = GAUSSIAN.centre + GAUSSIAN.std * START
STEPS = (5, 10, 20, 40, 80, 160)
PREDICTIONS = ("velocity", "action", "eps")


class Exact:
    """The denoiser of the Gaussian, which says what it is asked for."""

    def __init__(self, backend: ModuleType, table: TabularSchedule, prediction: str) -> None:
        self.prediction = prediction
        numbers = np.array(table.alphas), np.array(table.sigmas), *GAUSSIAN[1:]
        self.alpha, self.sigma, self.centre, self.std = backend.testing.to_backend(numbers)

    def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
        alpha, sigma = self.alpha[t], self.sigma[t]
        standardised = (noisy - alpha * self.centre) / (alpha**2 * self.std**2 + sigma**2)
        eps, action = sigma * standardised, self.centre + alpha * self.std**2 * standardised
        return {"velocity": eps - action, "action": action, "eps": eps}[self.prediction]


def error(backend: ModuleType, name: str, table: TabularSchedule, prediction: str, count: int | None = None) -> float:
    """The largest error of an action."""
    tools, sampler = backend.testing, getattr(backend, name)(table, num_steps=count)
    noise, obs = tools.to_backend(({"start": START}, np.zeros((len(START), 1))))
    action = tools.compiled(sampler)(Policy(Exact(backend, table, prediction)), obs, noise)
    return float(np.abs(tools.to_numpy(action) - EXACT).max())


@pytest.mark.parametrize("prediction", ["velocity", "action"])
def test_order(backend: ModuleType, prediction: str) -> None:
    heun, euler = (
        np.array([error(backend, name, flow_schedule(steps), prediction) for steps in STEPS])
        for name in ("HeunSampler", "DDIMSampler")
    )
    print(f"{backend.name}, {prediction}: Heun {heun}, orders {orders(heun).round(3)}")
    print(f"{backend.name}, {prediction}: Euler {euler}, orders {orders(euler).round(3)}")
    assert np.abs(EXACT).max() < 1
    assert (heun < euler).all()
    assert ((orders(heun)[-2:] > 1.9) & (orders(heun)[-2:] < 2.1)).all()
    assert ((orders(euler)[-2:] > 0.95) & (orders(euler)[-2:] < 1.05)).all()


def test_order_with_fewer_steps_than_times(backend: ModuleType) -> None:
    """At some of 641 times: the step counts, not the schedule's; the last one, from 1/641, is too small to matter."""
    table = flow_schedule(641)
    errors = np.array([error(backend, "HeunSampler", table, "velocity", count) for count in (11, 21, 41, 81)])
    print(f"{backend.name}: {errors}, orders {orders(errors).round(3)}")
    assert ((orders(errors)[-2:] > 1.85) & (orders(errors)[-2:] < 2.15)).all()


def test_predictions_are_three_ways_to_say_the_same(backend: ModuleType) -> None:
    """Noises too, where the flow keeps some signal; it then starts elsewhere, so all three have the same error."""
    errors = [error(backend, "HeunSampler", flow_schedule(20, last=0.9), prediction) for prediction in PREDICTIONS]
    np.testing.assert_allclose(errors, errors[0], rtol=1e-9)
