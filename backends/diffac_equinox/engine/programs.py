"""What a compiled program is made for, and how its arguments reach it.

What is called all the time is compiled by `jax.jit`, for one engine and states of one structure: `eqx.filter_jit`
takes both apart in Python in every call, which takes longer than the policy itself for one observation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax

from diffac.protocols import Array

Tree = TypeVar("Tree")


def _take_apart(tree: Any) -> tuple[tuple[Array, ...], Any, tuple[Any, ...]]:
    """The arrays of a tree, its structure, and its leaves with None in place of the arrays."""
    leaves, structure = jax.tree.flatten(tree)
    others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    return tuple(leaf for leaf in leaves if eqx.is_array(leaf)), structure, others


class _Kept:
    """What `_take_apart` returns, kept as long as the object that it belongs to, which must not change."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def get(self, owner: Any, tree: Callable[[], Any]) -> Any:
        """_take_apart(tree()), which is computed once for each owner."""
        entry = self._entries.get(id(owner))
        return self.put(owner, _take_apart(tree())) if entry is None else entry[1]

    def put(self, owner: Any, parts: Any) -> Any:
        """Keeps the parts, and returns them."""
        key = id(owner)
        self._entries[key] = weakref.ref(owner, lambda _: self._entries.pop(key, None)), parts
        return parts


def _put_together(structure: Any, others: tuple[Any, ...], arrays: Sequence[Array]) -> Any:
    """The tree that `_take_apart` took apart."""
    left = iter(arrays)
    return jax.tree.unflatten(structure, [next(left) if leaf is None else leaf for leaf in others])


_COPIED_AT_ONCE = 100_000
"""Bytes of an array of NumPy's up to which XLA copies it within the call that gets it."""


def _at_hand(batches: Tree) -> Tree:
    """The batches where a program on a CPU finds them at once.

    Large arrays of NumPy's are copied by another thread, which would then run the program too (see
    `diffac_equinox.engine.settings`).
    """
    if jax.default_backend() != "cpu" or all(array.nbytes <= _COPIED_AT_ONCE for array in jax.tree.leaves(batches)):
        return batches
    return jax.block_until_ready(jax.device_put(batches))


def _compiler_options() -> dict[str, int] | None:
    """XLA uses at most half of a CPU's 512-bit registers where it is not told otherwise."""
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else None
