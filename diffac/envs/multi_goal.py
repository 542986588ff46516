"""The multi-goal environment: a point in the plane and four goals that are equally good from the centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from diffac.envs.options import blocked_modes, points
from diffac.errors import check_number

GOALS = np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])
"""[4 2]"""
BOUND = 7.0
"""Positions lie in [-BOUND, BOUND]^2."""
REACH = 1.0
"""A goal counts as reached below this distance."""
ACTION_COST = 30.0
BONUS = 10.0


class MultiGoal(gym.Env[np.ndarray, np.ndarray]):
    """A point that moves by its actions, and four goals around the centre. Registered as `diffac/MultiGoal-v0`.

    The test of multimodality of DACER (arXiv 2405.15177), of soft Q-learning (1702.08165) before it. The observation is
    the position s in [-7, 7]^2, the action a velocity in [-1, 1]^2; one step leads to s' = clip(s + a), and the goals g
    lie at (5, 0), (0, 5), (-5, 0) and (0, -5). The reward is -30 |a|^2 - min_g |s' - g|^2, and 10 more where s' is less
    than 1 away from a goal, which ends the episode (`terminated`). After 100 steps it is cut (`truncated`).

    From the centre all four goals are worth the same, so the density exp(Q/temperature) has four modes, and a policy
    with one mode loses nothing by it until its goal is blocked.

    Ours, as the papers do not say: an action beyond [-1, 1] is clipped before it moves or costs; where the episode
    starts besides the centre; what a blocked goal is.

    Args:
        starts: places [n 2] in [-7, 7]^2; every episode starts near one of them, each as likely as the others.
        start_std: standard deviation of the normal law around that place, at least 0; clipped to [-7, 7]^2.
        blocked: numbers of goals, 0 to 3 in the order above, that are none: they pay nothing, attract nothing and end
            nothing. The observation does not tell.

    Raises:
        UsageError: places that are no points of the plane or lie outside, a negative standard deviation, a number that
            no goal has, or no goal is left.
    """

    def __init__(
        self,
        starts: Sequence[Sequence[float]] = ((0.0, 0.0),),
        start_std: float = 0.1,
        blocked: Sequence[int] = (),
    ) -> None:
        check_number("start_std", start_std, "[0, inf)")
        self.starts, self.start_std = points("starts", starts, BOUND), start_std
        self.goals = np.delete(np.arange(len(GOALS)), blocked_modes(blocked, len(GOALS), "goal"))
        """Numbers of the goals that are not blocked."""
        self.observation_space = gym.spaces.Box(-BOUND, BOUND, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position = self.starts[0].copy()
        """[2], float64."""
        self.mode = -1
        """Number of the goal that the last step reached; -1: none."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The first observation [2]; `options` are not used."""
        super().reset(seed=seed)
        start = self.starts[self.np_random.integers(len(self.starts))]
        self.position = np.clip(self.np_random.normal(start, self.start_std), -BOUND, BOUND)
        self.mode = -1
        return self.position.astype(np.float32), {"mode": self.mode}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of an action [2]; `info["mode"]` is the number of the goal that it reached, or -1."""
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.position = np.clip(self.position + action, -BOUND, BOUND)
        squares = ((self.position - GOALS[self.goals]) ** 2).sum(-1)
        reward = -ACTION_COST * (action**2).sum() - squares.min()
        reached = bool(squares.min() < REACH**2)
        self.mode = int(self.goals[squares.argmin()]) if reached else -1
        observation = self.position.astype(np.float32)
        return observation, float(reward + BONUS * reached), reached, False, {"mode": self.mode}
