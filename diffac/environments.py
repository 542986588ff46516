"""Vector environments as diffac wants them: flat observations, actions in [-1, 1], no step across a reset."""

from __future__ import annotations

import difflib
import functools
import multiprocessing
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from diffac.errors import RunError, UsageError
from diffac.protocols import Transition


class Episode(NamedTuple):
    """An episode that has ended."""

    env: int
    """Index of its environment."""
    ret: float
    """Its return: the undiscounted sum of the rewards as the environment gave them."""
    length: int
    """Its number of steps."""


class StepResult(NamedTuple):
    """One step of all environments."""

    transition: Transition
    """Leading axis num_envs. Where an episode ended, `next_obs` is its last observation, not the next one's first."""
    truncated: np.ndarray
    """[num_envs] of bool: the episode was cut off, by a time limit say. Its last state still has a future."""
    obs: np.ndarray
    """[num_envs obs_dim], what to act on next: where an episode ended, the first observation of the next one."""
    episodes: list[Episode]
    """The episodes that ended in this step."""


class Stepper:
    """Steps vector environments and keeps what belongs to the running episodes.

    A step has two halves, `start` and `finish`; asynchronous environments work between them.

    Args:
        envs: as `make_envs` returns them.
    """

    def __init__(self, envs: VectorEnv) -> None:
        self.envs = envs
        self.num_envs = envs.num_envs
        self.action_dim = dims(envs)[1]
        self.obs = np.zeros(0, np.float32)
        self._action = self._sent = np.zeros(0, np.float32)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._steps = 0

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Starts new episodes with these seeds, one for each environment; the observations [num_envs obs_dim]."""
        obs, _ = self.envs.reset(seed=[int(seed) for seed in seeds])  # pyright: ignore[reportArgumentType]
        self.obs = np.array(obs, np.float32)
        self._check_finite("observation", self.obs)
        self._returns[:] = 0
        self._lengths[:] = 0
        self._steps = 0
        return self.obs

    def start(self, action: np.ndarray) -> None:
        """Begins a step with actions [num_envs action_dim].

        The environments get them clipped to [-1, 1]; the transition holds them as they are given, because a policy that
        does not clip (`AdditiveNoise(clip=False)`, as in the official SDAC code) learns from what it did.

        Raises:
            RunError: an action is not finite.
            UsageError: the array has another shape.
        """
        self._action = np.array(action, np.float32)
        if self._action.shape != (self.num_envs, self.action_dim):
            raise UsageError(
                f"actions must have shape (num_envs, action_dim) = ({self.num_envs}, {self.action_dim}), "
                f"got {self._action.shape}"
            )
        self._check_finite_action()
        self._sent = self._action.clip(-1, 1)
        if isinstance(self.envs, AsyncVectorEnv):
            self.envs.step_async(self._sent)

    def finish(self) -> StepResult:
        """Ends the step that `start` began.

        Raises:
            RunError: an observation or reward is not finite; says which environment and step.
        """
        if isinstance(self.envs, AsyncVectorEnv):
            obs, reward, terminated, truncated, info = self.envs.step_wait()
        else:
            obs, reward, terminated, truncated, info = self.envs.step(self._sent)
        before, self.obs = self.obs, np.array(obs, np.float32)
        self._steps += 1
        self._returns += reward
        self._lengths += 1

        next_obs, episodes = self.obs, []
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            next_obs = self.obs.copy()
            for i in map(int, ended):
                next_obs[i] = info["final_obs"][i]
                episodes.append(Episode(i, float(self._returns[i]), int(self._lengths[i])))
            self._check_finite("first observation", self.obs)
            self._returns[ended] = 0
            self._lengths[ended] = 0
        transition = Transition(
            obs=before,
            action=self._action,
            reward=np.array(reward, np.float32),
            next_obs=next_obs,
            terminated=np.array(terminated, bool),
        )
        self._check_finite("observation", next_obs)
        self._check_finite("reward", transition.reward)
        return StepResult(transition, np.array(truncated, bool), self.obs, episodes)

    def step(self, action: np.ndarray) -> StepResult:
        """`start` and `finish` in one."""
        self.start(action)
        return self.finish()

    def _check_finite(self, what: str, values: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        bad = ~np.isfinite(values).reshape(self.num_envs, -1).all(axis=1)
        env = int(np.flatnonzero(bad)[0])
        raise RunError(
            f"environment {env} returned a non-finite {what} at its step {self._steps} (counted over all episodes): "
            f"{values[env]}; the environment is broken, or the actions drove its simulation out of range"
        )

    def _check_finite_action(self) -> None:
        finite = np.isfinite(self._action).all(axis=1)
        if not finite.all():
            env = int(np.flatnonzero(~finite)[0])
            raise RunError(
                f"the action for environment {env} at step {self._steps} is {self._action[env]}: the policy has "
                f"diverged; lower the learning rate or the reward scale"
            )


class _FlatObservation(gym.ObservationWrapper):
    """Flattens observations to fresh float32 vectors, so that no environment can change them afterwards."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        flat = gym.spaces.flatten_space(env.observation_space)
        if not isinstance(flat, gym.spaces.Box):
            raise UsageError(f"observation space {env.observation_space} has no fixed size; diffac cannot flatten it")
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        return np.array(gym.spaces.flatten(self.env.observation_space, observation), np.float32)


def _make_env(env_id: str) -> gym.Env:
    """One environment with flat float32 observations and actions in [-1, 1]."""
    try:
        env = gym.make(env_id, disable_env_checker=True)
    except gym.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(env_id, list(gym.registry), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"unknown environment {env_id!r}; {hint}(an environment of another package is named 'module:id', where "
            f"importing the module registers it; gymnasium.pprint_registry() lists what gymnasium knows)"
        ) from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UsageError(f"environment {env_id!r} cannot be imported: {error}{_extra(error)}") from error
    except gym.error.Error as error:
        raise UsageError(f"environment {env_id!r} cannot be made: {error}") from error
    space = env.action_space
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating) or len(space.shape) != 1:
        env.close()
        raise UsageError(
            f"environment {env_id!r} has action space {space}; diffac needs a Box action space with one axis of real "
            f"numbers (continuous control)"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        env.close()
        raise UsageError(
            f"environment {env_id!r} has action space {space} without finite bounds; diffac maps actions "
            f"from [-1, 1] to the bounds: wrap the environment so that they are finite"
        )
    return gym.wrappers.RescaleAction(_FlatObservation(env), np.float32(-1), np.float32(1))


def _extra(error: Exception) -> str:
    """The command that installs what an environment missed, where diffac knows it."""
    text = str(error).lower()
    if getattr(error, "name", None) == "mujoco" or "mujoco is not installed" in text or "gymnasium[mujoco]" in text:
        return "; run: python -m pip install 'diffac[mujoco]'"
    return ""


def make_envs(env_id: str, num_envs: int, *, asynchronous: bool = False) -> VectorEnv:
    """Vector environments for continuous control.

    Actions [num_envs action_dim] in [-1, 1] are mapped linearly to the bounds of the environment. Observations are
    flattened to float32 vectors [num_envs obs_dim]. An environment whose episode ends is reset within the same step;
    `Stepper` keeps the two observations apart.

    Args:
        env_id: a gymnasium id, or "module:id" to import the module that registers it first.
        num_envs: how many, at least 1.
        asynchronous: a process for each environment. Pays off where a step costs more than about 0.1 ms. The
            processes are started afresh (a fork would break JAX and torch), so a script needs
            `if __name__ == "__main__":`.

    Raises:
        UsageError: unknown id, missing package, or spaces that diffac cannot use.
    """
    if num_envs < 1:
        raise UsageError(f"num_envs must be at least 1, got {num_envs}")
    makers = [functools.partial(_make_env, env_id)] * num_envs
    if not asynchronous:
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP, context=context)


def dims(envs: VectorEnv) -> tuple[int, int]:
    """(obs_dim, action_dim) of environments made by `make_envs`."""
    obs, action = envs.single_observation_space, envs.single_action_space
    assert obs.shape is not None
    assert action.shape is not None
    return obs.shape[0], action.shape[0]


def close(envs: VectorEnv) -> None:
    """Closes environments, also when a step is under way or a process has died."""
    if isinstance(envs, AsyncVectorEnv):
        envs.close(terminate=True)
    else:
        envs.close()
