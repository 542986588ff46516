"""What critic objectives compute, on critics whose values are known."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.parts import PARTS
from diffac.protocols import Batch, Rollout

TEMPERATURE = np.float64(0.3)


class Constant:
    """A critic whose members each have one value everywhere."""

    def __init__(self, backend: ModuleType, values: list[float]) -> None:
        self.values = backend.testing.to_backend(np.array(values)[:, None])

    def __call__(self, obs: Any, action: Any) -> Any:
        """[size batch]"""
        return self.values + 0 * action[..., 0]


def of_zeros(backend: ModuleType, size: int = 4) -> Batch:
    """A batch without reward, in which a target is what comes after."""
    zeros, none = np.zeros((size, 1)), np.zeros(size)
    batch = Batch(zeros, zeros, none, zeros, np.ones(size), next_rollout=Rollout(zeros))
    return backend.testing.to_backend(batch)


# categorical distributions

LOW, HIGH, NUM_ATOMS = -2.0, 4.0, 7
ATOMS = np.linspace(LOW, HIGH, NUM_ATOMS)
WIDTH = 1.0


class Table:
    """A critic with one distribution for each of its members, everywhere."""

    v_min, v_max = LOW, HIGH

    def __init__(self, backend: ModuleType, logits: Any) -> None:
        self.table = backend.testing.to_backend(np.asarray(logits, np.float64)[:, None])

    def logits(self, obs: Any, action: Any) -> Any:
        """[size batch atoms]"""
        return self.table + 0 * action[..., :1]

    def __call__(self, obs: Any, action: Any) -> Any:
        raise AssertionError("the objective needs the logits, of which it has the means")


def goal(
    backend: ModuleType, probabilities: Any, reward: float, discount: float = 1.0, log_prob: float = 0.0, **fields: Any
) -> np.ndarray:
    """The distribution that an objective aims at, from its losses alone: logits L cost logsumexp(L) - L goal."""
    objective = backend.CategoricalTD(**fields)
    target = Table(backend, np.log(probabilities))
    batch = of_zeros(backend, 1)
    rollout = Rollout(batch.action, log_prob=backend.testing.to_backend(np.array([log_prob])))
    batch = batch._replace(next_rollout=rollout, reward=batch.reward + reward, discount=discount * batch.discount)
    temperature, shares = backend.testing.to_backend(TEMPERATURE), []
    for k in range(NUM_ATOMS):
        critic = Table(backend, np.eye(NUM_ATOMS)[[k]])
        loss = objective(critic, target, batch, {}, temperature, {})
        shares.append(np.log(np.e + NUM_ATOMS - 1) - float(backend.testing.to_numpy(loss.value)))
    return np.array(shares)


def random_law(rng: np.random.Generator, members: int = 1) -> np.ndarray:
    return rng.dirichlet(np.ones(NUM_ATOMS), members)


def test_projection_of_c51_keeps_the_mean(backend: ModuleType) -> None:
    """As long as no atom leaves the range: r in [(1 - discount) v_min, (1 - discount) v_max]."""
    rng = np.random.default_rng(0)
    for discount in (0.0, 0.3, 0.99):
        law, reward = random_law(rng), (1 - discount) * rng.uniform(LOW, HIGH)
        found = goal(backend, law, reward, discount, projection="c51")
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert found.min() > -1e-12
        assert found @ ATOMS == pytest.approx(reward + discount * law[0] @ ATOMS, abs=1e-12)


def test_hl_gauss_does_not_keep_the_mean(backend: ModuleType) -> None:
    """On the border by half of what the normal law has beyond it, between two atoms by little; it sums to 1."""
    rng = np.random.default_rng(0)
    law = random_law(rng)
    for y, off in ((HIGH, 0.3), (1.25, 1e-5), (LOW - 100, 0.3)):
        found = goal(backend, law, y, 0.0)
        assert found.sum() == pytest.approx(1, abs=1e-12)
        error = abs(found @ ATOMS - np.clip(y, LOW, HIGH))
        assert off < error < WIDTH
    assert goal(backend, law, 1.0, 0.0) @ ATOMS == pytest.approx(1, abs=1e-3)  # in the middle by symmetry


def test_a_shift_by_whole_atoms_keeps_all_mass(backend: ModuleType) -> None:
    """Where returns meet atoms nothing is lost: a known mistake adds 0 to both neighbours."""
    law = random_law(np.random.default_rng(1))
    shifted = np.concatenate([[0], law[0][:-2], [law[0][-2:].sum()]])  # what leaves the range stays on its border
    np.testing.assert_allclose(goal(backend, law, WIDTH, projection="c51"), shifted, atol=1e-12)
    np.testing.assert_allclose(goal(backend, law, 0.0, projection="c51"), law[0], atol=1e-12)
    np.testing.assert_allclose(goal(backend, law, 2 * WIDTH, 0.0, projection="c51"), np.eye(7)[4], atol=1e-12)


def test_entropy_moves_the_target(backend: ModuleType) -> None:
    """temperature log pi, discounted, is taken from every return."""
    law, cost = random_law(np.random.default_rng(2)), 0.5 * float(TEMPERATURE) * 0.7
    for projection in ("c51", "hl_gauss"):
        soft = goal(backend, law, 0.2, 0.5, 0.7, soft=True, projection=projection)
        np.testing.assert_allclose(soft, goal(backend, law, 0.2 - cost, 0.5, projection=projection), atol=1e-12)


def test_one_distribution_of_an_ensemble(backend: ModuleType) -> None:
    """The one with the smaller mean, the average, or the first; for HL-Gauss only the number counts."""
    laws = random_law(np.random.default_rng(3), 3)
    laws = laws[np.argsort(laws @ ATOMS)[[1, 0, 2]]]
    for ensemble, law in {"min": laws[1], "mean": laws.mean(0), "first": laws[0]}.items():
        for projection in ("c51", "hl_gauss"):
            fields = {"ensemble": ensemble, "projection": projection}
            alone = goal(backend, law[None], 0.1, 0.9, projection=projection)
            np.testing.assert_allclose(goal(backend, laws, 0.1, 0.9, **fields), alone, atol=1e-12)


def test_each_transition_has_the_distribution_of_its_smaller_mean(backend: ModuleType) -> None:
    """One member for the whole batch would do for the one or the other: the loss of two is the mean of their losses."""
    table = np.random.default_rng(4).standard_normal((2, 2, NUM_ATOMS))  # [member transition atom]
    order = np.argsort(np.exp(table) @ ATOMS / np.exp(table).sum(-1), axis=0)
    table = np.take_along_axis(table, order[:, :, None], 0)
    table[:, 1] = table[::-1, 1]  # the second transition has its smaller mean in the other member

    def loss(rows: list[int]) -> float:
        target = Table(backend, np.zeros((2, NUM_ATOMS)))
        target.table = backend.testing.to_backend(table[:, rows])
        critic, batch = Table(backend, np.eye(NUM_ATOMS)[[5]]), of_zeros(backend, len(rows))
        found = backend.CategoricalTD("c51")(critic, target, batch, {}, backend.testing.to_backend(TEMPERATURE), {})
        return float(backend.testing.to_numpy(found.value))

    assert loss([0, 1]) == pytest.approx((loss([0]) + loss([1])) / 2, rel=1e-12)


def test_a_critic_without_logits(backend: ModuleType) -> None:
    critic = backend.TwinCritic(3, 2, key=0, hidden_sizes=(4,))
    with pytest.raises(UsageError, match=r"CategoricalTD needs a critic with a method `logits`.* got TwinCritic"):
        backend.CategoricalTD().init_state(critic)


def test_masses_are_divided_as_by_their_distances(backend: ModuleType) -> None:
    """The form for a CPU is the plain one, at the ends and on the places too; many masses may meet in one place."""
    kernel = importlib.import_module(f"{backend.__name__}.kernels.projection")
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.uniform(0, 6, (3, 9)), rng.integers(0, 7, (3, 9)), np.full((3, 4), 2.5)], axis=1)
    masses, positions = backend.testing.to_backend((rng.random(positions.shape), positions))
    fast, plain = (backend.testing.to_numpy(f(masses, positions, 7)) for f in (kernel.divided, kernel._divided_densely))
    np.testing.assert_allclose(fast, plain, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(fast.sum(1), backend.testing.to_numpy(masses).sum(1), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_no_number_is_not_lost(backend: ModuleType, value: float) -> None:
    """NaN ends a run with a diagnostic, so it must reach the loss; infinite returns are those of the range's ends."""
    moved = goal(backend, random_law(np.random.default_rng(1)), value, projection="c51")
    assert np.isnan(moved).any() if np.isnan(value) else moved[-1 if value > 0 else 0] == pytest.approx(1)


# Gaussian returns


class Gaussian:
    """A critic with one distribution for each of its members, everywhere."""

    def __init__(self, backend: ModuleType, mean: list[float], std: list[float]) -> None:
        self.numbers = [backend.testing.to_backend(np.array(x)[:, None]) for x in (mean, std)]

    def distribution(self, obs: Any, action: Any) -> tuple[Any, Any]:
        """Mean and std, [size batch]."""
        mean, std = (x + 0 * action[..., 0] for x in self.numbers)
        return mean, std

    def __call__(self, obs: Any, action: Any) -> Any:
        """[size batch]"""
        return self.distribution(obs, action)[0]


@pytest.mark.parametrize(("omega", "ratio"), [(0.01, 0.1), (1.0, 1 / 1.1), (1.2, 1.44 / 1.1), (100.0, 10.0)])
def test_the_ratio_of_the_huber_form_is_bounded(backend: ModuleType, omega: float, ratio: float) -> None:
    """With std 1, a mean 2 away from its target, 0, and y_b at most 3 omega from the mean."""
    objective = backend.GaussianTD(tau=1e-300, huber_delta=1.5)
    online, target = Gaussian(backend, [2.0], [1.0]), Gaussian(backend, [0.0], [1.0])
    noise, state = backend.testing.to_backend(({"target": np.zeros(4)}, {"omega": np.array([omega])}))
    loss = objective(online, target, of_zeros(backend), noise, backend.testing.to_backend(TEMPERATURE), state)
    distance = min(2, 3 * omega)
    spread = distance**2 / 2 if distance < 1.5 else 1.5 * (distance - 0.75)
    expected = ratio * (1.5 * (2 - 0.75) + (1 - spread) / 1.1)
    assert float(backend.testing.to_numpy(loss.value)) == pytest.approx(expected, rel=1e-12)


# a random pair


def target_of_pair(backend: ModuleType, values: list[float], pair: Any) -> float:
    objective, critic = backend.MeanSquaredTD(ensemble="random_pair"), Constant(backend, values)
    noise, temperature = backend.testing.to_backend({"pair": np.asarray(pair)}), backend.testing.to_backend(TEMPERATURE)
    loss = objective(critic, critic, of_zeros(backend), noise, temperature, {})
    return float(backend.testing.to_numpy(loss.metrics["target_mean"]))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_pair_of_different_members_is_as_likely(backend: ModuleType, size: int) -> None:
    """Numbers in the middle of size (size - 1) equal rectangles choose each ordered pair once; the smaller is taken."""
    middle = itertools.product((np.arange(size) + 0.5) / size, (np.arange(size - 1) + 0.5) / (size - 1))
    found = sorted(target_of_pair(backend, list(range(size)), pair) for pair in middle)
    assert found == sorted(min(pair) for pair in itertools.permutations(range(size), 2))


def test_the_largest_number_below_one_chooses_a_member(backend: ModuleType) -> None:
    """Also where a product rounds up: 1 - 2^-24 in float32, and what is nearest to 1 here."""
    assert target_of_pair(backend, [0.0, 1.0, 2.0], [np.nextafter(1, 0), np.nextafter(1, 0)]) == 1.0
    assert target_of_pair(backend, [0.0, 1.0, 2.0], [1.0, 1.0]) == 1.0


def test_one_member_is_no_pair(backend: ModuleType) -> None:
    with pytest.raises(UsageError, match="needs a critic with two members or more, and this one has 1"):
        target_of_pair(backend, [0.0], [0.5, 0.5])


def test_only_targets_may_be_of_a_random_pair() -> None:
    """An actor's loss would be another function in each step; the sentence says what there is."""
    for name, part in PARTS.items():
        argument = part.arguments.get("ensemble")
        if argument is not None and not name.endswith("TD"):
            with pytest.raises(UsageError, match="ensemble 'random_pair'"):
                argument.check("ensemble", "random_pair")
