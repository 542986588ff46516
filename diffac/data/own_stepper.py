"""Environments of a user's own making, held to what a `Stepper` promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffac.data.env_states import restore_value, save_value
from diffac.data.stepper import Episode, SavableStepper, Stepper, StepResult
from diffac.errors import RunError, UsageError, told_as
from diffac.files.untrusted import check_nest
from diffac.protocols import Transition, provides


class OwnStepper:
    """A `Stepper` whose mistakes are told by name before they reach the learner; what it cannot do is done for it.

    Args:
        stepper: of any origin.
        num_envs: environments that it must step.
        max_steps: steps after which an episode is cut: it counts as ended, although the environment goes on with it,
            and the rest of it counts as another one. None: never.

    Raises:
        UsageError: it lacks a method or attribute, or steps another number of environments.
    """

    def __init__(self, stepper: Stepper, num_envs: int, max_steps: int | None = None) -> None:
        self._stepper, self._name, self._max_steps = stepper, type(stepper).__name__, max_steps
        methods, sizes = ("reset", "start", "finish", "close"), ("num_envs", "obs_dim", "action_dim")
        missing = [name for name in methods if not callable(getattr(stepper, name, None))]
        missing += [name for name in sizes if not isinstance(getattr(stepper, name, None), int | np.integer)]
        if missing:
            raise UsageError(f"{self._name} is no Stepper: it has no {', '.join(missing)}")
        self.num_envs, self.obs_dim, self.action_dim = (int(getattr(stepper, name)) for name in sizes)
        if self.num_envs != num_envs:
            raise UsageError(f"{self._name} steps {self.num_envs} environments, and {num_envs} are wanted")
        self.obs = np.zeros((num_envs, self.obs_dim), np.float32)
        self.whole = True
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self._cut = np.zeros(num_envs, bool)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        with told_as(f"{self._name}.reset"):
            obs = self._stepper.reset(seeds)
        self.obs, self.whole = self._checked("reset", obs), True
        self._returns[:], self._lengths[:] = 0, 0
        return self.obs

    def start(self, action: np.ndarray) -> None:
        self.whole = False
        with told_as(f"{self._name}.start"):
            self._stepper.start(action)

    def finish(self) -> StepResult:
        with told_as(f"{self._name}.finish"):
            result = self._stepper.finish()
        if not isinstance(result, StepResult):
            raise RunError(f"{self._name}.finish must return a StepResult, got {type(result).__name__}")
        shapes = {name: np.shape(array) for name, array in result.transition._asdict().items()}
        if any(shape[:1] != (self.num_envs,) for shape in shapes.values()):
            raise RunError(
                f"{self._name}.finish must give a row for each of {self.num_envs} environments, got arrays of {shapes}"
            )
        with told_as(f"{self._name}.finish"):
            *floats, terminated, first = result.transition
            floats = [np.asarray(array, np.float32) for array in floats]
            transition = Transition(*floats, np.asarray(terminated, bool), np.asarray(first, bool))
            episodes = [Episode(int(env), float(ret), int(length)) for env, ret, length in result.episodes]
        if wrong := [episode.env for episode in episodes if not 0 <= episode.env < self.num_envs]:
            raise RunError(f"{self._name}.finish tells of an episode of environment {wrong[0]}, which there is not")
        self.obs, self.whole = self._checked("finish", result.obs), True
        episodes = self._bounded(episodes, transition.reward)
        return result._replace(transition=transition, obs=self.obs, episodes=episodes)

    def _bounded(self, episodes: list[Episode], reward: np.ndarray) -> list[Episode]:
        """The episodes that ended, and those that are cut."""
        self._returns += reward
        self._lengths += 1
        ended = np.zeros(self.num_envs, bool)
        ended[[episode.env for episode in episodes]] = True
        self._cut = ~ended & (self._lengths >= (self._max_steps or np.inf))
        cut = [Episode(int(i), float(self._returns[i]), int(self._lengths[i])) for i in np.flatnonzero(self._cut)]
        over = ended | self._cut
        self._returns[over], self._lengths[over] = 0, 0
        return episodes + cut

    def attribute(self, name: str) -> tuple[Any, ...]:
        """Of each environment: "cut", whether its episode was cut in the last step."""
        return {"cut": tuple(self._cut)}[name]

    def save(self) -> dict[str, Any]:
        """As `VectorStepper.save`; where the stepper's state is no data, it says so, and new episodes begin."""
        data, problem = None, f"{self._name} has no save and restore"
        if provides(self._stepper, SavableStepper):
            with told_as(f"{self._name}.save"):
                data = self._stepper.save()
            try:
                data, problem = save_value(data, f"{self._name}.save()"), None
                check_nest([[[[[[data]]]]]])  # as deep as it will be in the checkpoint
            except (RunError, ValueError) as error:
                problem = str(error)
        return {
            "restart": problem,
            "envs": [] if problem else [{"own": data}, *({} for _ in range(self.num_envs - 1))],
            "obs": self.obs.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "steps": 0,
        }

    def restore(self, saved: Mapping[str, Any], seeds: Sequence[int]) -> str | None:
        """As `VectorStepper.restore`."""
        problem = saved["restart"]
        if problem is None and not provides(self._stepper, SavableStepper):
            problem = f"{self._name} has no save and restore"
        if problem is None:
            try:
                data = restore_value(saved["envs"][0]["own"], None)
            except Exception:  # a file may hold anything
                problem = f"the checkpoint holds no state of {self._name}"
        if problem is None and provides(self._stepper, SavableStepper):
            with told_as(f"{self._name}.restore"):
                obs = self._stepper.restore(data)
            self.obs = self._checked("restore", obs)
            self._returns[:], self._lengths[:] = saved["returns"], saved["lengths"]
            return None
        self.reset(seeds)
        return problem

    def close(self) -> None:
        with told_as(f"{self._name}.close"):
            self._stepper.close()

    def _checked(self, method: str, obs: Any) -> np.ndarray:
        """Observations as float32."""
        shape, found = (self.num_envs, self.obs_dim), np.asarray(obs)
        if found.shape != shape or not np.issubdtype(found.dtype, np.floating):
            raise RunError(
                f"{self._name}.{method} must give observations as floats of shape {shape}, got {found.dtype} "
                f"{found.shape}"
            )
        if not np.isfinite(found).all():
            env = int(np.argwhere(~np.isfinite(found))[0, 0])
            raise RunError(f"{self._name}.{method} gave an observation that is not finite for environment {env}")
        return found.astype(np.float32)
