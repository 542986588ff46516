"""Metrics in files that every program reads."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from diffac.files.paths import absolute
from diffac.files.untrusted import append, open_regular, write_atomically
from diffac.messages import printable

FORMULA = re.compile(r"(^|;)(\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet begins to calculate: at the beginning of a cell, and some take semicolons for its end.
Signs of full width count too."""


def csv_row(cells: Iterable[Any]) -> list[Any]:
    """A row that a spreadsheet only shows: of texts, no control character and no formula is left.

    Numbers, also those written as texts, stay; NaN and None are empty cells.
    """
    return [_csv_cell(cell) for cell in cells]


def _csv_cell(cell: Any) -> Any:
    if not isinstance(cell, str):
        return "" if cell is None or cell != cell else cell
    try:
        float(cell)
    except ValueError:
        return FORMULA.sub(r"\1'\2", printable(cell))
    return cell.strip()


class CsvWriter:
    """One line for each call, one column for each name, cells empty where a name was missing.

    A name that comes up later adds a column: the file is then written anew beside the old one and renamed. A file that
    exists is continued.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = absolute(path)
        self._columns: list[str] = []
        if os.path.lexists(self.path):
            with _read(self.path) as file:
                self._columns = csv_row(next(csv.reader(file), []))
        self._file = append(self.path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = dict(zip(csv_row(["step", *metrics]), [step, *metrics.values()], strict=True))
        if new := [name for name in row if name not in self._columns]:
            self._add_columns(new)
        csv.writer(self._file, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        self._file.flush()

    def _add_columns(self, names: Sequence[str]) -> None:
        self._file.close()
        with _read(self.path) as file:
            rows = list(csv.reader(file))[1:]
        self._columns += names
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._columns)
        writer.writerows(csv_row(row + [""] * (len(self._columns) - len(row))) for row in rows)
        write_atomically(self.path, text.getvalue().encode())
        self._file = append(self.path)

    def close(self) -> None:
        self._file.close()


class JsonlWriter:
    """One line for each call: a JSON object with "step" and the metrics; null for what is no finite number.

    A file that exists is continued.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = absolute(path)
        self._file = append(self.path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace", newline="")
