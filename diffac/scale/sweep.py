"""A sweep: many runs, each an ordinary one, until all are complete."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from diffac.errors import UsageError
from diffac.runs.folder import lock
from diffac.scale.executors import Executor, drive
from diffac.scale.journal import Journal
from diffac.scale.work import Job, Outcome, work
from diffac.system.signals import StopRequest


class Display(Protocol):
    """Shows a person how it goes."""

    def begun(self, job: Job) -> None:
        """A run was given to the executor."""
        ...

    def ended(self, job: Job, outcome: Outcome, again: bool) -> None:
        """An attempt has ended; whether there is another one."""
        ...

    def refresh(self) -> None:
        """Called between two looks."""
        ...


class Summary(NamedTuple):
    """What has become of a sweep."""

    complete: list[Job]
    failed: list[tuple[Job, str]]
    """With the error of the last attempt."""
    left: list[Job]
    """Not begun, or stopped."""
    seconds: float
    """Of all attempts, one after the other."""
    core_seconds: float
    signum: int | None = None
    """Of the signal that has stopped it."""


def run_sweep(
    jobs: Sequence[Job],
    executor: Callable[[], Executor],
    *,
    retries: int = 1,
    display: Callable[[Journal], contextlib.AbstractContextManager[Display]],
) -> Summary:
    """Has all runs executed that are not complete yet, in their order.

    A run that was stopped goes on from its last checkpoint, as does one that has failed. What is complete is written to
    the journal of the sweep at once, so after any end of this process the same call goes on.

    Args:
        jobs: at least one, all of one sweep.
        executor: makes what executes them.
        retries: further attempts in this call at a run that fails; of one that would fail again (impossible arguments,
            numbers that are not finite) there are none.
        display: shows how it goes.

    Raises:
        UsageError: impossible arguments, or another process works on this sweep.
    """
    if retries < 0:
        raise UsageError(f"retries must be at least 0, got {retries}")
    root = jobs[0].root
    with _locked(root), contextlib.closing(Journal(root)) as journal:
        todo = collections.deque(job for job in jobs if not journal.is_complete(job))
        failures: dict[str, int] = {}
        signum = None
        if todo:
            with StopRequest() as stop, contextlib.closing(executor()) as running, display(journal) as shown:
                _execute(todo, running, journal, failures, retries, shown, stop)
                signum = stop.signum
        return _summary(jobs, journal, signum)


def _execute(
    todo: collections.deque[Job],
    executor: Executor,
    journal: Journal,
    failures: dict[str, int],
    retries: int,
    display: Display,
    stop: StopRequest,
) -> None:
    def next_job() -> Job | None:
        if not todo:
            return None
        display.begun(todo[0])
        return todo.popleft()

    def ended(job: Job, outcome: Outcome) -> None:
        journal.add(job, outcome)
        again = False
        if outcome.state == "failed":
            failures[job.name] = failures.get(job.name, 0) + 1
            again = not outcome.hopeless and failures[job.name] <= retries and not stop.requested
            if again:
                todo.append(job)
        display.ended(job, outcome, again)

    drive(work, next_job, ended, display.refresh, executor, stop)


def _summary(jobs: Sequence[Job], journal: Journal, signum: int | None) -> Summary:
    complete = [job for job in jobs if journal.is_complete(job)]
    failed = [(job, journal[job.name].error) for job in jobs if journal[job.name].state == "failed"]
    ended = {job.name for job in complete} | {job.name for job, _ in failed}
    left = [job for job in jobs if job.name not in ended]
    entries = [journal[job.name] for job in jobs]
    seconds, core_seconds = (sum(getattr(entry, name) for entry in entries) for name in ("seconds", "core_seconds"))
    return Summary(complete, failed, left, seconds, core_seconds, signum)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Makes the folder of the sweep, and keeps other processes out of it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder of the sweep, {root}: {error.strerror or error}") from error
    with lock(root, "a sweep"):
        yield
