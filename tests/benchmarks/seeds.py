"""Two seeds at a time on two processors, with a thread each, against one after the other with two threads."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .results import Row

SETTINGS = [("dacer2", "equinox"), ("dacer2", "torch"), ("sac", "equinox"), ("sac", "torch")]
"""Recipe, with its default sizes, and backend."""
LEARNING_STARTS = 300
STEPS = {"dacer2": 2_400, "sac": 12_000}
"""Environment steps of a run: a minute or two."""
TURNS = 3


def seeds(processors: int = 2) -> list[Row]:
    """Whole runs as `diffac train` makes them, environments, replay and logging included; by turns."""
    rows = []
    for recipe, backend in SETTINGS:
        pairs = [[_updates_per_second(recipe, backend, count, processors) for count in (1, 2)] for _ in range(TURNS)]
        one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
        text = f"median of {TURNS} turns"
        for measure, value, unit in (
            ("updates, one after the other", one, "1/s"),
            ("updates, two at a time", two, "1/s"),
            ("updates, two at a time / one after the other", two / one, "ratio"),
        ):
            rows.append(Row(f"{recipe} (default)", "HalfCheetah", backend, "seeds", measure, value, unit, text))
    return rows


def _updates_per_second(recipe: str, backend: str, num_seeds: int, processors: int) -> float:
    """Of all seeds of one command; each the median over the last two thirds of its intervals."""
    steps = STEPS[recipe]
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "num-seeds": num_seeds, "backend": backend, "env-id": "HalfCheetah-v5", "run-root": folder,
            "total-timesteps": steps, "learning-starts": LEARNING_STARTS, "log-interval": steps // 30,
            "buffer-size": 10_000, "eval-episodes": 1, "eval-interval": 10**9, "checkpoint-interval": 10**9,
        }  # fmt: skip
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        environment = {n: v for n, v in os.environ.items() if n not in ("OMP_NUM_THREADS", "NPROC", "XLA_FLAGS")}
        subprocess.run(
            [sys.executable, "-m", "diffac", "train", recipe, *flags],
            check=True, capture_output=True, env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors]),
        )  # fmt: skip
        paths = list(Path(folder).rglob("metrics.csv"))
        assert len(paths) == num_seeds
        return sum(map(_median_rate, paths))


def _median_rate(path: Path) -> float:
    with path.open(newline="") as file:
        rates = [float(row["time/updates_per_second"]) for row in csv.DictReader(file) if row["time/fps"]]
    return statistics.median(rates[len(rates) // 3 :])
