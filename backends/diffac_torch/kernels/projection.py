"""Masses at arbitrary places divided among the places of a grid."""

import torch
from torch import Tensor


def divided(masses: Tensor, positions: Tensor, size: int) -> Tensor:
    """Masses [batch n] at positions [batch n] in [0, size - 1], each divided among the two integers beside it.

    The result is [batch size]. Equals the sum over n of mass times max(0, 1 - |position - k|) for each integer k, which
    takes n * size numbers a row: on a CPU each mass is added where it belongs, alone about ten times as fast for
    101 atoms, a few percent of DIME's update at most. Elsewhere additions to one place would come in any order, and no
    run would be like another.
    """
    if masses.device.type != "cpu":
        return _divided_densely(masses, positions, size)
    low = positions.floor()
    upper = positions - low
    below = low.long().clamp(0, size - 1)  # NaN has no place; it stays in the mass
    above = (below + 1).clamp(max=size - 1)
    return (
        torch.zeros(*masses.shape[:-1], size, dtype=masses.dtype)
        .scatter_add(-1, below, masses * (1 - upper))
        .scatter_add(-1, above, masses * upper)
    )


def _divided_densely(masses: Tensor, positions: Tensor, size: int) -> Tensor:
    places = torch.arange(size, dtype=positions.dtype, device=positions.device)
    nearness = 1 - (positions.unsqueeze(-1) - places).abs()
    return (masses.unsqueeze(-1) * nearness.clamp(min=0)).sum(-2)
