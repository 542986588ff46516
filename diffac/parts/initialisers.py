"""Initial network parameters, drawn on the host so that one key gives the same network in every backend."""

from __future__ import annotations

import itertools
import math

import numpy as np


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Float64 array of a normal law with standard deviation 1/sqrt(fan_in), cut at two standard deviations.

    Values outside the cut are drawn again. This is the initialisation of the official DACER and SDAC networks.
    """
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values / math.sqrt(fan_in)


def layer_parameters(
    rng: np.random.Generator, sizes: tuple[int, ...], ensemble: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight, bias) of every layer of a multilayer perceptron with the given layer sizes.

    Weights have shape [out, in], biases [out] and are zero; with an ensemble both have its size as leading axis.
    """
    leading = () if ensemble is None else (ensemble,)
    return [
        (truncated_normal(rng, (*leading, n_out, n_in), n_in), np.zeros((*leading, n_out)))
        for n_in, n_out in itertools.pairwise(sizes)
    ]
