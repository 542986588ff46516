"""What networks see of an observation."""

from __future__ import annotations

import dataclasses

import numpy as np

from diffac.protocols import State
from diffac.testing.reference.gradients import Array

__all__ = ["Standardiser"]


@dataclasses.dataclass(frozen=True, eq=False)
class Standardiser:
    """Distance from the mean in standard deviations; eps is a further variance."""

    obs_dim: int
    eps: float = 1e-8

    def init_state(self) -> State:
        """Moments that change nothing."""
        return {"count": np.float64(0), "mean": np.zeros(self.obs_dim), "var": np.ones(self.obs_dim)}

    def __call__(self, obs: Array, moments: State) -> Array:
        """[*batch obs_dim]"""
        deviation = np.hypot(np.sqrt(moments["var"]), np.sqrt(self.eps))
        return (obs - moments["mean"]) / deviation
