"""Elementwise functions between the layers of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffac.errors import check_choice
from diffac_torch.kernels.mish import mish

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": mish,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The elementwise function of that name: "mish", "gelu" (with the exact error function), "relu", "silu" or "tanh".

    Raises:
        UsageError: unknown name.
    """
    check_choice("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]
