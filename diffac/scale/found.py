"""The best settings that a search has found, as a file that later sweeps take their settings from.

What was chosen on some seeds looks better on them than it is. So the file says which seeds the search has used, and a
sweep that takes its settings from there is refused if it trains with one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from diffac.errors import UsageError
from diffac.files import checks
from diffac.files.paths import expanded
from diffac.files.untrusted import write_atomically
from diffac.runs.configs import RECIPE, read_config
from diffac.values import plain

SETTINGS_FROM = "settings_from"
"""The name by which a run of a sweep names such a file."""
FOUND_BY = "found_by_search"
"""The entry of the file that says how it came about."""


def write_found(path: Path, values: Mapping[str, Any], *, trial: int, objective: float, seeds: list[int]) -> None:
    """Writes the settings, the recipe among them, and how they were found.

    Args:
        path: of the file.
        values: all that were said or found, without a seed.
        trial: that has tried them.
        objective: of that trial.
        seeds: that the search has used.
    """
    content = {**plain(dict(values)), FOUND_BY: {"trial": trial, "objective": objective, "seeds": seeds}}
    write_atomically(path, yaml.safe_dump(content, sort_keys=False).encode())


def with_found(values: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Settings of a run with those from the file that it names, which count less than its own.

    Args:
        values: the run's own, `SETTINGS_FROM` among them: a path, from the folder of the sweep's file on.
        where: the sweep's file.

    Raises:
        UsageError: the file is none that a search has written, belongs to another recipe, or the run's seed is one that
            the search has used.
    """
    own = dict(values)
    given = own.pop(SETTINGS_FROM)
    if not isinstance(given, str) or not given:
        raise UsageError(f"{where}: {SETTINGS_FROM} must be the path of a best.yaml, got {given!r:.200}")
    path = where.parent / expanded(given)
    recipe, found = read_config(path)
    if FOUND_BY not in found:
        raise UsageError(f"{path} was not written by a search: it has no {FOUND_BY}; {SETTINGS_FROM} takes a best.yaml")
    about = checks.mapping(found.pop(FOUND_BY), f"{path}: {FOUND_BY}", "seeds")
    seeds = checks.items(about["seeds"], f"{path}: {FOUND_BY}: seeds")
    if own.setdefault(RECIPE, recipe) != recipe:
        raise UsageError(f"{where}: {path} has settings of {recipe}, not of {own[RECIPE]}")
    if "seed" not in own:
        raise UsageError(f"{where}: a run with {SETTINGS_FROM} must say its seed, one that the search has not used")
    if own["seed"] in seeds:
        raise UsageError(
            f"{where}: the search that has written {path} has used the seed {own['seed']}; evaluate with others than "
            f"{', '.join(map(str, seeds))}"
        )
    return {**found, **own}
