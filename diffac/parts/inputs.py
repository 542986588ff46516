"""What a learner is given: observations and batches of the right shapes, checked before anything broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffac.errors import UsageError
from diffac.noise import Noise, NoiseSpec
from diffac.protocols import Batch, State


def check_obs(obs: Any, axes: Sequence[str], actor: Any = None) -> None:
    """Refuses what is no floating array [*axes obs_dim] with something in it.

    Args:
        obs: an array of NumPy or any backend.
        axes: names of the leading axes.
        actor: says the length of an observation, if it has the attribute `obs_dim`.
    """
    size = getattr(actor, "obs_dim", "obs_dim")
    shape, dtype = tuple(getattr(obs, "shape", ())), _dtype(obs)
    right_size = size == "obs_dim" or shape[-1:] == (size,)
    if "float" not in dtype or len(shape) != len(axes) + 1 or 0 in shape or not right_size:
        raise UsageError(
            f"obs must be a floating array, not empty, of shape [{' '.join([*axes, str(size)])}], got "
            f"{dtype} {shape if hasattr(obs, 'shape') else ''}".rstrip()
        )


def check_width(name: str, array: Any, size: int) -> None:
    """Refuses what is no array [... size] for a network of that size; no part of a compiled program."""
    if tuple(array.shape[-1:]) != (size,):
        raise UsageError(
            f"{name} has shape {tuple(array.shape)}, but the network was made for a last axis of size {size}"
        )


def check_batch(batch: Batch, axes: Sequence[str], actor: Any = None) -> None:
    """Refuses a batch whose arrays do not belong together.

    Args:
        batch: arrays of NumPy or any backend.
        axes: names of the leading axes.
        actor: says the lengths of an observation and an action, if it has the attributes `obs_dim` and `action_dim`.
    """
    check_obs(batch.obs, axes, actor)
    leading, obs_shape = tuple(batch.obs.shape[:-1]), tuple(batch.obs.shape)
    action_dim = getattr(actor, "action_dim", (*getattr(batch.action, "shape", ()), 0)[len(leading)])
    expected = {
        "action": (*leading, action_dim),
        "reward": leading,
        "next_obs": obs_shape,
        "discount": leading,
    }
    for name in ("weight", "number"):
        if getattr(batch, name) is not None:
            expected[name] = leading
    for name, shape in expected.items():
        array = getattr(batch, name)
        if not hasattr(array, "shape"):
            raise UsageError(f"{name} must be an array of shape {shape}, got {type(array).__name__}")
        if tuple(array.shape) != shape:
            raise UsageError(f"{name} has shape {tuple(array.shape)}, expected {shape} beside obs of shape {obs_shape}")
    if batch.number is not None and "int" not in _dtype(batch.number):
        raise UsageError(f"number must be an array of integers, got {_dtype(batch.number)}")


def check_moments(moments: State, own: State) -> None:
    """Refuses moments of observations that are not shaped as those of a learner's state."""
    if not own:
        raise UsageError("this learner has no obs_normaliser, so it takes no moments of observations")
    for name, array in own.items():
        shape = getattr(moments.get(name), "shape", None)
        if shape != tuple(array.shape):
            raise UsageError(f"the moment {name!r} of observations must have shape {tuple(array.shape)}, got {shape}")


def check_noise(noise: Noise, spec: NoiseSpec) -> None:
    """Refuses noise without an entry of its specification; one for which nothing is drawn may be absent."""
    missing = [name for name, laws in spec.items() if laws and name not in noise]
    if missing:
        raise UsageError(f"noise lacks {', '.join(missing)}; noise_spec says what a step needs")


def entry(batches: Batch, index: int) -> Batch:
    """One of the batches [updates batch ...], as it is sampled: without a next rollout."""
    return Batch(*(None if array is None else array[index] for array in batches[:-1]))


def _dtype(array: Any) -> str:
    return str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")
