"""Environments of a user's own making, held to what a `Stepper` promises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffac.data.stepper import SavableStepper, Stepper, StepResult
from diffac.errors import RunError, UsageError, said
from diffac.protocols import Transition


class OwnStepper:
    """A `Stepper` whose mistakes are told by name before they reach the learner; what it cannot do is done for it.

    Args:
        stepper: of any origin.
        num_envs: environments that it must step.

    Raises:
        UsageError: it lacks a method or attribute, or steps another number of environments.
    """

    def __init__(self, stepper: Stepper, num_envs: int) -> None:
        self._stepper, self._name = stepper, type(stepper).__name__
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

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        with self._named("reset"):
            obs = self._stepper.reset(seeds)
        self.obs, self.whole = self._checked("reset", obs), True
        return self.obs

    def start(self, action: np.ndarray) -> None:
        self.whole = False
        with self._named("start"):
            self._stepper.start(action)

    def finish(self) -> StepResult:
        with self._named("finish"):
            result = self._stepper.finish()
        if not isinstance(result, StepResult):
            raise RunError(f"{self._name}.finish must return a StepResult, got {type(result).__name__}")
        shapes = {name: np.shape(array) for name, array in result.transition._asdict().items()}
        if any(shape[:1] != (self.num_envs,) for shape in shapes.values()):
            raise RunError(
                f"{self._name}.finish must give a row for each of {self.num_envs} environments, got arrays of {shapes}"
            )
        with self._named("finish"):
            *floats, terminated, first = result.transition
            floats = [np.asarray(array, np.float32) for array in floats]
            transition = Transition(*floats, np.asarray(terminated, bool), np.asarray(first, bool))
        self.obs, self.whole = self._checked("finish", result.obs), True
        return result._replace(transition=transition, obs=self.obs)

    def save(self) -> dict[str, Any]:
        if isinstance(self._stepper, SavableStepper):
            with self._named("save"):
                return self._stepper.save()
        counters = {"returns": np.zeros(self.num_envs), "lengths": np.zeros(self.num_envs, np.int64), "steps": 0}
        return {"restart": f"{self._name} has no save and restore", "envs": [], "obs": self.obs.copy(), **counters}

    def restore(self, saved: Mapping[str, Any], seeds: Sequence[int]) -> str | None:
        if not isinstance(self._stepper, SavableStepper) or saved["restart"] is not None:
            self.reset(seeds)
            return saved["restart"] or f"{self._name} has no save and restore"
        with self._named("restore"):
            problem = self._stepper.restore(saved, seeds)
        self.obs = self._checked("restore", self._stepper.obs)
        return problem

    def close(self) -> None:
        with self._named("close"):
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

    @contextlib.contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """Turns what is raised within into a RunError that names the method."""
        try:
            yield
        except (RunError, UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise RunError(f"{self._name}.{method} raised {type(error).__name__}: {said(error)}") from error
