"""Sorts runs into methods and environments, and computes what a report shows."""

from __future__ import annotations

import collections
import functools
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffac.reports.reading import Run
from diffac.reports.search import Skipped
from diffac.reports.statistics import (
    MIN_SEEDS,
    Interval,
    bootstrap,
    improvement,
    improvement_interval,
    iqm,
    mean_std,
    profile,
)

CURVE_POINTS = 100
"""Points of a curve whose seeds were not evaluated at the same steps."""
MOST_POINTS = 1_000
"""... and of any other; of more, as many are taken as evenly as can be."""
MOST_METHODS = 50
MOST_ENVS = 100
"""What a report has room for."""
LATE = 0.9
"""Share of a run after which its evaluations count for "best of the last 10 %"."""


class Method(NamedTuple):
    """What is compared."""

    recipe: str
    backend: str = ""
    variant: str = ""
    """Settings by which it differs from others of the same recipe and backend."""

    @property
    def label(self) -> str:
        """Its name for people."""
        return " · ".join(part for part in self if part)


class Curve(NamedTuple):
    """Statistics over the seeds, at [n] environment steps (or shares of them)."""

    x: np.ndarray
    iqm: np.ndarray
    interval: Interval
    mean: np.ndarray
    std: np.ndarray
    """NaN for a single seed."""


class Summary(NamedTuple):
    """Final numbers of a method in an environment."""

    iqm: float
    interval: Interval
    last: tuple[float, float]
    """Mean and standard deviation over seeds of the last evaluation."""
    best_late: tuple[float, float]
    """... of the best evaluation in the last 10 % of the steps."""
    best: tuple[float, float]
    """... of the best evaluation of the run."""


class Cell:
    """The runs of one method in one environment.

    Where seeds end at different steps, all are cut at the last step that every one of them reached.
    """

    def __init__(self, env_id: str, method: Method, runs: Sequence[Run]) -> None:
        self.env_id, self.method = env_id, method
        ends = [int(run.steps[-1]) for run in runs]
        begins = [int(run.steps[0]) for run in runs]
        self.end = max(min(ends), max(begins))
        self.cut_from = max(ends) if max(ends) > self.end else None
        self.runs = [run.until(self.end) for run in runs]

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @functools.cached_property
    def last(self) -> np.ndarray:
        """[seeds] last evaluation of each run."""
        return np.array([run.returns[-1] for run in self.runs])

    @functools.cached_property
    def summary(self) -> Summary:
        """The row of the table."""
        best = np.array([run.returns.max() for run in self.runs])
        late = np.array([run.returns[run.steps >= min(LATE * self.end, run.steps[-1])].max() for run in self.runs])
        interval = bootstrap(iqm, [self.last])
        return Summary(float(iqm([self.last])), interval, mean_std(self.last), mean_std(late), mean_std(best))

    @property
    def timed(self) -> bool:
        """Whether every run knows its wall-clock time."""
        return all(run.seconds is not None for run in self.runs)

    @functools.cached_property
    def curve(self) -> Curve:
        """Returns over environment steps."""
        places = [run.steps for run in self.runs]
        x = common_places(places)
        values = [np.interp(x, steps, run.returns) for steps, run in zip(places, self.runs, strict=True)]
        return curve_of(x, [np.stack(values, -1)])

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """[n] median over the seeds of the time at which they reached the steps of the curve (where `timed`)."""
        clocks = [(run.steps, run.seconds) for run in self.runs if run.seconds is not None]
        return np.median([np.interp(self.curve.x, *clock) for clock in clocks], axis=0)


def common_places(xs: Sequence[np.ndarray]) -> np.ndarray:
    """The places of the seeds where they agree; otherwise evenly spaced ones within the range that all share."""
    if all(np.array_equal(x, xs[0]) for x in xs):
        return np.asarray(thinned(xs[0], MOST_POINTS), np.float64)
    low, high = max(x[0] for x in xs), min(x[-1] for x in xs)
    return np.linspace(low, high, CURVE_POINTS) if high > low else np.array([high], np.float64)


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]


def curve_of(x: np.ndarray, strata: Sequence[np.ndarray]) -> Curve:
    """Statistics of values [points, seeds] of each environment."""
    values = np.concatenate(strata, axis=-1)
    std = values.std(axis=-1, ddof=1) if values.shape[-1] > 1 else np.full(len(x), np.nan)
    return Curve(x, iqm(strata), bootstrap(iqm, strata), values.mean(axis=-1), std)


class Pair(NamedTuple):
    """How likely one method beats another."""

    x: Method
    y: Method
    env_ids: list[str]
    """Environments in which both ran."""
    seeds: tuple[int, int]
    """Smallest number of seeds of X and of Y in an environment."""
    probability: float
    interval: Interval


class Comparison:
    """All runs of a report, by environment and method."""

    def __init__(self, runs: Sequence[Run]) -> None:
        groups: dict[tuple[str, Method], list[Run]] = {}
        for run, method in zip(runs, methods_of(runs), strict=True):
            groups.setdefault((run.env_id, method), []).append(run)
        self.cells = {key: Cell(*key, groups[key]) for key in sorted(groups)}
        self.env_ids = sorted({env_id for env_id, _ in self.cells})
        self.methods = sorted({method for _, method in self.cells})

    def of_env(self, env_id: str) -> list[Cell]:
        """Its cells, by method."""
        return [cell for cell in self.cells.values() if cell.env_id == env_id]

    @functools.cached_property
    def shared(self) -> list[str]:
        """The largest set of environments in which at least two methods ran, and of several the one of most methods."""
        ran = {m: frozenset(env_id for env_id in self.env_ids if (env_id, m) in self.cells) for m in self.methods}
        candidates = {ran[x] & ran[y] for x, y in itertools.combinations(self.methods, 2)}
        sizes = {each: (len(each), sum(each <= envs for envs in ran.values()), sorted(each)) for each in candidates}
        return sorted(max(candidates, key=lambda each: sizes[each], default=frozenset()))

    @functools.cached_property
    def complete(self) -> list[Method]:
        """Methods that ran in every shared environment."""
        return [method for method in self.methods if all((env_id, method) in self.cells for env_id in self.shared)]

    @property
    def aggregates(self) -> bool:
        """Whether several environments can be put together."""
        return len(self.shared) > 1

    @functools.cached_property
    def scale(self) -> dict[str, tuple[float, float]]:
        """Environment -> the returns that are 0 and 1: the lowest first and the highest last return of any run."""
        scale = {}
        for env_id in self.env_ids:
            runs = [run for cell in self.of_env(env_id) for run in cell.runs]
            low, high = min(run.returns[0] for run in runs), max(run.returns[-1] for run in runs)
            size = max(float(np.abs(run.returns).max()) for run in runs)
            wide = high - low > 1e-9 * size  # else a quotient of rounding errors, or one that overflows
            scale[env_id] = (float(low), float(high) if wide else float(low) + max(size, 1.0))
        return scale

    def normalised(self, env_id: str, returns: np.ndarray) -> np.ndarray:
        """Returns as shares of the environment's scale."""
        low, high = self.scale[env_id]
        return (returns - low) / (high - low)

    def aggregate_curve(self, method: Method) -> Curve:
        """IQM of the normalised returns in the shared environments, over the share of the steps all methods went."""
        ends = {env_id: max(1, min(cell.end for cell in self._complete_cells(env_id))) for env_id in self.shared}
        first = max(
            run.steps[0] / ends[env_id]
            for env_id in self.shared
            for cell in self._complete_cells(env_id)
            for run in cell.runs
        )
        x = np.linspace(min(first, 1.0), 1.0, CURVE_POINTS)
        strata = []
        for env_id in self.shared:
            runs = self.cells[env_id, method].runs
            values = np.stack([np.interp(x * ends[env_id], run.steps, run.returns) for run in runs], -1)
            strata.append(self.normalised(env_id, values))
        return curve_of(x, strata)

    def _complete_cells(self, env_id: str) -> list[Cell]:
        return [self.cells[env_id, method] for method in self.complete]

    def profile_of(self, strata: Sequence[np.ndarray], thresholds: np.ndarray) -> tuple[np.ndarray, Interval]:
        """Share of runs above each threshold, with its interval."""
        return profile(strata, thresholds), bootstrap(functools.partial(profile, thresholds=thresholds), strata)

    def last_normalised(self, method: Method) -> list[np.ndarray]:
        """Last returns in the shared environments as shares of their scales."""
        return [self.normalised(env_id, self.cells[env_id, method].last) for env_id in self.shared]

    def pairs(self) -> tuple[list[Pair], list[Method]]:
        """All pairs with seeds enough, the likelier winner first; and the methods that have not got them anywhere."""
        pairs = []
        for x, y in itertools.combinations(self.methods, 2):
            env_ids = [
                env_id
                for env_id in self.env_ids
                if all((cell := self.cells.get((env_id, m))) and cell.seeds >= MIN_SEEDS for m in (x, y))
            ]
            if env_ids:
                pairs.append(self._pair(x, y, env_ids))
        compared = {method for pair in pairs for method in (pair.x, pair.y)}
        return pairs, [method for method in self.methods if method not in compared]

    def _pair(self, x: Method, y: Method, env_ids: list[str]) -> Pair:
        ours, theirs = ([self.cells[env_id, method].last for env_id in env_ids] for method in (x, y))
        if improvement(ours, theirs) < 0.5:
            x, y, ours, theirs = y, x, theirs, ours
        fewest = (min(map(len, ours)), min(map(len, theirs)))
        return Pair(x, y, env_ids, fewest, float(improvement(ours, theirs)), improvement_interval(ours, theirs))


def with_room(runs: Sequence[Run]) -> tuple[list[Run], list[Skipped]]:
    """The runs of as many environments and methods as a report has room for; and those that it has none for.

    Environments with the most runs stay, and recipes of few methods: very many come of a sweep or a mistake.
    """
    methods = dict(zip(map(id, runs), methods_of(runs), strict=True))
    in_env = collections.Counter(run.env_id for run in runs)
    env_ids = {env_id for env_id, _ in in_env.most_common(MOST_ENVS)}
    of_recipe: dict[str, set[Method]] = {}
    for run in runs:
        if run.env_id in env_ids:
            of_recipe.setdefault(run.recipe, set()).add(methods[id(run)])
    by_number = sorted(of_recipe.values(), key=lambda each: (len(each), sorted(each)))
    chosen = set([method for each in by_number for method in sorted(each)][:MOST_METHODS])
    kept, left_out = [], []
    for run in runs:
        if run.env_id not in env_ids:
            reason = f"its environment is one of {len(in_env):,}, more than the {MOST_ENVS} of a report"
            left_out.append(Skipped(run.source, reason))
        elif methods[id(run)] not in chosen:
            many = sum(map(len, by_number))
            reason = (
                f"{run.recipe} in {run.env_id} is one of {many:,} methods, more than the {MOST_METHODS} of a report"
            )
            left_out.append(Skipped(run.source, reason))
        else:
            kept.append(run)
    return kept, list(dict.fromkeys(left_out))


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """The method of each run.

    Runs of one recipe, backend and environment whose settings differ are different methods, and are named by as many of
    these settings as it takes to tell them apart: an average over hyperparameters would mean nothing. A setting that
    some of them do not record is not looked at.
    """
    families: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        families.setdefault((run.env_id, run.recipe, run.backend), []).append(run)
    named: dict[tuple[str, str, str], tuple[list[str], str]] = {}
    for family, members in families.items():
        keys = differing_settings(members)
        kinds = len({setting_text(run, keys) for run in members})
        enough = next(n for n in range(len(keys) + 1) if len({setting_text(r, keys[:n]) for r in members}) == kinds)
        named[family] = keys[:enough], ", …" if enough < len(keys) else ""
    methods = []
    for run in runs:
        keys, more = named[run.env_id, run.recipe, run.backend]
        methods.append(Method(run.recipe, run.backend, setting_text(run, keys) + more))
    return methods


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Settings that all runs record and in which they differ."""
    shared = set.intersection(*(set(run.settings) for run in runs))
    return sorted(key for key in shared if len({setting_text(run, [key]) for run in runs}) > 1)


def setting_text(run: Run, keys: Sequence[str]) -> str:
    """`name=value, ...`"""
    values = {key: run.settings[key] for key in keys}
    return ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v, default=str)}" for k, v in values.items())
