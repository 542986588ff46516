"""Runs on the machines of a Ray cluster; Ray places them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffac.errors import UsageError, said
from diffac.files.untrusted import remove
from diffac.scale.work import Job, Outcome, has_begun
from diffac.system.processors import shares

MOST_WAITING = 1_000
"""Jobs that Ray knows of at a time."""


class Brought(NamedTuple):
    """What comes back from a machine that does not see the folder of the sweep."""

    result: Any
    folder: bytes | None
    """Of the run, packed; None: it is where it belongs."""


class RayCluster:
    """Executes jobs on a Ray cluster, each in a process of its own.

    Where all machines see the folder of the sweep, runs are written there. Others get what there is of a run, and send
    its folder back when it ends; what a machine that is lost had not sent is trained again.

    Args:
        address: of the cluster, as `ray.init` takes it; None: the one that this machine belongs to, or else one of this
            machine alone.
        cpus_per_run: processors of each run, and its threads.
        gpus_per_run: GPUs of each run; a fraction where several share one.

    Raises:
        UsageError: Ray is not installed, there is no cluster at the address, or it can never place such a run.
    """

    def __init__(self, address: str | None = None, cpus_per_run: int = 1, gpus_per_run: float = 0.0) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise UsageError("--executor ray needs Ray; run: python -m pip install 'diffac[ray]'") from error
        self._ray = ray
        self._jobs: dict[Any, Job] = {}
        self._signed: list[Path] = []
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"no Ray cluster at {address or 'this machine'}: {said(error)}") from error
        wanted = {"CPU": cpus_per_run, "GPU": gpus_per_run}
        if not any(all(node["Resources"].get(n, 0) >= w for n, w in wanted.items()) for node in ray.nodes()):
            self.close()
            raise UsageError(f"no machine of the Ray cluster has {cpus_per_run} processors and {gpus_per_run:g} GPUs")
        self._work = ray.remote(
            num_cpus=cpus_per_run, num_gpus=gpus_per_run, max_retries=0, max_calls=1,
            runtime_env={"env_vars": shares(cpus_per_run)},
        )(_work)  # fmt: skip
        self._token = f".seen-{uuid.uuid4().hex}"
        self._asked = False

    @property
    def room(self) -> int:
        return MOST_WAITING - len(self._jobs)

    def submit(self, work: Callable[[Job], Any], job: Job) -> None:
        self.sign(job)
        carried = self._ray.put(packed(job.folder)) if has_begun(job) else None
        self._jobs[self._work.remote(work, job, self._token, carried)] = job

    def sign(self, job: Job) -> None:
        """Leaves a sign in the folder of the sweep, by which a machine knows that it sees it."""
        if not self._signed:
            self._signed.append(job.root / self._token)
            self._signed[0].touch()

    def finished(self, timeout: float) -> list[tuple[Job, Any]]:
        ready, _ = self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=timeout)
        return [(self._jobs[answer], self._result(answer, self._jobs.pop(answer))) for answer in ready]

    def _result(self, answer: Any, job: Job) -> Any:
        errors = self._ray.exceptions
        try:
            brought = self._ray.get(answer)
        except errors.TaskCancelledError:
            return Outcome("stopped")
        except errors.RayError as error:
            return (
                Outcome("stopped")
                if self._asked
                else Outcome("failed", f"its machine or process was lost: {said(error)}")
            )
        if brought.folder is not None:
            try:
                unpack(brought.folder, job.folder)
            except (OSError, tarfile.TarError) as error:
                return Outcome("failed", f"its folder could not be written to {job.folder}: {said(error)}")
        return brought.result

    def stop(self) -> None:
        for answer in self._jobs:
            self._ray.cancel(answer, force=self._asked)
        self._asked = True

    def close(self) -> None:
        for answer in self._jobs:
            with contextlib.suppress(Exception):
                self._ray.cancel(answer, force=True)
        for path in self._signed:
            remove(path)
        if self._owns:
            self._ray.shutdown()


def _work(work: Callable[[Job], Any], job: Job, token: str, carried: bytes | None) -> Brought:
    """What a process of the cluster does."""
    if (job.root / token).exists():
        return Brought(work(job), None)
    with tempfile.TemporaryDirectory(prefix="diffac-") as root:
        here = dataclasses.replace(job, root=Path(root))
        if carried is not None:
            unpack(carried, here.folder)
        result = work(here)
        return Brought(result, packed(here.folder) if here.folder.is_dir() else None)


def packed(folder: Path) -> bytes:
    """A folder as an archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(folder, arcname=".")
    return content.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Puts a packed folder in the place of one that may be there: all of it or nothing."""
    beside = folder.with_name(f"new-{folder.name}")
    remove(beside)
    beside.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(beside, filter="data")
    if folder.is_dir():
        old = folder.with_name(f"old-{folder.name}")
        remove(old)
        os.rename(folder, old)
        os.rename(beside, folder)
        shutil.rmtree(old)
    else:
        os.rename(beside, folder)
