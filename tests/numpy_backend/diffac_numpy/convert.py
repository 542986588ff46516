"""Parameters and states to and from named arrays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffac.errors import UsageError
from diffac.testing import reference
from diffac_numpy.networks import Network


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """All arrays of a network or a learner's state, copied."""
    return reference.to_arrays(tree.bound if isinstance(tree, Network) else tree)


def from_arrays(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The same tree with copies of the given arrays."""
    own = to_arrays(tree)
    problems = [f"missing: {name}" for name in own if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in own]
    problems += [
        f"{name} has shape {np.shape(arrays[name])}, expected {array.shape}"
        for name, array in own.items()
        if name in arrays and np.shape(arrays[name]) != array.shape
    ]
    if problems:
        raise UsageError("these arrays do not fit: " + "; ".join(problems))
    if not isinstance(tree, Network):
        return reference.from_arrays(tree, arrays)
    new = copy.copy(tree)
    new.bound = reference.from_arrays(tree.bound, arrays)
    return new
