"""Noise schedules on JAX arrays; the coefficients are compile-time constants."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

from diffac.arguments import check_arguments
from diffac.schedules import ScheduleTable


def _coefficient(values: np.ndarray, t: Array | int, dtype: DTypeLike | None = None) -> Array | float:
    """values[t]: a Python float for a Python integer, else [*t 1], which broadcasts against actions."""
    return float(values[t]) if isinstance(t, int) else jnp.asarray(values, dtype)[t][..., None]


class TabularSchedule(eqx.Module):
    """The variance-preserving schedule of a table (Ho et al. 2020, arXiv 2006.11239, equations 4 to 7).

    `t` is an integer in {0, ..., T-1} or an integer array that broadcasts against the batch axes of the actions.
    Results have the dtype of the actions. Two schedules are equal (one compiled program) if they hold the same table
    object.

    Args:
        table: the coefficients, from `diffac.schedules`.
    """

    table: ScheduleTable = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_arguments("TabularSchedule", vars(self))

    @property
    def num_steps(self) -> int:
        """T."""
        return self.table.num_steps

    def alpha(self, t: Int[Array, "*batch"] | int) -> Array | float:
        """Signal kept at time t: a number for an integer t, else [*t 1]."""
        return _coefficient(self.table.alpha, t)

    def sigma(self, t: Int[Array, "*batch"] | int) -> Array | float:
        """Noise present at time t: a number for an integer t, else [*t 1]."""
        return _coefficient(self.table.sigma, t)

    def add_noise(
        self, action: Float[Array, "*#batch act"], eps: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int
    ) -> Float[Array, "*#batch act"]:
        """alpha[t] action + sigma[t] eps."""
        alpha = _coefficient(self.table.alpha, t, action.dtype)
        return alpha * action + _coefficient(self.table.sigma, t, eps.dtype) * eps

    def predict_action(
        self, noisy: Float[Array, "*#batch act"], eps: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int
    ) -> Float[Array, "*#batch act"]:
        """The inverse of `add_noise`: (noisy - sigma[t] eps) / alpha[t]."""
        sigma = _coefficient(self.table.sigma, t, eps.dtype)
        return (noisy - sigma * eps) / _coefficient(self.table.alpha, t, noisy.dtype)

    def score(self, eps: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int) -> Float[Array, "*#batch act"]:
        """The score of the noised density that belongs to a predicted noise: -eps / sigma[t]."""
        return -eps / _coefficient(self.table.sigma, t, eps.dtype)

    def posterior_mean(
        self, action: Float[Array, "*#batch act"], noisy: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int
    ) -> Float[Array, "*#batch act"]:
        """Mean of q(a_{t-1} | a_t = noisy, a_0 = action) (arXiv 2006.11239, equation 7); `action` itself at t = 0."""
        from_action = _coefficient(self.table.posterior_action, t, action.dtype)
        return from_action * action + _coefficient(self.table.posterior_noisy, t, noisy.dtype) * noisy

    def posterior_std(self, t: Int[Array, "*batch"] | int) -> Array | float:
        """Standard deviation of q(a_{t-1} | a_t, a_0), zero at t = 0: a number for an integer t, else [*t 1]."""
        return _coefficient(self.table.posterior_std, t)
