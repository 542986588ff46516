"""Callbacks: what else happens during training, and when it stops early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from diffac.training import Training


class Callback(Protocol):
    """Looks on while training goes on. Derive from it, and write only the methods that you need.

    Each of them gets the `Training`, between two steps: `env_step`, `updates`, `episodes`, `evaluations`, `learner` and
    `state` may be read. A callback that only reads changes no number of a run. The learner's state must not be kept
    beyond the call, because the next update may write over it; copy it with the backend's `to_arrays`.
    """

    def on_step(self, training: Training) -> bool | None:
        """After every step of all environments; False stops training after this step."""
        return None

    def on_evaluation(self, training: Training) -> bool | None:
        """After every evaluation, which is the last one of `training.evaluations`; False stops training."""
        return None

    def on_end(self, training: Training) -> None:
        """Once when training ends, or is stopped by a callback; not after an error."""


class Callbacks(Callback):
    """Passes everything on to several callbacks; each of them can stop training."""

    def __init__(self, *callbacks: Callback) -> None:
        self.callbacks = callbacks

    def on_step(self, training: Training) -> bool:
        answers = [callback.on_step(training) for callback in self.callbacks]  # everybody is asked
        return all(map(goes_on, answers))

    def on_evaluation(self, training: Training) -> bool:
        answers = [callback.on_evaluation(training) for callback in self.callbacks]  # everybody is asked
        return all(map(goes_on, answers))

    def on_end(self, training: Training) -> None:
        for callback in self.callbacks:
            callback.on_end(training)


def goes_on(answer: bool | None) -> bool:
    """Whether training goes on after a callback's answer."""
    return answer is None or bool(answer)
