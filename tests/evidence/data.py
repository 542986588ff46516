"""Evaluations of the runs that count: a row each, in files that `diffac report` reads, too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "data" / "results"


class Row(NamedTuple):
    """An evaluation."""

    env_id: str
    recipe: str
    """Of diffac; or of a peer, `sb3_sac`."""
    backend: str
    settings: str
    """What the file of the sweep says beside environment, recipe, backend and seed, as JSON; empty: only the preset."""
    seed: int
    step: int
    """Environment steps so far."""
    updates: int
    """Updates so far."""
    return_: float
    """Mean return of its episodes, without exploration noise."""
    std: float
    """Standard deviation over the episodes."""
    seconds: float
    """Since the run began, as they were: runs had other work beside them."""
    core_seconds: float

    @property
    def run(self) -> tuple[str, str, str, str, int]:
        """What tells a run from the others."""
        return self[:5]


def read(name: str, folder: Path = FOLDER) -> list[Row]:
    """All rows of a sweep; none where there are none yet."""
    return table.read(Row, folder / f"{name}.csv")


def add(name: str, rows: Iterable[Row], origin: dict[str, Any], folder: Path = FOLDER) -> None:
    """Puts the rows of complete runs in the place of earlier ones of the same runs.

    Args:
        name: of the sweep.
        rows: of whole runs.
        origin: commit and versions that made them, kept in `{name}.json` with the number of runs of each.
        folder: of the files.
    """
    new = sorted(rows)
    made = {row.run for row in new}
    kept = [row for row in read(name, folder) if row.run not in made]
    table.write(Row, folder / f"{name}.csv", map(_cells, sorted([*kept, *new])))
    file = folder / f"{name}.json"
    origins: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    runs = sorted("/".join(map(str, run)) for run in made)
    for entry in origins:
        entry["runs"] = sorted(set(entry["runs"]) - set(runs))
    same = next((entry for entry in origins if {**entry, "runs": []} == {**origin, "runs": []}), None)
    if same is None:
        origins.append({**origin, "runs": runs})
    else:
        same["runs"] = sorted({*same["runs"], *runs})
    table.replace(file, json.dumps([entry for entry in origins if entry["runs"]], indent=1) + "\n")


def _cells(row: Row) -> tuple[Any, ...]:
    returns = (f"{row.return_:.2f}", f"{row.std:.2f}")
    return (*row.run, row.step, row.updates, *returns, round(row.seconds), round(row.core_seconds))
