"""Steps environments, and keeps what belongs to the running episodes: no step goes across a reset."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from diffac.data.vectors import close, dims, together
from diffac.errors import RunError, UsageError, said
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


class Stepper(Protocol):
    """What the training loop needs of environments that are stepped together, whatever they are made of."""

    num_envs: int
    """How many there are."""
    obs_dim: int
    """Entries of an observation."""
    action_dim: int
    """Entries of an action, each in [-1, 1]."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Starts new episodes with these seeds, one for each environment; the observations [num_envs obs_dim].

        Comes first, and after a step that broke off.
        """
        ...

    def start(self, action: np.ndarray) -> None:
        """Begins a step with actions [num_envs action_dim]; the learner computes until `finish` is called."""
        ...

    def finish(self) -> StepResult:
        """Ends the step that `start` began. Where an episode has ended, the next one has begun."""
        ...

    def close(self) -> None:
        """Gives back what they hold; may be called twice."""
        ...


@runtime_checkable
class SavableStepper(Stepper, Protocol):
    """Environments that go on from a checkpoint in the middle of their episodes; others begin new ones there."""

    def save(self) -> Any:
        """The state between two steps as data: numbers, texts, arrays and random generators of NumPy, containers."""
        ...

    def restore(self, saved: Any) -> np.ndarray:
        """Goes on where `save` returned this; the observations [num_envs obs_dim]."""
        ...


class VectorStepper:
    """Steps vector environments and keeps what belongs to the running episodes.

    A step has two halves, `start` and `finish`; asynchronous environments work between them.

    Args:
        envs: as `make_envs` returns them.
        timeout: seconds that asynchronous environments may take for a step or reset; None: any time. Nothing can stop
            a synchronous one that hangs.
    """

    def __init__(self, envs: VectorEnv, *, timeout: float | None = None) -> None:
        self.envs = envs
        self.timeout = timeout
        self.num_envs = envs.num_envs
        self.obs_dim, self.action_dim = dims(envs)
        self.obs = np.zeros(0, np.float32)
        self._action = np.zeros(0, np.float32)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._steps = 0
        self.whole = True
        """Whether the environments are between two steps; False: a step or reset broke off."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Starts new episodes with these seeds, one for each environment; the observations [num_envs obs_dim].

        Environments in which something broke off are made anew before.

        Raises:
            RunError: an environment raised an error, did not answer in time or has died.
            UsageError: it cannot be made anew.
        """
        numbers: Any = [int(seed) for seed in seeds]
        if not self.whole:
            close(self.envs)
            own: Any = self.envs
            self.envs = together(own.env_fns, isinstance(own, AsyncVectorEnv))
        self.whole = False
        with self._answers():
            if isinstance(self.envs, AsyncVectorEnv):
                self.envs.reset_async(seed=numbers)
                obs, _ = self.envs.reset_wait(self.timeout)
            else:
                obs, _ = self.envs.reset(seed=numbers)
        self.obs = np.array(obs, np.float32)
        self._check_finite("observation", self.obs)
        self._returns[:] = 0
        self._lengths[:] = 0
        self._steps = 0
        self.whole = True
        return self.obs

    def start(self, action: np.ndarray) -> None:
        """Begins a step with actions [num_envs action_dim].

        The transition holds them as they are given, whether the environments clip them or not (`make_envs`): a policy
        that does not clip (`AdditiveNoise(clip=False)`, as in the official SDAC code) learns from what it did.

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
        self.whole = False
        if isinstance(self.envs, AsyncVectorEnv):
            with self._answers():
                self.envs.step_async(self._action)

    def finish(self) -> StepResult:
        """Ends the step that `start` began.

        Raises:
            RunError: an observation or reward is not finite (says which environment and step), or an environment raised
                an error, did not answer in time or has died.
        """
        with self._answers():
            if isinstance(self.envs, AsyncVectorEnv):
                obs, reward, terminated, truncated, info = self.envs.step_wait(self.timeout)
            else:
                obs, reward, terminated, truncated, info = self.envs.step(self._action)
        before, self.obs = self.obs, np.array(obs, np.float32)
        self._steps += 1
        self._returns += reward
        self._lengths += 1
        first = self._lengths == 1

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
            first=first,
        )
        self._check_finite("observation", next_obs)
        self._check_finite("reward", transition.reward)
        self.whole = True
        return StepResult(transition, np.array(truncated, bool), self.obs, episodes)

    def step(self, action: np.ndarray) -> StepResult:
        """`start` and `finish` in one."""
        self.start(action)
        return self.finish()

    def save(self) -> dict[str, Any]:
        """The state between two steps as plain data; entry "restart" says why, where the environments' is not part."""
        envs = [{"problem": "one of them had failed"}]
        if self.whole:
            with self._answers():
                envs = list(self.attribute("checkpoint_state"))
        problem = next((env["problem"] for env in envs if "problem" in env), None)
        return {
            "restart": problem,
            "envs": envs if problem is None else [],
            "obs": self.obs.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "steps": self._steps,
        }

    def restore(self, saved: Mapping[str, Any], seeds: Sequence[int]) -> str | None:
        """Goes on where `save` was called, or starts new episodes with these seeds where it cannot.

        Returns:
            Why it could not; None: it could.
        """
        self.reset(seeds)  # environments make some of their parts in their first reset
        problem = saved["restart"]
        if problem is None:
            with self._answers():
                self.envs.set_attr("checkpoint_state", list(saved["envs"]))  # pyright: ignore[reportAttributeAccessIssue]
                problem = next(filter(None, self.attribute("restore_problem")), None)
            if problem is not None:
                self.reset(seeds)
        self._steps = saved["steps"]
        if problem is None:
            self.obs = np.array(saved["obs"], np.float32)
            self._returns[:] = saved["returns"]
            self._lengths[:] = saved["lengths"]
        return problem

    @property
    def statistics(self) -> list[str]:
        """Where wrappers of the environments keep running statistics: "NormalizeObservation.obs_rms"..."""
        with self._answers():
            return self.attribute("statistics")[0]

    def attribute(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        return self.envs.get_attr(name)  # pyright: ignore[reportAttributeAccessIssue]

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns whatever goes wrong in an environment into a RunError of one sentence."""
        when = f"at its step {self._steps + 1} (counted over all episodes)"
        try:
            yield
        except UsageError:
            raise
        except RunError as error:
            raise RunError(f"{error}, {when}") from error.__cause__
        except multiprocessing.TimeoutError as error:
            raise RunError(
                f"an environment did not answer within {self.timeout:g} s {when}; it hangs, or "
                f"step_timeout is too short"
            ) from error
        except (EOFError, ConnectionError) as error:
            raise RunError(f"{self._dead_process()} {when}; was it killed, for want of memory say?") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RunError(f"an environment raised {type(error).__name__} {when}: {said(error)}") from error

    def close(self) -> None:
        """Closes the environments; may be called twice."""
        close(self.envs)

    def _dead_process(self) -> str:
        processes = self.envs.processes if isinstance(self.envs, AsyncVectorEnv) else []
        for i, process in enumerate(processes):
            process.join(1)
            if process.exitcode is not None:
                return f"the process of environment {i} has died (exit code {process.exitcode})"
        return "the process of an environment has died"

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
