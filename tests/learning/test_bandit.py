"""Do the objectives reach what their theory promises? A bandit with four modes and known Q, in minutes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.parts.schedules import vp_schedule
from learning import bandit

pytestmark = pytest.mark.learning
EXACT = bandit.exact_samples(2000)

BOUND = 0.008
"""Energy distance of 2000 samples to 2000 exact ones. Equal laws give 0 +- .001, the chain of 20 steps with the exact
denoiser .0024, trained ones .002 to .004, SDAC's clipped reverse samples .02 to .03, an untrained network .11."""


def test_energy_distance_of_exact_samples_is_zero() -> None:
    distances = [bandit.energy_distance(EXACT, bandit.exact_samples(2000, seed=seed)) for seed in range(1, 5)]
    assert np.abs(distances).max() < 0.002
    assert bandit.modes_covered(EXACT) == 4


def trained(backend: ModuleType, truncated: bool, gradient_weight: Any = 0.0) -> tuple[float, np.ndarray]:
    samples = bandit.boltzmann(backend.name, truncated=truncated, gradient_weight=gradient_weight).sample()
    distance = bandit.energy_distance(samples, EXACT)
    print(f"{backend.name}, truncated={truncated}, h={gradient_weight}: energy distance {distance:.4f}")
    return distance, samples


def test_chain_with_the_exact_denoiser_sets_the_bound() -> None:
    assert bandit.energy_distance(bandit.best_possible(vp_schedule(20)), EXACT) < BOUND / 2


def test_reweighted_score_matching_reaches_the_boltzmann_law(backend: ModuleType) -> None:
    before = bandit.energy_distance(bandit.untrained(backend.name).sample(), EXACT)
    after, samples = trained(backend, truncated=True)
    assert after < BOUND
    assert after < before / 10
    assert bandit.modes_covered(samples) == 4
    np.testing.assert_allclose(bandit.mode_shares(samples), bandit.mode_shares(EXACT), atol=0.05)


def test_clipped_reverse_samples_are_biased(backend: ModuleType) -> None:
    """Why `truncated` is the default: clipping, as in the official code, puts the mass of the tails on the boundary."""
    before = bandit.energy_distance(bandit.untrained(backend.name).sample(), EXACT)
    after, _ = trained(backend, truncated=False)
    assert BOUND < after < before / 2


def test_value_through_sampler_reaches_the_maximum(backend: ModuleType) -> None:
    samples = bandit.value(backend.name).sample()
    reached = bandit.q_value(samples).mean()
    print(f"{backend.name}: mean Q {reached:.3f}, modes {bandit.modes_covered(samples)} of 4")
    assert reached > 0.95


def test_dacer2_reaches_the_maximum_and_reports_its_modes(backend: ModuleType) -> None:
    """With the default eta. With eta 1 the pull, whose target is at most 1.2 long, keeps the policy from the modes."""
    samples = bandit.value(backend.name, eta=0.01).sample()
    covered, reached = bandit.modes_covered(samples), bandit.q_value(samples).mean()
    print(f"{backend.name}: modes {covered} of 4, mean Q {reached:.3f}")
    assert covered >= 1
    assert reached > 0.95
