"""The file of a sweep: the runs that it asks for."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffac.errors import UsageError, unknown
from diffac.files.paths import absolute
from diffac.files.untrusted import inside, read_yaml
from diffac.messages import command
from diffac.runs.configs import OTHER_NAMES, RECIPE
from diffac.runs.folder import file_name
from diffac.runs.recipes import load_recipe
from diffac.runs.resume import FREE
from diffac.scale.found import SETTINGS_FROM, with_found
from diffac.scale.space import Space, read_space
from diffac.scale.work import Job, config_of
from diffac.values import plain, vars_of

SECTIONS = {"settings": dict, "grid": dict, "runs": list, "search": dict}
"""What a file may hold, each of it or not."""
CONTENT = {
    "settings": "lines like `name: value`",
    "grid": "lines like `name: [first, second]`",
    "runs": "a list of runs",
    "search": "space, trials and seeds",
}
NOT_IDENTITY = FREE - {"backend"}
"""Fields that do not make another run."""
RESERVED = {"run_root": "all runs lie in the sweep's folder", "progress": "the sweep shows all runs in one table"}
MOST_RUNS = 100_000


@dataclasses.dataclass(frozen=True)
class Search:
    """A search for the best settings of a recipe in an environment."""

    name: str
    """What tells it from the others, and where its folder lies below that of the sweep."""
    label: str
    """For people: the settings in which the searches differ."""
    values: Mapping[str, Any]
    """What is not searched, the recipe among it."""
    space: Space
    file: str
    """That asks for it."""
    root: Path
    """Folder of the sweep."""

    @property
    def folder(self) -> Path:
        """Of its trials; no link on the way."""
        return inside(self.root, *self.name.split("/"))

    def jobs(self, trial: int, settings: Mapping[str, Any]) -> list[Job]:
        """The runs of a trial, one for each seed."""
        jobs = []
        for seed in self.space.seeds:
            values, label = {**self.values, **settings, "seed": seed}, f"{self.label} trial {trial} seed {seed}"
            job = job_of(values, label, self.file, self.root)
            name = f"{self.name}/{trial_folder(trial)}/{job.name.rpartition('/')[2]}"
            jobs.append(dataclasses.replace(job, name=name))
        return jobs


def trial_folder(trial: int) -> str:
    """Name of the folder of a trial."""
    return f"trial{trial:04d}"


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
    sections = _sections(read_yaml(path), path)
    if sections.pop("search") is not None:
        raise UsageError(f"{path} describes a search; begin it with: {command('diffac', 'sweep', path, '--search')}")
    root = root_of(path, root)
    jobs: dict[str, Job] = {}
    for values, label in _asked(sections, path):
        job = job_of(values, label, path, root)
        if job.name in jobs:
            raise UsageError(f"{path} asks twice for the run {label or job.name}")
        jobs[job.name] = job
    return list(jobs.values())


def read_searches(path: Path | str, root: Path | None = None) -> list[Search]:
    """The searches that a file describes, one for each run that it would ask for without its section `search`.

    Args:
        path: of the file.
        root: as for `read_plan`.

    Raises:
        UsageError: the file cannot be read, has no section `search`, or describes something impossible; says what.
    """
    path = absolute(path)
    sections = _sections(read_yaml(path), path)
    section = sections.pop("search")
    if section is None:
        raise UsageError(f"--search needs a section `search` in {path}, with space, trials and seeds")
    space = read_space(section, str(path))
    if any(SETTINGS_FROM in said for said in (sections["settings"], sections["grid"], *sections["runs"])):
        raise UsageError(f"{path}: {SETTINGS_FROM} does not go with a search, which would forget the seeds used before")
    root = root_of(path, root)
    searches: dict[str, Search] = {}
    for values, label in _asked(sections, path):
        for name in ("seed", *space.of):
            if name in values:
                where = "the seeds of a search belong into its `seeds`" if name == "seed" else "it is searched"
                raise UsageError(f"{path}: {name} cannot be set, {where}")
        search = _search(values, label, space, path, root)
        if search.name in searches:
            raise UsageError(f"{path} asks twice for the search {label}")
        searches[search.name] = search
    return list(searches.values())


def root_of(path: Path, root: Path | None) -> Path:
    """The folder of the sweep that a file describes, if no other one is given."""
    return root or absolute("sweeps") / path.stem


def _asked(sections: dict[str, Any], path: Path) -> list[tuple[dict[str, Any], str]]:
    """Settings and label of every run."""
    asked = list(itertools.islice(_combinations(**sections, where=path), MOST_RUNS + 1))
    if len(asked) > MOST_RUNS:
        raise UsageError(f"{path} asks for more than {MOST_RUNS:,} runs")
    return list(zip(asked, _labels(asked), strict=True))


def _search(values: dict[str, Any], label: str, space: Space, path: Path, root: Path) -> Search:
    """A search; every end of what is searched has been tried."""
    for seed in space.seeds:
        base = job_of({**values, "seed": seed}, label, path, root)
    for name, what in space.of.items():
        for value in what.ends:
            job_of({**values, name: value}, f"{label}, {name}={value}", path, root)
    digest = hashlib.sha256(json.dumps([base.name, space.seeds, sorted(space.of.items())]).encode()).hexdigest()[:8]
    name = f"{base.name.rpartition('/')[0]}/search__{digest}"
    return Search(name, label, values, space, str(path), root)


def _sections(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path} must hold sections ({', '.join(SECTIONS)}), got {type(content).__name__}")
    for name, value in content.items():
        if name not in SECTIONS:
            known = f"a setting of all runs belongs below `settings`, one to vary below `grid`: `{name}: [...]`"
            raise unknown(f"section in {path}:", name, SECTIONS, known)
        if not isinstance(value, SECTIONS[name]) or not value:
            raise UsageError(f"{path}: {name} must hold {CONTENT[name]}")
    for name, values in content.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(
                f"{path}: {name} in grid must be a list of values, got {values!r:.200}; a single value belongs below "
                f"`settings`"
            )
    for entry in content.get("runs", []):
        if not isinstance(entry, dict) or not entry:
            raise UsageError(f"{path}: every entry of runs must hold lines like `name: value`, got {entry!r:.200}")
    return {"settings": {}, "grid": {}, "runs": [{}], "search": None, **content}


def _combinations(
    settings: Mapping[str, Any], grid: Mapping[str, list[Any]], runs: list[Mapping[str, Any]], where: Path
) -> Iterator[dict[str, Any]]:
    for entry in runs:
        axes = {name: values for name, values in grid.items() if name not in entry}
        for combination in itertools.product(*axes.values()):
            values = {**settings, **dict(zip(axes, combination, strict=True)), **entry}
            if SETTINGS_FROM in values:
                values = with_found(values, where)
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


def job_of(values: Mapping[str, Any], label: str, path: Path | str, root: Path) -> Job:
    """A run with these settings, the recipe among them."""
    values = dict(values)
    recipe = values.pop(RECIPE)
    module = load_recipe(recipe)
    config = config_of(module, recipe, values, f"{path}, {label}")
    fields = plain(vars_of(config))
    said = {name: fields.get(name, value) for name, value in values.items() if name not in NOT_IDENTITY}
    text = json.dumps([recipe, said], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    where = map(file_name, (config.env_id, recipe, config.backend, f"seed{config.seed}__{digest}"))
    return Job("/".join(where), label, recipe, values, config.total_timesteps, str(path), root)
