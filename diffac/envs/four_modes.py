"""A bandit whose value has four equal modes and is known, so that exp(Q/temperature) can be sampled exactly."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from diffac.errors import check_count, check_number

CENTRES = 0.5 * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
"""[4 2]"""
WIDTH = 0.2
RADIUS = 0.3
"""An action belongs to a mode when it is less than this away from its centre."""


class FourModes(gym.Env[np.ndarray, np.ndarray]):
    """A bandit: one step, and the reward of an action a in [-1, 1]^2 is Q(a). Registered as `diffac/FourModes-v0`.

    Q(a) = sum_c exp(-|a - c|^2 / (2 0.2^2)) with c at (+-0.5, +-0.5). The observation is always the same, [0]. As every
    episode ends after its first step, Q is the value of the action too, whatever the discount. Ours; no paper's.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The observation [1], which is 0; `options` are not used."""
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {"mode": -1}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The only step of an episode; `info["mode"]` is the number of the mode that the action [2] belongs to, or -1.

        An action beyond [-1, 1] is clipped first.
        """
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        distances = np.linalg.norm(action - CENTRES, axis=-1)
        mode = int(distances.argmin()) if distances.min() < RADIUS else -1
        return np.zeros(1, np.float32), float(value(action)), True, False, {"mode": mode}


def value(action: np.ndarray) -> np.ndarray:
    """Q [*batch] of actions [*batch 2]: four Gaussian bumps of height 1."""
    square = ((action[..., None, :] - CENTRES) ** 2).sum(-1)
    return np.exp(-square / (2 * WIDTH**2)).sum(-1)


def exact_samples(count: int, seed: int = 0, temperature: float = 0.2, cells: int = 500) -> np.ndarray:
    """Samples [count 2] of the density proportional to exp(Q/temperature) on [-1, 1]^2, by a grid.

    Args:
        count: how many, at least 1.
        seed: of the samples.
        temperature: above 0. At 0.2, peaks are exp(1/0.2) = 148 times as dense as the plain, and 9 in 10 samples belong
            to a mode.
        cells: of the grid, along each axis; the density is constant within each.

    Raises:
        UsageError: a number outside its range.
    """
    check_count("count", count)
    check_count("cells", cells)
    check_number("temperature", temperature, "(0, inf)")
    rng = np.random.default_rng(seed)
    middle = (np.arange(cells) + 0.5) / cells * 2 - 1
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp((value(grid) - 1) / temperature)
    chosen = grid[rng.choice(len(grid), count, p=density / density.sum())]
    return chosen + rng.uniform(-1, 1, chosen.shape) / cells
