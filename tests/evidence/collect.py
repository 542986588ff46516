"""Rows of the complete runs of docs/data/results/NAME.yaml: `python -m tests.evidence.collect NAME [FOLDER ...]`.

The folders are those of sweeps of that file, or of parts of it; without any, sweeps/NAME.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffac.scale.plan import read_plan
from diffac.scale.work import Job

from .data import FOLDER, Row, add, read

OWN = ("env_id", "backend", "seed", "preset")
"""Settings that have columns of their own, or that the recipe's name implies."""


def collect(name: str, root: Path | None = None, folder: Path = FOLDER) -> int:
    """Adds what is complete to the data.

    Args:
        name: of the sweep's file in `folder`.
        root: folder of the sweep; None: sweeps/NAME.
        folder: of the data.

    Returns:
        How many runs are still missing.
    """
    jobs = read_plan(folder / f"{name}.yaml", root)
    have = {row.run for row in read(name, folder)}
    missing = 0
    for job in jobs:
        key = key_of(job, jobs)
        if key in have:
            continue
        rows = rows_of(key, job.folder)
        if rows and rows[-1].step == job.steps:
            add(name, rows, origin_of(job.folder), folder)
        else:
            missing += 1
    return missing


def key_of(job: Job, jobs: Sequence[Job]) -> tuple[str, str, str, str, int]:
    """As `Row.run`; the settings are those that differ between the jobs."""
    own = {
        name: value
        for name, value in job.values.items()
        if name not in OWN and any(other.values.get(name) != value for other in jobs)
    }
    _, config = job.load()
    settings = json.dumps(own, sort_keys=True) if own else ""
    return (config.env_id, job.recipe, config.backend, settings, config.seed)


def short(settings: str) -> str:
    """The settings of a key, for people."""
    return settings.strip("{}").replace('"', "")


def rows_of(key: tuple[str, str, str, str, int], folder: Path) -> list[Row]:
    """All evaluations of a run so far."""
    if not (folder / "evaluations.npz").exists():
        return []
    with np.load(folder / "evaluations.npz") as file:
        steps, updates, results = (file[name] for name in ("timesteps", "updates", "results"))
    with (folder / "metrics.csv").open(newline="") as lines:
        clocks = {int(line["step"]): line for line in csv.DictReader(lines) if line["time/core_seconds"]}
    return [
        Row(*key, int(step), int(count), *_moments(returns), *_clock(clocks, int(step)))
        for step, count, returns in zip(steps, updates, results, strict=True)
    ]


def origin_of(folder: Path) -> dict[str, Any]:
    """Commit and versions that made a run."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = ("gymnasium", "mujoco", "numpy", "torch", "jax", "equinox", "optax")
    versions = {name: manifest["versions"][name] for name in names if name in manifest["versions"]}
    return {"commit": manifest["git_revision"][:7], "python": manifest["python"], "versions": versions}


def _moments(returns: np.ndarray) -> tuple[float, float]:
    return float(np.mean(returns)), float(np.std(returns))


def _clock(clocks: Mapping[int, Mapping[str, str]], step: int) -> tuple[float, float]:
    line = clocks[step]
    return float(line["time/time_elapsed"]), float(line["time/core_seconds"])


if __name__ == "__main__":
    for root in sys.argv[2:] or ["sweeps/" + sys.argv[1]]:
        left = collect(sys.argv[1], Path(root))
    print(f"{left} runs are missing")
