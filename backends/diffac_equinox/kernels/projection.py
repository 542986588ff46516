"""Masses at arbitrary places divided among the places of a grid."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array


def divided(masses: Array, positions: Array, size: int) -> Array:
    """Masses [batch n] at positions [batch n] in [0, size - 1], each divided among the two integers beside it.

    The result is [batch size]. Equals the sum over n of mass times max(0, 1 - |position - k|) for each integer k, which
    takes n * size numbers a row: on a CPU each mass is added where it belongs, alone about ten times as fast for
    101 atoms, a few percent of DIME's update at most. Elsewhere additions to one place would come in any order, and no
    run would be like another.
    """
    scattered, densely = (partial(function, size=size) for function in (_divided_by_adding, _divided_densely))
    return jax.lax.platform_dependent(masses, positions, cpu=scattered, default=densely)


def _divided_by_adding(masses: Array, positions: Array, size: int) -> Array:
    low = jnp.floor(positions)
    upper = positions - low
    below = jnp.clip(low.astype(int), 0, size - 1)  # NaN has no place; it stays in the mass
    above = jnp.minimum(below + 1, size - 1)
    rows = jnp.arange(len(masses))[:, None]
    empty = jnp.zeros((len(masses), size), masses.dtype)
    return empty.at[rows, below].add(masses * (1 - upper)).at[rows, above].add(masses * upper)


def _divided_densely(masses: Array, positions: Array, size: int) -> Array:
    share = jnp.maximum(1 - jnp.abs(positions[..., None] - jnp.arange(size)), 0)
    return jnp.einsum("bj,bjk->bk", masses, share)
