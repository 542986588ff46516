"""What a search tries: the section `search` of the file of a sweep."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffac.errors import UsageError, unknown

PRUNERS = ("median", "halving", "none")
"""What may end a trial early: one that is worse than half of the others so far, successive halving, nothing."""
SECTION = ("space", "trials", "seeds", "pruner")
OF_ALL_TRIALS = {
    "recipe", "settings_from", "env_id", "env_kwargs", "wrappers", "seed", "total_timesteps", "eval_interval",
    "eval_episodes", "eval_max_steps", "run_root", "progress",
}  # fmt: skip
"""What cannot be searched, or returns could not be compared."""
MOST_TRIALS = 10_000
MOST_CHOICES = 1_000


class Choice(NamedTuple):
    """One of several values."""

    values: tuple[Any, ...]
    """At least two, all different."""

    @property
    def labels(self) -> dict[str, Any]:
        """Text -> value."""
        return {json.dumps(value, sort_keys=True): value for value in self.values}

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values by which it is checked: all."""
        return self.values


class Range(NamedTuple):
    """A number from `low` to `high`, both included; whole where both are."""

    low: float
    high: float
    log: bool = False
    """Whether it is the logarithm that is drawn evenly."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values by which it is checked."""
        return (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Space:
    """The section `search`."""

    of: Mapping[str, Choice | Range]
    """Name of a setting -> what it may be."""
    trials: int
    """Of each search."""
    seeds: tuple[int, ...]
    """Runs of each trial."""
    pruner: str = "median"


def read_space(section: Any, where: str) -> Space:
    """The section, checked as far as one can without the recipe.

    Args:
        section: as YAML holds it.
        where: the file, for messages.

    Raises:
        UsageError: it is no such section; says what is wrong.
    """
    if not isinstance(section, dict) or not section:
        raise UsageError(f"{where}: search must hold space, trials and seeds, got {section!r:.200}")
    for name in section:
        if name not in SECTION:
            raise unknown(f"entry of search in {where}:", name, SECTION, "what is searched belongs below `space`")
    for name in ("space", "trials", "seeds"):
        if name not in section:
            raise UsageError(f"{where}: search needs `{name}`: {_EXAMPLES[name]}")
    space, trials, seeds = (section[name] for name in ("space", "trials", "seeds"))
    if not isinstance(space, dict) or not space:
        raise UsageError(f"{where}: search: space must hold lines such as `{_EXAMPLES['space']}`, got {space!r:.200}")
    if type(trials) is not int or not 1 <= trials <= MOST_TRIALS:
        raise UsageError(
            f"{where}: search: trials must be a whole number from 1 to {MOST_TRIALS:,}, got {trials!r:.200}"
        )
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UsageError(f"{where}: search: seeds must be a list of whole numbers, at least 0, got {seeds!r:.200}")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"{where}: search: seeds holds a seed twice: {seeds!r:.200}")
    pruner = section.get("pruner", Space.pruner)
    if pruner not in PRUNERS:
        raise unknown(f"pruner in {where}:", pruner, PRUNERS)
    of = {name: _one(what, name, f"{where}: search: space: {name}") for name, what in space.items()}
    return Space(of, trials, tuple(seeds), pruner)


_EXAMPLES = {
    "space": "learning_rate: {low: 1.0e-4, high: 1.0e-3, log: true}",
    "trials": "how many settings are tried",
    "seeds": "a list such as [0, 1, 2], with each of which a trial trains",
}


def _one(what: Any, name: Any, where: str) -> Choice | Range:
    if name in OF_ALL_TRIALS:
        raise UsageError(f"{where} cannot be searched: it is the same for all trials, so that they can be compared")
    if isinstance(what, list):
        return _choice(what, where)
    if isinstance(what, dict):
        return _range(what, where)
    raise UsageError(f"{where} must be a list of values or a range such as {{low: 0.1, high: 1.0}}, got {what!r:.200}")


def _choice(values: list[Any], where: str) -> Choice:
    if not 2 <= len(values) <= MOST_CHOICES:
        raise UsageError(f"{where} must list from 2 to {MOST_CHOICES:,} values, got {values!r:.200}")
    choice = Choice(tuple(values))
    try:
        labels = choice.labels
    except (TypeError, ValueError):
        raise UsageError(
            f"{where} may list texts, numbers, bools, null, and lists of them, got {values!r:.200}"
        ) from None
    if len(labels) < len(values):
        raise UsageError(f"{where} lists a value twice: {values!r:.200}")
    return choice


def _range(what: dict[Any, Any], where: str) -> Range:
    for name in what:
        if name not in Range._fields:
            raise unknown(f"entry of {where}:", name, Range._fields)
    low, high, log = (what.get(name) for name in ("low", "high", "log"))
    for name, end in (("low", low), ("high", high)):
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            advice = " (YAML reads 1e-4 as a text: write 1.0e-4)" if isinstance(end, str) else ""
            raise UsageError(f"{where}: {name} must be a finite number, got {end!r:.200}{advice}")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if not low < high:
        raise UsageError(f"{where}: low must be less than high, got {low} and {high}")
    if log is not None and not isinstance(log, bool):
        raise UsageError(f"{where}: log must be true or false, got {log!r:.200}")
    if log and low <= 0:
        raise UsageError(f"{where}: low must be greater than 0 where log is true, got {low}")
    return Range(low, high, bool(log))
