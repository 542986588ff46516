"""Running moments against NumPy's mean and variance of all observations at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffac.data.normalisation import RunningMoments
from diffac.errors import UsageError


@given(
    sizes=st.lists(st.integers(0, 7), max_size=30),
    size=st.integers(1, 4),
    offset=st.sampled_from([0.0, 1.0, -1e4, 1e6]),
    scale=st.sampled_from([1e-2, 1.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_moments_are_those_of_all_observations(
    sizes: list[int], size: int, offset: float, scale: float, seed: int
) -> None:
    """Of batches of any size, some empty; relative to what an observation is large."""
    rng, moments = np.random.default_rng(seed), RunningMoments(size)
    batches = [(offset + scale * rng.standard_normal((n, size))).astype(np.float32) for n in sizes]
    for batch in batches:
        moments.update(batch)
    seen = np.concatenate([np.zeros((0, size), np.float32), *batches]).astype(np.float64)
    assert moments.count == len(seen)
    if len(seen) == 0:
        np.testing.assert_array_equal(moments.mean, 0)
        np.testing.assert_array_equal(moments.var, 1)
        return
    largest = np.abs(seen).max()
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-12, atol=1e-12 * largest)
    np.testing.assert_allclose(moments.var, seen.var(0), rtol=1e-12, atol=1e-12 * largest * (largest + scale))


def test_a_constant_has_no_variance() -> None:
    """Also where it is no round number: a division by the root of rounding errors would make noise of it."""
    moments = RunningMoments(1)
    for n in (1, 3, 5, 2, 7):
        moments.update(np.full((n, 1), 0.1, np.float32))
    assert moments.var[0] < 1e-30
    assert moments.mean[0] == np.float32(0.1)


def test_moments_go_on() -> None:
    """To the last bit from what was saved, but for rounding from what a learner holds."""
    rng, one = np.random.default_rng(0), RunningMoments(3)
    batches = rng.standard_normal((9, 4, 3))
    for batch in batches[:5]:
        one.update(batch)
    restored, gone_on = RunningMoments(3), RunningMoments(3)
    restored.restore(one.save())
    gone_on.go_on({name: array.astype(np.float32) for name, array in one.state().items()})
    for batch in batches[5:]:
        for moments in (one, restored, gone_on):
            moments.update(batch)
    assert one.count == restored.count == gone_on.count == 36
    np.testing.assert_array_equal(one.mean, restored.mean)
    np.testing.assert_array_equal(one.squares, restored.squares)
    np.testing.assert_allclose(gone_on.mean, one.mean, atol=1e-6)
    np.testing.assert_allclose(gone_on.var, one.var, rtol=1e-6)
    saved = one.save()
    one.update(batches[0])
    assert saved["count"] == 36
    np.testing.assert_array_equal(saved["mean"], restored.mean)


@pytest.mark.parametrize(
    "wrong", [{"count": -1.0}, {"count": np.nan}, {"var": np.array([1.0, -1e-9])}, {"mean": np.array([0.0, np.inf])}]
)
def test_moments_of_no_observations_are_refused(wrong: dict[str, Any]) -> None:
    """They may come from a stranger's checkpoint."""
    moments = RunningMoments(2)
    moments.update(np.ones((3, 2)))
    with pytest.raises(UsageError, match="moments of observations need"):
        RunningMoments(2).go_on({**moments.state(), **wrong})
