"""Normalisers: what networks see of an observation, given the moments of all observations so far."""

from __future__ import annotations

import numpy as np

from diffac.parts.declaration import Count, Part, Positive, declared
from diffac.protocols import Array, State

__all__ = ["Standardiser"]


@declared
class Standardiser(Part):
    """Observations with mean 0 and variance 1, entry by entry: (obs - mean) / sqrt(var + eps).

    As the wrapper `NormalizeObservation` of Gymnasium, with its eps, and RSNorm of SimBa (Lee et al. 2024, arXiv
    2410.09754). How the moments are gathered is told in `diffac.data.normalisation`.

    Args:
        obs_dim: length of an observation.
        eps: added to the variance.

    Raises:
        UsageError: obs_dim or eps is not positive.
    """

    obs_dim: Count
    eps: Positive = 1e-8

    def init_state(self) -> State:
        """The moments before the first observation, which change none: "count" 0-d, "mean" and "var" [obs_dim]."""
        return {"count": np.asarray(0.0), "mean": np.zeros(self.obs_dim), "var": np.ones(self.obs_dim)}

    def __call__(self, obs: Array, moments: State) -> Array:
        """The observations [*batch obs_dim] as networks see them."""
        raise NotImplementedError
