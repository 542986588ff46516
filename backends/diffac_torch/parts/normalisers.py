"""Normalisers, which `diffac.parts.normalisers` declares."""

from jaxtyping import Float
from torch import Tensor

from diffac.parts import normalisers as declared
from diffac.protocols import State

__all__ = ["Standardiser"]


class Standardiser(declared.Standardiser):
    def __call__(self, obs: Float[Tensor, "*batch obs"], moments: State) -> Float[Tensor, "*batch obs"]:
        """The observations as networks see them."""
        return (obs - moments["mean"]) / (moments["var"] + self.eps).sqrt()
