"""Tools for tests: values and gradients as NumPy arrays, and training of an actor against any critic."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffac.noise import Noise
from diffac.protocols import ActorObjective, Batch, Critic, Loss
from diffac_torch.engine.convert import _map_arrays, _to_device
from diffac_torch.gradients import loss_and_gradient
from diffac_torch.parameters import in_evaluation_mode as in_evaluation_mode
from diffac_torch.parts.optimisers import Adam
from diffac_torch.state import written


def to_backend(tree: Any) -> Any:
    """The same nesting with tensors on the default device in place of NumPy arrays and floats."""
    return _map_arrays(lambda array: torch.as_tensor(array, device=torch.get_default_device()), tree)


def to_numpy(tree: Any) -> Any:
    """The same nesting with NumPy arrays in place of tensors."""
    return _map_arrays(lambda array: array.detach().cpu().numpy() if isinstance(array, Tensor) else array, tree)


def devices() -> list[str]:
    """Kinds of devices of this machine, the CPU first."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def on_device(device: str) -> AbstractContextManager[Any]:
    """A context in which new networks and arrays live on a device."""
    return torch.device(device)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """A context in which new networks and arrays are float64; it sets torch's default dtype, and puts it back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: torch runs it as it stands."""
    return function


def value_and_grad(objective: Any, module: Any, *args: Any) -> tuple[Loss, dict[str, np.ndarray]]:
    """objective(module, *args) and the gradient of its value by parameter name.

    Args:
        objective: an actor or critic objective.
        module: the network that is differentiated.
        *args: the objective's further arguments, with NumPy arrays or the backend's.
    """
    args = _beside(module, args)
    loss, gradient = loss_and_gradient(objective, module, *args)
    before = {name: array.clone() for name, array in args[-1].items()}  # which may be the caller's own
    loss = loss._replace(state=written(before, loss.state))
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return to_numpy(loss), dict(zip(names, to_numpy(gradient), strict=True))


def minimise(
    objective: ActorObjective,
    actor: Any,
    critic: Critic,
    batch_and_noise: Iterable[tuple[Batch, Noise]],
    temperature: Any,
    optimiser: Adam,
) -> Any:
    """The actor after one optimiser step on each batch, with a fixed critic.

    Args:
        objective: the loss.
        actor: the network; changed in place.
        critic: any callable that satisfies `Critic`, for example an analytic one.
        batch_and_noise: batches, `next_action` filled in if the objective reads it, and noise.
        temperature: scalar.
        optimiser: of the actor.
    """
    state, temperature = _beside(actor, (dict(objective.init_state()), temperature))
    opt_state = optimiser.init(actor)
    for item in batch_and_noise:
        batch, noise = _beside(actor, item)
        loss, grads = loss_and_gradient(objective, actor, critic, batch, noise, temperature, state)
        optimiser.step(opt_state, actor, grads)
        state = written(state, loss.state)
    return actor


def _beside(module: nn.Module, tree: Any) -> Any:
    """The nest as tensors of the module's dtype on its device."""
    parameter = next(module.parameters())
    return _to_device(tree, parameter.dtype, parameter.device)
