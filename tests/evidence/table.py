"""Rows in a CSV file, each a named tuple whose fields are the columns; the file is replaced as a whole."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Row = TypeVar("Row", bound=tuple)
KINDS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: lambda text: float(text) if text else math.nan,
    tuple[int, ...]: lambda text: tuple(map(int, text.split())),
}
"""Type of a field -> its value, from a cell."""


def columns(row: type[tuple]) -> list[str]:
    """Names of the fields; what Python reserves is written `return_`."""
    return [name.rstrip("_") for name in get_type_hints(row)]


def read(row: type[Row], file: Path) -> list[Row]:
    """All rows; none where there is no file."""
    if not file.exists():
        return []
    kinds = [KINDS[hint] for hint in get_type_hints(row).values()]
    with file.open(newline="", encoding="utf-8") as lines:
        header, *cells = csv.reader(lines)
    assert header == columns(row), f"{file}: columns {header}, expected {columns(row)}"
    return [row(*(kind(cell) for kind, cell in zip(kinds, line, strict=True))) for line in cells]


def write(row: type[tuple], file: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Puts rows in the place of all that is in the file; NaN is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(row))
    writer.writerows([_cell(value) for value in line] for line in rows)
    replace(file, text.getvalue())


def replace(file: Path, text: str) -> None:
    """Writes a file, of which never a part is seen."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, file)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if isinstance(value, float) and math.isnan(value) else value
