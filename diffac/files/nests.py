"""Nests of data as JSON and arrays beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def split(node: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """A nest for JSON; its arrays go into `arrays`, under their paths."""
    if isinstance(node, np.ndarray):
        arrays[path] = node
        return {"__array__": path}
    if isinstance(node, Mapping):
        return {name: split(value, f"{path}/{name}", arrays) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [split(value, f"{path}/{i}", arrays) for i, value in enumerate(node)]
    if isinstance(node, float) and not math.isfinite(node):
        return {"__float__": repr(float(node))}
    return node


def joined(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `split`, but for tuples, which become lists. Takes the arrays: each has one place.

    Raises:
        KeyError, TypeError, ValueError: the arrays are others.
    """
    if isinstance(node, list):
        return [joined(value, arrays) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {"__array__"}:
        return arrays.pop(node["__array__"])
    if node.keys() == {"__float__"}:
        return float(node["__float__"])
    return {name: joined(value, arrays) for name, value in node.items()}
