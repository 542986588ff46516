"""Runs as jobs of Slurm, sent through submitit; Slurm queues and places them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import hashlib
import importlib
import math
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffac.errors import UsageError, said
from diffac.files.untrusted import inside, remove
from diffac.messages import note
from diffac.runs.folder import lock
from diffac.scale.executors import interruptible
from diffac.scale.work import Job, Outcome
from diffac.system.processors import shares

MOST_WAITING = 1_000
"""Jobs that Slurm knows of at a time; an array may have 1,001 where nobody has set it otherwise."""
LOOK = 2.0
"""Seconds between two looks at the jobs, at least; and ten times as long as a look takes, where files are slow."""
APPEARING = 15.0
"""Seconds in which the result of a job that has ended may appear on shared storage."""
ENDING = 120.0
"""Seconds in which jobs may end that an earlier call has left; Slurm gives them 30 to save where nobody has set it
otherwise."""
SAVING = 60
"""Seconds before its time limit at which a job is told to save."""
LOGS = "SUBMITIT_LOG_LEVEL"
OURS = {
    "array", "cpus-per-task", "error", "gpus-per-node", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode",
    "output", "requeue", "signal",
}  # fmt: skip
"""Options of sbatch that are not the user's to give."""


class Slurm:
    """Executes jobs as those of Slurm, many of them in one array.

    All machines must see the folder of the sweep, and have diffac installed in the same place. What Slurm and the runs
    say goes to `slurm/` in that folder, to a new folder for each call. A job that ends without having come to its end
    (preempted, out of time or memory, cancelled, its machine lost) has failed; Slurm itself starts none again, so there
    are never two of one run.

    Args:
        root: folder of the sweep; jobs that an earlier call has left for it are cancelled first.
        options: of sbatch, long names without dashes -> value, or True for an option without one; `time` must be there.
        cpus_per_run: processors of each run, and its threads.
        gpus_per_run: GPUs of each run.
        cluster: as submitit calls it; "local" and "debug" are for tests.

    Raises:
        UsageError: submitit or Slurm is not there, an option cannot be, another process has jobs for this sweep, or
            those of an earlier call do not end.
    """

    def __init__(
        self,
        root: Path,
        options: Mapping[str, str | bool],
        *,
        cpus_per_run: int = 1,
        gpus_per_run: float = 0.0,
        cluster: str = "slurm",
    ) -> None:
        if cpus_per_run < 1:
            raise UsageError(f"cpus_per_run must be at least 1, got {cpus_per_run}")
        if gpus_per_run < 0 or not math.isfinite(gpus_per_run) or gpus_per_run != int(gpus_per_run):
            raise UsageError(f"gpus_per_run must be a whole number, at least 0, with Slurm, got {gpus_per_run:g}")
        submitit = load_submitit()
        digest = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]
        self._name = f"diffac-{digest}"
        calls = inside(root, "slurm")
        # A new folder, because submitit unpickles results, and nobody else may have put any there.
        folder = calls / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{uuid.uuid4().hex[:8]}"
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
        except RuntimeError as error:
            raise UsageError("there is no Slurm on this machine: no command srun") from error
        self._executor.update_parameters(
            name=self._name, nodes=1, tasks_per_node=1, cpus_per_task=cpus_per_run,
            gpus_per_node=int(gpus_per_run) or None, stderr_to_stdout=True, slurm_array_parallelism=MOST_WAITING,
            slurm_setup=[f'export {name}="${{{name}:-{value}}}"' for name, value in shares(cpus_per_run).items()],
            slurm_additional_parameters={"no-requeue": True, "signal": f"TERM@{SAVING}", **options},
        )  # fmt: skip
        self._clean_env = importlib.import_module("submitit.helpers").clean_env
        self._is_slurm = cluster == "slurm"
        self._new: list[tuple[Callable[[Job], Any], Job]] = []
        self._jobs: dict[Any, Job] = {}
        self._refused: list[tuple[Job, Any]] = []
        self._ended_at: dict[Any, float] = {}
        self._next_look = 0.0
        self._asked = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(lock(calls, "the queue of a sweep"))
        if self._is_slurm:
            self._end_earlier()

    def _end_earlier(self) -> None:
        """Ends what a call that was killed has left in the queue, and waits for it: the runs are its own until then."""
        end, told = time.monotonic() + ENDING, False
        try:
            while left := _answer("squeue", "--noheader", "--format=%i", *self._all).split():
                if time.monotonic() > end:
                    raise UsageError(f"jobs of an earlier call do not end; end them with: scancel {' '.join(left[:5])}")
                if not told:
                    note("waiting for jobs that an earlier call has left: they are cancelled, and their runs saved")
                    told = True
                _answer("scancel", *self._all)
                time.sleep(LOOK)
        except (OSError, subprocess.SubprocessError) as error:
            raise UsageError(f"Slurm does not say which jobs there are: {said(error)}") from error

    @property
    def _all(self) -> list[str]:
        """Options of Slurm's commands that choose all jobs of the sweep."""
        return [f"--name={self._name}", f"--user={getpass.getuser()}"]

    @property
    def room(self) -> int:
        return MOST_WAITING - len(self._jobs) - len(self._new)

    def submit(self, work: Callable[[Job], Any], job: Job) -> None:
        self._new.append((work, job))  # sent with all others that come before somebody asks what has ended

    def finished(self, timeout: float) -> list[tuple[Job, Any]]:
        if self._new:
            self._send()
        ended, self._refused = self._refused, []
        if not ended and time.monotonic() < self._next_look:
            time.sleep(timeout)
        if time.monotonic() >= self._next_look:
            begin = time.monotonic()
            ended += self._look()
            now = time.monotonic()
            self._next_look = now + max(LOOK, 10 * (now - begin))
        return ended

    def _send(self) -> None:
        """All new jobs in one array."""
        jobs, self._new = self._new, []
        try:
            with self._clean_env():  # of the job that this process may be itself
                sent = self._executor.map_array(interruptible, *map(list, zip(*jobs, strict=True)))
        except Exception as error:  # whatever sbatch and submitit refuse
            why = Outcome("failed", f"Slurm has not taken its job: {said(error)}")
            self._refused += [(job, why) for _, job in jobs]
            return
        for handle, (_, job) in zip(sent, jobs, strict=True):
            handle._results_timeout_s = 0  # or submitit waits for each result by itself; APPEARING does it for all
            self._jobs[handle] = job

    def _look(self) -> list[tuple[Job, Any]]:
        """What has ended."""
        if self._asked > 1:  # there is no time left
            ended = [(job, Outcome("stopped")) for job in self._jobs.values()]
            self._jobs.clear()
            return ended
        if self._asked and self._jobs:  # submitit asks Slurm every ten minutes, and what was cancelled leaves no result
            next(iter(self._jobs)).watcher.update()
        ended = [(handle, self._result(handle)) for handle in self._jobs if _has_ended(handle)]
        return [(self._jobs.pop(handle), result) for handle, result in ended if result is not None]

    def _result(self, handle: Any) -> Any:
        """Of a job that has ended; None: it may yet appear."""
        log = handle.paths.stdout
        try:
            result = handle.result()
        except Exception:  # of submitit, which finds no result
            since = self._ended_at.setdefault(handle, time.monotonic())
            if not self._asked and time.monotonic() < since + APPEARING:
                return None
            if log.exists():
                what = f"what it has said is in {log}"
            else:
                what = f"it has left no {log}: its machine must see this folder"
            state = handle.state.split()[0].lower().replace("_", " ")
            result = Outcome("failed", f"its job {handle.job_id} of Slurm has ended without a result ({state}); {what}")
        if self._asked and result.state == "failed" and not result.seconds:
            result = Outcome("stopped")
        elif not self._asked and result.state == "stopped":
            why = f"Slurm has stopped it and it was saved (time limit, preemption or scancel); its log is {log}"
            result = dataclasses.replace(result, state="failed", error=why)
        for path in (handle.paths.submitted_pickle, handle.paths.result_pickle):
            remove(path)
        return result

    def stop(self) -> None:
        self._asked += 1
        self._next_look = 0.0
        self._cancel()

    def close(self) -> None:
        if self._jobs or self._new:
            self._cancel()
        self._lock.close()

    def _cancel(self) -> None:
        """Slurm tells all to end, and kills after a while what has not."""
        if not self._is_slurm:
            for handle in self._jobs:
                handle.cancel(check=False)
            return
        try:
            _answer("scancel", *self._all)
        except (OSError, subprocess.SubprocessError) as error:
            note(f"the jobs could not be cancelled: {said(error)}")


def load_submitit() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    before = os.environ.get(LOGS)
    os.environ[LOGS] = before or "NOCONFIG"  # or importing it closes the handlers that others have given to logging
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise UsageError("--executor slurm needs submitit; run: python -m pip install 'diffac[slurm]'") from error
    finally:
        if before is None:
            del os.environ[LOGS]


def sbatch_options(words: Sequence[str]) -> dict[str, str | bool]:
    """Options of sbatch: `["time=2:00:00", "exclusive"]` are `--time=2:00:00 --exclusive`.

    Raises:
        UsageError: no option, one that diffac gives itself, or no time limit.
    """
    options: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]*", name) or not value.isprintable() or (equals and not value):
            raise UsageError(f"--slurm takes options of sbatch such as partition=gpu, without dashes, got {word!r}")
        if name in OURS or f"no-{name}" in OURS or name.removeprefix("no-") in OURS:
            instead = {"cpus-per-task": "; use --cpus-per-run", "gpus-per-node": "; use --gpus-per-run"}
            raise UsageError(f"--slurm cannot set {name}, which diffac sets itself{instead.get(name, '')}")
        options[name] = value if equals else True
    if not isinstance(options.get("time"), str):
        raise UsageError("--executor slurm needs the time limit of a run, as sbatch takes it: --slurm time=4:00:00")
    return options


def _has_ended(handle: Any) -> bool:
    """Submitit waits for preempted jobs, which come back where Slurm may start them again; ours may not."""
    return handle.done() or handle.state.upper().startswith("PREEMPTED")


def _answer(*words: str) -> str:
    """What a command of Slurm answers."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
