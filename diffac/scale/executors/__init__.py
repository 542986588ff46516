"""Where the runs of a sweep are executed: processes of this machine, and others behind the same small interface."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from diffac.scale.work import Job, Outcome
from diffac.system.signals import StopRequest

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


def drive(
    work: Callable[[Job], Any],
    next_job: Callable[[], Job | None],
    ended: Callable[[Job, Any], None],
    refresh: Callable[[], None],
    executor: Executor,
    stop: StopRequest,
) -> None:
    """Has jobs executed until there are none, or a signal has come and all under way are saved.

    Args:
        work: what is called for each.
        next_job: the next one; None: there is none now, and for good if none is under way.
        ended: called with each that has ended and what `work` has returned.
        refresh: called between two looks at what is under way.
        executor: executes them.
        stop: entered by the caller.
    """
    under_way, asked = 0, 0
    while True:
        try:
            while not stop.requested and executor.room and (job := next_job()) is not None:
                under_way += 1
                executor.submit(work, job)
            if not under_way:
                return
            if stop.requested and not asked:
                asked = 1
                executor.stop()
            for job, outcome in executor.finished(GLANCE):
                under_way -= 1
                ended(job, outcome)
            refresh()
        except KeyboardInterrupt:  # the second signal, or the time for saving is over
            asked += 1
            executor.stop()
            if asked > 2:
                raise


def interruptible(work: Callable[[Job], Any], job: Job) -> Any:
    """What `work` returns in a process that is there for this job alone: a signal has it saved, and `stopped`."""
    with StopRequest(patient=False, owns_process=True):
        try:
            return work(job)
        except KeyboardInterrupt:
            return Outcome("stopped")
