"""Searches for the best settings: trials are begun, ended early and repeated until their number is reached."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffac.errors import UsageError
from diffac.files.untrusted import write_atomically
from diffac.messages import note
from diffac.scale.executors import Executor, drive
from diffac.scale.found import write_found
from diffac.scale.plan import Search
from diffac.scale.progress import duration
from diffac.scale.trials import LAST, Study, Trial, open_storage, work_on_trial
from diffac.scale.work import Job, Outcome
from diffac.system.signals import StopRequest

LOOK = 1.0
"""Seconds between two looks at the evaluations of the runs under way, at least ..."""
LOOKS = 10
"""... and so many times as long as a look takes, where runs are many or files slow."""
BEST = "best.yaml"
RESULT = "search.json"
"""In the folder of a search: the best settings, for other sweeps; all trials, for the report."""
OBJECTIVE = f"mean over the seeds of the mean return of the last {LAST} evaluations"


class Found(NamedTuple):
    """What has become of a search."""

    search: Search
    counts: dict[str, int]
    """Trials that are complete, pruned, failed, or left (under way elsewhere, or to go on with)."""
    missing: int
    """Trials not begun."""
    best: tuple[int, float, dict[str, Any]] | None
    """Number, objective and settings; None: no trial is complete."""
    path: Path
    """Of the best settings."""


class Summary(NamedTuple):
    """What has become of all searches of a file."""

    found: list[Found]
    failed: list[tuple[Job, str]]
    """Runs that have failed in this call and may do better in another one, with their errors."""
    signum: int | None
    """Of the signal that has stopped it."""


def run_searches(searches: Sequence[Search], executor: Callable[[], Executor], *, retries: int = 1) -> Summary:
    """Has trials of all searches trained until each has as many as it may.

    Everything is in the journal of the searches and in the folders of the runs, so after any end of this process the
    same call goes on, and other machines may make the same call at the same time.

    Args:
        searches: at least one, all of one sweep.
        executor: makes what executes the runs.
        retries: further attempts in this call at a run that fails, as for `run_sweep`.

    Raises:
        UsageError: impossible arguments, Optuna is missing, or the journal is damaged.
    """
    if retries < 0:
        raise UsageError(f"retries must be at least 0, got {retries}")
    storage = open_storage(searches[0].root)
    driver = _Driver([Study(search, storage) for search in searches], retries)
    signum = None
    with contextlib.closing(driver), StopRequest() as stop:
        driver.stop = stop
        if driver.has_work:
            with contextlib.closing(executor()) as running:
                drive(work_on_trial, driver.next_job, driver.ended, driver.refresh, running, stop)
        signum = stop.signum
    return Summary([_found(study) for study in driver.studies], driver.failed, signum)


class _Driver:
    """Hands out the runs of trials, those of all searches by turns.

    Args:
        studies: all searches.
        retries: as for `run_searches`.
    """

    stop: StopRequest

    def __init__(self, studies: list[Study], retries: int) -> None:
        self.studies, self.retries = studies, retries
        self.failed: list[tuple[Job, str]] = []
        self._owners: dict[str, tuple[Study, Trial]] = {}
        self._failures: dict[str, int] = {}
        self._next_look = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a trial is missing, or has not ended."""
        return any(
            len(study.trials) < study.search.space.trials
            or any(trial.state == study.states.RUNNING for trial in study.trials)
            for study in self.studies
        )

    def next_job(self) -> Job | None:
        for study in self.studies:
            for trial in study.under_way.values():
                if (job := trial.next_job()) is not None:
                    return self._owned(job, study, trial)
        for study in sorted(self.studies, key=lambda study: len(study.trials)):
            if (trial := study.take()) is not None:
                job = trial.next_job()
                assert job is not None
                return self._owned(job, study, trial)
        return None

    def _owned(self, job: Job, study: Study, trial: Trial) -> Job:
        self._owners[job.name] = study, trial
        return job

    def ended(self, job: Job, outcome: Outcome) -> None:
        study, trial = self._owners[job.name]
        again = False
        if outcome.state == "failed" and not trial.pruned:
            self._failures[job.name] = self._failures.get(job.name, 0) + 1
            again = not outcome.hopeless and self._failures[job.name] <= self.retries and not self.stop.requested
            note(f"{job.label}: failed{', is tried again' if again else ''}: {outcome.error}")
            if not again and not outcome.hopeless:  # such a trial has simply failed
                self.failed.append((job, outcome.error))
        trial.ended(job, outcome, again)
        if trial.is_over or (self.stop.requested and len(trial.outcomes) == len(trial.begun)):
            self._conclude(study, trial)

    def _conclude(self, study: Study, trial: Trial) -> None:
        state = trial.conclude(study.study, study.states)
        del study.under_way[trial.number]
        trial.close()
        if state == "left":
            study.left.add(trial.number)
            return
        best = _best(study)
        value = study.trials[trial.number].value
        what = f"{state}{'' if value is None else f', {value:.1f}'}"
        known = "" if best is None else f"; best {best[1]:.1f} in trial {best[0]}"
        settings = " ".join(f"{name}={_short(value)}" for name, value in trial.settings.items())
        number = f"trial {trial.number} of {study.search.space.trials}"
        note(f"{study.search.label} {number}: {what} ({settings}; {duration(trial.seconds)}){known}")

    def refresh(self) -> None:
        begin = time.monotonic()
        if begin < self._next_look:
            return
        for study in self.studies:
            for trial in study.under_way.values():
                trial.look(study.pruner, study.study)
        now = time.monotonic()
        self._next_look = now + max(LOOK, LOOKS * (now - begin))

    def close(self) -> None:
        for study in self.studies:
            study.close()


def _best(study: Study) -> tuple[int, float, dict[str, Any]] | None:
    complete = [trial for trial in study.trials if trial.state == study.states.COMPLETE]
    if not complete:
        return None
    best = max(complete, key=lambda trial: trial.value)
    return best.number, best.value, study.value_of(best.params)


def _found(study: Study) -> Found:
    """Writes the best settings and all trials, and says how it stands."""
    search, best = study.search, _best(study)
    names = {
        study.states.COMPLETE: "complete", study.states.PRUNED: "pruned", study.states.FAIL: "failed",
    }  # fmt: skip
    trials = [
        {
            "trial": trial.number,
            "state": names.get(trial.state, "left"),
            "objective": trial.value,
            "settings": study.value_of(trial.params),
            "core_seconds": trial.user_attrs.get("core_seconds"),
        }
        for trial in study.trials[: search.space.trials]
    ]
    content = {
        "label": search.label,
        "objective": OBJECTIVE,
        "of": search.space.trials,
        "seeds": list(search.space.seeds),
        "pruner": search.space.pruner,
        "importances": study.importances(),
        "trials": trials,
    }
    search.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(search.folder / RESULT, (json.dumps(content, indent=1) + "\n").encode())
    path = search.folder / BEST
    if best is not None:
        number, value, settings = best
        values = {**search.values, **settings}
        write_found(path, values, trial=number, objective=value, seeds=list(search.space.seeds))
    states = [trial["state"] for trial in trials]
    counts = {state: states.count(state) for state in ("complete", "pruned", "failed", "left")}
    return Found(search, counts, max(0, search.space.trials - len(trials)), best, path)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
