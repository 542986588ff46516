"""Runs in processes of this machine, a new one for each, which share its processors."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from diffac.errors import UsageError
from diffac.files.untrusted import append
from diffac.scale.executors import interruptible
from diffac.scale.work import Job, Outcome
from diffac.system.orphans import end_with_parent
from diffac.system.processors import shares, usable_processors
from diffac.system.signals import children_undisturbed

PRELOADED = ["diffac.scale.work", "tensorboardX"]
"""Modules that every run needs and that may be there before a process is forked; tensorboardX brings PyTorch along, if
it is installed. JAX may not: its threads do not survive that."""


class Running(NamedTuple):
    """A job under way."""

    job: Job
    process: Any
    answer: Connection


class Processes:
    """Executes jobs in processes of this machine.

    A process is forked from one that has imported what all need and nothing else, where the system can do that, so a
    run costs no start of Python. It ends with this one, however that ends. What it says goes to `output/` in the folder
    of the sweep.

    Args:
        cpus_per_run: processors of each run, and its threads.

    Raises:
        UsageError: there are not so many.
    """

    def __init__(self, cpus_per_run: int = 1) -> None:
        processors = usable_processors()
        if not 1 <= cpus_per_run <= processors:
            raise UsageError(
                f"cpus_per_run must be from 1 to {processors}, the processors of this machine, got {cpus_per_run}"
            )
        self.slots, self.cpus_per_run = processors // cpus_per_run, cpus_per_run
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload(PRELOADED)
        self._running: list[Running] = []
        self._asked = False

    @property
    def room(self) -> int:
        return self.slots - len(self._running)

    def submit(self, work: Callable[[Job], Any], job: Job) -> None:
        answer, sender = self._context.Pipe(duplex=False)
        spared = [signum for signum in (signal.SIGINT, getattr(signal, "SIGHUP", None)) if signum]
        with children_undisturbed(spared), _environment(self.cpus_per_run):
            try:
                process = self._start(work, job, sender)
            except FileNotFoundError:  # old temporary files were cleared away, with the socket of the fork server
                self._context = multiprocessing.get_context("spawn")
                process = self._start(work, job, sender)
        sender.close()  # so that the pipe ends with the process
        self._running.append(Running(job, process, answer))

    def _start(self, *arguments: Any) -> Any:
        process = self._context.Process(target=_work, args=arguments)
        process.start()
        return process

    def finished(self, timeout: float) -> list[tuple[Job, Any]]:
        ready = wait([running.answer for running in self._running], timeout)
        ended = [running for running in self._running if running.answer in ready]
        self._running = [running for running in self._running if running not in ended]
        return [(running.job, self._result(running)) for running in ended]

    def _result(self, running: Running) -> Any:
        try:
            result = running.answer.recv()
        except (EOFError, OSError):
            result = None
        running.answer.close()
        running.process.join()
        code = running.process.exitcode
        running.process.close()
        if result is not None:
            return result
        if self._asked:
            return Outcome("stopped")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Outcome("failed", f"its process {how}; what it has said is in {output_of(running.job)}")

    def stop(self) -> None:
        for running in self._running:
            running.process.terminate()
        self._asked = True

    def close(self) -> None:
        for running in self._running:
            running.process.kill()
        for running in self._running:
            running.process.join()


def output_of(job: Job) -> Path:
    """The file of what a run says in the terminal."""
    return job.root / "output" / f"{job.name.replace('/', '_')}.txt"


def _work(work: Callable[[Job], Any], job: Job, answer: Connection) -> None:
    """What the process does."""
    end_with_parent()
    path = output_of(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with append(path) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    answer.send(interruptible(work, job))
    sys.stdout.flush()
    sys.stderr.flush()


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Variables of the processes that are started within; what this process's own say about threads and memory stays.

    Args:
        threads: for each process.
    """
    added = {name: value for name, value in shares(threads).items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
