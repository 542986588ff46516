"""Actions in the environment's own range: never outside it, in its dtype, linear, whatever the bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd import EVERYDAY

from diffac.data.spaces import action_scaler
from diffac.parts.export import Signature

DTYPES = (np.float16, np.float32, np.float64)
EDGES = np.float32([-1, 1, 0, -0.0, 0.5, *np.nextafter(np.float32([1, 1, -1, -1]), np.float32([0, 2, 0, -2])), 3, -9])
WIDTH = {np.float16: 16, np.float32: 32, np.float64: 64}


def box(bounds: Any, dtype: Any) -> Box:
    low, high = (np.asarray(side, np.float64).astype(dtype) for side in zip(*bounds, strict=True))
    return Box(low, high, dtype=dtype)


def actions(dim: int) -> np.ndarray:
    """[n dim], edges and random numbers in every component."""
    inner = np.random.default_rng(0).uniform(-1, 1, (200, dim)).astype(np.float32)
    return np.concatenate([np.repeat(EDGES[:, None], dim, 1), inner])


@pytest.mark.parametrize("dtype", DTYPES)
def test_everyday_bounds_are_kept(dtype: Any) -> None:
    assert len(EVERYDAY) > 100
    space = box(EVERYDAY, dtype)
    given = actions(len(EVERYDAY))
    found = action_scaler(space)(given)
    assert found.dtype == dtype
    assert ((found >= space.low) & (found <= space.high)).all()
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    exact = low + (given.clip(-1, 1).astype(np.float64) + 1) / 2 * (high - low)
    allowed = np.finfo(dtype).eps * np.maximum(abs(low), abs(high))
    assert (abs(found - exact) <= 2 * allowed).all()


def test_symmetric_unit_bounds_change_nothing() -> None:
    given = np.random.default_rng(0).uniform(-1, 1, (500, 2)).astype(np.float32) ** 9  # tiny ones too
    np.testing.assert_array_equal(action_scaler(Box(-1, 1, (2,)))(given), given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.3, 0.0, -0.0, -2.5, 1e-8])
def test_equal_bounds_are_constant(dtype: Any, value: float) -> None:
    found = action_scaler(box([(value, value)], dtype))(actions(1))
    np.testing.assert_array_equal(found, np.full_like(found, value))


@given(st.data())
def test_any_bounds_are_kept(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    numbers = st.floats(width=WIDTH[dtype], allow_nan=False, allow_infinity=False)
    low, high = np.sort(data.draw(hnp.arrays(dtype, (2, 3), elements=numbers)), 0)
    space = Box(low, high, dtype=dtype)
    with np.errstate(over="ignore"):
        found = action_scaler(space)(actions(3))
    assert found.dtype == dtype
    assert ((found >= low) & (found <= high)).all()
    order = np.argsort(actions(3), 0)
    assert (np.diff(np.take_along_axis(found, order, 0).astype(np.float64), axis=0) >= 0).all()


def test_raw_actions_go_as_far_beyond_the_bounds() -> None:
    """For policies that charge an environment with what they did (`clip_action=False`)."""
    scale = action_scaler(box([(-1, 3), (0, 1)], np.float32), clip=False)
    np.testing.assert_array_equal(scale(np.float32([[1.5, -2], [0.5, 0]])), np.float32([[4, -0.5], [2, 0.5]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exported_bounds_are_inside(dtype: Any) -> None:
    """An exported policy computes in float32, of which the bounds of a float64 box are no numbers."""
    space = box(EVERYDAY, dtype)
    low, high = Signature(1, {}, space.low, space.high).bounds
    assert low.dtype == high.dtype == np.float32
    assert (low.astype(np.float64) >= space.low).all()
    assert (high.astype(np.float64) <= space.high).all()
    np.testing.assert_allclose([low, high], [space.low, space.high], rtol=2e-7)
