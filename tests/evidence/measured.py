"""Multimodality of trained runs: a row a run, place of start and exploration, in files that are always complete."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffac.testing.multimodality import entropy, total_variation

from . import table

STARTS = ("centre", "around", "ring")
"""The middle of where the environment starts; at random around it, as in training; a circle around it."""
EXPLORATION = ("off", "on")


class Row(NamedTuple):
    """What `diffac.testing.multimodality.measure` found for a run."""

    env_id: str
    recipe: str
    backend: str
    seed: int
    starts: str
    """One of STARTS."""
    exploration: str
    """One of EXPLORATION."""
    env_steps: int
    updates: int
    counts: tuple[int, ...]
    """Rollouts that ended with each mode."""
    missed: int
    """Rollouts that ended with none."""
    mean_return: float
    blocked: int
    """The mode that was closed; -1: none."""
    blocked_return: float
    """NaN where none was closed, as below."""
    blocked_share: float
    energy_distance: float
    """To exp(Q / 0.2) in the bandit; NaN elsewhere."""
    run: str
    """Where the run lies in the folder of its sweep."""
    commit: str
    versions: str

    @property
    def key(self) -> tuple[Any, ...]:
        """There is one row for each."""
        return (*self[:6], self.run)

    @property
    def reached(self) -> int:
        """Modes that at least one rollout ended with."""
        return sum(count > 0 for count in self.counts)

    @property
    def entropy(self) -> float:
        """Of the distribution over modes, in nats; NaN where all rollouts missed."""
        return entropy(np.array(self.counts))

    @property
    def total_variation(self) -> float:
        """Of that distribution to uniform; NaN where all rollouts missed."""
        return total_variation(np.array(self.counts))

    @property
    def rollouts(self) -> int:
        """How many there were."""
        return sum(self.counts) + self.missed


class Point(NamedTuple):
    """A place that a rollout passed, from the centre and without exploration noise."""

    env_id: str
    recipe: str
    seed: int
    rollout: int
    step: int
    x: float
    y: float


def read(file: Path) -> list[Row]:
    """All rows; none where there is no file."""
    return table.read(Row, file)


def add(file: Path, new: Iterable[Row]) -> list[Row]:
    """Puts rows in the place of earlier ones of the same run; returns all rows, in a fixed order."""
    rows = {row.key: row for row in [*read(file), *new]}
    kept = [rows[key] for key in sorted(rows)]
    table.write(Row, file, kept)
    return kept


def read_points(file: Path) -> list[Point]:
    """All places; none where there is no file."""
    return table.read(Point, file)


def add_points(file: Path, new: Iterable[Point]) -> list[Point]:
    """Puts the places of a run in the place of those that another seed of its recipe has, and of its own earlier ones.

    A picture shows one seed, the lowest; so a higher one than is there changes nothing.
    """
    points, new = read_points(file), list(new)
    for key in {point[:2] for point in new}:
        there = [point.seed for point in points if point[:2] == key]
        mine = min(point.seed for point in new if point[:2] == key)
        if not there or mine <= min(there):
            points = [point for point in points if point[:2] != key]
            points += [point for point in new if point[:2] == key and point.seed == mine]
    points.sort()
    table.write(Point, file, points)
    return points
