"""Between an environment's own observations and actions and those of diffac: flat float32 rows, actions in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from diffac.errors import UsageError


def brief(space: Any) -> str:
    """A space in one line."""
    text = " ".join(str(space).split())
    return text if len(text) <= 200 else text[:200] + "..."


class Misfit(ValueError):
    """A value that is not of its space; says what was expected and what came."""


def check_spaces(env_id: str, observation_space: Any, action_space: Any) -> None:
    """Refuses what diffac cannot use.

    Raises:
        UsageError: observations without a fixed size, or actions that are no vector of bounded real numbers.
    """
    try:
        flat: Any = gym.spaces.flatten_space(observation_space)
    except (NotImplementedError, ValueError):  # the latter for containers without content
        flat = None
    if not isinstance(flat, gym.spaces.Box):
        raise UsageError(
            f"environment {env_id!r} has observation space {brief(observation_space)}, which has no fixed size; "
            f"diffac cannot flatten it"
        )
    if 0 in flat.shape:
        raise UsageError(
            f"environment {env_id!r} has observation space {brief(observation_space)}, which holds no number"
        )
    start = f"environment {env_id!r} has action space {brief(action_space)}"
    if (
        not isinstance(action_space, gym.spaces.Box)
        or not np.issubdtype(action_space.dtype, np.floating)
        or len(action_space.shape) != 1
    ):
        raise UsageError(f"{start}; diffac needs a Box action space with one axis of real numbers (continuous control)")
    if 0 in action_space.shape:
        raise UsageError(f"{start}, which holds no number; there is nothing to decide")
    low, high = np.asarray(action_space.low, np.float64), np.asarray(action_space.high, np.float64)
    most = min(float(np.finfo(dtype).max) for dtype in (action_space.dtype, np.float32))  # how some write "no bound"
    if not (np.isfinite([low, high]).all() and low.min() > -most and high.max() < most):
        raise UsageError(
            f"{start} without finite bounds; diffac maps actions from [-1, 1] to the bounds: wrap the environment so "
            f"that they are finite"
        )
    if (low > high).any():
        raise UsageError(f"{start} with a lower bound above the upper one")


def flat_observation(space: gym.Space, observation: Any) -> np.ndarray:
    """An observation as a row [obs_dim] of float32 that shares no memory with it, in the order of `gym.spaces.flatten`.

    Raises:
        Misfit: it is not of the space: another shape, even one that would broadcast; something that is no number; in a
            space of whole numbers something that its dtype does not hold, NaN for one; a choice that there is not.
    """
    return _single(_flat(space, observation, (), "the observation"))


def flat_observations(space: gym.Space, observation: Any) -> tuple[np.ndarray, bool]:
    """One observation or several as rows, as `make_envs` flattens them.

    Args:
        space: of a single observation.
        observation: one of the space; or several, stacked as vector environments do it: arrays with a leading axis,
            where the space is a dictionary or tuple in each of its entries.

    Returns:
        Rows [n obs_dim], float32, and whether it was one observation.

    Raises:
        UsageError: it is neither, or holds a number that is not finite.
    """
    try:
        leaf, value = _first(space, observation)
        shape = np.shape(value)
        single = leaf.shape is None or len(shape) == len(leaf.shape)
        flat = _single(_flat(space, observation, () if single else shape[:1], "the observation"))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        nested = isinstance(observation, dict | tuple)
        given = f"type {type(observation).__name__}" if nested else f"shape {_shape(observation)}"
        why = f" ({error})" if isinstance(error, Misfit) else ""
        raise UsageError(
            f"an observation of {given} does not fit {brief(space)}; give one of this space, or several with a leading "
            f"axis{why}"
        ) from error
    if not np.isfinite(flat).all():
        raise UsageError(f"an observation holds a number that is not finite: {observation}")
    return (flat[None], True) if single else (flat, False)


def _single(flat: np.ndarray) -> np.ndarray:
    """A copy in single precision; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(flat, np.float32)


def _first(space: gym.Space, observation: Any) -> tuple[gym.Space, Any]:
    """The first space that is no container, and what belongs to it."""
    if isinstance(space, gym.spaces.Dict):
        name = next(iter(space.spaces))
        return _first(space.spaces[name], observation[name])
    if isinstance(space, gym.spaces.Tuple):
        return _first(space.spaces[0], observation[0])
    return space, observation


def _flat(space: gym.Space, value: Any, batch: tuple[int, ...], name: str) -> np.ndarray:
    """Observations [*batch obs_dim], for a batch shape () or (n,)."""
    match space:
        case gym.spaces.Dict(spaces=parts):
            if not isinstance(value, Mapping):
                raise Misfit(f"{name} must be a dictionary with {', '.join(parts)}, got {_kind(value)}")
            if missing := [key for key in parts if key not in value]:
                raise Misfit(f"{name} must have the entry {missing[0]!r}, got {', '.join(map(repr, value)) or 'none'}")
            return np.concatenate(
                [_flat(part, value[key], batch, f"{name}[{key!r}]") for key, part in parts.items()], -1
            )
        case gym.spaces.Tuple(spaces=parts):
            if not isinstance(value, Sequence | np.ndarray) or len(value) != len(parts):
                raise Misfit(f"{name} must be a tuple of {len(parts)}, got {_kind(value)}")
            rows = [_flat(part, value[i], batch, f"{name}[{i}]") for i, part in enumerate(parts)]
            return np.concatenate(rows, -1)
        case gym.spaces.Box() | gym.spaces.MultiBinary():
            numbers = _numbers(value, space.dtype, (*batch, *space.shape), name)
            if isinstance(space, gym.spaces.MultiBinary) and not np.isin(numbers, (0, 1)).all():
                raise Misfit(f"{name} must hold zeros and ones, got {numbers}")
            return numbers.reshape(*batch, -1)
        case gym.spaces.Discrete(n=n, start=start):
            return _one_hot(
                _numbers(value, space.dtype, batch, name)[..., None], np.array([n]), np.array([start]), name
            )
        case gym.spaces.MultiDiscrete(nvec=sizes, start=start):
            chosen = _numbers(value, space.dtype, (*batch, *space.shape), name).reshape(*batch, -1)
            return _one_hot(chosen, sizes.ravel(), np.ravel(start), name)
    if batch:
        if len(value) != batch[0]:
            raise Misfit(f"{name} must be {batch[0]} of {brief(space)}, got {len(value)}")
        return np.stack([_flat(space, one, (), name) for one in value])
    try:
        return np.asarray(gym.spaces.flatten(space, value))
    except Exception as error:  # gymnasium says it in many ways
        raise Misfit(f"{name} must be of {brief(space)}, got {value!r}") from error


def _numbers(value: Any, dtype: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The value as an array of this shape, whose numbers the dtype can hold if it is one of whole numbers."""
    try:
        numbers = np.asarray(value)
    except ValueError:
        raise Misfit(f"{name} must have shape {shape}, got lists of unequal lengths") from None
    if numbers.shape != shape:
        raise Misfit(f"{name} must have shape {shape}, got {_kind(value)}")
    if numbers.dtype.kind not in "biuf":
        raise Misfit(f"{name} must hold numbers, got {_kind(value)}")
    if dtype.kind in "biu":
        with np.errstate(invalid="ignore"):
            whole = numbers.astype(dtype)
        if (whole != numbers).any():
            wrong = numbers[whole != numbers][0]
            raise Misfit(f"{name} must hold whole numbers of dtype {dtype}, got {wrong}")
    return numbers


def _one_hot(chosen: np.ndarray, sizes: np.ndarray, starts: np.ndarray, name: str) -> np.ndarray:
    """[*batch sum(sizes)] with a one for each choice [*batch len(sizes)] in start, ..., start + size - 1."""
    index = np.asarray(chosen, np.int64) - starts
    if ((index < 0) | (index >= sizes)).any():
        raise Misfit(f"{name} must choose from {starts} to {starts + sizes - 1}, got {chosen}")
    rows = np.zeros((*index.shape[:-1], int(sizes.sum())), np.float32)
    offsets = np.cumsum(sizes) - sizes
    np.put_along_axis(rows, index + offsets, 1, -1)
    return rows


def _kind(value: Any) -> str:
    """What was given, in words."""
    if isinstance(value, np.ndarray | np.generic):
        return f"shape {value.shape} of dtype {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}, shape {_shape(value)}"
    return f"a {type(value).__name__}"


def _shape(value: Any) -> Any:
    try:
        return np.shape(value)
    except ValueError:
        return "of unequal lists"


def action_scaler(space: gym.spaces.Box, *, clip: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """Maps actions [... action_dim] in [-1, 1] linearly to the bounds of an environment, in its dtype.

    The one place that does it: for training, evaluation, `Agent.predict` and the check of exported policies.

    Args:
        space: the environment's own, with finite bounds.
        clip: whether no action leads out of the bounds; False: one beyond [-1, 1] is handed over as far beyond them.
            Rounding leads none out.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    half, centre = high / 2 - low / 2, high / 2 + low / 2  # halved first: the range itself may overflow

    def scale(action: np.ndarray) -> np.ndarray:
        scaled = (np.asarray(action, np.float64) * half + centre).astype(space.dtype)
        # after the conversion, which may round up to the next number above a bound
        inside = np.minimum(np.maximum(scaled, space.low), space.high)
        return inside if clip else np.where(np.abs(action) > 1, scaled, inside)

    return scale
