"""Parameters and states by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffac.testing.reference.gradients import Array
from diffac.testing.reference.networks import bound


def to_arrays(tree: Any, prefix: str = "") -> dict[str, Array]:
    """All arrays of a network or a `LearnerState` by the backends' names, such as "actor.layers.0.weight"."""
    children = _children(tree)
    if children is None:
        return {prefix.removesuffix("."): np.array(tree)}
    return {name: a for key, child in children.items() for name, a in to_arrays(child, f"{prefix}{key}.").items()}


def from_arrays(tree: Any, arrays: Mapping[str, Array], prefix: str = "") -> Any:
    """The same tree with these arrays; the inverse of `to_arrays`."""
    children = _children(tree)
    if children is None:
        return np.array(arrays[prefix.removesuffix(".")])[()]
    new = {key: from_arrays(child, arrays, f"{prefix}{key}.") for key, child in children.items()}
    if tree is None or isinstance(tree, Mapping):
        return None if tree is None else new
    return type(tree)(**new) if isinstance(tree, tuple) else bound(tree, new)


def _children(tree: Any) -> Mapping[str, Any] | None:
    """What a tree consists of, by name; None for a single array."""
    if tree is None:
        return {}
    if isinstance(tree, Mapping):
        return tree
    if isinstance(tree, tuple):
        return tree._asdict()  # type: ignore[attr-defined]
    return getattr(tree, "parameters", None)
