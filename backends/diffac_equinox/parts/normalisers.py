"""Normalisers, which `diffac.parts.normalisers` declares."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffac.parts import normalisers as declared
from diffac.protocols import State

__all__ = ["Standardiser"]


class Standardiser(eqx.Module, declared.Standardiser):
    def __call__(self, obs: Float[Array, "*batch obs"], moments: State) -> Float[Array, "*batch obs"]:
        """The observations as networks see them."""
        return (obs - moments["mean"]) / jnp.sqrt(moments["var"] + self.eps)
