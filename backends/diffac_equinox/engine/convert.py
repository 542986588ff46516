"""Parameters and states to and from named NumPy arrays: what checkpoints hold, and what two backends exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from diffac.errors import UsageError

Tree = TypeVar("Tree")


def _name(path: tuple) -> str:
    """The keys of a path; that of a `Frozen` is empty."""
    keys = (jax.tree_util.keystr((key,), simple=True) for key in path)
    return ".".join(filter(None, keys))


def check_alive(tree: Any) -> None:
    """Refuses a state whose memory an update has taken for the state after it.

    Raises:
        UsageError: it is one.
    """
    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    if any(not isinstance(array, Tracer) and array.is_deleted() for array in arrays):
        raise UsageError(
            "this state of the learner is gone: an update has consumed it; take the state that the update returned, or "
            "copy one beforehand with to_arrays and from_arrays"
        )


def to_arrays(tree: object) -> dict[str, np.ndarray]:
    """All arrays of a network or a `LearnerState`, copied to the host, by names such as "actor.layers.0.weight"."""
    check_alive(tree)
    leaves = jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {_name(path): np.array(leaf) for path, leaf in leaves}


def from_arrays(tree: Tree, arrays: Mapping[str, np.ndarray]) -> Tree:
    """The same tree with the given arrays in place of its own, copied to the device; the inverse of `to_arrays`.

    Floating arrays keep the type they are given in (JAX makes float32 of float64 unless jax_enable_x64 is set).

    Raises:
        UsageError: an array is missing, unexpected, or of another shape; the message lists all of them.
    """
    own = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_array))}
    problems = [f"missing: {name}" for name in own if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in own]
    problems += [
        f"{name} has shape {np.shape(arrays[name])}, expected {leaf.shape}"
        for name, leaf in own.items()
        if name in arrays and np.shape(arrays[name]) != leaf.shape
    ]
    if problems:
        raise UsageError("these arrays do not fit: " + "; ".join(problems))

    def replace(path: tuple, leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        given = arrays[_name(path)]
        # A copy, because on a CPU JAX would otherwise share memory with NumPy, and training donates its buffers.
        copy = jnp.array(given, None if eqx.is_inexact_array(leaf) else leaf.dtype)
        return jax.device_put(copy, leaf.sharding) if leaf.committed else copy

    return jax.tree.map_with_path(replace, tree)
