"""A corridor that leads around a block in a ring: two routes to the goal, equally long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from diffac.envs.options import blocked_modes
from diffac.errors import check_number

INNER, OUTER = 2.0, 3.0
"""Radii of the corridor's walls."""
GOAL_ANGLE = math.pi / 12
"""The goal is reached within this angle of the positive x axis."""
SPEED = 0.5
BONUS = 10.0


class TwoRoutes(gym.Env[np.ndarray, np.ndarray]):
    """A point in a ring-shaped corridor, and a goal on the other side. Registered as `diffac/TwoRoutes-v0`.

    The smallest maze with two equally long routes: one above the block in the middle (route 0), one below it (route 1),
    each other's mirror image. The observation is the position (x, y), 2 <= |(x, y)| <= 3; the action a is a velocity in
    [-1, 1]^2, and a step leads to (x, y) + 0.5 a, from where the nearest point of the corridor is taken. Episodes
    start at (-2.5, 0) and end (`terminated`) within 15 degrees of the x axis on the other side; they are cut
    (`truncated`) after 100 steps. The reward is -|angle|, the angle to the goal in radians by the shorter way after the
    step, and 10 more at the goal. The mean of the two routes leads against the block.

    Ours, in place of PointMaze of gymnasium-robotics: its state can be saved, the routes are equal to the last bit, a
    route can be closed, and it needs no simulator.

    Args:
        start_std: standard deviation of the normal law around the start, at least 0; the nearest point of the corridor
            is taken.
        blocked: numbers of routes, 0 or 1, that a wall closes in their middle, at x = 0: what would lead through it, in
            either direction, leads nowhere. Neither the observation nor the reward tells.

    Raises:
        UsageError: a negative standard deviation, a number that no route has, or both.
    """

    def __init__(self, start_std: float = 0.1, blocked: Sequence[int] = ()) -> None:
        check_number("start_std", start_std, "[0, inf)")
        self.start_std, self.blocked = start_std, blocked_modes(blocked, 2, "route")
        self.observation_space = gym.spaces.Box(-OUTER, OUTER, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position = np.array([-(INNER + OUTER) / 2, 0.0])
        """[2], float64."""
        self.route = -1
        """By which route the point last came from the left half; -1: it has not left it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The first observation [2]; `options` are not used."""
        super().reset(seed=seed)
        start = self.np_random.normal((-(INNER + OUTER) / 2, 0.0), self.start_std)
        self.position, self.route = _inside(start), -1
        return self.position.astype(np.float32), {"mode": -1}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of an action [2], clipped to [-1, 1].

        `info["mode"]` is the number of the route by which this step reached the goal, or -1.
        """
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        position = _inside(self.position + SPEED * action)
        crosses = (position[0] >= 0) != (self.position[0] >= 0)
        route = 0 if position[1] > 0 else 1
        if not (crosses and route in self.blocked):
            self.position = position
            if crosses:
                self.route = route if position[0] >= 0 else -1
        angle = abs(math.atan2(self.position[1], self.position[0]))
        reached = angle < GOAL_ANGLE
        reward = BONUS * reached - angle
        observation = self.position.astype(np.float32)
        return observation, reward, reached, False, {"mode": self.route if reached else -1}


def _inside(position: np.ndarray) -> np.ndarray:
    """The nearest point [2] of the corridor."""
    radius = math.hypot(*position)
    if radius == 0:  # all are equally near
        return np.array([-INNER, 0.0])
    return position * (min(max(radius, INNER), OUTER) / radius)
