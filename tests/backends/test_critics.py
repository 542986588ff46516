"""What critic objectives compute, on critics whose values are known."""

from __future__ import annotations

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
