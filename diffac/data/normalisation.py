"""Moments of observations, gathered while environments are stepped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffac.errors import UsageError


class RunningMoments:
    """Mean and variance of all observations so far, of all environments together, in float64.

    Batches are merged by the pairwise rule of Chan, Golub and LeVeque 1983 (Algorithms for computing the sample
    variance): no sum of squares cancels, however far the mean is from 0. The variance is that of a
    population, as in `numpy.var`.

    Args:
        size: length of an observation.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self.squares = np.zeros(size)
        """Sum of the squared distances from the mean."""

    @property
    def var(self) -> np.ndarray:
        """[size]; 1 before the first observation."""
        return self.squares / self.count if self.count else np.ones_like(self.mean)

    def update(self, obs: np.ndarray) -> None:
        """Takes in observations [batch size]."""
        if not len(obs):
            return
        obs = np.asarray(obs, np.float64)
        mean, total = obs.mean(0), self.count + len(obs)
        squares, between = ((obs - mean) ** 2).sum(0), mean - self.mean
        self.squares = self.squares + squares + between**2 * (self.count * len(obs) / total)
        self.mean = self.mean + between * (len(obs) / total)
        self.count = total

    def state(self) -> dict[str, np.ndarray]:
        """What an `ObsNormaliser` sees: "count", "mean" and "var"."""
        return {"count": np.asarray(float(self.count)), "mean": self.mean, "var": self.var}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned, but for rounding.

        Raises:
            UsageError: no observations have such moments.
        """
        count, mean, var = (np.array(state[name], np.float64) for name in ("count", "mean", "var"))
        if not (0 <= count < np.inf and np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
            raise UsageError(
                f"moments of observations need a count and variances from 0 on and finite numbers, got count {count}, "
                f"mean {mean.tolist()} and var {var.tolist()}"
            )
        self.count, self.mean = int(count), mean
        self.squares = self.count * var

    def save(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {"count": self.count, "mean": self.mean.copy(), "squares": self.squares.copy()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `save` was called, to the last bit."""
        self.count = saved["count"]
        self.mean, self.squares = (np.array(saved[name], np.float64) for name in ("mean", "squares"))
