"""Elementwise functions between the layers of a network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffac.errors import check_choice

Function = Callable[[Array], Array]


@jax.custom_jvp
def _mish(x: Array) -> Array:
    return x * _mish_gate(x)[0]


def _mish_gate(x: Array) -> tuple[Array, Array]:
    """n/(n+2) and the slope of mish, with e = exp(x), n = e(e+2); from x = 20 on the first is 1 to rounding."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2)
    reciprocal = 1 / (n + 2)
    gate = n * reciprocal
    return gate, gate + 4 * x * (e * (e + 1) * reciprocal) * reciprocal


@_mish.defjvp
def _mish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    gate, slope = _mish_gate(x)
    return x * gate, slope * tangent


_ACTIVATIONS: dict[str, Function] = {
    "mish": _mish,
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
