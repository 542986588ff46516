"""The transitions of a replay memory on disk: files of rows with numbers, which checkpoints share."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffac.data.replay import NumberedReplay
from diffac.errors import DamagedError
from diffac.files.durable import CHUNK
from diffac.protocols import Transition

FIELDS = Transition._fields


def segment_name(first: int, end: int) -> str:
    """Name of the file with transitions number first to end - 1."""
    return f"replay_{first:012d}_{end:012d}.npy"


def is_segment(name: str) -> bool:
    return re.fullmatch(r"replay_\d{12,16}_\d{12,16}\.npy", name) is not None


def npy_pieces(buffer: NumberedReplay, first: int, end: int) -> Iterator[Any]:
    """Rows as a file in NumPy's format, piece by piece.

    Not through a memory map: on a full disk, writing to one kills the process.
    """
    row_type = row_type_of(buffer.chunk(0, 0))
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(row_type), "fortran_order": False, "shape": (end - first,)}
    np.lib.format.write_array_header_1_0(header, described)
    yield header.getvalue()
    size = rows_at_once(row_type, end - first)
    while first < end:
        rows = buffer.chunk(first, min(end, first + size))
        chunk = np.empty(len(rows.reward), row_type)
        for name in FIELDS:
            chunk[name] = getattr(rows, name)
        yield chunk.view(np.uint8)
        first += len(chunk)


def row_type_of(rows: Transition) -> np.dtype:
    """One transition as a record."""
    return np.dtype([(name, getattr(rows, name).dtype, getattr(rows, name).shape[1:]) for name in FIELDS])


def transitions_of(rows: np.ndarray, where: str) -> Transition:
    """Records as columns.

    Raises:
        DamagedError: a number is not finite, or a bool neither true nor false.
    """
    columns = {name: rows[name] for name in FIELDS}
    for name, values in columns.items():
        good = values.view(np.uint8) <= 1 if values.dtype == bool else np.isfinite(values)
        if not good.all():
            raise DamagedError(f"{where}: {name} holds what is no number")
    return Transition(**columns)


def rows_at_once(row_type: np.dtype, most: int) -> int:
    return max(1, min(most, CHUNK // row_type.itemsize))
