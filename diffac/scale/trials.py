"""Trials of a search: Optuna chooses their settings and judges them, the runs of each are ordinary ones."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from diffac.errors import DamagedError, UsageError
from diffac.files.untrusted import inside, read_npz, remove
from diffac.runs.folder import lock
from diffac.scale.plan import Search, trial_folder
from diffac.scale.space import Choice
from diffac.scale.work import Job, Outcome, work
from diffac.training.callbacks import Callback
from diffac.training.state import Training

JOURNAL = "search.journal"
"""Of all searches in the folder of a sweep, in Optuna's form; several machines may write to it."""
STOP = "stop"
"""A file in the folder of a trial: its runs end."""
LAST = 3
"""Evaluations at the end of a run whose mean counts."""
AT_A_TIME = 4
"""A quarter of the trials of a search may be under way in a call, so that later ones learn from earlier ones."""


class Trial:
    """A trial under way: a run for each seed of the search.

    Args:
        search: that it belongs to.
        handle: Optuna's.
        settings: that it tries.
        held: what is left when it has ended: the lock of its folder.
    """

    def __init__(self, search: Search, handle: Any, settings: Mapping[str, Any], held: contextlib.ExitStack) -> None:
        self.search, self.settings = search, settings
        self.number: int = handle.number
        self.jobs = search.jobs(self.number, settings)
        self.waiting = collections.deque(self.jobs)
        self.begun: dict[str, Job] = {}
        self.outcomes: dict[str, Outcome] = {}
        """Name of a run -> how its last attempt has ended."""
        self.seconds = self.core_seconds = 0.0
        self.pruned = False
        self._handle, self._held = handle, held
        self._reported = 0
        self._stop = self.jobs[0].folder.parent / STOP
        remove(self._stop)  # of a process that was killed; what it has decided is decided again

    def next_job(self) -> Job | None:
        """A run that waits."""
        if not self.waiting:
            return None
        job = self.waiting.popleft()
        self.begun[job.name] = job
        return job

    def ended(self, job: Job, outcome: Outcome, again: bool) -> None:
        """An attempt at a run has ended; whether there is another one."""
        self.outcomes[job.name] = outcome
        self.seconds += outcome.seconds
        self.core_seconds += outcome.core_seconds
        if again and not self.pruned:
            self.waiting.append(job)
            del self.outcomes[job.name]
        elif outcome.hopeless:  # the others would be in vain
            self.end_runs()

    @property
    def is_over(self) -> bool:
        """Whether no run is under way, and none waits."""
        return not self.waiting and len(self.outcomes) == len(self.begun)

    def end_runs(self) -> None:
        """Has the runs under way end, and begins no other."""
        self.waiting.clear()
        self._stop.touch()

    def look(self, pruner: Any, study: Any) -> None:
        """Reads the evaluations of its runs, and ends it where the others are better."""
        if self.pruned or not self.begun:
            return
        curves = [evaluations(job) for job in self.begun.values()]
        reached = min(len(curve) for _, curve in curves)
        if reached <= self._reported:
            return
        known = self._frozen(study).intermediate_values
        for step in range(self._reported, reached):
            value = float(np.mean([curve[step] for _, curve in curves]))
            if step + 1 not in known and math.isfinite(value):
                self._handle.report(value, step + 1)
        self._reported = reached
        goes_on = any(steps[-1] < job.steps for (steps, _), job in zip(curves, self.begun.values(), strict=True))
        if (goes_on or self.waiting) and pruner.prune(study, self._frozen(study)):
            self.pruned = True
            self.end_runs()

    def _frozen(self, study: Any) -> Any:
        return study.get_trials(deepcopy=False)[self.number]

    def conclude(self, study: Any, states: Any) -> str:
        """Tells Optuna how it has ended, where it has.

        Returns:
            "complete", "pruned", "failed" for good, or "left": it goes on when the command is said again.
        """
        failed = [outcome for outcome in self.outcomes.values() if outcome.state == "failed"]
        value = math.nan
        state = "pruned" if self.pruned else "failed"
        if not self.pruned and not any(outcome.hopeless for outcome in failed):
            if len(self.outcomes) < len(self.jobs) or any(o.state != "complete" for o in self.outcomes.values()):
                return "left"
            value = objective(self.jobs)
            state = "complete" if math.isfinite(value) else "failed"
        self._handle.set_user_attr("core_seconds", round(self.core_seconds, 3))
        told = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        study.tell(self.number, value if state == "complete" else None, state=told)
        return state

    def close(self) -> None:
        """Leaves the trial to whoever goes on with it."""
        self._held.close()


class Study:
    """A search in Optuna's terms.

    Args:
        search: what is searched.
        storage: that `open_storage` has returned.
    """

    def __init__(self, search: Search, storage: Any) -> None:
        optuna = _optuna()
        self.search, self.states = search, optuna.trial.TrialState
        self._optuna = optuna
        self.pruner = {
            "median": optuna.pruners.MedianPruner,
            "halving": optuna.pruners.SuccessiveHalvingPruner,
            "none": optuna.pruners.NopPruner,
        }[search.space.pruner]()
        self.study = optuna.create_study(
            storage=storage, study_name=search.name, direction="maximize", load_if_exists=True, pruner=self.pruner
        )
        self.under_way: dict[int, Trial] = {}
        self.left: set[int] = set()
        """Trials that are not taken up again in this call."""

    @property
    def trials(self) -> list[Any]:
        """Optuna's, as they are."""
        return self.study.get_trials(deepcopy=False)

    def take(self) -> Trial | None:
        """A trial: one that nobody works on any more, or else a new one; None: there is none now."""
        known = self.trials
        for trial in known:
            if trial.state == self.states.RUNNING and trial.number not in self.under_way.keys() | self.left:
                taken = self._hold(self._optuna.trial.Trial(self.study, trial._trial_id))
                if taken is not None:
                    return taken
        trials = self.search.space.trials
        if len(known) >= trials or len(self.under_way) >= max(1, trials // AT_A_TIME):
            return None
        asked = self.study.ask()
        if asked.number >= trials:  # another machine was faster
            self.study.tell(asked.number, state=self.states.FAIL)
            return None
        return self._hold(asked)

    def _hold(self, handle: Any) -> Trial | None:
        """The trial, if no other process works on it."""
        held = contextlib.ExitStack()
        folder = inside(self.search.folder, trial_folder(handle.number))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(lock(folder, "a trial"))
        except UsageError:
            return None
        if self.trials[handle.number].state != self.states.RUNNING:  # it has ended since somebody looked
            held.close()
            return None
        trial = Trial(self.search, handle, self._settings(handle), held)
        self.under_way[trial.number] = trial
        return trial

    def _settings(self, handle: Any) -> dict[str, Any]:
        """What a trial tries: as it is written, or chosen now by a generator of its own, so that a search that was
        killed does not begin with the same settings again."""
        seed = int.from_bytes(hashlib.sha256(f"{self.search.name} {handle.number}".encode()).digest()[:4], "big")
        self.study.sampler = self._optuna.samplers.TPESampler(seed=seed)
        settings: dict[str, Any] = {}
        for name, what in self.search.space.of.items():
            if isinstance(what, Choice):
                settings[name] = what.labels[handle.suggest_categorical(name, list(what.labels))]
            elif isinstance(what.low, int) and isinstance(what.high, int):
                settings[name] = handle.suggest_int(name, what.low, what.high, log=what.log)
            else:
                settings[name] = handle.suggest_float(name, what.low, what.high, log=what.log)
        return settings

    def value_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial of Optuna's."""
        space = self.search.space.of
        return {
            name: what.labels[params[name]] if isinstance(what := space[name], Choice) else params[name]
            for name in space
            if name in params
        }

    def importances(self) -> dict[str, float]:
        """Share of each setting in the differences between trials; empty where there are too few."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # that trials do not differ enough, and shares mean nothing
            try:
                found = self._optuna.importance.get_param_importances(self.study)
            except (ValueError, RuntimeError, UserWarning):
                return {}
        return {name: float(share) for name, share in found.items()}

    def close(self) -> None:
        """Leaves what is under way to whoever goes on with it."""
        for trial in self.under_way.values():
            trial.close()


class _Stopped(Callback):
    """Ends a run when the file is there; looks once a second.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.next = path, 0.0

    def on_step(self, training: Training) -> bool:
        if (now := time.monotonic()) < self.next:
            return True
        self.next = now + 1.0
        return not self.path.exists()


def work_on_trial(job: Job) -> Outcome:
    """Trains a run of a trial to its end, or to that of the trial."""
    return work(job, _Stopped(job.folder.parent / STOP))


def evaluations(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """[n] environment step and [n] mean return of each evaluation of a run so far."""
    try:
        found = read_npz(job.folder / "evaluations.npz", ("timesteps", "results"))
        return found["timesteps"], found["results"].astype(np.float64).mean(axis=1)
    except (DamagedError, KeyError, ValueError):
        return np.empty(0), np.empty(0)


def objective(jobs: list[Job]) -> float:
    """Mean over the seeds of the mean of their last `LAST` evaluations; NaN where a run has none."""
    curves = [evaluations(job)[1][-LAST:] for job in jobs]
    return float(np.mean([curve.mean() if len(curve) else math.nan for curve in curves]))


def open_storage(root: Path) -> Any:
    """The journal of the searches in the folder of a sweep.

    Raises:
        UsageError: Optuna is not installed, or what is there is no journal.
    """
    journal = _optuna().storages.journal
    path = inside(root, JOURNAL)
    guard = journal.JournalFileSymlinkLock(str(path))
    try:
        root.mkdir(parents=True, exist_ok=True)
        guard.acquire()
        try:
            _mend(path)
        finally:
            guard.release()
        return _optuna().storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=guard))
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever Optuna cannot read
        raise DamagedError(f"{path} is no journal of a search: {type(error).__name__}: {error}") from error


def _mend(path: Path) -> None:
    """Takes out half a line that a power failure has left at the end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _optuna() -> ModuleType:
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise UsageError("--search needs Optuna; run: python -m pip install 'diffac[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
