"""Noise schedules, which `diffac.parts.schedules` declares; the coefficients are compile-time constants."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

from diffac.parts import schedules as declared


def _coefficient(values: np.ndarray, t: Array | int, dtype: DTypeLike | None = None) -> Array | float:
    """values[t]: a Python float for a Python integer, else [*t 1], which broadcasts against actions."""
    return float(values[t]) if isinstance(t, int) else jnp.asarray(values, dtype)[t][..., None]


class TabularSchedule(eqx.Module, declared.TabularSchedule):
    def alpha(self, t: Int[Array, "*batch"] | int) -> Array | float:
        return _coefficient(self.table.alpha, t)

    def sigma(self, t: Int[Array, "*batch"] | int) -> Array | float:
        return _coefficient(self.table.sigma, t)

    def add_noise(
        self, action: Float[Array, "*#batch act"], eps: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int
    ) -> Float[Array, "*#batch act"]:
        alpha = _coefficient(self.table.alpha, t, action.dtype)
        return alpha * action + _coefficient(self.table.sigma, t, eps.dtype) * eps

    def predict_action(
        self, noisy: Float[Array, "*#batch act"], eps: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int
    ) -> Float[Array, "*#batch act"]:
        sigma = _coefficient(self.table.sigma, t, eps.dtype)
        return (noisy - sigma * eps) / _coefficient(self.table.alpha, t, noisy.dtype)

    def score(self, eps: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int) -> Float[Array, "*#batch act"]:
        return -eps / _coefficient(self.table.sigma, t, eps.dtype)

    def posterior_mean(
        self, action: Float[Array, "*#batch act"], noisy: Float[Array, "*#batch act"], t: Int[Array, "*#batch"] | int
    ) -> Float[Array, "*#batch act"]:
        from_action = _coefficient(self.table.posterior_action, t, action.dtype)
        return from_action * action + _coefficient(self.table.posterior_noisy, t, noisy.dtype) * noisy

    def posterior_std(self, t: Int[Array, "*batch"] | int) -> Array | float:
        return _coefficient(self.table.posterior_std, t)
