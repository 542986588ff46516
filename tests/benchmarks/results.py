"""Measured numbers, on their way to files and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A measured number."""

    case: str
    """Name in `cases.CASES`, or empty."""
    env: str
    """Name in `cases.SIZES`, or empty."""
    backend: str
    """"torch", "equinox", or empty."""
    contender: str
    """"ours", "naive", "sb3", "sbx", or the optimisation that is off."""
    measure: str
    value: float
    unit: str
    statistic: str
    """How the number came about."""


class Results:
    """All numbers of one run of the benchmark, and where they come from.

    Args:
        rows: the numbers.
        origin: hardware, versions, commit, command, date.
    """

    def __init__(self, rows: Iterable[Row], origin: Mapping[str, Any]) -> None:
        self.rows, self.origin = list(rows), dict(origin)
        self._index = {row[:5]: row.value for row in self.rows}

    def get(self, case: str, env: str, backend: str, contender: str, measure: str) -> float | None:
        """A number, or None if it was not measured."""
        return self._index.get((case, env, backend, contender, measure))

    def ratio(self, above: tuple[str, ...], below: tuple[str, ...]) -> float | None:
        """The quotient of two numbers, or None if one is missing."""
        first, second = self.get(*above), self.get(*below)
        return None if first is None or second is None else first / second

    def write(self, folder: Path) -> None:
        """benchmarks.csv and benchmarks.json."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "benchmarks.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(row._replace(value=float(f"{row.value:.5g}")) for row in self.rows)
        (folder / "benchmarks.json").write_text(json.dumps(self.origin, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Results:
        """What `write` wrote."""
        with (folder / "benchmarks.csv").open(newline="") as file:
            rows = [Row(**{**line, "value": float(line["value"])}) for line in csv.DictReader(file)]
        return cls(rows, json.loads((folder / "benchmarks.json").read_text()))
