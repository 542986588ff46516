"""Metrics as tables of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffac.protocols import Array


class PackedMetrics(Mapping[str, Array]):
    """Metrics whose numbers are one array of a backend, so that they leave a program and a device together.

    Args:
        names: of the numbers.
        numbers: [names]
    """

    def __init__(self, names: tuple[str, ...], numbers: Array) -> None:
        self._names, self.numbers = names, numbers

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self.numbers[self._names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows of numbers as one array of float64 for each name, [rows], NaN where a row lacks the name."""
    table = {name: np.full(len(rows), np.nan) for name in dict.fromkeys(name for row in rows for name in row)}
    for i, row in enumerate(rows):
        for name, number in row.items():
            table[name][i] = number
    return table
