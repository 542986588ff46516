"""Ratios that a slower library would lower, and the comparison with those of an earlier run. Never an absolute time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .results import Results

RECORDED = Path(__file__).parent / "recorded.json"
TOLERANCE = 0.2
"""Share that a ratio may lose."""


def ratios(results: Results) -> dict[str, float]:
    """Name -> ratio, the larger the better."""
    found: dict[str, float] = {}
    for row in results.rows:
        place = (row.case, row.env, row.backend)
        name = ", ".join(place)
        if row.measure == "update" and row.contender in ("naive", "sb3", "sbx"):
            ratio = results.ratio((*place, row.contender, "update"), (*place, "ours", "update"))
            if ratio is not None:
                found[f"{name}: {row.contender} / ours"] = ratio
        elif row.measure == "fraction" and row.contender == "ours":
            found[f"{name}: fraction of peak"] = row.value
        elif row.measure == "learner" and row.contender == "synchronous":
            found[f"{name}: learner's share of a run"] = row.value
    return found


def too_low(now: Mapping[str, float], recorded: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Name -> (now, recorded) of the ratios that lost more than `TOLERANCE`; those in one of the two only do not count.

    Raises:
        ValueError: there is no ratio in both.
    """
    common = now.keys() & recorded.keys()
    if not common:
        raise ValueError("nothing that was measured has a recorded ratio")
    low = [name for name in now if name in common and now[name] < (1 - TOLERANCE) * recorded[name]]
    return {name: (now[name], recorded[name]) for name in low}


def read_recorded(machine: str, path: Path = RECORDED) -> dict[str, float]:
    """The ratios of a kind of machine; empty if there are none."""
    return json.loads(path.read_text()).get(machine, {}) if path.exists() else {}


def record(machine: str, now: Mapping[str, float], path: Path = RECORDED) -> None:
    """Puts ratios in place of those of the same names for this kind of machine."""
    all_machines = json.loads(path.read_text()) if path.exists() else {}
    merged = {**all_machines.get(machine, {}), **{name: round(value, 3) for name, value in now.items()}}
    all_machines[machine] = dict(sorted(merged.items()))
    path.write_text(json.dumps(all_machines, indent=2) + "\n")
