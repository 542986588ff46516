"""Do the objectives reach what their theory promises? A bandit with four modes and known Q, in minutes."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from learning import bandit

pytestmark = pytest.mark.learning
EXACT = bandit.exact_samples(2000)

BOUND = 0.01
"""Energy distance of 2000 samples to 2000 exact ones: equal laws give 0 +- .001."""


def test_energy_distance_of_exact_samples_is_zero() -> None:
    distances = [bandit.energy_distance(EXACT, bandit.exact_samples(2000, seed=seed)) for seed in range(1, 5)]
    assert np.abs(distances).max() < 0.002
    assert bandit.modes_covered(EXACT) == 4


@pytest.mark.parametrize("truncated", [True, False])
def test_reweighted_score_matching_reaches_the_boltzmann_law(backend: ModuleType, truncated: bool) -> None:
    before = bandit.energy_distance(bandit.untrained(backend.name).sample(), EXACT)
    samples = bandit.sdac(backend.name, truncated=truncated).sample()
    after = bandit.energy_distance(samples, EXACT)
    print(f"{backend.name}, truncated={truncated}: energy distance {before:.4f} -> {after:.4f}")
    assert after < BOUND
    assert after < before / 5
    assert bandit.modes_covered(samples) == 4


def test_value_through_sampler_reaches_the_maximum(backend: ModuleType) -> None:
    samples = bandit.value(backend.name).sample()
    reached = bandit.q_value(samples).mean()
    print(f"{backend.name}: mean Q {reached:.3f}, modes {bandit.modes_covered(samples)} of 4")
    assert reached > 0.9


@pytest.mark.parametrize("eta", [0.01, 1.0])
def test_dacer2_reaches_the_maximum_and_reports_its_modes(backend: ModuleType, eta: float) -> None:
    samples = bandit.value(backend.name, eta=eta).sample()
    covered, reached = bandit.modes_covered(samples), bandit.q_value(samples).mean()
    print(f"{backend.name}, eta={eta}: modes {covered} of 4, mean Q {reached:.3f}")
    assert covered >= 1
    assert reached > 0.7
