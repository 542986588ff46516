"""The search for the presets `cpu`: `python -m tests.evidence.search` says what goes on, and what is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .data import Row, read

LAST = 3
"""Evaluations whose mean is the score of a run."""
SETTINGS = 6
"""Of each recipe and peer, with the first seed; the best two go on."""
FIRST, OTHERS = 0, (1, 2)
"""Seeds."""

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Recipe -> settings -> seed -> score."""


def scores(rows: Iterable[Row]) -> Scores:
    """Of every run."""
    returns: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in sorted(rows, key=lambda row: (row.run, row.step)):
        returns.setdefault(row.recipe, {}).setdefault(row.settings, {}).setdefault(row.seed, []).append(row.return_)
    return {
        recipe: {
            settings: {seed: float(np.mean(values[-LAST:])) for seed, values in runs.items()}
            for settings, runs in own.items()
        }
        for recipe, own in returns.items()
    }


def going_on(found: Scores, recipe: str) -> list[str]:
    """The two best settings with the first seed, the best first; none before all of them have been tried."""
    first = {settings: runs[FIRST] for settings, runs in found.get(recipe, {}).items() if FIRST in runs}
    return sorted(first, key=first.__getitem__, reverse=True)[:2] if len(first) == SETTINGS else []


def chosen(found: Scores, recipe: str) -> dict[str, Any] | None:
    """The settings with the highest mean over all seeds; None before both have all of them."""
    both = going_on(found, recipe)
    if not both or any(len(found[recipe][settings]) < 1 + len(OTHERS) for settings in both):
        return None
    return json.loads(max(both, key=lambda settings: np.mean(list(found[recipe][settings].values()))))


if __name__ == "__main__":
    known = scores(read("search"))
    for name in known:
        print(name, "goes on with", *going_on(known, name), "and has chosen", chosen(known, name), sep="\n  ")
