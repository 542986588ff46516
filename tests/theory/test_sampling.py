"""DDPMSampler with the exact denoiser of a Gaussian mixture: its law tends to the mixture as T grows, with order 1.

In each step the chain adds the variance of q(a_{t-1} | a_t, a_0) and leaves out that of a_0 given a_t, of second order
in the step; T steps leave out something of first order, and the samples are too narrow. (An energy distance is
quadratic in the difference of two laws: order 2.) The chain starts from N(0, I) and not from the noised mixture; with
the tables used here that moves the mean by less than 1e-4.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from learning.bandit import energy_distance

from diffac.parts.schedules import TabularSchedule, cosine_schedule, vp_schedule
from diffac.protocols import Policy
from theory.exact import Mixture, energy_distance_to, even_normals, gaussian_chain, orders

pytestmark = pytest.mark.theory

TABLES = {"vp": vp_schedule, "cosine": cosine_schedule}
"""Tables that tend to a continuous process as T grows; `linear_beta_schedule` does not."""
GAUSSIAN = Mixture(np.ones(1), np.array([[0.3]]), np.array([0.2]))
MIXTURES = {
    1: Mixture(np.array([0.3, 0.7]), np.array([[-0.35], [0.25]]), np.array([0.12, 0.16])),
    2: Mixture(
        np.array([0.2, 0.3, 0.5]), np.array([[-0.35, 0.1], [0.3, 0.3], [0.15, -0.3]]), np.array([0.12, 0.15, 0.12])
    ),
}
STEPS = (5, 10, 20, 40, 80, 160)
"""Measured with `vp` and the mixture in two dimensions: the covariance is off by .774 .522 .318 .199 .112 .063 of its
norm, the energy distance is .0660 .0215 .0068 .0026 .0006 .0003; the other three cases are alike."""


def exact_denoiser(backend: ModuleType, mixture: Mixture, table: TabularSchedule) -> Any:
    """The mixture's denoiser for one schedule, in place of a network."""
    if backend.name == "torch":
        from torch import exp
    else:
        from jax.numpy import exp
    mixture, alpha, sigma = backend.testing.to_backend((mixture, np.array(table.alphas), np.array(table.sigmas)))
    return lambda obs, noisy, t: mixture.noise(noisy, alpha[t], sigma[t], exp)


def run(backend: ModuleType, mixture: Mixture, table: TabularSchedule, normals: np.ndarray) -> np.ndarray:
    """Actions [batch act] of the chain with normals [batch T act], of which the first is the start.

    Fails where a predicted action left the box: then the clip would hide what is measured.
    """
    tools = backend.testing
    sampler, denoiser = backend.DDPMSampler(table, start_scale=1.0), exact_denoiser(backend, mixture, table)
    steps = np.moveaxis(normals, 1, 0)
    noise, obs = tools.to_backend(({"start": steps[0], "steps": steps[:0:-1].copy()}, np.zeros((len(normals), 1))))
    rollout = tools.to_numpy(tools.compiled(sampler.rollout)(Policy(denoiser), obs, noise))
    for t, noisy in enumerate(rollout.noisy):
        eps = mixture.noise(noisy, table.alphas[t], table.sigmas[t])
        assert np.abs(noisy - table.sigmas[t] * eps).max() < table.alphas[t], f"a prediction at t={t} was clipped"
    return rollout.action


@pytest.mark.parametrize("name", TABLES)
def test_law_of_one_gaussian_is_known_exactly(backend: ModuleType, name: str) -> None:
    """The chain is then an affine map, so its law is N(offset, |slope|^2): read off exactly, by one noise at a time."""
    (centre,), (std,) = GAUSSIAN.mean(), GAUSSIAN.std
    errors = []
    for num_steps in (5, 20, 40, 80, 160, 320, 640):
        table = TABLES[name](num_steps)
        unit = np.concatenate([np.zeros((1, num_steps)), np.eye(num_steps)])[..., None]
        offset, *moved = run(backend, GAUSSIAN, table, unit)[:, 0]
        law = offset, np.linalg.norm(np.array(moved) - offset)
        np.testing.assert_allclose(law, gaussian_chain(centre, std, table.alphas, table.sigmas), rtol=1e-10)
        errors.append([abs(law[0] - centre), abs(law[1] - std)])
    mean_errors, std_errors = np.transpose(errors)
    order = orders(std_errors[1:])
    print(f"{backend.name}, {name}: std too small by {(std_errors / std).round(4)}, orders {order.round(3)}")
    assert mean_errors.max() < 1e-4
    assert (np.diff(order) > 0).all()
    assert 0.85 < order[-1] < 1


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("action_dim", MIXTURES)
def test_mixture_is_reproduced_as_steps_grow(backend: ModuleType, action_dim: int, name: str) -> None:
    mixture = MIXTURES[action_dim]
    mean, covariance = mixture.mean(), mixture.covariance()
    exact = mixture.sample(np.random.default_rng(0), 4000)
    errors = []
    for num_steps in STEPS:
        samples = run(backend, mixture, TABLES[name](num_steps), even_normals(13, (num_steps, action_dim)))
        distance = energy_distance_to(mixture, samples) if action_dim == 1 else energy_distance(samples[:4000], exact)
        difference = np.linalg.norm(np.cov(samples.T) - covariance) / np.linalg.norm(covariance)
        errors.append([np.linalg.norm(samples.mean(0) - mean), difference, distance])
    means, covariances, distances = np.transpose(errors)
    print(f"{backend.name}, {action_dim}-d, {name}: T = {STEPS}")
    for what, values in (("mean", means), ("covariance", covariances), ("energy distance", distances)):
        print(f"  {what} {values.round(5)}, orders {orders(values).round(2)}")
    assert means.max() < 0.02
    assert means[-1] < 0.005
    assert covariances[-1] < 0.08
    assert distances[-1] < 0.0005
    assert ((orders(covariances) > 0.45) & (orders(covariances) < 1)).all()
    assert 0.65 < orders(covariances[2:]).mean() < 1
    assert (orders(distances[:-1]) > 1.2).all()  # the last one is near the noise of two finite samples
    assert 1.3 < orders(distances[2:]).mean() < 2
