"""Matrix products in the forms that XLA computes fast on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def repeated(x: Array, leading: tuple[int, ...]) -> Array:
    """x [*batch features] for every entry of further leading axes, by a product with ones.

    The gradient then is a product too. It would be a sum over leading axes, for which XLA takes 20 times as long on a
    CPU.
    """
    return jnp.tensordot(jnp.ones(leading, x.dtype), x, 0)


def _ensemble_share(weight: Array, x: Array, num_axes: int) -> Array:
    """x [*batch in] times every member's weight [size out in]: [size *batch out], padded to num_axes batch axes."""
    size, width, length = weight.shape
    # One product serves all members. Its right side is kept as it is written here, because the gradient of the weight
    # then has its rows along x, for which XLA's product is several times faster than for few columns.
    columns = jax.lax.optimization_barrier(weight.reshape(size * width, length).T)
    share = (x.reshape(-1, length) @ columns).reshape(-1, size, width).swapaxes(0, 1)
    padding = (1,) * (num_axes - (x.ndim - 1))
    return share.reshape(size, *padding, *x.shape[:-1], width)


def ensemble_outputs(layers: Sequence[Any], function: Callable[[Array], Array], obs: Array, action: Array) -> Array:
    """Outputs [size *batch out] on concat(obs, action), which is never formed, so that batch axes broadcast.

    The first layer is linear; all others are called on [size rows in].
    """
    first, obs_dim = layers[0], obs.shape[-1]
    num_axes = max(obs.ndim, action.ndim) - 1
    hidden = _ensemble_share(first.weight[..., :obs_dim], obs, num_axes)
    hidden = hidden + _ensemble_share(first.weight[..., obs_dim:], action, num_axes)
    batch = hidden.shape[1:-1]
    # One leading row axis, so that each layer is one batched matrix product.
    hidden = hidden.reshape(len(hidden), -1, hidden.shape[-1]) + first.bias[:, None]
    for layer in layers[1:]:
        hidden = layer(function(hidden))
    return hidden.reshape(len(hidden), *batch, hidden.shape[-1])
