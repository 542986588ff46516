"""Four seeds together against the same four one after the other: environment steps and updates per second.

Whole runs as `diffac train` makes them, environments, replay and logging included; `rows` is what a report takes up.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffac.recipes import load_recipe, preset_values
from diffac.running import run
from diffac.seeds import run_seeds

NUM_SEEDS = 4
ENV_ID = "HalfCheetah-v5"
RATES = {"env steps": "time/fps", "updates": "time/updates_per_second"}


class Setting(NamedTuple):
    """What is trained, and for how long."""

    recipe: str
    preset: str
    backend: str
    updates: int
    """Of each run; the first third, in which programs are compiled, does not count."""


SETTINGS = [
    Setting("sac", "quick", "equinox", 1_500),
    Setting("dacer2", "quick", "equinox", 500),
    Setting("dacer2", "default", "equinox", 120),
    Setting("sac", "quick", "torch", 450),
]


def rows(settings: Sequence[Setting] = SETTINGS, repeats: int = 3) -> list[dict[str, Any]]:
    """One row for each setting and measure: recipe, backend, measure, value, unit."""
    found = []
    for setting in settings:
        alone, together = [], []
        for _ in range(repeats):  # by turns, so that a slow minute of the machine hits both
            alone.append(_rates(setting, 1))
            together.append(_rates(setting, NUM_SEEDS))
        common = {"recipe": f"{setting.recipe} ({setting.preset})", "backend": setting.backend}
        for name in RATES:
            one, all_ = (float(np.median([rates[name] for rates in runs])) for runs in (alone, together))
            found += [
                {**common, "measure": f"{name}, {NUM_SEEDS} seeds one after the other", "value": one, "unit": "1/s"},
                {**common, "measure": f"{name}, {NUM_SEEDS} seeds together", "value": all_, "unit": "1/s"},
                {**common, "measure": f"{name}, together / one after the other", "value": all_ / one, "unit": "ratio"},
            ]
    return found


def _rates(setting: Setting, num_seeds: int) -> dict[str, float]:
    """Environment steps and updates per second of all seeds of one command."""
    module = load_recipe(setting.recipe)
    values = preset_values(module, setting.recipe, setting.preset, ENV_ID)
    defaults = module.Config(**values)
    steps = int(setting.updates / defaults.updates_per_env_step)
    with tempfile.TemporaryDirectory() as folder:
        values |= {
            "backend": setting.backend, "run_root": folder, "progress": False, "eval_episodes": 1,
            "learning_starts": 300, "total_timesteps": 300 + steps, "log_interval": steps // 15,
            "buffer_size": 10_000, "eval_interval": 10**9, "checkpoint_interval": 10**9,
        }  # fmt: skip
        config = module.Config(**values)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if num_seeds == 1:
                run(module, config, setting.recipe)
            else:
                run_seeds(module, config, setting.recipe, num_seeds)
        found = [_intervals(path) for path in Path(folder).rglob("metrics.csv")]
    return {name: float(sum(np.median(rates[name]) for rates in found)) for name in RATES}


def _intervals(path: Path) -> dict[str, list[float]]:
    """The rates of the last two thirds of the intervals of a run."""
    with path.open(newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["time/fps"]]
    lines = lines[len(lines) // 3 :]
    return {name: [float(line[column]) for line in lines] for name, column in RATES.items()}


if __name__ == "__main__":
    for setting in SETTINGS:
        if len(sys.argv) == 1 or f"{setting.recipe}-{setting.preset}-{setting.backend}" in sys.argv:
            for row in rows([setting]):
                print(*row.values(), sep="\t", flush=True)
