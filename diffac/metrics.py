"""Metrics as tables of numbers."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of numbers as one array of float64 for each name, [rows], NaN where a row lacks the name."""
    return scatter([tuple(row) for row in rows], [float(number) for row in rows for number in row.values()])


def scatter(names: Sequence[tuple[str, ...]], numbers: Any) -> dict[str, np.ndarray]:
    """`columns` for rows whose numbers stand one after the other.

    Args:
        names: those of each row, in the order of its numbers.
        numbers: of all rows, one array or list.
    """
    numbers = np.asarray(numbers, np.float64)
    first = np.cumsum([0, *map(len, names)])
    alike: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    for row, own in enumerate(names):
        alike[own].append(row)
    table = {name: np.full(len(names), np.nan) for name in dict.fromkeys(name for own in alike for name in own)}
    for own, rows in alike.items():
        for i, name in enumerate(own):
            table[name][rows] = numbers[first[rows] + i]
    return table
