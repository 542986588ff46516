"""Measures of multimodality on histograms, laws and policies whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import norm

from diffac.envs.four_modes import CENTRES, exact_samples
from diffac.envs.multi_goal import GOALS
from diffac.errors import UsageError
from diffac.testing.multimodality import Act, energy_distance, entropy, histogram, measure, ring, roll, total_variation


def heading_for(goals: Any) -> Act:
    """A policy that goes to one of the goals: row i always to the same one, i modulo their number."""

    def act(obs: np.ndarray) -> np.ndarray:
        target = GOALS[[goals[i % len(goals)] for i in range(len(obs))]]
        return np.clip(target - obs, -1, 1)

    return act


def to_the_nearest(obs: np.ndarray) -> np.ndarray:
    nearest = np.linalg.norm(obs[:, None] - GOALS, axis=-1).argmin(1)
    return np.clip(GOALS[nearest] - obs, -1, 1)


@pytest.mark.parametrize(
    ("counts", "nats", "distance"),
    [
        ([50, 50, 50, 50], math.log(4), 0.0),
        ([200, 0, 0, 0], 0.0, 0.75),
        ([0, 7, 7, 0], math.log(2), 0.5),
        ([3, 1], 2 * math.log(2) - 0.75 * math.log(3), 0.25),
        ([9], 0.0, 0.0),
    ],
)
def test_histograms(counts: list[int], nats: float, distance: float) -> None:
    assert entropy(np.array(counts)) == pytest.approx(nats, abs=1e-12)
    assert total_variation(np.array(counts)) == pytest.approx(distance, abs=1e-12)


def test_nothing_reached_is_no_distribution() -> None:
    assert math.isnan(entropy(np.zeros(4, int)))
    assert math.isnan(total_variation(np.zeros(4, int)))


def test_histogram() -> None:
    np.testing.assert_array_equal(histogram(np.array([0, -1, 3, 3]), 4), [1, 0, 0, 2])
    np.testing.assert_array_equal(histogram(np.array([], int), 2), [0, 0])
    for wrong in ([4], [-2]):
        with pytest.raises(UsageError, match="modes must be from -1 to 3"):
            histogram(np.array(wrong), 4)


def test_energy_distance_is_the_double_sum() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    expected = 2 * cdist(x, y).mean() - cdist(x, x).sum() / 42 - cdist(y, y).sum() / 20
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0), (3.0, 0.5)])
def test_energy_distance_of_normal_laws(shift: float, scale: float) -> None:
    """N(0, 1) and N(m, s^2): a difference of normals is normal, and E|N(m, v)| has a closed form."""

    def absolute(mean: float, variance: float) -> float:
        std = math.sqrt(variance)
        folded = std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * variance))
        return folded + mean * (1 - 2 * float(norm.cdf(-mean / std)))

    expected = 2 * absolute(shift, 1 + scale**2) - absolute(0, 2) - absolute(0, 2 * scale**2)
    rng = np.random.default_rng(1)
    found = [energy_distance(rng.normal(size=(800, 1)), rng.normal(shift, scale, (800, 1))) for _ in range(20)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(20) + 1e-4)
    if shift == 0.0:
        assert abs(np.mean(found)) < 0.002
        assert min(found) < 0  # unbiased


def test_energy_distance_in_the_plane() -> None:
    """Far apart it tells the distance: 2 m - 2 sqrt(pi) to leading order, for two standard normal laws."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 1500, 2))
    far = np.array([30.0, 0.0])
    assert energy_distance(x, y + far) == pytest.approx(2 * (30 + 1 / 30) - 2 * math.sqrt(math.pi), abs=0.3)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3, 2), (3, 1)), ((1, 2), (3, 2))])
def test_energy_distance_refuses(shapes: Any) -> None:
    with pytest.raises(UsageError, match=r"samples must have shapes \[n d\] and \[m d\]"):
        energy_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_a_policy_with_one_goal_is_lost_without_it() -> None:
    found, rollouts = measure(heading_for([2]), "diffac/MultiGoal-v0", num_rollouts=20, seed=0)
    assert (found.counts.tolist(), found.missed, found.reached) == ([0, 0, 20, 0], 0, 1)
    assert (found.entropy, found.total_variation) == (0.0, 0.75)
    assert (found.blocked, found.blocked_share) == (2, 0.0)
    assert found.blocked_return < 20 * found.mean_return
    assert (rollouts.modes == 2).all()
    for path in rollouts.paths:  # (-1, 0) each, up to the goal's edge
        assert np.linalg.norm(path[0]) < 0.6
        assert np.linalg.norm(path[-1] - GOALS[2]) < 1
        np.testing.assert_allclose(path[1] - path[0], [-1, 0], atol=0.6)


def test_a_policy_with_all_goals_loses_a_quarter() -> None:
    found, _ = measure(heading_for([0, 1, 2, 3]), "diffac/MultiGoal-v0", num_rollouts=40, seed=0)
    assert (found.counts.tolist(), found.reached) == ([10] * 4, 4)
    assert found.entropy == pytest.approx(math.log(4))
    assert (found.total_variation, found.blocked, found.blocked_share) == (0.0, 0, 0.75)


def test_the_ring() -> None:
    """From the axes to the goal ahead: two of eight places each, when the diagonals have been shared out."""
    np.testing.assert_allclose(ring(2.0, 4), [[2, 0], [0, 2], [-2, 0], [0, -2]], atol=1e-12)
    rollouts = roll(to_the_nearest, "diffac/MultiGoal-v0", num_rollouts=80, seed=1, starts=ring(2.0)[::2])
    np.testing.assert_array_equal(rollouts.modes, [0, 1, 2, 3] * 20)
    first = np.array([path[0] for path in rollouts.paths])
    np.testing.assert_allclose(first, np.tile(ring(2.0)[::2], (20, 1)), atol=0.5)
    found, _ = measure(to_the_nearest, "diffac/MultiGoal-v0", num_rollouts=80, seed=1, starts=ring(2.0))
    assert found.counts.min() >= 10


def test_only_the_policys_own_choice_counts_from_one_place() -> None:
    """A deterministic policy reaches every goal from places around the centre, and one from the centre itself."""

    def act(obs: np.ndarray) -> np.ndarray:
        return to_the_nearest(obs + np.array([0.0, 1e-6]))

    around, _ = measure(act, "diffac/MultiGoal-v0", num_rollouts=80, seed=0)
    centre, rollouts = measure(act, "diffac/MultiGoal-v0", num_rollouts=80, seed=0, env_kwargs={"start_std": 0.0})
    assert around.counts.min() >= 10
    assert (centre.counts.tolist(), centre.blocked, centre.blocked_share) == ([0, 80, 0, 0], 1, 0.0)
    assert all((path == rollouts.paths[0]).all() for path in rollouts.paths)


def test_nobody_arrives() -> None:
    found, rollouts = measure(lambda obs: np.zeros((len(obs), 2)), "diffac/MultiGoal-v0", num_rollouts=3, seed=0)
    assert (found.missed, found.reached, found.blocked) == (3, 0, -1)
    assert np.isnan([found.entropy, found.total_variation, found.blocked_return, found.blocked_share]).all()
    assert [len(path) for path in rollouts.paths] == [101] * 3
    assert found.mean_return == pytest.approx(-2500, rel=0.1)


def test_two_routes() -> None:
    def upwards(obs: np.ndarray) -> np.ndarray:
        return np.stack([obs[:, 1], -obs[:, 0]], -1) / np.abs(obs).max(-1, keepdims=True)

    found, _ = measure(upwards, "diffac/TwoRoutes-v0", num_rollouts=10, seed=0)
    assert (found.counts.tolist(), found.total_variation, found.blocked_share) == ([10, 0], 0.5, 0.0)


def test_the_bandit() -> None:
    """Exact samples as a policy: all four modes, and the distance to exact samples is none."""
    samples = exact_samples(400, seed=3)
    found, rollouts = measure(lambda obs: samples, "diffac/FourModes-v0", num_rollouts=400, seed=0)
    near = np.linalg.norm(samples[:, None] - CENTRES, axis=-1) < 0.3
    np.testing.assert_array_equal(found.counts, near.sum(0))
    assert found.blocked == -1
    assert [len(path) for path in rollouts.paths] == [2] * 400
    assert abs(energy_distance(samples, exact_samples(400, seed=4))) < 0.01


def test_rollouts_of_a_seed_repeat() -> None:
    one, two, other = (roll(to_the_nearest, "diffac/MultiGoal-v0", num_rollouts=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.returns, two.returns)
    assert (one.returns != other.returns).any()


def test_refused() -> None:
    with pytest.raises(UsageError, match="modes are known of diffac/MultiGoal-v0"):
        measure(to_the_nearest, "Pendulum-v1", seed=0)
    with pytest.raises(UsageError, match="num_rollouts must be"):
        roll(to_the_nearest, "diffac/MultiGoal-v0", num_rollouts=0, seed=0)
    with pytest.raises(UsageError, match="radius"):
        ring(0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": []}, "starts must hold at least one place"),
        ({"seed": -1}, "seed must be a whole number, at least 0"),
        ({"act": lambda obs: np.zeros((1, 2))}, r"finite actions of shape \(3, 2\), got shape \(1, 2\)"),
        ({"act": lambda obs: np.full((3, 2), np.nan)}, "got entries that are not finite"),
        ({"env_id": "Pendulum-v1", "starts": [[0.0, 0.0]]}, "takes no 'starts'"),
        ({"env_id": "diffac/MultiGaol-v0"}, "did you mean 'diffac/MultiGoal-v0'"),
    ],
)
def test_rollouts_that_cannot_be(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"act": to_the_nearest, "env_id": "diffac/MultiGoal-v0", "num_rollouts": 3, "seed": 0}
    with pytest.raises(UsageError, match=message):
        roll(**{**arguments, **change})
