"""Derivatives of functions along a direction of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array


def value_and_derivative(
    function: Callable[..., Array], inputs: Sequence[Array], direction: Sequence[Array]
) -> tuple[Array, Array]:
    """function(*inputs), and its derivative along a direction of its inputs, which has no gradient.

    Args:
        function: of the inputs; the gradient of its value in anything else stays.
        inputs: floating arrays.
        direction: an array of the shape of each.
    """
    value, derivative = jax.jvp(function, tuple(inputs), tuple(direction))
    return value, jax.lax.stop_gradient(derivative)
