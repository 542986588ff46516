"""Between NumPy and torch: batches and noise on their way in, parameters and states by name for checkpoints."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from diffac.errors import UsageError
from diffac_torch.parts.optimisers import AdamState, OptimState

Tree = TypeVar("Tree")


def _map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nest of mappings and (named) tuples with `function` applied to its arrays and floats."""
    match tree:
        case Mapping():
            return {name: _map_arrays(function, value) for name, value in tree.items()}
        case tuple() if hasattr(tree, "_fields"):
            return type(tree)(*(_map_arrays(function, value) for value in tree))
        case tuple() | list():
            return type(tree)(_map_arrays(function, value) for value in tree)
        case Tensor() | np.ndarray() | np.generic() | float():
            return function(tree)
        case _:
            return tree


def _to_device(tree: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Arrays of a nest as tensors on the device; floats get `dtype`, integers and booleans keep theirs."""

    def convert(array: Any) -> Tensor:
        tensor = torch.as_tensor(array)
        to_gpu = device.type == "cuda" and tensor.device.type == "cpu"
        if to_gpu:
            tensor = tensor.pin_memory()  # so that the copy does not wait for what the GPU is doing
        # the other way nothing would wait for the copy
        return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=to_gpu)

    return _map_arrays(convert, tree)


class _Slot(NamedTuple):
    """A place that holds one array of a tree."""

    get: Callable[[], Tensor]
    put: Callable[[Tensor], Any]


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """All arrays of a network or a `LearnerState`, copied to the host, by names such as "actor.layers.0.weight".

    Names and shapes are the same in every backend.
    """
    return {name: slot.get().detach().cpu().numpy().copy() for name, slot in _slots(tree).items()}


def from_arrays(tree: Tree, arrays: Mapping[str, np.ndarray]) -> Tree:
    """Puts copies of the arrays in place of the tree's own and returns the same object; the inverse of `to_arrays`.

    Floating arrays keep the type they are given in, so float64 arrays make a float64 network; devices stay as they are.

    Raises:
        UsageError: an array is missing, unexpected, or of another shape; the message lists all of them.
    """
    if not isinstance(tree, nn.Module):
        for name in ("actor_optimiser", "critic_optimiser"):
            state = getattr(tree, name)
            if isinstance(state, OptimState) and any(array.startswith(f"{name}.") for array in arrays):
                state.make_room()
    slots = _slots(tree)
    problems = [f"missing: {name}" for name in slots if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in slots]
    for name, slot in slots.items():
        expected = tuple(slot.get().shape)
        if name in arrays and np.shape(arrays[name]) != expected:
            problems.append(f"{name} has shape {np.shape(arrays[name])}, expected {expected}")
    if problems:
        raise UsageError("these arrays do not fit: " + "; ".join(problems))
    for name, slot in slots.items():
        own = slot.get()
        # in C order, as everything else: torch's fused Adam takes it for granted
        given = torch.tensor(np.asarray(arrays[name], order="C"), device=own.device)
        slot.put(given if own.is_floating_point() else given.to(own.dtype))
    for module in (tree,) if isinstance(tree, nn.Module) else vars(tree).values():
        _convert_unsaved(module)
    return tree


def _slots(tree: Any) -> dict[str, _Slot]:
    """The arrays of a tree by name."""
    if isinstance(tree, nn.Module):
        saved = tree.state_dict(keep_vars=True)  # a buffer may say that it is not
        buffers = ((name, buffer) for name, buffer in tree.named_buffers() if name in saved)
        return {name: _tensor_slot(tensor) for name, tensor in (*tree.named_parameters(), *buffers)}
    parts: dict[str, dict[str, _Slot]] = {
        "actor": _slots(tree.actor),
        "critic": _slots(tree.critic),
        "target_critic": _slots(tree.target_critic),
        "ema_actor": {} if tree.ema_actor is None else _slots(tree.ema_actor),
        "actor_optimiser": _optimiser_slots(tree.actor_optimiser, tree.actor),
        "critic_optimiser": _optimiser_slots(tree.critic_optimiser, tree.critic),
        "temperature": _state_slots(tree.temperature),
        "actor_objective": _state_slots(tree.actor_objective),
        "critic_objective": _state_slots(tree.critic_objective),
        "obs_moments": _state_slots(tree.obs_moments),
    }
    slots = {f"{part}.{name}": slot for part, named in parts.items() for name, slot in named.items()}
    slots["updates"] = _number_slot(lambda: tree.updates, lambda value: setattr(tree, "updates", value))
    return slots


def _convert_unsaved(module: Any) -> None:
    """Buffers that are not saved get the parameters' type; what is no network stays as it is."""
    if isinstance(module, nn.Module) and (dtype := next((p.dtype for p in module.parameters()), None)) is not None:
        saved = module.state_dict(keep_vars=True)
        for name, buffer in module.named_buffers():
            if name not in saved and buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)


def _tensor_slot(tensor: Tensor) -> _Slot:
    return _Slot(lambda: tensor, lambda value: setattr(tensor, "data", value))


def _item_slot(mapping: Any, name: str) -> _Slot:
    return _Slot(lambda: mapping[name], lambda value: mapping.__setitem__(name, value))


def _number_slot(get: Callable[[], int], put: Callable[[int], Any]) -> _Slot:
    return _Slot(lambda: torch.tensor(get(), dtype=torch.int32), lambda value: put(int(value)))


def _state_slots(state: Any) -> dict[str, _Slot]:
    return {name: _item_slot(state, name) for name in state}


def _optimiser_slots(state: Any, module: nn.Module) -> dict[str, _Slot]:
    """Moments by parameter for `Adam`, whatever an optimiser of torch.optim keeps, or a nest of a user's."""
    slots: dict[str, _Slot] = {}
    if isinstance(state, AdamState):
        for short, long in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            for name, parameter in _trained(module).items():
                slots[f"{short}.{name}"] = _item_slot(state.optimiser.state[parameter], long)
        slots["count"] = _number_slot(lambda: state.count, state.set_count)
        return slots
    if isinstance(state, OptimState):
        for name, parameter in _trained(module).items():
            own = state.optimiser.state[parameter]
            slots |= {f"{key}.{name}": _item_slot(own, key) for key, value in own.items() if isinstance(value, Tensor)}
        return slots
    return _nest_slots(state)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _nest_slots(state: Any) -> dict[str, _Slot]:
    if not isinstance(state, MutableMapping):
        raise UsageError(
            f"the state of an optimiser must be a dictionary of tensors and of such dictionaries, got "
            f"{type(state).__name__}"
        )
    slots: dict[str, _Slot] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            slots[name] = _item_slot(state, name)
        else:
            slots |= {f"{name}.{inner}": slot for inner, slot in _nest_slots(value).items()}
    return slots
