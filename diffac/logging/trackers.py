"""Metrics to an experiment tracker: Weights & Biases or Trackio, which share the calls that are needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffac.errors import UsageError

PROJECT = "diffac"
"""Where the tracker puts all runs."""
ADVICE = {"wandb": "log in with `wandb login`, or set WANDB_MODE=offline", "trackio": "see its documentation"}
"""Module of each tracker, also the name of its extra -> what helps where it does not start."""


def load_tracker(name: str) -> ModuleType:
    """The module of a tracker.

    Raises:
        UsageError: it is not installed, or fails on import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"track {name} needs the package {error.name!r}; run: python -m pip install 'diffac[{name}]'"
        ) from error
    except Exception as error:
        raise UsageError(f"track {name}: importing it raised {type(error).__name__}: {error}") from error


class TrackerWriter:
    """Sends metrics to a tracker. What it does with them (upload, keep offline) is set by its own means.

    A run that is resumed goes on in its old place. A tracker that fails on the way is left alone from then on: the run
    goes on, and its files hold everything.

    Args:
        name: wandb or trackio.
        run_name: what people see.
        run_id: the same for a run that is resumed.
        config: all arguments, as JSON knows them.
        folder: where the tracker may put files of its own.
        say: told when it has failed.

    Raises:
        UsageError: the package is missing, or the tracker does not start.
    """

    def __init__(
        self,
        name: str,
        *,
        run_name: str,
        run_id: str,
        config: Mapping[str, Any],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._say = name, say
        tracker = load_tracker(name)
        # trackio knows a run by its name alone
        own = {"id": run_id, "dir": str(folder)} if name == "wandb" else {}
        try:
            self._run = tracker.init(project=PROJECT, name=run_name, config=dict(config), resume="allow", **own)
        except (Exception, SystemExit) as error:
            raise UsageError(f"{name} does not start: {error}; {ADVICE[name]}") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an environment step."""
        self._pass_on("log", dict(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        self._pass_on("finish")
        self._run = None

    def _pass_on(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._run is None:
            return
        try:
            getattr(self._run, method)(*args, **kwargs)
        except (Exception, SystemExit) as error:
            self._run = None
            self._say(f"{self._name} has failed ({error}) and gets no more metrics; metrics.csv holds all of them")
