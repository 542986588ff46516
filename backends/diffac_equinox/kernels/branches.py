"""Parts of an update that are not due: they are not computed, which in one program takes a branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

Tree = TypeVar("Tree")


def is_multiple(number: Array, of: int) -> Array | bool:
    """Whether it is one of `of`; known beforehand for 1: then there is no branch."""
    return of == 1 or number % of == 0


def run_if(
    due: Array | bool,
    part: Callable[[Any], tuple[Any, Tree]],
    otherwise: Callable[[Any], Any],
    state: Any,
) -> tuple[Any, Tree]:
    """part(state) where it is due; else otherwise(state) and NaN for what the part returns beside the state."""
    if due is True:
        return part(state)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def run(dynamic: Any) -> tuple[Any, Tree]:
        new, results = part(eqx.combine(dynamic, static))
        return eqx.filter(new, eqx.is_array), results

    def skip(dynamic: Any) -> tuple[Any, Tree]:
        _, results = jax.eval_shape(run, dynamic)
        new = otherwise(eqx.combine(dynamic, static))
        return eqx.filter(new, eqx.is_array), jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), results)

    dynamic, results = jax.lax.cond(due, run, skip, dynamic)
    return eqx.combine(dynamic, static), results
