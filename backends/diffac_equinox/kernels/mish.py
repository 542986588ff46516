"""Mish with one exponential."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_jvp
def mish(x: Array) -> Array:
    return x * _mish_gate(x)[0]


def _mish_gate(x: Array) -> tuple[Array, Array]:
    """n/(n+2) and the slope of mish, with e = exp(x), n = e(e+2); from x = 20 on the first is 1 to rounding."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2)
    reciprocal = 1 / (n + 2)
    gate = n * reciprocal
    return gate, gate + 4 * x * (e * (e + 1) * reciprocal) * reciprocal


@mish.defjvp
def _mish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    gate, slope = _mish_gate(x)
    return x * gate, slope * tangent
