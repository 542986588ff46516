"""Measures the multimodality of trained runs, and makes the page and the pictures of it.

    diffac sweep docs/data/results/multigoal.yaml      # trains them
    python -m tests.evidence.multimodality sweeps/multigoal sweeps/tworoutes sweeps/fourmodes

The folders may be those of sweeps or of runs. As soon as a run is measured its rows are in
docs/data/results/multimodality.csv, in place of earlier ones of the same run; without a folder, only
docs/results/multimodality.md and its pictures are made anew.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffac.agent import Agent
from diffac.envs.four_modes import exact_samples
from diffac.errors import UsageError
from diffac.runs.folder import read_manifest
from diffac.scale.plan import read_plan
from diffac.testing.multimodality import Act, energy_distance, measure, ring

from .collect import key_of
from .measured import EXPLORATION, Point, Row, add, add_points, read, read_points
from .multimodality_page import RADIUS, ROLLOUTS, SAMPLES, TEMPERATURE, page
from .paths import PICTURES, draw

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data" / "results" / "multimodality.csv"
POINTS = DATA.with_name("multimodality_paths.csv")
PAGE = ROOT / "docs" / "results" / "multimodality.md"
ABLATIONS = "ablations_multigoal"
"""Name of the sweep and the table of DACER2's ablations."""
SEED = 2_000_000
"""Of the rollouts; none of training or of `diffac evaluate`."""
DRAWN = 30
"""Rollouts of a run that are drawn."""
ACTIONS = 300
"""Likewise, of a bandit."""
EXACTLY = {"env_kwargs": {"start_std": 0.0}}
PLACES: dict[str, dict[str, Any]] = {
    "diffac/MultiGoal-v0": {"centre": EXACTLY, "around": {}, "ring": {**EXACTLY, "starts": ring(RADIUS)}},
    "diffac/TwoRoutes-v0": {"centre": EXACTLY, "around": {}},
    "diffac/FourModes-v0": {"centre": {}},
}
"""Environment -> one of `STARTS` -> arguments of `measure`."""
FRAMEWORKS = {"torch": "torch", "equinox": "jax"}


def runs_below(folders: Iterable[Path]) -> list[Path]:
    """The folders of runs, each of them given itself or below one that is given.

    Raises:
        UsageError: there is no run.
    """
    found: list[Path] = []
    for folder in folders:
        below = sorted(file.parent for file in folder.rglob("config.yaml") if (file.parent / "manifest.json").exists())
        if not below:
            raise UsageError(f"{folder} holds no run")
        found += below
    return found


def measured(folder: Path, rollouts: int = ROLLOUTS, backend: str | None = None) -> tuple[list[Row], list[Point]]:
    """The rows of a run, of its last checkpoint; and the places that the first rollouts from the centre pass.

    Args:
        folder: of the run.
        rollouts: for each row.
        backend: that acts; None: that of the training.

    Raises:
        UsageError: there is no checkpoint, or the environment has no modes.
    """
    agent = Agent.load(folder / "checkpoints", backend=backend)
    config, checkpoint = agent.config, agent.checkpoint
    assert checkpoint is not None
    if config.env_id not in PLACES:
        raise UsageError(f"{folder} was trained in {config.env_id}, which has no modes; known: {', '.join(PLACES)}")
    about = read_manifest(folder)
    rows, points = [], []
    for exploration in EXPLORATION:
        act = acting(agent, deterministic=exploration == "off")
        for starts, places in PLACES[config.env_id].items():
            found, played = measure(act, config.env_id, num_rollouts=rollouts, seed=SEED, **places)
            rows.append(
                Row(
                    env_id=config.env_id,
                    recipe=agent.recipe,
                    backend=config.backend,
                    seed=config.seed,
                    starts=starts,
                    exploration=exploration,
                    env_steps=checkpoint.env_step,
                    updates=checkpoint.manifest["updates"],
                    counts=tuple(found.counts.tolist()),
                    missed=found.missed,
                    mean_return=round(found.mean_return, 3),
                    blocked=found.blocked,
                    blocked_return=round(found.blocked_return, 3),
                    blocked_share=round(found.blocked_share, 4),
                    energy_distance=to_boltzmann(act) if config.env_id == "diffac/FourModes-v0" else math.nan,
                    run="/".join(folder.resolve().parts[-4:]),
                    commit=(about.get("git_revision") or "unknown")[:7],
                    versions=", ".join(
                        f"{name} {about['versions'][name]}" for name in (FRAMEWORKS[config.backend], "gymnasium")
                    ),
                )
            )
            if (starts, exploration) == ("centre", "off") and config.env_id in PICTURES:
                bandit = config.env_id == "diffac/FourModes-v0"
                paths = act(np.zeros((ACTIONS, 1), np.float32))[:, None] if bandit else played.paths[:DRAWN]
                points += [
                    Point(config.env_id, agent.recipe, config.seed, i, t, round(float(x), 3), round(float(y), 3))
                    for i, path in enumerate(paths)
                    for t, (x, y) in enumerate(path)
                ]
    return rows, points


def acting(agent: Agent, deterministic: bool) -> Act:
    """The agent's policy; `deterministic`: without exploration noise."""
    return lambda obs: agent.predict(obs, deterministic=deterministic)[0]


def to_boltzmann(act: Act) -> float:
    """Energy distance of a policy's actions in the bandit to exact samples of exp(Q / TEMPERATURE)."""
    samples = act(np.zeros((SAMPLES, 1), np.float32))
    return round(energy_distance(samples, exact_samples(SAMPLES, temperature=TEMPERATURE)), 5)


def publish(data: Path = DATA, points: Path = POINTS, page_file: Path = PAGE, pictures: Path | None = None) -> None:
    """Makes the page and the pictures of what is in the data."""
    rows = read(data)
    page_file.write_text(page(rows, ablated()), encoding="utf-8")
    for env_id, name in PICTURES.items():
        chosen = [point for point in read_points(points) if point.env_id == env_id]
        shown = {(point.recipe, point.seed) for point in chosen}
        captions = {
            row.recipe: f"{1 - row.missed / row.rollouts:.0%} in {row.reached} mode{'s'[: row.reached != 1]}, "
            f"distance {row.energy_distance:.3f}"
            for row in rows
            if (row.starts, row.exploration, row.env_id) == ("centre", "off", env_id)
            and (row.recipe, row.seed) in shown
            and not math.isnan(row.energy_distance)
        }
        if chosen:
            draw(chosen, (pictures or ROOT / "docs" / "pictures") / name, captions)


def ablated(folder: Path = DATA.parent) -> dict[str, list[Row]]:
    """Settings of each ablation, and what is known of its runs."""
    jobs = read_plan(folder / f"{ABLATIONS}.yaml")
    rows = read(folder / f"{ABLATIONS}.csv")
    found: dict[str, list[Row]] = {}
    for job in jobs:
        found.setdefault(key_of(job, jobs)[3], []).extend(row for row in rows if row.run == job.name)
    return found


def session(runs: Iterable[Path], data: Path = DATA, points: Path | None = POINTS, **options: Any) -> Iterator[str]:
    """Measures runs, and keeps each as soon as it is known, its places only if a file is given for them.

    Yields a line for each.
    """
    for folder in runs:
        rows, places = measured(folder, **options)
        add(data, rows)
        if points is not None:
            add_points(points, places)
        first = rows[0]
        yield (
            f"{first.env_id}, {first.recipe}, {first.backend}, seed {first.seed}: "
            f"{' '.join(map(str, first.counts))}, {first.missed} missed, return {first.mean_return:g}"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "tests.evidence.multimodality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="of sweeps or runs")
    parser.add_argument("--out", type=Path, default=DATA, help="table to add to; default: the published one")
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help=f"for each row; default: {ROLLOUTS}")
    parser.add_argument("--backend", help="that acts; default: that of the training")
    options = parser.parse_args()
    points = options.out.with_name(f"{options.out.stem}_paths.csv")
    for line in session(
        runs_below(options.folders), options.out, points, rollouts=options.rollouts, backend=options.backend
    ):
        print(line, flush=True)
    if options.out == DATA:
        publish()
    else:
        publish(options.out, points, options.out.with_suffix(".md"), options.out.parent)


if __name__ == "__main__":
    main()
