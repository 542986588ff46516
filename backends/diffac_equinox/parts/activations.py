"""Elementwise functions between the layers of a network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffac.errors import check_choice
from diffac_equinox.kernels.mish import mish

Function = Callable[[Array], Array]


_ACTIVATIONS: dict[str, Function] = {
    "mish": mish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Function:
    """The elementwise function of that name: "mish", "gelu" (exact, with erf), "relu", "silu" or "tanh".

    Mish (Misra 2019, arXiv 1908.08681) is computed as x n/(n+2) with n = e^x (e^x + 2), which is exact and needs one
    exponential; it can be differentiated twice.

    Raises:
        UsageError: the name is unknown.
    """
    check_choice("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]
