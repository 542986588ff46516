"""One environment as diffac wants it: rows of float32, actions in [-1, 1], a breach of its contract in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from diffac.data.env_states import restore_env, save_env, statistics_of
from diffac.data.spaces import Misfit, action_scaler, brief, flat_observation
from diffac.errors import RunError, UsageError, said

RESET = ("observation", "info")
STEP = ("observation", "reward", "terminated", "truncated", "info")


class Contract(gym.Wrapper):
    """Checks what an environment returns before any wrapper unpacks it, so that the message names the environment.

    Args:
        env: the environment.
        name: what messages call it.
    """

    stateless = True
    """No layer of a saved environment."""

    def __init__(self, env: gym.Env, name: str) -> None:
        super().__init__(env)
        self.name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return checked_reset(self.env.reset(seed=seed, options=options), self.name)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return checked_step(self.env.step(action), self.name)


class Adapter(gym.Wrapper):
    """The outermost layer. Observations are fresh arrays, so that no environment can change them afterwards.

    Of `info` nothing is passed on: vector environments would stack it, and it may hold anything.

    It also gives and takes the state of the environment below, as an attribute, because that is what vector
    environments can pass on to each of their environments.

    Args:
        env: the environment under all its wrappers, with spaces that `check_spaces` has passed.
        name: what messages call it.
        clip_action: as for `make_envs`.
    """

    restore_problem: str | None = None
    """Why the last assignment to `checkpoint_state` failed."""

    def __init__(self, env: gym.Env, name: str, clip_action: bool) -> None:
        super().__init__(env)
        self.name = name
        self._own_space, own_actions = env.observation_space, env.action_space
        assert isinstance(own_actions, gym.spaces.Box)
        self._scale = action_scaler(own_actions, clip=clip_action)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (gym.spaces.flatdim(self._own_space),), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, own_actions.shape, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        try:
            obs, _ = checked_reset(self.env.reset(seed=seed, options=options), self.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever an environment does, SystemExit too
            raise self._failure(error, "reset") from error
        return self._row(obs, "reset"), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        try:
            obs, reward, terminated, truncated, _ = checked_step(self.env.step(self._scale(action)), self.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._failure(error, "step") from error
        return self._row(obs, "step"), reward, terminated, truncated, {}

    def _row(self, obs: Any, method: str) -> np.ndarray:
        try:
            return flat_observation(self._own_space, obs)
        except Misfit as error:
            raise _breach(
                self.name, method, f"{error}, as its observation space {brief(self._own_space)} says"
            ) from error

    def _failure(self, error: BaseException, method: str) -> Exception:
        """The error as one sentence; made here because process boundaries lose where it came from, or all of it."""
        if isinstance(error, UsageError | RunError):
            return error
        hint = ""
        if isinstance(error, TypeError) and method == "reset" and ("seed" in str(error) or "options" in str(error)):
            hint = "; gymnasium calls reset(seed=..., options=...)"
        return RunError(f"environment {self.name!r} raised {type(error).__name__} in {method}: {said(error)}{hint}")

    @property
    def statistics(self) -> list[str]:
        """As `statistics_of` names them."""
        return statistics_of(self.env)

    @property
    def checkpoint_state(self) -> dict[str, Any]:
        """As `save_env` returns it, or {"problem": why it cannot be saved}."""
        try:
            return save_env(self.env)
        except Exception as error:  # an error would end the environment's process
            return {"problem": str(error)}

    @checkpoint_state.setter
    def checkpoint_state(self, state: dict[str, Any]) -> None:
        try:
            restore_env(self.env, state)
            self.restore_problem = None
        except Exception as error:
            self.restore_problem = f"{type(error).__name__}: {error}"


def adapt(env: gym.Env, name: str, clip_action: bool = True) -> Adapter:
    """The environment under an `Adapter`, and a `Contract` below all its wrappers."""
    if not isinstance(env, gym.Wrapper):
        return Adapter(Contract(env, name), name, clip_action)
    innermost = env
    while isinstance(innermost.env, gym.Wrapper):
        innermost = innermost.env
    innermost.env = Contract(innermost.env, name)
    return Adapter(env, name, clip_action)


def checked_reset(result: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """What `reset` returned, if it is an observation and an info.

    Raises:
        RunError: it is not.
    """
    obs, info = _parts(result, RESET, name, "reset")
    _check_info(info, name, "reset")
    return obs, info


def checked_step(result: Any, name: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """What `step` returned, if it is an observation, a number, two truth values and an info.

    Raises:
        RunError: it is not.
    """
    obs, reward, terminated, truncated, info = _parts(result, STEP, name, "step")
    if type(reward) is not float:
        reward = _number(reward, name)
    if type(terminated) is not bool:
        terminated = _truth(terminated, name, "terminated")
    if type(truncated) is not bool:
        truncated = _truth(truncated, name, "truncated")
    _check_info(info, name, "step")
    return obs, reward, terminated, truncated, info


def _parts(result: Any, names: tuple[str, ...], name: str, method: str) -> tuple[Any, ...]:
    if isinstance(result, tuple) and len(result) == len(names):
        return result
    came = f"a tuple of {len(result)}" if isinstance(result, tuple) else _shown(result)
    old = "; gym before version 0.26 had one `done` in place of the two" if came == "a tuple of 4" else ""
    raise _breach(name, method, f"it must return ({', '.join(names)}), got {came}{old}")


def _check_info(info: Any, name: str, method: str) -> None:
    if not isinstance(info, Mapping):
        raise _breach(name, method, f"info must be a dictionary, perhaps an empty one, got {_shown(info)}")


def _number(reward: Any, name: str) -> float:
    try:
        if np.ndim(reward) == 0 and not isinstance(reward, str | bytes) and not np.iscomplexobj(reward):
            return float(reward)
    except (TypeError, ValueError):
        pass
    raise _breach(name, "step", f"the reward must be one number, as float(reward) gives it, got {_shown(reward)}")


def _truth(value: Any, name: str, what: str) -> bool:
    try:
        if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf" and value in (0, 1):
            return bool(value)
    except (TypeError, ValueError):
        pass
    raise _breach(name, "step", f"{what} must be True or False, got {_shown(value)}")


def _breach(name: str, method: str, what: str) -> RunError:
    return RunError(f"environment {name!r} breaks the contract of {method}: {what}")


def _shown(value: Any) -> str:
    """What came, short."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    return (
        f"a {type(value).__name__}, {text if len(text) <= 60 else text[:60] + '...'}" if value is not None else "None"
    )
