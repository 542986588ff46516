"""Results of `learns`: a row a run, in a file that is complete at every moment."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, NamedTuple

ENV_ID = "InvertedPendulum-v5"
BACKENDS = ("equinox", "torch")
SOLVED = 950.0
"""Of 1,000, the return of an episode in which the pendulum never falls."""
ENOUGH = 0.9
"""Share of its runs that a recipe must solve."""


class Row(NamedTuple):
    """What came of a run; None: there was no such evaluation."""

    recipe: str
    backend: str
    seed: int
    best: float | None
    """The best of all evaluations: mean returns of ten episodes without exploration noise."""
    step_of_950: int | None
    """Environment steps at the first evaluation of SOLVED or more."""
    last: float | None
    """The evaluation at the end of the run; None: the run broke off."""
    env_steps: int
    updates: int
    settings: str
    """Digest of the preset."""
    code: str
    """Digest of the code."""
    commit: str
    versions: str

    @property
    def key(self) -> tuple[str, str, int]:
        """There is one row for each."""
        return self.recipe, self.backend, self.seed

    @property
    def solved(self) -> bool:
        """Whether the run came to its end and solved the task on its way."""
        return self.last is not None and self.best is not None and self.best >= SOLVED

    def line(self) -> str:
        """For a person who waits."""
        at = "never reached" if self.step_of_950 is None else f"reached at {self.step_of_950:,}"
        last = "broke off" if self.last is None else f"last {self.last:g}"
        return f"{self.recipe}, {self.backend}, seed {self.seed}: {SOLVED:g} {at}, best {self.best or 0:g}, {last}"


def share(part: int, whole: int) -> str:
    """As people say it."""
    return f"{part} of {whole}"


def read(file: Path) -> list[Row]:
    """All rows; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [_row(line) for line in csv.DictReader(lines)]


def add(file: Path, row: Row) -> list[Row]:
    """Puts a row in the place of an earlier one of the same run; returns all rows."""
    rows = sorted([*(other for other in read(file) if other.key != row.key), row], key=lambda row: row.key)
    new = file.with_name(file.name + ".new")
    with new.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    os.replace(new, file)
    return rows


def _row(line: dict[str, str]) -> Row:
    values: dict[str, Any] = dict(line)
    for name in ("seed", "env_steps", "updates"):
        values[name] = int(line[name])
    for name, kind in (("best", float), ("last", float), ("step_of_950", int)):
        values[name] = kind(line[name]) if line[name] else None
    return Row(**values)
