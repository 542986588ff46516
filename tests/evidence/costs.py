"""What a run costs on one core, with nothing else running: `python -m tests.evidence.costs NAME`, of a sweep's file.

Runs of the results have other work beside them, so their own seconds say little.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from diffac.scale.cost import estimate
from diffac.scale.executors.processes import Processes
from diffac.scale.plan import read_plan

from . import peers, table
from .data import FOLDER


class Cost(NamedTuple):
    """Of a whole run on one core."""

    env_id: str
    recipe: str
    backend: str
    seconds: float


def read_costs(folder: Path = FOLDER) -> dict[tuple[str, str, str], float]:
    """(env_id, recipe, backend) -> seconds of a whole run on one core; empty: none was measured."""
    return {cost[:3]: cost.seconds for cost in table.read(Cost, folder / "costs.csv")}


def measure(name: str) -> dict[tuple[str, str, str], float]:
    """The same for all methods of a sweep, peers included, one after the other."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    for kind in estimate(read_plan(FOLDER / f"{name}.yaml"), Processes(1), 1):
        job = kind.jobs[0]
        _, config = job.load()
        found[config.env_id, job.recipe, config.backend] = kind.seconds
    for run in {run.algorithm: run for run in peers.runs(name)}.values():
        first, second = (result[4] for result in peers.train(run._replace(steps=2 * peers.EVERY)))
        seconds = first + (run.steps // peers.EVERY - 1) * (second - first)
        found[run.env_id, f"sb3_{run.algorithm}", "torch"] = seconds
    return found


def main(names: list[str]) -> None:
    """Measures and writes."""
    for name in names:
        costs = {**read_costs(), **measure(name)}
        rows = [(*key, f"{seconds:.0f}") for key, seconds in sorted(costs.items())]
        table.write(Cost, FOLDER / "costs.csv", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
