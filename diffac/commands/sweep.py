"""`diffac sweep`: many runs that a file asks for, until all are complete."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from diffac.commands.parsing import parse
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.logging.console import standard_error
from diffac.messages import command, note, say
from diffac.scale.cost import estimate
from diffac.scale.executors import Executor
from diffac.scale.executors.processes import Processes
from diffac.scale.executors.ray import RayCluster
from diffac.scale.executors.slurm import Slurm, sbatch_options
from diffac.scale.journal import Journal
from diffac.scale.plan import Search, read_plan, read_searches
from diffac.scale.progress import Lines, LiveTable, duration
from diffac.scale.search import run_searches
from diffac.scale.sweep import Summary, run_sweep
from diffac.scale.work import Job
from diffac.system.signals import Interrupted


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepArguments:
    """Trains all runs that a YAML file asks for; said again, goes on: what is complete is passed over, what was stopped
    goes on from its last checkpoint, what failed is tried again."""

    file: tyro.conf.Positional[Path]
    """Sections: settings (of all runs), grid (lists of values, every combination is a run), runs (a list of runs),
    search (what --search tries)."""
    root: Path | None = None
    """Folder of the sweep; None: sweeps/ and the name of the file."""
    search: bool = False
    """Searches for the best settings, as the section search of the file describes; needs the extra sweep."""
    dry_run: bool = False
    """Only show the runs that are not complete yet, and what they cost by a measured minute."""
    retries: int = 1
    """Further attempts at a run that fails."""
    cpus_per_run: int = 1
    """Processors, and threads, of each run."""
    gpus_per_run: float = 0.0
    """GPUs of each run, with --executor ray or slurm; with Ray a fraction where several share one."""
    executor: Literal["processes", "ray", "slurm"] = "processes"
    """What executes the runs: processes of this machine, a Ray cluster, or Slurm."""
    address: str | None = None
    """Of the Ray cluster; None: the one that this machine belongs to, or else one of this machine alone."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch for --executor slurm, without dashes: time=4:00:00, which must be there, partition=gpu..."""

    def make_executor(self, root: Path) -> Executor:
        """What executes the runs of the sweep in a folder."""
        if self.address is not None and self.executor != "ray":
            raise UsageError("--address needs --executor ray")
        if self.slurm and self.executor != "slurm":
            raise UsageError("--slurm needs --executor slurm")
        if self.executor == "ray":
            return RayCluster(self.address, self.cpus_per_run, self.gpus_per_run)
        if self.executor == "slurm":
            options = sbatch_options(self.slurm)
            return Slurm(root, options, cpus_per_run=self.cpus_per_run, gpus_per_run=self.gpus_per_run)
        if self.gpus_per_run:
            raise UsageError("--gpus-per-run needs --executor ray or slurm")
        return Processes(self.cpus_per_run)


def main(argv: Sequence[str]) -> None:
    """Runs the sweep.

    Raises:
        UsageError: impossible arguments.
        RunError: runs failed; the others are complete.
        Interrupted: a signal, after the runs under way have been saved.
    """
    chosen = parse(SweepArguments, argv, "diffac sweep")
    root = None if chosen.root is None else absolute(chosen.root)
    if chosen.search:
        _search(read_searches(chosen.file, root), chosen, argv)
        return
    jobs = read_plan(chosen.file, root)
    display = LiveTable if standard_error().is_terminal else Lines
    if chosen.dry_run:
        journal = Journal(jobs[0].root)
        left = [job for job in jobs if not journal.is_complete(job)]
        say(*_estimated(left, Processes(chosen.cpus_per_run)) if left else ["all runs are complete"])
        return
    executor = partial(chosen.make_executor, jobs[0].root)
    summary = run_sweep(jobs, executor, retries=chosen.retries, display=partial(display, jobs))
    again = command("diffac", "sweep", *argv)
    if summary.signum is not None and summary.left:
        text = f"interrupted; {len(summary.complete)} of {len(jobs)} runs are complete, go on with: {again}"
        raise Interrupted(summary.signum or signal.SIGTERM, text)
    say(*_report(summary, jobs))
    if summary.failed:
        for job, error in summary.failed:
            note(f"{job.label}: {error}")
        raise RunError(f"{len(summary.failed)} of {len(jobs)} runs failed; try them again with: {again}")


def _search(searches: Sequence[Search], chosen: SweepArguments, argv: Sequence[str]) -> None:
    """Runs searches; raises as `main`."""
    root = searches[0].root
    if chosen.dry_run:
        jobs = [job for search in searches for trial in range(search.space.trials) for job in search.jobs(trial, {})]
        say(*_estimated(jobs, Processes(chosen.cpus_per_run)))
        return
    summary = run_searches(searches, partial(chosen.make_executor, root), retries=chosen.retries)
    again = command("diffac", "sweep", *argv)
    missing = sum(found.missing + found.counts["left"] for found in summary.found)
    if summary.signum is not None and missing:
        raise Interrupted(summary.signum, f"interrupted; {missing} trials are left, go on with: {again}")
    for found in summary.found:
        counts = ", ".join(f"{number} {state}" for state, number in found.counts.items() if number)
        say(f"{found.search.label}: {found.search.space.trials} trials, {counts}")
        if found.best is not None:
            number, objective, settings = found.best
            text = " ".join(f"{name}={value}" for name, value in settings.items())
            say(f"best, {objective:.1f}, in trial {number}: {text}", found.path)
    say(f"compare them: {command('diffac', 'report', root)}")
    if summary.failed:
        for job, error in summary.failed:
            note(f"{job.label}: {error}")
        raise RunError(f"{len(summary.failed)} runs failed; try them again with: {again}")
    for found in summary.found:
        if found.best is None and not found.missing:
            raise RunError(f"{found.search.label}: no trial is complete; what went wrong is said above")


def _estimated(jobs: Sequence[Job], executor: Processes) -> list[str]:
    """The runs by kinds, and what they cost."""
    with standard_error().status("measuring"):
        kinds = estimate(jobs, executor, executor.slots)
    total = sum(kind.seconds * len(kind.jobs) for kind in kinds)
    cores = f"{total * executor.cpus_per_run / 3600:.2g} core-hours"
    return [
        *(f"{len(kind.jobs)} x {kind.label}: {duration(kind.seconds)} each" for kind in kinds),
        f"{len(jobs)} runs, about {cores}, {duration(total / min(executor.slots, len(jobs)))} on this machine; "
        f"they go to {jobs[0].root}",
    ]


def _report(summary: Summary, jobs: Sequence[Job]) -> list[str]:
    hours = f"{duration(summary.seconds)} of runs, {summary.core_seconds / 3600:.2g} core-hours"
    lines = [f"{len(summary.complete)} of {len(jobs)} runs complete, {hours}"]
    return [*lines, f"compare them: {command('diffac', 'report', jobs[0].root)}"]
