"""Arguments that the environments have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffac.errors import UsageError, check_count


def points(name: str, given: Any, bound: float) -> np.ndarray:
    """Places as an array [n 2] of float64, at least one.

    Args:
        name: of the argument, for messages.
        given: what somebody gave.
        bound: the largest absolute value of an entry.

    Raises:
        UsageError: it is no list of points, or one lies outside [-bound, bound]^2.
    """
    try:
        found: np.ndarray = np.array(given, np.float64)
    except (TypeError, ValueError):
        found = np.array([])
    if found.ndim != 2 or found.shape[1] != 2 or len(found) == 0:
        raise UsageError(f"{name} must be a list of points such as [[0, 0], [1, 2]], got {given!r}")
    if not (np.abs(found) <= bound).all():  # NaN too
        raise UsageError(f"{name} must lie in [-{bound:g}, {bound:g}]^2, got {given!r}")
    return found


def blocked_modes(given: Sequence[int], count: int, what: str) -> list[int]:
    """Numbers of what is blocked, each at most once.

    Args:
        given: what somebody gave.
        count: how many there are.
        what: a word for one of them, for messages.

    Raises:
        UsageError: it is no list of numbers from 0 to count - 1, or names all of them.
    """
    if not isinstance(given, list | tuple):
        raise UsageError(f"blocked must be a list of numbers of {what}s such as [0], got {given!r}")
    for number in given:
        check_count(f"blocked, the number of a {what}", number, 0)
        if number >= count:
            raise UsageError(f"blocked must hold numbers from 0 to {count - 1}, got {number}")
    if len(set(given)) == count:
        raise UsageError(f"blocked must leave a {what}, got all {count}")
    return sorted(set(given))
