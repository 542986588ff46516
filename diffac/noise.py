"""Random inputs as data.

No component of diffac draws a random number. It states what it needs as a *noise specification*, a nested mapping from
names to laws, and receives arrays of the same structure as an argument. So the same noise can be given to two backends,
replayed, or drawn on the device inside a compiled update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Normal:
    """Independent standard normal variables of the given shape."""

    shape: Shape


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Independent variables uniform in the half-open interval [0, 1), of the given shape."""

    shape: Shape


@dataclasses.dataclass(frozen=True)
class Integers:
    """Independent integers uniform in {low, ..., high - 1}, of the given shape."""

    shape: Shape
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Zeros:
    """No noise: zeros of the given shape (what a noise becomes when it is switched off)."""

    shape: Shape


Law: TypeAlias = Normal | Uniform | Integers | Zeros
NoiseSpec: TypeAlias = Mapping[str, Any]
"""Nested mapping: name -> Law, or name -> NoiseSpec."""
Noise: TypeAlias = Mapping[str, Any]
"""Nested mapping of the same structure as a `NoiseSpec`, with arrays in place of laws."""

EXPLORATION = "exploration"
"""The reserved name of noise that a sampler adds only in order to explore."""


def draw(rng: np.random.Generator, spec: NoiseSpec, dtype: Any = np.float32) -> dict[str, Any]:
    """Draws all noise of a specification with NumPy, in the order of the mapping.

    Integers come as int32, everything else as `dtype`.

    Raises:
        TypeError: an entry is neither a law nor a mapping.
    """
    return {name: _draw_one(rng, name, law, dtype) for name, law in spec.items()}


def _draw_one(rng: np.random.Generator, name: str, law: Any, dtype: Any) -> Any:
    match law:
        case Mapping():
            return draw(rng, law, dtype)
        case Normal(shape):
            return rng.standard_normal(shape, dtype=dtype)
        case Uniform(shape):
            return rng.random(shape, dtype=dtype)
        case Integers(shape, low, high):
            return rng.integers(low, high, shape, dtype=np.int32)
        case Zeros(shape):
            return np.zeros(shape, dtype)
        case _:
            raise TypeError(
                f"noise {name!r} is {law!r}; a noise specification holds Normal, Uniform, Integers, Zeros "
                f"or mappings of these"
            )


def without_exploration(spec: NoiseSpec) -> dict[str, Any]:
    """The same specification with every noise called "exploration" replaced by zeros, at any depth.

    This is what acting *deterministically* means in diffac: the noise that a sampler adds in order to explore is off.
    The noise that a diffusion chain needs to represent its distribution (its start and its reverse steps) stays on.
    """
    quiet: dict[str, Any] = {}
    for name, law in spec.items():
        if isinstance(law, Mapping):
            quiet[name] = without_exploration(law)
        else:
            quiet[name] = Zeros(law.shape) if name == EXPLORATION else law
    return quiet
