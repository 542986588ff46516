"""What the Q-gradient objective teaches by itself, as docs/results/recipes/dacer2.md derives it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.parts.schedules import vp_schedule
from diffac.testing.parts import Dims, make_batch, make_noise

DIMS = Dims(steps=5)
DIRECTION = np.array([0.6, -0.8])


def linear_critic(backend: ModuleType) -> Any:
    """Q = 2 g a for the unit vector g: the unit gradient is g everywhere."""
    g = backend.testing.to_backend(2 * DIRECTION)
    return lambda obs, action: (action * g).sum(-1)[None]


def loss_of(backend: ModuleType, denoiser: Any, **fields: Any) -> float:
    schedule = vp_schedule(5)
    objective = backend.TimeWeightedQGradient(backend.DDPMSampler(schedule), schedule, **fields)
    to_backend, rng = backend.testing.to_backend, np.random.default_rng(0)
    batch, noise = to_backend(make_batch(rng, DIMS)), to_backend(make_noise(rng, objective, DIMS))
    return float(objective(denoiser, linear_critic(backend), batch, noise, to_backend(np.float64(1)), {}).value)


@pytest.mark.parametrize("space", ["score", "eps"])
@pytest.mark.parametrize("source", ["chain", "replay"])
def test_the_minimiser_leads_every_step_outwards(backend: ModuleType, space: str, source: str) -> None:
    """Its denoiser is -sigma w g, and what it predicts is an expansion of a_t plus a push along g."""
    table, to_backend, to_numpy = vp_schedule(5), backend.testing.to_backend, backend.testing.to_numpy
    weight = np.exp(0.4 * np.arange(1, 6) - 1.8)
    factors = to_backend(-(table.sigmas * weight)[:, None] * DIRECTION)

    def minimiser(obs: Any, noisy: Any, t: Any) -> Any:
        return 0 * noisy + (factors[t] if isinstance(t, int) else factors[t[:, 0]][:, None])

    assert loss_of(backend, minimiser, space=space, source=source) == pytest.approx(0, abs=1e-15)
    expansion = [(1.115, 0.054), (1.52, 0.316), (2.51, 1.16), (5.07, 3.99), (12.5, 15.2)]
    noisy = np.array([[0.3, -0.1]])
    for t, (of_noisy, of_g) in enumerate(expansion):
        predicted = backend.remove_noise(table, to_backend(noisy), minimiser(None, to_backend(noisy), t), t)
        np.testing.assert_allclose(to_numpy(predicted)[0], of_noisy * noisy[0] + of_g * DIRECTION, rtol=5e-3, atol=5e-3)


def test_a_contractive_target_rests_in_the_best_corner(backend: ModuleType) -> None:
    """The exact denoiser of the point where a step up Q leads nowhere has no loss; that of another point has one."""
    to_backend = backend.testing.to_backend

    def denoiser_of(point: list[float]) -> Any:
        a = to_backend(np.array(point))
        return lambda obs, noisy, t: backend.noise_between(vp_schedule(5), a, noisy, t)

    for space in ("score", "eps"):
        fields = {"space": space, "contractive_step": 0.2}
        assert loss_of(backend, denoiser_of([1.0, -1.0]), **fields) == pytest.approx(0, abs=1e-15)
        assert loss_of(backend, denoiser_of([0.0, 0.0]), **fields) > 1e-4
