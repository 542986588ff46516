"""The file of a sweep: the runs that it asks for."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffac.errors import UsageError, unknown
from diffac.files.paths import absolute
from diffac.files.untrusted import read_yaml
from diffac.runs.configs import OTHER_NAMES, RECIPE
from diffac.runs.folder import file_name
from diffac.runs.recipes import load_recipe
from diffac.runs.resume import FREE
from diffac.scale.work import Job, config_of
from diffac.values import plain, vars_of

SECTIONS = {"settings": dict, "grid": dict, "runs": list}
"""What a file may hold, each of it or not."""
NOT_IDENTITY = FREE - {"backend"}
"""Fields that do not make another run."""
RESERVED = {"run_root": "all runs lie in the sweep's folder", "progress": "the sweep shows all runs in one table"}
MOST_RUNS = 100_000


def read_plan(path: Path | str, root: Path | None = None) -> list[Job]:
    """The runs that a file asks for, in its order.

    `settings` hold for all runs, `grid` lists values of which every combination is a run, and `runs` lists runs that
    differ otherwise, each of them in every combination of the grid; what a run says itself counts more than the grid,
    and that more than `settings`. Names are `recipe`, `preset` and the fields of the recipe's configuration.

    Args:
        path: of the file.
        root: folder of the sweep, below which the runs lie; None: `sweeps/` and the file's name.

    Raises:
        UsageError: the file cannot be read, asks for nothing, for the same run twice, or for something impossible;
            says which run.
    """
    path = absolute(path)
    root = root or absolute("sweeps") / path.stem
    sections = _sections(read_yaml(path), path)
    asked = list(itertools.islice(_combinations(**sections, where=path), MOST_RUNS + 1))
    if len(asked) > MOST_RUNS:
        raise UsageError(f"{path} asks for more than {MOST_RUNS:,} runs")
    jobs: dict[str, Job] = {}
    labels = _labels(asked)
    for values, label in zip(asked, labels, strict=True):
        job = _job(values, label, path, root)
        if job.name in jobs:
            raise UsageError(f"{path} asks twice for the run {label or job.name}")
        jobs[job.name] = job
    return list(jobs.values())


def _sections(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path} must hold sections ({', '.join(SECTIONS)}), got {type(content).__name__}")
    for name, value in content.items():
        if name not in SECTIONS:
            known = f"a setting of all runs belongs below `settings`, one to vary below `grid`: `{name}: [...]`"
            raise unknown(f"section in {path}:", name, SECTIONS, known)
        if not isinstance(value, SECTIONS[name]) or not value:
            what = "a list of runs" if name == "runs" else "lines like `name: [first, second]`"
            raise UsageError(f"{path}: {name} must hold {what if name != 'settings' else 'lines like `name: value`'}")
    for name, values in content.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(
                f"{path}: {name} in grid must be a list of values, got {values!r:.200}; a single value belongs below "
                f"`settings`"
            )
    for entry in content.get("runs", []):
        if not isinstance(entry, dict) or not entry:
            raise UsageError(f"{path}: every entry of runs must hold lines like `name: value`, got {entry!r:.200}")
    return {"settings": {}, "grid": {}, "runs": [{}], **content}


def _combinations(
    settings: Mapping[str, Any], grid: Mapping[str, list[Any]], runs: list[Mapping[str, Any]], where: Path
) -> Iterator[dict[str, Any]]:
    for entry in runs:
        axes = {name: values for name, values in grid.items() if name not in entry}
        for combination in itertools.product(*axes.values()):
            values = {**settings, **dict(zip(axes, combination, strict=True)), **entry}
            if not isinstance(values.get(RECIPE), str):
                raise UsageError(f"{where}: every run must name its recipe, as in `recipe: sac`, got {values!r:.200}")
            if name := next((name for name in values if name in RESERVED), None):
                raise UsageError(f"{where}: {name} cannot be set, {RESERVED[name]}")
            if name := next((name for name in values if OTHER_NAMES.get(str(name)) == RECIPE), None):
                raise UsageError(f"{where}: unknown setting {name!r}; did you mean 'recipe'?")
            yield values


def _labels(asked: list[dict[str, Any]]) -> list[str]:
    """For each run the settings in which it differs from another one; all alike: its recipe."""
    first = asked[0]
    names = dict.fromkeys(name for values in asked for name in values)
    differ = [name for name in names if any(values.get(name) != first.get(name) for values in asked)] or [RECIPE]
    short = {"env_id", "recipe", "backend", "preset"}
    return [
        " ".join(str(v[name]) if name in short else f"{name}={v[name]}" for name in differ if name in v) for v in asked
    ]


def _job(values: dict[str, Any], label: str, path: Path, root: Path) -> Job:
    recipe = values.pop(RECIPE)
    module = load_recipe(recipe)
    config = config_of(module, recipe, values, f"{path}, {label}")
    fields = plain(vars_of(config))
    said = {name: fields.get(name, value) for name, value in values.items() if name not in NOT_IDENTITY}
    text = json.dumps([recipe, said], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    where = map(file_name, (config.env_id, recipe, config.backend, f"seed{config.seed}__{digest}"))
    return Job("/".join(where), label, recipe, values, config.total_timesteps, str(path), root)
