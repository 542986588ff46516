"""Two thousand runs of nothing: what a sweep costs beside its runs, and that what it holds does not grow with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from diffac.scale.executors.processes import Processes
from diffac.scale.journal import Journal
from diffac.scale.plan import read_plan
from diffac.scale.progress import Lines
from diffac.scale.sweep import run_sweep
from diffac.scale.work import Job, Outcome

pytestmark = [pytest.mark.usefixtures("third_party"), pytest.mark.sweeps, pytest.mark.timeout(3_000)]
if not sys.platform.startswith("linux"):
    pytest.skip("looks into /proc", allow_module_level=True)
RUNS = 2_000


class Held(NamedTuple):
    """By the driver, after so many runs."""

    runs: int
    seconds: float
    memory: int
    """Resident, in KiB."""
    files: int
    threads: int


class Watching(Lines):
    """Looks at the driver after every hundredth run."""

    def __init__(self, jobs: list[Job], seen: list[Held], journal: Journal) -> None:
        super().__init__(jobs, journal)
        self.seen, self.start = seen, time.perf_counter()

    def ended(self, job: Job, outcome: Outcome, again: bool) -> None:
        super().ended(job, outcome, again)
        if len(self.settled) % 100 == 0:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            memory, threads = (int(status[name].split()[0]) for name in ("VmRSS", "Threads"))
            files = len(list(Path("/proc/self/fd").iterdir()))
            self.seen.append(Held(len(self.settled), time.perf_counter() - self.start, memory, files, threads))


def watched(jobs: Sequence[Job]) -> list[Held]:
    seen: list[Held] = []
    summary = run_sweep(jobs, Processes, display=partial(Watching, list(jobs), seen))
    assert len(summary.complete) == len(jobs)
    return seen


def test_memory_and_open_files_of_the_driver_stay_flat(tmp_path: Path) -> None:
    """Runs of 80 steps; the numbers are printed (`pytest -s`)."""
    settings = {"recipe": "fake", "log_interval": 80, "eval_interval": 80, "checkpoint_interval": 80}
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump({"settings": settings, "grid": {"seed": list(range(RUNS))}}))
    jobs = read_plan(path, tmp_path / "sweep")
    seen = watched(jobs)
    for held in seen:
        print(f"{held.runs:,} runs, {held.seconds:.0f} s, {held.memory / 2**10:.1f} MiB, {held.files} files")
    early, late = seen[1], seen[-1]
    assert late.files <= early.files + 2, "a file or two of the runs under way"
    assert late.threads <= early.threads
    assert late.memory - early.memory < 10 * 2**10
    begin = time.perf_counter()
    assert len(run_sweep(jobs, Processes, display=partial(Watching, jobs, [])).complete) == RUNS
    print(f"said again: {time.perf_counter() - begin:.1f} s")
