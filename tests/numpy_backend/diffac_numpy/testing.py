"""Tools for tests: NumPy needs no conversion and no compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffac.protocols import Loss
from diffac_numpy.networks import lifted


def to_backend(tree: Any) -> Any:
    return tree


def to_numpy(tree: Any) -> Any:
    return tree


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def value_and_grad(objective: Any, module: Any, *args: Any) -> tuple[Loss, dict[str, Any]]:
    """objective(module, *args) and the gradient of its value by parameter name."""
    other, *rest = args
    objective(module, other, *rest)  # which checks what it is given
    return objective.bare(lifted(module), lifted(other), *rest)
