"""Where the runs of a sweep are executed: processes of this machine, and others behind the same small interface."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from diffac.scale.work import Job

GLANCE = 0.25
"""Seconds between two looks at what is under way."""


class Executor(Protocol):
    """Executes jobs somewhere else than in this process."""

    @property
    def room(self) -> int:
        """Jobs that may be submitted now."""
        ...

    def submit(self, work: Callable[[Job], Any], job: Job) -> None:
        """Has `work(job)` called."""
        ...

    def finished(self, timeout: float) -> list[tuple[Job, Any]]:
        """The jobs that have ended since the last call, with what `work` has returned; waits for the first of them.

        Where the process or machine was lost, an `Outcome` says so in its place.

        Args:
            timeout: seconds to wait at most.
        """
        ...

    def stop(self) -> None:
        """Asks all jobs under way to save and end; the second time to end at once."""
        ...

    def close(self) -> None:
        """Ends whatever still runs."""
        ...


def execute(work: Callable[[Job], Any], jobs: Iterable[Job], executor: Executor) -> Iterator[tuple[Job, Any]]:
    """Every job with what `work` returns for it, as they end."""
    waiting, under_way = collections.deque(jobs), 0
    while waiting or under_way:
        while waiting and executor.room:
            executor.submit(work, waiting.popleft())
            under_way += 1
        for job, result in executor.finished(GLANCE):
            under_way -= 1
            yield job, result
