"""Reads what runs left behind, ours and other people's, into one form.

Nothing that is read is trusted: whatever is wrong with a file, it is left out with a reason. A `Run` holds only names
that can be shown, and numbers with which can be reckoned.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffac.errors import UsageError
from diffac.files import checks
from diffac.files.paths import expanded
from diffac.files.untrusted import parse_json, read_bytes, read_json, read_npz, read_yaml
from diffac.messages import printable, shorten
from diffac.reports.search import CONFIG, EVALUATIONS, MANIFEST, METRICS, RUN, Skipped, search

COMPANIONS = {METRICS, "progress.csv"}
"""CSV files of logs (ours, Stable-Baselines3's) beside the evaluations: not read for returns."""
WINDOW = 100
"""Training episodes whose mean return is a point of a monitor's curve (Stable-Baselines3's `rollout/ep_rew_mean`)."""
MONITOR_POINTS = 200
"""Points to which a monitor's curve is thinned."""
LONGEST_NAME = 100
"""Characters of the name of an environment, a recipe or a backend."""
LONGEST_TEXT = 500
"""... of any other text of a configuration or manifest, and of a setting."""
LARGEST = 1e100
"""Absolute return up to which sums of squares stay finite."""
LONGEST_TIME = 1e10
"""Seconds, about 300 years."""
MOST_STEPS = 2**53
MOST_POINTS = 100_000
"""Evaluations of a run."""
MOST_ROWS = 1_000_000
"""Rows of a CSV file."""
MOST_BYTES = 2**26
"""... and its bytes."""
MOST_RUNS = 1_000
"""Runs of a CSV file."""
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
ENV_FOLDER = re.compile(r"(?P<env_id>[A-Za-z][\w.-]*-v\d+)(_(?P<number>\d{1,9}))?$")
SEED_FOLDER = re.compile(r"seed[_=-]?(\d{1,9})", re.IGNORECASE)


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
    core_seconds: float | None = None
    """Processor time of the whole run."""
    updates: np.ndarray | None = None
    """[n] gradient updates."""
    planned_steps: int | None = None
    """Environment steps that were asked for."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """As `_config` checks it."""
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """As `_manifest` checks it."""

    @property
    def finished(self) -> bool:
        """Whether it got as far as it should; True where nobody said how far."""
        return self.planned_steps is None or int(self.steps[-1]) >= self.planned_steps

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What the configuration says about how it learns."""
        return {name: value for name, value in self.config.items() if name not in WITHOUT_EFFECT}

    def until(self, step: int) -> Run:
        """The run up to and including an environment step."""
        keep = self.steps <= step
        cut = {name: None if (a := getattr(self, name)) is None else a[keep] for name in ("seconds", "updates")}
        return dataclasses.replace(self, steps=self.steps[keep], returns=self.returns[keep], **cut)


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
    _check_typed("--env-id", env_id)
    for name, path in paths_of(arguments):
        found += _read(path, name, env_id)
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


def paths_of(arguments: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Name of a method, or "", and the path of each argument; raises as `read_runs`."""
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or expanded(argument).exists():
            name, path = "", argument
        _check_typed("the name of a method", name)
        yield name, _existing(path)


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


def _check_typed(what: str, name: str | None) -> None:
    if name is not None and (len(name) > LONGEST_NAME or name != printable(name)):
        raise UsageError(f"{what} must have at most {LONGEST_NAME} printable characters, got {name!r}")


def _existing(path: str) -> Path:
    """A path that the user typed, which may lead over links, unlike those that are found."""
    found = expanded(path)
    try:
        return found.resolve(strict=True) if found.is_symlink() or not found.exists() else found
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise UsageError(f"there is no file or folder {path!r}") from error


def _read(path: Path, name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """Everything in a file or below a folder."""
    if not path.is_dir():
        yield from _read_files(path.parent, [path.name], name, env_id)
        return
    for found in search(path):
        if isinstance(found, Skipped):
            yield found
        else:
            yield from _read_files(*found, name, env_id)


def _read_files(folder: Path, files: Sequence[str], name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """What one folder holds: a run of diffac or of Stable-Baselines3, and CSV files."""
    monitors = [folder / file for file in files if file.endswith("monitor.csv")]
    if EVALUATIONS in files or set(files) >= RUN:
        yield from _attempt(folder, lambda: _read_evaluations(folder, files, name, env_id))
    elif monitors:
        yield from _attempt(
            monitors[0] if len(monitors) == 1 else folder, lambda: _read_monitors(monitors, name, env_id)
        )
    for file in files:
        if file.endswith(".csv") and not file.endswith("monitor.csv") and file not in COMPANIONS:
            path = folder / file
            yield from _attempt(path, lambda path=path: _read_table(path, name, env_id))


def _attempt(source: Path | str, read: Callable[[], Run | Iterator[Run | Skipped]]) -> Iterator[Run | Skipped]:
    """What is read; or why not, whatever is wrong: nothing that somebody left in a folder ends a report."""
    try:
        found = read()
        yield from [found] if isinstance(found, Run) else found
    except (_Unusable, UsageError) as error:
        yield Skipped.because(source, error)
    except Exception as error:
        yield Skipped.because(source, ValueError(f"it cannot be read: {type(error).__name__}: {error}"))


def _read_evaluations(folder: Path, files: Collection[str], name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """The folder of a run of ours, or one that Stable-Baselines3's `EvalCallback` wrote to."""
    config = _config(folder / CONFIG) if CONFIG in files else {}
    manifest = _manifest(folder / MANIFEST) if MANIFEST in files else {}
    if EVALUATIONS not in files:
        raise _Unusable("no evaluation took place")
    arrays = read_npz(folder / EVALUATIONS, ("timesteps", "results", "updates"))
    if missing := {"timesteps", "results"} - arrays.keys():
        raise _Unusable(f"{EVALUATIONS} lacks {' and '.join(sorted(missing))}")
    steps, results = arrays["timesteps"], arrays["results"]
    if not (steps.ndim == 1 and results.ndim == 2 and len(steps) == len(results) and results.shape[-1] > 0):
        raise _Unusable(f"{EVALUATIONS} has timesteps {steps.shape} and results {results.shape}; wanted: [n], [n, m]")
    updates = arrays.get("updates")
    if updates is not None and updates.shape != steps.shape:
        raise _Unusable(f"{EVALUATIONS} has updates {updates.shape} and timesteps {steps.shape}; wanted: [n] each")
    _check_size(len(steps))
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        returns = _bounded(results.astype(np.float64), steps).mean(axis=1)
    found = _Names.of(folder, env_id)
    monitored, clock, unread = _beside(folder, files)
    yield from unread
    yield _checked(
        Run(
            source=str(folder),
            env_id=config.get("env_id") or monitored or found.env_id,
            recipe=name or config.get("recipe") or found.recipe,
            backend="" if name else config.get("backend", ""),
            seed=config.get("seed", found.seed),
            steps=steps,
            returns=returns,
            updates=None if updates is None else _whole_numbers("updates", updates),
            seconds=None if clock is None else np.interp(steps, clock.steps, clock.seconds),
            core_seconds=None if clock is None else clock.core_seconds,
            planned_steps=config.get("total_timesteps"),
            config=config,
            manifest=manifest,
        )
    )


def _config(path: Path) -> dict[str, Any]:
    """The configuration of a run of ours: names of texts, numbers, bools and lists or tables of them."""
    config = checks.mapping(read_yaml(path), path.name)
    if any(not isinstance(config.get(key), str) for key in ("recipe", "env_id", "backend")):
        raise _Unusable(
            f"{path.name} is no configuration of diffac: recipe, env_id and backend must be texts; where it belongs to "
            f"another program, move it away, and {EVALUATIONS} is read without it"
        )
    for key, most in (("seed", 2**63), ("total_timesteps", MOST_STEPS)):
        if key in config:
            checks.whole(config[key], f"{path.name}: {key}", most=most)
    for key, value in config.items():
        _check_text(f"a name in {path.name}", key, LONGEST_NAME)
        _check_setting(f"{path.name}: {shorten(key, LONGEST_NAME)}", value)
    return config


def _check_setting(what: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else []
    if isinstance(value, dict | list | tuple):
        texts = [json.dumps(value, ensure_ascii=False, allow_nan=True)]  # a TypeError for what is no setting
    elif not isinstance(value, str | int | float | bool | None):
        raise _Unusable(f"{what} is a {type(value).__name__}")
    for text in texts:
        _check_text(what, text, LONGEST_TEXT)


def _manifest(path: Path) -> dict[str, Any]:
    """What the page shows of a manifest."""
    found, where = checks.mapping(read_json(path), path.name), path.name
    manifest: dict[str, Any] = {
        key: _check_text(f"{where}: {key}", found[key], LONGEST_TEXT)
        for key in ("started", "python", "git_revision", "platform", "processor")
        if found.get(key) is not None
    }
    if "cpu_count" in found:
        manifest["cpu_count"] = checks.whole(found["cpu_count"], f"{where}: cpu_count")
    manifest["versions"] = checks.mapping(found.get("versions", {}), f"{where}: versions")
    for package, version in manifest["versions"].items():
        _check_text(f"{where}: versions", package, LONGEST_NAME)
        _check_text(f"{where}: versions", version, LONGEST_NAME)
    manifest["resumed"] = [
        {
            "env_step": checks.whole(entry.get("env_step"), f"{where}: env_step"),
            "backend": _check_text(f"{where}: backend", entry.get("backend"), LONGEST_NAME),
        }
        for entry in (
            checks.mapping(entry, f"{where}: resumed")
            for entry in checks.items(found.get("resumed", []), f"{where}: resumed")
        )
    ]
    return manifest


def _check_text(what: str, value: Any, longest: int) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"{what} is no text but {checks.shown(value)}")
    if len(value) > longest:
        raise _Unusable(f"{what} has {len(value):,} characters, more than {longest}")
    if value != printable(value):
        raise _Unusable(f"{what} holds control characters: {value!r}")
    return value


class _Clock(NamedTuple):
    """When a run reached which step."""

    steps: np.ndarray
    seconds: np.ndarray
    core_seconds: float | None = None
    """Of the whole run."""


def _beside(folder: Path, files: Collection[str]) -> tuple[str, _Clock | None, list[Skipped]]:
    """What logs beside evaluations tell: environment ("" where unknown), clock; and what is bad."""
    env_id, clock, unread = "", None, []
    monitors = [folder / file for file in sorted(files) if file.endswith("monitor.csv")]

    def monitored() -> Iterator[Run | Skipped]:
        nonlocal env_id, clock
        env_id, steps, seconds, _ = _read_monitor_rows(monitors)
        clock = _Clock(steps, seconds)
        yield from ()

    def metrics() -> Iterator[Run | Skipped]:
        nonlocal clock
        clock = _read_clock(folder / METRICS) or clock
        yield from ()

    for path, read in ((monitors[0] if monitors else None, monitored), (folder / METRICS, metrics)):
        if path is not None and path.name in files:
            unread += [each for each in _attempt(path, read) if isinstance(each, Skipped)]
    return env_id, clock, [entry for entry in unread if entry.reason != NO_EPISODE]


NO_EPISODE = "no episode has ended"


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
        first, _, rest = _text(path).partition("\n")
        header = parse_json(first.removeprefix("#"), path.name) if first.startswith("#") else None
        if not isinstance(header, dict) or not isinstance(begin := header.get("t_start"), int | float):
            raise _Unusable(f"{path.name} does not begin with a line of Stable-Baselines3's Monitor")
        if isinstance(header.get("env_id"), str):
            env_id = env_id or header["env_id"]
        begins.append(float(begin))
        lines = list(_lines(rest))
        for number, line in enumerate(lines):
            try:
                end, length, ret = (float(line[key]) for key in ("t", "l", "r"))
            except (KeyError, TypeError, ValueError) as error:
                if number == len(lines) - 1 and {"r", "l", "t"} <= line.keys():
                    break  # a process that is killed leaves half a line
                raise _Unusable(f"{path.name}, line {number + 3}: wanted are columns r, l, t of numbers") from error
            if not (0 <= length <= MOST_STEPS and abs(end) <= LONGEST_TIME and abs(ret) <= LARGEST):
                raise _Unusable(f"{path.name}, line {number + 3}: return {ret:g}, length {length:g} or time {end:g}")
            rows.append((begin + end, length, ret))
    if not rows:
        raise _Unusable(NO_EPISODE)
    seconds, lengths, returns = np.array(sorted(rows)).T
    return env_id, np.cumsum(lengths), seconds - min(begins), returns


def _text(path: Path) -> str:
    """The content of a CSV file."""
    return read_bytes(path, MOST_BYTES).decode("utf-8-sig", errors="replace")


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a CSV file by the names of their columns."""
    for number, line in enumerate(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)):
        if number == MOST_ROWS:
            raise _Unusable(f"has more than {MOST_ROWS:,} rows")
        yield line


def _read_table(path: Path, name: str, env_id: str | None) -> Iterator[Run | Skipped]:
    """A CSV file with columns step, return, seed, and perhaps env_id, recipe, backend, settings, seconds: runs of many
    seeds."""
    groups = _table_groups(path)
    found = _Names.of(path.parent, env_id)
    for (env, recipe, backend, settings, seed), rows in groups.items():
        yield from _attempt(
            f"{path}, seed {shorten(seed, 20)}",
            lambda env=env, recipe=recipe, backend=backend, settings=settings, seed=seed, rows=rows: _checked(
                Run(
                    source=str(path),
                    env_id=env or found.env_id,
                    recipe=name or recipe or path.stem,
                    backend="" if name else backend,
                    seed=checks.whole(int(seed), "its seed", -(2**63), 2**63),
                    config={key: _check_text(f"its {key}", text, LONGEST_TEXT) for key, text in settings},
                    **_curve(rows),
                )
            ),
        )


Group = tuple[str, str, str, tuple[tuple[str, str], ...], str]
"""Environment, recipe, backend, (name, text) of the column settings where there is one, seed."""


def _table_groups(path: Path) -> dict[Group, list[tuple[float, float, float]]]:
    """Rows (step, return, seconds or NaN) of each run."""
    groups: dict[Group, list[tuple[float, float, float]]] = {}
    text = _text(path)
    columns = next(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True), [])
    if missing := [column for column in ("step", "return", "seed") if column not in columns]:
        have = shorten(", ".join(columns), 80) or "none, the file is empty"
        raise _Unusable(f"lacks the column {' and '.join(missing)} (it has: {have}); wanted: step, return, seed")
    for number, line in enumerate(_lines(text)):
        try:
            seed = str(int(line["seed"]))
            row = (float(line["step"]), float(line["return"]), float(line.get("seconds") or "nan"))
        except (TypeError, ValueError) as error:
            raise _Unusable(f"line {number + 2}: step, return and seed must be numbers") from error
        env_id, recipe, backend = (line.get(name) or "" for name in ("env_id", "recipe", "backend"))
        settings = tuple((name, line[name] or "") for name in ("settings",) if name in line)
        key = (env_id, recipe, backend, settings, seed)
        groups.setdefault(key, []).append(row)
        if len(groups) > MOST_RUNS:
            raise _Unusable(f"holds more than {MOST_RUNS:,} runs")
    if not groups:
        raise _Unusable("has no rows")
    return groups


def _curve(rows: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Rows in any order -> steps, mean return at each step (an evaluation may be several rows), seconds or None."""
    step, value, seconds = np.array(rows).T
    steps, where = np.unique(_whole_numbers("steps", step), return_inverse=True)
    count = np.bincount(where)
    mean_seconds = np.bincount(where, seconds) / count
    return {
        "steps": steps,
        "returns": np.bincount(where, _bounded(value, step)) / count,
        "seconds": None if np.isnan(mean_seconds).any() else mean_seconds,
    }


def _checked(run: Run) -> Run:
    """The run itself, with whole numbers as steps.

    Raises:
        _Unusable: no points or too many, steps that do not increase, returns or times out of range, or names that
            cannot be shown.
    """
    if len(run.steps) == 0:
        raise _Unusable("no evaluation took place")
    _check_size(len(run.steps))
    steps = _whole_numbers("environment steps", run.steps)
    if (np.diff(steps) <= 0).any():
        raise _Unusable("its environment steps do not increase")
    _bounded(run.returns, steps)
    if run.seconds is not None and not ((run.seconds >= 0) & (run.seconds <= LONGEST_TIME)).all():
        raise _Unusable(f"its times are not all between 0 and {LONGEST_TIME:g} seconds")
    for what, text in (("environment", run.env_id), ("method", run.recipe), ("backend", run.backend)):
        _check_text(f"the name of its {what}", text, LONGEST_NAME)
    return dataclasses.replace(run, steps=steps)


def _check_size(evaluations: int) -> None:
    if evaluations > MOST_POINTS:
        raise _Unusable(f"has {evaluations:,} evaluations, more than {MOST_POINTS:,}")


def _whole_numbers(what: str, values: np.ndarray) -> np.ndarray:
    """As 64-bit integers, without a change of value."""
    good = (values >= 0) & (values <= MOST_STEPS) & (values == np.floor(values))
    if not good.all():
        bad = values[~good][0]
        raise _Unusable(f"its {what} must be whole numbers from 0 to {MOST_STEPS:,}, but one is {bad:g}")
    return values.astype(np.int64)


def _bounded(returns: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns [n ...], none of which is NaN or so large that its square overflows."""
    if not (good := np.abs(returns) <= LARGEST).all():
        place = np.argwhere(~good)[0]
        raise _Unusable(f"its return at step {float(steps[place[0]]):,.0f} is {float(returns[tuple(place)]):g}")
    return returns


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


def _read_clock(path: Path) -> _Clock | None:
    """What a run's `metrics.csv` says, or None where it does not.

    A process that resumes the run may start to count time anew, and repeats steps after its checkpoint.
    """
    rows: list[tuple[float, float]] = []
    total = last = 0.0
    core_seconds = None
    for line in _lines(_text(path)):
        try:
            step, seconds = float(line["step"]), float(line["time/time_elapsed"])
        except (KeyError, TypeError, ValueError):
            continue  # a line of an evaluation, or half a line
        if not (0 <= step <= MOST_STEPS and 0 <= seconds <= LONGEST_TIME):
            raise _Unusable(f"step {step:g} at {seconds:g} seconds")
        total += seconds - last if seconds >= last else seconds
        last = seconds
        while rows and rows[-1][0] >= step:
            rows.pop()
        rows.append((step, total))
        with contextlib.suppress(TypeError, ValueError):
            core_seconds = float(line.get("time/core_seconds") or "")
    if not rows:
        return None
    if core_seconds is not None and not 0 <= core_seconds <= LONGEST_TIME:
        raise _Unusable(f"{core_seconds:g} core-seconds")
    steps, seconds = np.array(rows).T
    return _Clock(steps, seconds, core_seconds)
