"""The chain rule: gradients by parameter name, and the functions that everything else is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from diffac.noise import Shape

Array = np.ndarray
Parameters = Mapping[str, Array]
Gradient = dict[str, Array]
Pull = Callable[..., Any]

_MARGINS: ContextVar[list[float] | None] = ContextVar("margins", default=None)


def zeros(parameters: Parameters) -> Gradient:
    """No influence on any parameter."""
    return {name: np.zeros_like(array, np.float64) for name, array in parameters.items()}


def add(*gradients: Gradient) -> Gradient:
    """The gradient of a sum."""
    return {name: np.sum([gradient[name] for gradient in gradients], axis=0) for name in gradients[0]}


def scaled(factor: float, gradient: Gradient) -> Gradient:
    """The gradient of a multiple."""
    return {name: factor * array for name, array in gradient.items()}


def unbroadcast(gradient: Array, shape: Shape) -> Array:
    """The gradient with respect to an array of that shape from the gradient with respect to its broadcast copies."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def concatenate(*arrays: Array) -> tuple[Array, Pull]:
    """Side by side along the last axis, after broadcasting the batch axes; pull(d) -> one gradient for each array."""
    axes = np.broadcast_shapes(*(a.shape[:-1] for a in arrays))
    joined = np.concatenate([np.broadcast_to(a, (*axes, a.shape[-1])) for a in arrays], axis=-1)

    def pull(d: Array) -> list[Array]:
        pieces = np.split(d, np.cumsum([a.shape[-1] for a in arrays])[:-1], axis=-1)
        return [unbroadcast(piece, a.shape) for piece, a in zip(pieces, arrays, strict=True)]

    return joined, pull


def clip(x: Array, low: float = -1.0, high: float = 1.0) -> tuple[Array, Array]:
    """x limited to [low, high], and the slope of that, 1 or 0."""
    return np.clip(x, low, high), ((low <= x) & (x <= high)).astype(np.float64)


def smallest(values: Array) -> tuple[Array, Pull]:
    """min over the ensemble [ensemble *batch]; pull(d) -> dvalues, nonzero only for the smallest critic."""
    index = values.argmin(0)[None]

    def pull(d: Array) -> Array:
        dvalues = np.zeros(values.shape)
        np.put_along_axis(dvalues, index, d[None], axis=0)
        return dvalues

    return np.take_along_axis(values, index, axis=0)[0], pull


def reduced(values: Array, ensemble: str) -> tuple[Array, Pull]:
    """One value of an ensemble's [ensemble *batch]: the smallest, the mean or the first; pull(d) -> dvalues."""
    if ensemble == "min":
        return smallest(values)
    shares = np.full(len(values), 1 / len(values)) if ensemble == "mean" else np.eye(len(values))[0]
    return np.tensordot(shares, values, 1), lambda d: np.multiply.outer(shares, d)


@contextmanager
def margins() -> Iterator[list[float]]:
    """Collects how narrow every choice of a best candidate was, while it is open: as `best_of` says."""
    token = _MARGINS.set(seen := [])
    try:
        yield seen
    finally:
        _MARGINS.reset(token)


def best_of(values: Array) -> Array:
    """The index of the largest along the first axis; the distance to the second, in units of it, to `margins`."""
    seen = _MARGINS.get()
    if seen is not None and len(values) > 1:
        second, first = np.sort(values, axis=0)[-2:]
        seen.append(float(((first - second) / np.maximum(1.0, np.abs(first))).min()))
    return values.argmax(0)


def softmax(logits: Array) -> Array:
    """exp(logits) / sum(exp(logits)) along the first axis."""
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow; the slope of softplus(x) = log(1 + exp(x))."""
    return np.exp(-np.logaddexp(0, -x))
