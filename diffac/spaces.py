"""Between an environment's own observations and actions and those of diffac: flat float32 rows, actions in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.utils import rescale_box

from diffac.errors import UsageError


def flat_observations(space: gym.Space, observation: Any) -> tuple[np.ndarray, bool]:
    """One observation or several as rows, as `make_envs` flattens them.

    Args:
        space: of a single observation.
        observation: one of the space; or several, stacked as vector environments do it: arrays with a leading axis,
            where the space is a dictionary or tuple in each of its entries.

    Returns:
        Rows [n obs_dim], float32, and whether it was one observation.

    Raises:
        UsageError: it is neither.
    """
    try:
        leaf, value = _first(space, observation)
        shape = np.shape(value)
        single = leaf.shape is None or shape == leaf.shape
        if not single and shape[1:] != leaf.shape:
            raise ValueError
        flat = np.array(_flat(space, observation, () if single else shape[:1]), np.float32)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        nested = isinstance(observation, dict | tuple)
        given = f"type {type(observation).__name__}" if nested else f"shape {np.shape(observation)}"
        raise UsageError(
            f"an observation of {given} does not fit {space}; give one of this space, or several with a leading axis"
        ) from error
    return (flat[None], True) if single else (flat, False)


def _first(space: gym.Space, observation: Any) -> tuple[gym.Space, Any]:
    """The first space that is no container, and what belongs to it."""
    if isinstance(space, gym.spaces.Dict):
        name = next(iter(space.spaces))
        return _first(space.spaces[name], observation[name])
    if isinstance(space, gym.spaces.Tuple):
        return _first(space.spaces[0], observation[0])
    return space, observation


def _flat(space: gym.Space, observation: Any, batch: tuple[int, ...]) -> np.ndarray:
    """Observations [*batch obs_dim], for a batch shape () or (n,)."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([_flat(part, observation[name], batch) for name, part in space.spaces.items()], -1)
    if isinstance(space, gym.spaces.Tuple):
        parts = zip(space.spaces, observation, strict=True)
        return np.concatenate([_flat(part, value, batch) for part, value in parts], -1)
    if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
        values = np.asarray(observation, space.dtype)
        if values.shape != (*batch, *space.shape):
            raise ValueError
        return values.reshape(*batch, -1)
    if not batch:
        return np.asarray(gym.spaces.flatten(space, observation))
    if len(observation) != batch[0]:
        raise ValueError
    return np.stack([np.asarray(gym.spaces.flatten(space, value)) for value in observation])


def action_scaler(space: gym.spaces.Box) -> Callable[[np.ndarray], np.ndarray]:
    """Maps actions [n action_dim] in [-1, 1], and clipped to that, to the range and dtype of the environment.

    Args:
        space: the environment's own, with finite bounds.
    """
    _, _, scale = rescale_box(space, np.float32(-1), np.float32(1))  # as the wrapper in `make_envs` does it
    return lambda action: scale(np.clip(action, -1, 1)).clip(space.low, space.high).astype(space.dtype)
