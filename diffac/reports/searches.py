"""Reads what searches for the best settings left behind: the `search.json` of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffac.errors import DamagedError
from diffac.files import checks
from diffac.files.untrusted import read_json
from diffac.messages import shorten
from diffac.reports.reading import LARGEST, paths_of
from diffac.reports.search import SEARCH, Skipped, search

LONGEST = 200
"""Characters of a label or of a setting's name and value."""
STATES = ("complete", "pruned", "failed", "left")


class Trial(NamedTuple):
    """Settings that a search has tried."""

    number: int
    state: str
    """One of `STATES`."""
    objective: float | None
    """Of a complete trial; of a pruned one the last value by which it was judged."""
    settings: dict[str, str]
    core_seconds: float | None


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """A search."""

    source: str
    """Its folder."""
    label: str
    objective: str
    """What it is, in words."""
    planned: int
    """Trials that it may have."""
    seeds: list[int]
    pruner: str
    importances: dict[str, float]
    """Share of each setting in the differences between trials; empty: not known."""
    trials: list[Trial]

    @property
    def best(self) -> list[Trial]:
        """The complete trials, the best first."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.objective is not None]
        return sorted(complete, key=lambda trial: -(trial.objective or 0.0))


def read_searches(arguments: Sequence[str]) -> tuple[list[SearchResult], list[Skipped]]:
    """All searches below folders, and what cannot be used; arguments as for `reading.read_runs`."""
    results, skipped = [], []
    for _, path in paths_of(arguments):
        for found in search(path) if path.is_dir() else ():
            if not isinstance(found, Skipped) and SEARCH in found.names:
                try:
                    results.append(_read(found.path / SEARCH))
                except DamagedError as error:
                    skipped.append(Skipped.because(found.path, error))
    return results, skipped


def _read(path: Path) -> SearchResult:
    names = ("label", "objective", "of", "seeds", "pruner", "importances", "trials")
    content = checks.mapping(read_json(path), path.name, *names)
    importances = checks.mapping(content["importances"], f"{path.name}: importances")
    return SearchResult(
        source=str(path.parent),
        label=_text(content, "label", path),
        objective=_text(content, "objective", path),
        planned=checks.whole(content["of"], f"{path.name}: of"),
        seeds=[checks.whole(seed, f"{path.name}: seeds") for seed in checks.items(content["seeds"], path.name)],
        pruner=_text(content, "pruner", path),
        importances={
            shorten(name, LONGEST): checks.number(share, f"{path.name}: importances", 0.0)
            for name, share in importances.items()
        },
        trials=[_trial(entry, path.name) for entry in checks.items(content["trials"], f"{path.name}: trials")],
    )


def _text(content: dict[str, Any], name: str, path: Path) -> str:
    return shorten(checks.text(content[name], f"{path.name}: {name}"), LONGEST)


def _trial(entry: Any, where: str) -> Trial:
    what = f"{where}: trials"
    entry = checks.mapping(entry, what, "trial", "state", "objective", "settings", "core_seconds")
    if entry["state"] not in STATES:
        raise DamagedError(f"{what}: {checks.shown(entry['state'])} is no state of a trial")
    objective, seconds = (
        None if entry[name] is None else checks.number(entry[name], f"{what}: {name}")
        for name in ("objective", "core_seconds")
    )
    if objective is not None and abs(objective) > LARGEST:
        raise DamagedError(f"{what}: objective is too large: {objective:g}")
    settings = {
        shorten(name, LONGEST): shorten(json.dumps(value), LONGEST)
        for name, value in checks.mapping(entry["settings"], f"{what}: settings").items()
    }
    return Trial(checks.whole(entry["trial"], f"{what}: trial"), entry["state"], objective, settings, seconds)
