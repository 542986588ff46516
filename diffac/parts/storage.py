"""Where the transitions of a replay memory lie: in NumPy's arrays, or where a backend keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from diffac.protocols import Array


class Column(NamedTuple):
    """A field of the transitions that a storage holds."""

    shape: tuple[int, ...]
    """[capacity ...]"""
    dtype: type
    """float32 or bool."""


class Storage(Protocol):
    """Where the columns of a `ReplayBuffer` lie, with equally many rows each."""

    def write(self, start: int, rows: Sequence[np.ndarray]) -> None:
        """Overwrites the rows from `start` on in every column."""
        ...

    def read(self, rows: slice) -> Sequence[np.ndarray]:
        """These rows of every column on the host, perhaps views."""
        ...

    def take(self, index: np.ndarray) -> Sequence[Array]:
        """Copies [*index ...] of the rows with these numbers, on the device of the storage."""
        ...
