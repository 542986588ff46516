"""Initial network parameters, drawn on the host so that one key gives the same network in every backend."""

from __future__ import annotations

import itertools
import math
from typing import Literal, TypeAlias

import numpy as np

Law: TypeAlias = Literal["truncated_normal", "uniform"]
"""Of the initial parameters; `Initialiser` says which is which."""


class Initialiser:
    """Draws the parameters of multilayer perceptrons, layer by layer.

    "truncated_normal": weights from a normal law with standard deviation 1/sqrt(fan_in), cut at two standard deviations
    (values outside are drawn again), and no biases, as in the official DACER and SDAC networks. "uniform": weights and
    biases uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)], as `torch.nn.Linear` has them and so the official TD3.

    Args:
        key: seed.
        law: one of both.
    """

    def __init__(self, key: int, law: Law = "truncated_normal") -> None:
        self._rng, self.law = np.random.default_rng(key), law

    def layers(
        self, sizes: tuple[int, ...], ensemble: int | None = None, last_scale: float = 1.0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(weight, bias) of every layer of a multilayer perceptron with the given layer sizes, in float64.

        Weights have shape [out, in], biases [out]; with an ensemble both have its size as leading axis. Those of the
        last layer are multiplied by last_scale.
        """
        leading = () if ensemble is None else (ensemble,)
        *others, last = (self._layer((*leading, n_out, n_in), n_in) for n_in, n_out in itertools.pairwise(sizes))
        return [*others, (last_scale * last[0], last_scale * last[1])]

    def simba(
        self,
        inputs: int,
        widths: tuple[int, ...],
        outputs: int,
        ensemble: int | None = None,
        last_scale: float = 1.0,
    ) -> list[dict[str, np.ndarray]]:
        """Parameters by name of every layer of a SimBa (arXiv 2410.09754), in float64, shaped as those of `layers`.

        A linear layer; a block for each width, its LayerNorm "norm", its linear layers "up" and "down"; a LayerNorm;
        a linear layer. Linear layers outside blocks are orthogonal, the last one times last_scale; those in blocks are
        normal with variance 2/fan_in.
        """
        leading, width = () if ensemble is None else (ensemble,), widths[0]

        def named(prefix: str, weight: np.ndarray) -> dict[str, np.ndarray]:
            return {f"{prefix}weight": weight, f"{prefix}bias": np.zeros((*leading, weight.shape[len(leading)]))}

        def he_normal(n_out: int, n_in: int) -> np.ndarray:
            return math.sqrt(2 / n_in) * self._rng.standard_normal((*leading, n_out, n_in))

        def block() -> dict[str, np.ndarray]:
            up, down = he_normal(4 * width, width), he_normal(width, 4 * width)
            return {**named("norm.", np.ones((*leading, width))), **named("up.", up), **named("down.", down)}

        return [
            named("", self._orthogonal((*leading, width, inputs))),
            *(block() for _ in widths),
            named("", np.ones((*leading, width))),
            named("", last_scale * self._orthogonal((*leading, outputs, width))),
        ]

    def _orthogonal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Matrices [... out in] with orthonormal rows, or columns where these are fewer, uniform among all such."""
        *leading, n_out, n_in = shape
        normal = self._rng.standard_normal((*leading, max(n_out, n_in), min(n_out, n_in)))
        columns, triangle = np.linalg.qr(normal)
        columns = columns * np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :]
        # a parameter that is a transposed view would not lie in memory as its gradient does
        return np.ascontiguousarray(columns if n_out >= n_in else np.swapaxes(columns, -1, -2))

    def _layer(self, shape: tuple[int, ...], fan_in: int) -> tuple[np.ndarray, np.ndarray]:
        if self.law == "truncated_normal":
            return self._truncated_normal(shape) / math.sqrt(fan_in), np.zeros(shape[:-1])
        weight, bias = (self._rng.uniform(-1.0, 1.0, size) for size in (shape, shape[:-1]))
        return weight / math.sqrt(fan_in), bias / math.sqrt(fan_in)

    def _truncated_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Of a standard normal law, cut at two."""
        values = self._rng.standard_normal(shape)
        while (outside := np.abs(values) > 2).any():
            values[outside] = self._rng.standard_normal(int(outside.sum()))
        return values
