"""Draws noise specifications on the device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffac.noise import Integers, NoiseSpec, Normal, Uniform, Zeros


def stream(device: torch.device, *path: int) -> torch.Generator:
    """A generator for a path of non-negative integers: equal paths give equal numbers on one device."""
    (seed,) = np.random.SeedSequence(path).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed))


def draw(generator: torch.Generator, spec: NoiseSpec, dtype: torch.dtype) -> dict[str, Any]:
    """Draws all noise of a specification in the order of the mapping: integers as int64, everything else as `dtype`.

    Raises:
        TypeError: an entry is neither a law nor a mapping.
    """
    return {name: _draw_one(generator, name, law, dtype) for name, law in spec.items()}


def _draw_one(generator: torch.Generator, name: str, law: Any, dtype: torch.dtype) -> dict[str, Any] | Tensor:
    device = generator.device
    match law:
        case Mapping():
            return draw(generator, law, dtype)
        case Normal(shape):
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)
        case Uniform(shape):
            return torch.rand(shape, generator=generator, dtype=dtype, device=device)
        case Integers(shape, low, high):
            return torch.randint(low, high, shape, generator=generator, device=device)
        case Zeros(shape):
            return torch.zeros(shape, dtype=dtype, device=device)
        case _:
            raise TypeError(f"noise {name!r} is {law!r}, neither a law of diffac.noise nor a mapping of these")
