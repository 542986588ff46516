"""The exact mathematics against itself: two ways to each number. Nothing of a backend."""

from __future__ import annotations

import numpy as np
import pytest
from learning.bandit import energy_distance

from diffac.parts.schedules import vp_schedule
from theory.exact import BoxDensity, Mixture, energy_distance_to, even_normals, gaussian_chain, orders, reverse_noises

pytestmark = pytest.mark.theory

TABLE = vp_schedule(20)
INSIDE = Mixture(np.array([0.4, 0.6]), np.array([[-0.3, 0.1], [0.2, 0.25]]), np.array([0.1, 0.12]))
"""A mixture of which the box holds all but 1e-9."""


def log_density(action: np.ndarray) -> np.ndarray:
    """Of the mixture, by its definition, but for a constant and with a floor."""
    square = ((action[:, None] - INSIDE.centre) ** 2).sum(-1)
    return np.log(np.exp(-square / (2 * INSIDE.std**2)) @ (INSIDE.weight / INSIDE.std**2) + 1e-20)


@pytest.mark.parametrize("t", [0, 5, 19])
def test_quadrature_agrees_with_the_formula_of_a_mixture(t: int) -> None:
    alpha, sigma = TABLE.alphas[t], TABLE.sigmas[t]
    rng = np.random.default_rng(0)
    noisy = alpha * INSIDE.sample(rng, 50) + sigma * rng.standard_normal((50, 2))
    by_quadrature = BoxDensity(log_density, 2).noise(noisy, alpha, sigma)
    np.testing.assert_allclose(by_quadrature, INSIDE.noise(noisy, alpha, sigma), atol=1e-6)


def test_quadrature_has_converged() -> None:
    noisy = np.random.default_rng(0).standard_normal((50, 1))
    density = [BoxDensity(lambda a: 10 * a[:, 0] - 12 * a[:, 0] ** 4, 1, n) for n in (60, 120)]
    for a, b in zip(*(d.moments(noisy, TABLE.alphas[0], TABLE.sigmas[0]) for d in density), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_samples_have_the_density() -> None:
    rng = np.random.default_rng(0)
    box, mixture = BoxDensity(log_density, 2).sample(rng, 3000), INSIDE.sample(rng, 3000)
    assert abs(energy_distance(box, mixture)) < 0.001
    np.testing.assert_allclose(mixture.mean(0), INSIDE.mean(), atol=0.02)
    np.testing.assert_allclose(np.cov(mixture.T), INSIDE.covariance(), atol=0.005)


def test_reverse_noises_have_the_moments_of_quadrature() -> None:
    """With a constant density the mean of the reverse kernel itself."""
    noisy, alpha, sigma = np.array([1.4]), TABLE.alphas[3], TABLE.sigmas[3]
    eps = reverse_noises(noisy, alpha, sigma, (np.arange(10_000)[:, None] + 0.5) / 10_000)
    expected = BoxDensity(lambda a: 0 * a[:, 0], 1).noise(noisy[None], alpha, sigma)
    assert (np.abs(noisy - sigma * eps) <= alpha + 1e-12).all()
    assert eps.mean() == pytest.approx(expected.item(), abs=1e-4)


def test_chain_of_a_gaussian_agrees_with_its_simulation() -> None:
    """With the posterior's coefficients of the table, which the formula does not use."""
    one, table = Mixture(np.ones(1), np.array([[0.3]]), np.array([0.2])), vp_schedule(10)
    normals = even_normals(14, (10, 1))
    noisy = normals[:, 0]
    for step, t in enumerate(reversed(range(10)), start=1):
        action = (noisy - table.sigmas[t] * one.noise(noisy, table.alphas[t], table.sigmas[t])) / table.alphas[t]
        noisy = table.posterior_action[t] * action + table.posterior_noisy[t] * noisy
        if t:
            noisy = noisy + table.posterior_std[t] * normals[:, step]
    mean, std = gaussian_chain(0.3, 0.2, table.alphas, table.sigmas)
    assert noisy.mean() == pytest.approx(mean, abs=1e-4)
    assert noisy.std() == pytest.approx(std, rel=2e-3)


def test_distance_and_order() -> None:
    one = Mixture(np.ones(1), np.zeros((1, 1)), np.full(1, 0.2))
    samples = 0.2 * even_normals(12, (1,))
    moved = [energy_distance_to(one, samples + shift) for shift in (0.0, 0.1, 0.05)]
    assert moved[0] < 1e-6
    # 2 sqrt(2) s times (E|Z + shift/(s sqrt 2)| - E|Z|), which is nearly shift^2 / (s sqrt pi)
    assert moved[1] == pytest.approx(0.1**2 / (0.2 * np.sqrt(np.pi)), rel=0.05)
    assert orders(np.array([8.0, 4.0, 1.0])).tolist() == [1, 2]
    assert energy_distance(samples, samples + 0.1) == pytest.approx(moved[1], rel=0.05)
