"""A training between two steps, kept in memory: what the copy of an agent goes on from."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from diffac.data.replay import NumberedReplay
from diffac.protocols import Transition
from diffac.training.state import Training
from diffac.values import plain


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
