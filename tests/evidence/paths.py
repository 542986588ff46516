"""Pictures of rollouts: a panel a recipe, the way of every rollout from its start, and the goals, walls or modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffac.envs.four_modes import CENTRES, RADIUS
from diffac.envs.multi_goal import BOUND, GOALS, REACH
from diffac.envs.two_routes import GOAL_ANGLE, INNER, OUTER
from diffac_recipes import RECIPES

from .measured import Point

PICTURES = {
    "diffac/MultiGoal-v0": "multigoal.png",
    "diffac/TwoRoutes-v0": "tworoutes.png",
    "diffac/FourModes-v0": "fourmodes.png",
}
"""Environment -> picture, in docs/pictures."""
COLUMNS = 4


def draw(points: Sequence[Point], out: Path, captions: Mapping[str, str]) -> None:
    """Draws the places of one environment, a panel for each recipe with what is to be said of it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recipes = [recipe for recipe in RECIPES if any(point.recipe == recipe for point in points)]
    rows = -(-len(recipes) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.7 * COLUMNS, 3.0 * rows), squeeze=False)
    for axis in axes.flat[len(recipes) :]:
        axis.set_axis_off()
    for axis, recipe in zip(axes.flat, recipes, strict=False):
        mine = [point for point in points if point.recipe == recipe]
        _background(axis, mine[0].env_id)
        _ways(axis, mine)
        caption = f"\n{captions[recipe]}" if recipe in captions else ""
        axis.set_title(f"{recipe}, seed {mine[0].seed}{caption}", fontsize=9)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _ways(axis: Any, points: Sequence[Point]) -> None:
    """Of the rollouts of a recipe; in a bandit each is one action."""
    if not any(point.step for point in points):
        axis.scatter([p.x for p in points], [p.y for p in points], s=6, alpha=0.5, linewidths=0, color="tab:blue")
        return
    for rollout in sorted({point.rollout for point in points}):
        way = np.array([(p.x, p.y) for p in points if p.rollout == rollout])
        axis.plot(*way.T, color="tab:blue", alpha=0.45, linewidth=0.9, marker=".", markersize=2)
        axis.plot(*way[-1], ".", color="tab:red", markersize=5)


def _background(axis: Any, env_id: str) -> None:
    """What there is besides the rollouts."""
    from matplotlib.patches import Circle, Wedge

    if env_id == "diffac/MultiGoal-v0":
        for goal in GOALS:
            axis.add_patch(Circle(tuple(goal), REACH, color="tab:green", alpha=0.25, linewidth=0))
        axis.set(xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND))
        return
    if env_id == "diffac/FourModes-v0":
        for centre in CENTRES:
            axis.add_patch(Circle(tuple(centre), RADIUS, color="tab:green", alpha=0.25, linewidth=0))
        axis.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        return
    for radius in (INNER, OUTER):
        axis.add_patch(Circle((0, 0), radius, fill=False, color="black"))
    angle = np.degrees(GOAL_ANGLE)
    axis.add_patch(Wedge((0, 0), OUTER, -angle, angle, width=OUTER - INNER, color="tab:green", alpha=0.25, linewidth=0))
    axis.set(xlim=(-1.1 * OUTER, 1.1 * OUTER), ylim=(-1.1 * OUTER, 1.1 * OUTER))
