"""Callbacks: what else happens during training, and when it stops early."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from diffac.errors import RunError, UsageError, said
from diffac.training.state import Training

Moment = Literal["on_step", "on_evaluation", "on_end"]


class CallbackError(RunError):
    """A callback raised an error, which is the cause of this one, or answered what it may not. The run is whole."""


class Callback(Protocol):
    """Looks on while training goes on. Derive from it, and write only the methods that you need.

    Each of them gets the `Training`, between two steps: `env_step`, `updates`, `episodes`, `evaluations`, `engine` and
    `state` may be read. A callback that only reads changes no number of a run. The learner's state must not be kept
    beyond the call, because the next update may write over it; copy it with the backend's `to_arrays`.

    An error in a callback stops training as False does: the step is completed, with the metrics, the evaluation and the
    checkpoint that are due, `on_end` is called, and then a `CallbackError` raised that names class and method. Training
    can go on afterwards.
    """

    def on_step(self, training: Training) -> bool | None:
        """After every step of all environments; False stops training after this step."""
        return None

    def on_evaluation(self, training: Training) -> bool | None:
        """After every evaluation, which is the last one of `training.evaluations`; False stops training."""
        return None

    def on_end(self, training: Training) -> None:
        """Once when training ends, or is stopped by a callback; not after an error of environment or learner."""


class Callbacks(Callback):
    """Passes everything on to several callbacks; each of them can stop training.

    Everybody is asked every time, also after an error of one of them: the first error is raised, and the others are
    noted below it.

    Raises:
        UsageError: one of them is no callback.
    """

    def __init__(self, *callbacks: Callback) -> None:
        self.callbacks = tuple(map(check_callback, callbacks))

    def on_step(self, training: Training) -> bool:
        return self._ask_all("on_step", training)

    def on_evaluation(self, training: Training) -> bool:
        return self._ask_all("on_evaluation", training)

    def on_end(self, training: Training) -> None:
        self._ask_all("on_end", training)

    def _ask_all(self, moment: Moment, training: Training) -> bool:
        with Asking() as asking:
            answers = [asking(callback, moment, training) for callback in self.callbacks]
        return all(answers)


class Asking:
    """Asks callbacks; the first error of one counts as False, and is raised when the context is left."""

    def __init__(self) -> None:
        self._error: CallbackError | None = None

    def __call__(self, callback: Callback, moment: Moment, training: Training) -> bool:
        """Whether training goes on after the callback's answer."""
        try:
            return _ask(callback, moment, training)
        except CallbackError as error:
            if self._error is None:
                self._error = error
            else:
                self._error.add_note(str(error))
            return False

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._error is None:
            return
        if error is None:
            raise self._error
        error.add_note(f"before that, {self._error}")


def _ask(callback: Callback, moment: Moment, training: Training) -> bool:
    name = f"callback {type(callback).__name__}.{moment}"
    try:
        answer: Any = getattr(callback, moment)(training)
    except CallbackError:  # of one of several, which it names
        raise
    except Exception as error:
        raise CallbackError(f"{name} raised {type(error).__name__}: {said(error)}") from error
    if moment == "on_end" or answer is None:
        return True
    if not isinstance(answer, bool | np.bool_):
        raise CallbackError(f"{name} returned {answer!r:.200}; it must return False to stop training, True or None")
    return bool(answer)


def check_callback(callback: Any) -> Callback:
    """The callback, if it is one.

    Raises:
        UsageError: it is a function, a class, a list, or lacks a method.
    """
    if isinstance(callback, type):
        raise UsageError(f"callback must be an object, got the class {callback.__name__}; write {callback.__name__}()")
    if isinstance(callback, list | tuple):
        raise UsageError("callback must be one object, got several; write Callbacks(first, second)")
    missing = [name for name in ("on_step", "on_evaluation", "on_end") if not callable(getattr(callback, name, None))]
    if missing:
        raise UsageError(
            f"callback must be a diffac.Callback, got {callback!r:.200}, which has no {', '.join(missing)}; derive a "
            f"class from Callback, write what you need into its on_step, and give an object of it"
        )
    return callback
