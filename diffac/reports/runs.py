"""Reads what runs left behind, ours and other people's, into one form."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from diffac.errors import UsageError

PAGE = "report.html"
"""Name of a report's page; a folder that holds one is not searched for runs."""
NOT_SEARCHED = {"checkpoints", "best", "videos"}
RUN = {"config.yaml", "manifest.json"}
"""Files of every run of diffac. Its `evaluations/` is not searched: what is there was played after the training."""
COMPANIONS = {"metrics.csv", "progress.csv"}
"""CSV files of logs (ours, Stable-Baselines3's) beside the evaluations: not read for returns."""
WINDOW = 100
"""Training episodes whose mean return is a point of a monitor's curve (Stable-Baselines3's `rollout/ep_rew_mean`)."""
MONITOR_POINTS = 200
"""Points to which a monitor's curve is thinned."""
WITHOUT_EFFECT = frozenset(
    {
        "seed",
        "run_root",
        "progress",
        "asynchronous",
        "replay_on_device",
        "log_interval",
        "eval_interval",
        "eval_episodes",
    }
)
"""Settings that do not change what a run learns (the seed aside, by which runs of one method differ)."""
UNKNOWN = "unknown environment"
ENV_FOLDER = re.compile(r"(?P<env_id>[A-Za-z][\w.-]*-v\d+)(_(?P<number>\d+))?$")
SEED_FOLDER = re.compile(r"seed[_=-]?(\d+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Run:
    """The returns of one seed."""

    source: str
    """Where it was read."""
    env_id: str
    recipe: str
    """The algorithm's name; for other people's data, the name that was given or that the path suggests."""
    backend: str
    """Empty for other people's data."""
    seed: int | None
    """None where the data do not say."""
    steps: np.ndarray
    """[n] environment steps, increasing."""
    returns: np.ndarray
    """[n] mean return at each of them, finite."""
    measured: str = "evaluation"
    """What the returns are: of evaluation episodes, or of training episodes."""
    seconds: np.ndarray | None = None
    """[n] wall-clock time since the run began."""
    updates: np.ndarray | None = None
    """[n] gradient updates."""
    planned_steps: int | None = None
    """Environment steps that were asked for."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it got as far as it should; True where nobody said how far."""
        return self.planned_steps is None or int(self.steps[-1]) >= self.planned_steps

    @property
    def settings(self) -> dict[str, Any]:
        """What the configuration says about how it learns."""
        return {name: value for name, value in self.config.items() if name not in WITHOUT_EFFECT}

    def until(self, step: int) -> Run:
        """The run up to and including an environment step."""
        keep = self.steps <= step
        cut = {name: None if (a := getattr(self, name)) is None else a[keep] for name in ("seconds", "updates")}
        return dataclasses.replace(self, steps=self.steps[keep], returns=self.returns[keep], **cut)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that looked like a run and is not used."""

    source: str
    reason: str


class _Unusable(Exception):
    """Data that cannot be used; the message says why."""


def read_runs(
    arguments: Sequence[str], *, env_id: str | None = None, unfinished: bool = False
) -> tuple[list[Run], list[Skipped]]:
    """All runs below folders, or in files.

    Args:
        arguments: paths; or NAME=PATH, to call what is found there NAME.
        env_id: environment of data that do not name one.
        unfinished: take runs that did not get as far as their configuration asks.

    Raises:
        UsageError: a path does not exist, or nothing that can be used was found.
    """
    found: list[Run | Skipped] = []
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = "", argument
        if not Path(path).exists():
            raise UsageError(f"there is no file or folder {path!r}")
        found += _read(Path(path), name, env_id)
    skipped = list(dict.fromkeys(entry for entry in found if isinstance(entry, Skipped)))
    runs: list[Run] = []
    for run in (entry for entry in found if isinstance(entry, Run)):
        if run.finished or unfinished:
            runs.append(run)
        else:
            skipped.append(Skipped(run.source, f"unfinished: evaluated until {_progress(run)}"))
    runs, older = _newest(runs)
    skipped += older
    if not runs:
        reasons = "".join(f"; {entry.source}: {entry.reason}" for entry in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise UsageError(
            f"no usable runs in {', '.join(arguments)}; wanted are folders of diffac, CSV files with columns step, "
            f"return, seed, or Stable-Baselines3's evaluations.npz and monitor.csv{reasons}{more}"
        )
    return runs, skipped


def _progress(run: Run) -> str:
    return f"{int(run.steps[-1]):,} of {run.planned_steps:,} environment steps (--unfinished takes it nevertheless)"


def _newest(runs: Sequence[Run]) -> tuple[list[Run], list[Skipped]]:
    """Keeps one of several runs that differ in nothing but their date: they are no independent seeds."""
    kept: dict[Any, Run] = {}
    older: list[Skipped] = []
    for run in sorted(runs, key=lambda run: (run.finished, str(run.manifest.get("started", "")), run.source)):
        same = (run.env_id, run.recipe, run.backend, run.seed, json.dumps(run.settings, sort_keys=True, default=str))
        key = same if run.config else (run.source, run.seed, run.env_id, run.recipe, run.backend)
        if key in kept:
            older.append(Skipped(kept[key].source, f"same settings and seed as the newer {run.source}"))
        kept[key] = run
    return sorted(kept.values(), key=lambda run: run.source), older


def _read(path: Path, name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """Everything in a file or below a folder."""
    if path.is_file():
        yield from _read_files(path.parent, [path.name], name, env_id)
        return
    for folder, children, files in os.walk(path):
        if PAGE in files:
            children.clear()
            continue
        parts = NOT_SEARCHED | ({"evaluations"} if set(files) >= RUN else set())
        children[:] = sorted(c for c in children if c not in parts and not c.startswith("."))
        yield from _read_files(Path(folder), sorted(files), name, env_id)


def _read_files(folder: Path, files: Sequence[str], name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """What one folder holds: a run of diffac or of Stable-Baselines3, and CSV files."""
    monitors = [folder / file for file in files if file.endswith("monitor.csv")]
    if "evaluations.npz" in files or set(files) >= RUN:
        yield _attempt(folder, lambda: _read_evaluations(folder, name, env_id))
    elif monitors:
        yield _attempt(folder, lambda: _read_monitors(monitors, name, env_id))
    for file in files:
        if file.endswith(".csv") and not file.endswith("monitor.csv") and file not in COMPANIONS:
            yield from _read_table(folder / file, name, env_id)


def _attempt(source: Path | str, read: Callable[[], Run]) -> Run | Skipped:
    try:
        return read()
    except _Unusable as error:
        return Skipped(str(source), str(error))


def _read_evaluations(folder: Path, name: str, env_id: str | None) -> Run:
    """The folder of a run of ours, or one that Stable-Baselines3's `EvalCallback` wrote to."""
    config = _mapping(folder / "config.yaml", yaml.safe_load)
    manifest = _mapping(folder / "manifest.json", json.loads)
    path = folder / "evaluations.npz"
    if not path.exists():
        raise _Unusable("no evaluation took place")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib, NumPy and pickle refuse in many ways
        raise _Unusable(f"evaluations.npz cannot be read: {error}") from error
    if missing := {"timesteps", "results"} - arrays.keys():
        raise _Unusable(f"evaluations.npz lacks {' and '.join(sorted(missing))}")
    steps, results = arrays["timesteps"], arrays["results"]
    if not (steps.ndim == 1 and results.ndim == 2 and len(steps) == len(results) and results.shape[-1] > 0):
        raise _Unusable(f"evaluations.npz has timesteps {steps.shape} and results {results.shape}; wanted: [n], [n, m]")
    found = _Names.of(folder, env_id)
    monitored, clock = _monitored(sorted(folder.glob("*monitor.csv")))
    clock = _clock(folder / "metrics.csv") or clock
    updates = arrays.get("updates")
    run = Run(
        source=str(folder),
        env_id=str(config.get("env_id") or monitored or found.env_id),
        recipe=name or str(config.get("recipe") or found.recipe),
        backend="" if name else str(config.get("backend", "")),
        seed=config.get("seed", found.seed),
        steps=steps.astype(np.int64),
        returns=results.mean(axis=1, dtype=np.float64),
        updates=updates if updates is not None and len(updates) == len(steps) else None,
        seconds=None if clock is None else np.interp(steps, *clock),
        planned_steps=config.get("total_timesteps"),
        config=config,
        manifest=manifest,
    )
    return _checked(run)


def _monitored(paths: Sequence[Path]) -> tuple[str, tuple[np.ndarray, np.ndarray] | None]:
    """Environment ("" where unknown) and clock (steps, seconds) that monitors beside evaluations tell, if they can."""
    try:
        env_id, steps, seconds, _ = _read_monitor_rows(paths)
    except _Unusable:
        return "", None
    return env_id, (steps, seconds)


def _read_monitors(paths: Sequence[Path], name: str, env_id: str | None) -> Run:
    """Training episodes of Stable-Baselines3's `Monitor`, one file for each environment that was stepped together."""
    found_env, steps, seconds, returns = _read_monitor_rows(paths)
    found = _Names.of(paths[0].parent, env_id)
    count = np.minimum(np.arange(1, len(returns) + 1), WINDOW)
    total = np.concatenate([[0.0], np.cumsum(returns)])
    last = np.arange(1, len(returns) + 1)
    smooth = (total[last] - total[last - count]) / count
    keep = np.unique(np.linspace(0, len(returns) - 1, MONITOR_POINTS).round().astype(int))
    return _checked(
        Run(
            source=str(paths[0] if len(paths) == 1 else paths[0].parent),
            env_id=found_env or found.env_id,
            recipe=name or found.recipe,
            backend="",
            seed=found.seed,
            steps=steps[keep],
            returns=smooth[keep],
            measured=f"training episodes, mean of the last {WINDOW}",
            seconds=seconds[keep],
        )
    )


def _read_monitor_rows(paths: Sequence[Path]) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """(env_id or "", steps [n], seconds [n], returns [n]) of all episodes, in the order in which they ended."""
    env_id, begins, rows = "", [], []
    for path in paths:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            try:
                header = json.loads(file.readline().removeprefix("#"))
                begin = float(header["t_start"])
            except (ValueError, KeyError, TypeError) as error:
                raise _Unusable(f"{path.name} does not begin with a line of Stable-Baselines3's Monitor") from error
            env_id = env_id or str(header.get("env_id") or "")
            begins.append(begin)
            lines = list(csv.DictReader(file))
        for number, line in enumerate(lines):
            try:
                rows.append((begin + float(line["t"]), float(line["l"]), float(line["r"])))
            except (KeyError, TypeError, ValueError) as error:
                if number == len(lines) - 1 and {"r", "l", "t"} <= line.keys():
                    break  # a process that is killed leaves half a line
                raise _Unusable(f"{path.name}, line {number + 3}: wanted are columns r, l, t of numbers") from error
    if not rows:
        raise _Unusable("no episode has ended")
    seconds, lengths, returns = np.array(sorted(rows)).T
    return env_id, np.cumsum(lengths).astype(np.int64), seconds - min(begins), returns


def _read_table(path: Path, name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """A CSV file with columns step, return, seed, and perhaps env_id, recipe, backend, seconds: runs of many seeds."""
    try:
        groups = _table_groups(path)
    except _Unusable as error:
        yield Skipped(str(path), str(error))
        return
    found = _Names.of(path.parent, env_id)
    for (env, recipe, backend, seed), rows in groups.items():
        yield _attempt(
            f"{path}, seed {seed}",
            lambda env=env, recipe=recipe, backend=backend, seed=seed, rows=rows: _checked(
                Run(
                    source=str(path),
                    env_id=env or found.env_id,
                    recipe=name or recipe or path.stem,
                    backend="" if name else backend,
                    seed=int(seed),
                    **_curve(rows),
                )
            ),
        )


def _table_groups(path: Path) -> dict[tuple[str, str, str, str], list[tuple[float, float, float]]]:
    """(env_id, recipe, backend, seed) -> rows (step, return, seconds or NaN)."""
    groups: dict[tuple[str, str, str, str], list[tuple[float, float, float]]] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        table = csv.DictReader(file, skipinitialspace=True)
        columns = [column or "" for column in table.fieldnames or []]
        if missing := [column for column in ("step", "return", "seed") if column not in columns]:
            have = ", ".join(columns)[:80] or "none, the file is empty"
            raise _Unusable(f"lacks the column {' and '.join(missing)} (it has: {have}); wanted: step, return, seed")
        for line in table:
            try:
                seed = str(int(line["seed"]))
                row = (float(line["step"]), float(line["return"]), float(line.get("seconds") or "nan"))
            except (TypeError, ValueError) as error:
                raise _Unusable(f"line {table.line_num}: step, return and seed must be numbers") from error
            key = (line.get("env_id") or "", line.get("recipe") or "", line.get("backend") or "", seed)
            groups.setdefault(key, []).append(row)
    if not groups:
        raise _Unusable("has no rows")
    return groups


def _curve(rows: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Rows in any order -> steps, mean return at each step (an evaluation may be several rows), seconds or None."""
    step, value, seconds = np.array(rows).T
    steps, where = np.unique(step, return_inverse=True)
    count = np.bincount(where)
    mean_seconds = np.bincount(where, seconds) / count
    return {
        "steps": steps.astype(np.int64) if np.isfinite(steps).all() else steps,
        "returns": np.bincount(where, value) / count,
        "seconds": None if np.isnan(mean_seconds).any() else mean_seconds,
    }


def _checked(run: Run) -> Run:
    """The run itself.

    Raises:
        _Unusable: no points, steps that do not increase, or returns that are not finite.
    """
    if len(run.steps) == 0:
        raise _Unusable("no evaluation took place")
    if not np.isfinite(run.steps).all() or (np.diff(run.steps) <= 0).any():
        raise _Unusable("its environment steps do not increase")
    if not (finite := np.isfinite(run.returns)).all():
        bad = int(np.flatnonzero(~finite)[0])
        raise _Unusable(f"its return at step {int(run.steps[bad]):,} is {run.returns[bad]}")
    return run


class _Names(NamedTuple):
    """What the folders of a path suggest."""

    env_id: str
    recipe: str
    seed: int | None

    @classmethod
    def of(cls, folder: Path, env_id: str | None) -> _Names:
        """Such as `logs/sac/HalfCheetah-v4_1/` of the RL Zoo, or `HalfCheetah-v4/sac/seed3/`.

        The recipe is the folder inside that of the environment, or else the one around it.
        """
        parts = folder.resolve().parts[1:]
        seeds = [int(match[1]) for part in reversed(parts) if (match := SEED_FOLDER.search(part))]
        named = [i for i, part in enumerate(parts) if not SEED_FOLDER.search(part)]
        places = [i for i in named if ENV_FOLDER.match(parts[i])]
        if not places:
            return cls(env_id or UNKNOWN, parts[named[-1]] if named else "unknown", seeds[0] if seeds else None)
        match = ENV_FOLDER.match(parts[places[-1]])
        assert match is not None
        inside, around = [i for i in named if i > places[-1]], [i for i in named if i < places[-1]]
        recipe = parts[inside[0]] if inside else parts[around[-1]] if around else "unknown"
        number = seeds[0] if seeds else match["number"]
        return cls(env_id or match["env_id"], recipe, None if number is None else int(number))


def _clock(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, seconds) of a run's `metrics.csv`, or None where it does not say.

    A process that resumes the run may start to count time anew, and repeats steps after its checkpoint.
    """
    if not path.exists():
        return None
    rows: list[tuple[float, float]] = []
    total = last = 0.0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line in csv.DictReader(file):
            try:
                step, seconds = float(line["step"]), float(line["time/time_elapsed"])
            except (KeyError, TypeError, ValueError):
                continue  # a line of an evaluation, or half a line
            total += seconds - last if seconds >= last else seconds
            last = seconds
            while rows and rows[-1][0] >= step:
                rows.pop()
            rows.append((step, total))
    if not rows:
        return None
    steps, seconds = np.array(rows).T
    return steps, seconds


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file of names and values; empty where there is none."""
    if not path.exists():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise _Unusable(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise _Unusable(f"{path.name} does not hold names and values")
    return value
