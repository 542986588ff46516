"""Tools for tests: values and gradients as NumPy arrays, and training of an actor against any critic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.noise import Noise
from diffac.protocols import ActorObjective, Array, Batch, Critic, Loss, State
from diffac_equinox.engine.convert import to_arrays
from diffac_equinox.gradients import loss_and_gradient
from diffac_equinox.parameters import in_evaluation_mode as in_evaluation_mode
from diffac_equinox.parts.optimisers import Adam, AdamState
from diffac_equinox.state import written


def to_backend(tree: Any) -> Any:
    """The same nesting with JAX arrays in place of NumPy's."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x, tree)


def to_numpy(tree: Any) -> Any:
    """The same nesting with NumPy arrays in place of JAX's."""
    return jax.tree.map(lambda x: np.asarray(x) if eqx.is_array(x) else x, tree)


def devices() -> list[str]:
    """Kinds of devices of this machine, the CPU first."""
    return ["cpu", *(["cuda"] if any(device.platform == "gpu" for device in jax.devices()) else [])]


@contextlib.contextmanager
def on_device(device: str) -> Iterator[None]:
    """A context in which new networks and arrays live on a device, and products have the precision of their numbers."""
    with jax.default_device(jax.devices(device)[0]), jax.default_matmul_precision("highest"):
        yield


def double_precision() -> AbstractContextManager[Any]:
    """A context in which new networks and arrays are float64; it switches `jax_enable_x64` on for this thread alone."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax import experimental  # before jax 0.8

    return experimental.enable_x64(True)  # pyright: ignore[reportAttributeAccessIssue]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one compiled program; JAX otherwise compiles each of its operations."""
    return eqx.filter_jit(function)


def value_and_grad(objective: Any, module: Any, *args: Any) -> tuple[Loss, dict[str, np.ndarray]]:
    """objective(module, *args) and the gradient of its value by parameter name, compiled.

    Args:
        objective: an actor or critic objective.
        module: the network that is differentiated.
        *args: the objective's further arguments, with NumPy arrays or the backend's.
    """
    loss, gradient = _compiled(objective, module, to_backend(args))
    return to_numpy(loss), to_arrays(gradient)


@eqx.filter_jit
def _compiled(objective: Any, module: Any, args: tuple[Any, ...]) -> tuple[Loss, Any]:
    loss, gradient = loss_and_gradient(objective, module, *args)
    return loss._replace(state=written(args[-1], loss.state)), gradient


def minimise(
    objective: ActorObjective,
    actor: Any,
    critic: Critic,
    batch_and_noise: Iterable[tuple[Batch, Noise]],
    temperature: Array,
    optimiser: Adam,
) -> Any:
    """The actor after one optimiser step on each batch, with a fixed critic.

    Args:
        objective: the loss.
        actor: the network.
        critic: any callable that satisfies `Critic`, for example an analytic one.
        batch_and_noise: batches, `next_action` filled in if the objective reads it, and noise.
        temperature: scalar.
        optimiser: of the actor.
    """
    state, opt_state = to_backend(objective.init_state()), optimiser.init(actor)
    for batch, noise in batch_and_noise:
        arguments = to_backend((batch, noise, jnp.asarray(temperature), state))
        actor, opt_state, state = _minimise_once(objective, optimiser, critic, actor, opt_state, *arguments)
    return actor


@eqx.filter_jit
def _minimise_once(
    objective: ActorObjective,
    optimiser: Adam,
    critic: Critic,
    actor: Any,
    opt_state: AdamState,
    batch: Batch,
    noise: Noise,
    temperature: Array,
    state: State,
) -> tuple[Any, AdamState, State]:
    loss, gradient = loss_and_gradient(objective, actor, critic, batch, noise, temperature, state)
    actor, opt_state, _ = optimiser.step(opt_state, actor, gradient)
    return actor, opt_state, written(state, loss.state)
