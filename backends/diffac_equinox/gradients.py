"""Losses and their gradients."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffac.parts.outputs import checked_loss
from diffac.protocols import Loss
from diffac_equinox.parameters import divided


def loss_and_gradient(objective: Any, module: Any, *args: Any) -> tuple[Loss, Any]:
    """objective(module, *args) and the gradient of its value in those parameters of `module` that are trained.

    Args:
        objective: of the actor or the critic, of any origin.
        module: what is differentiated.
        *args: the objective's further arguments; the last one is its state.

    Raises:
        UsageError: the objective returned what it must not (`diffac.parts.outputs`).
    """
    parameters, rest = divided(module)

    def value(parameters: Any) -> tuple[Array, Loss]:
        result = objective(eqx.combine(parameters, rest), *args)
        loss = checked_loss(objective, result, args[-1], without_gradient)
        return jnp.asarray(loss.value), loss

    (number, loss), gradient = eqx.filter_value_and_grad(value, has_aux=True)(parameters)
    return loss._replace(value=number), gradient


def without_gradient(value: Any, like: Any) -> Array:
    """A number or array as an array without gradient, of the type of `like`."""
    return jax.lax.stop_gradient(jnp.asarray(value, jnp.result_type(like)))
