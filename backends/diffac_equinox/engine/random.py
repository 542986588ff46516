"""Draws noise specifications on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike

from diffac.noise import Integers, Noise, NoiseSpec, Normal, Uniform, Zeros


def key_data(seed: int) -> np.ndarray:
    """The uint32 [2] form of any non-negative seed: an argument of compiled functions, so that no seed recompiles."""
    return np.random.SeedSequence(seed).generate_state(2)


def stream(data: Array | np.ndarray, *path: Array | int) -> Array:
    """The JAX key of an independent stream, told apart from others by a path of integers."""
    key = jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")
    for number in path:
        key = jax.random.fold_in(key, number)
    return key


def draw(key: Array, spec: NoiseSpec, dtype: DTypeLike) -> Noise:
    """Draws all noise of a specification: integers as int32, everything else as `dtype`.

    Raises:
        TypeError: an entry is neither a law nor a mapping.
    """
    return {name: _draw_one(jax.random.fold_in(key, i), name, law, dtype) for i, (name, law) in enumerate(spec.items())}


def _draw_one(key: Array, name: str, law: Any, dtype: DTypeLike) -> Any:
    match law:
        case Mapping():
            return draw(key, law, dtype)
        case Normal(shape):
            return jax.random.normal(key, shape, dtype)
        case Uniform(shape):
            return jax.random.uniform(key, shape, dtype)
        case Integers(shape, low, high):
            return jax.random.randint(key, shape, low, high, jnp.int32)
        case Zeros(shape):
            return jnp.zeros(shape, dtype)
        case _:
            raise TypeError(f"noise {name!r} is {law!r}, neither a law of diffac.noise nor a mapping of these")
