"""What the copy of an agent goes on from: a training between two steps in memory, and a recipe's module by its name."""

from __future__ import annotations

import copy
import importlib
import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from diffac.data.replay import NumberedReplay
from diffac.errors import UsageError
from diffac.protocols import Transition
from diffac.runs.configs import plain
from diffac.training.loop import Training


class Kept(NamedTuple):
    """A training between two steps."""

    host: dict[str, Any]
    """`Snapshot.host`; of a closed training only its counters and evaluations."""
    first: int
    """Number of the oldest transition."""
    rows: tuple[Transition, ...]
    """The replay memory in pieces, the oldest first; nobody writes to them."""

    def restore(self, buffer: NumberedReplay) -> dict[str, Any]:
        """Fills the replay memory; the host, of which the training takes what it likes."""
        buffer.restore(self.first, self.rows)
        return copy.deepcopy(self.host)


def keep(training: Training) -> Kept:
    """A copy of all that a training needs to go on.

    Raises:
        RunError: an environment broke its contract when it was asked for its state.
    """
    _, buffer, host = training.snapshot()
    first, pieces = max(0, buffer.added - buffer.capacity), []
    start = first
    while start < buffer.added:
        rows = Transition(*map(np.array, buffer.chunk(start, buffer.added)))
        pieces.append(rows)
        start += len(rows.reward)
    return Kept(copy.deepcopy(plain(host)), first, tuple(pieces))


def keep_counters(training: Training) -> Kept:
    """What a closed training still tells."""
    host = {
        "env_step": training.env_step,
        "updates": training.updates,
        "evaluations": [record._asdict() for record in training.evaluations],
        "evaluation_due": training.evaluation_due,
    }
    return Kept(copy.deepcopy(host), 0, ())


def name_of(module: ModuleType) -> str:
    """The name by which other processes import a module.

    Raises:
        UsageError: they could not.
    """
    if sys.modules.get(module.__name__) is not module:
        raise UsageError(
            f"an agent is pickled with the name of its recipe's module, but {module.__name__!r} imports another one or "
            f"none; write the recipe into a file that can be imported, or copy the agent by Agent.save and Agent.load"
        )
    return module.__name__


def module_of(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        UsageError: it cannot be imported here, or is no recipe.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"the agent's recipe {name!r} cannot be imported here: {error}") from error
    if not hasattr(module, "Config") or not hasattr(module, "build"):
        raise UsageError(f"the agent's recipe {name!r} is another module here: it has no Config or no build")
    return module
