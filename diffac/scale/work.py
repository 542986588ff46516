"""One run of a sweep, from its beginning or from its last checkpoint to its end: what an executor calls."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from diffac.data.code_by_name import came_from
from diffac.errors import RunError, UsageError
from diffac.files.untrusted import inside, remove
from diffac.runs.configs import make_config
from diffac.runs.recipes import load_recipe, preset_values
from diffac.runs.resume import resume
from diffac.runs.run import run
from diffac.training.callbacks import Callback
from diffac.training.config import TrainConfig
from diffac.training.nonfinite import DivergenceError

State = Literal["complete", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that a sweep asks for."""

    name: str
    """What tells it from the others, and where its folder lies below that of the sweep: parts separated by slashes."""
    label: str
    """For people: the settings in which the runs differ."""
    recipe: str
    values: Mapping[str, Any]
    """What the file says: `preset`, and fields of the recipe's `Config`."""
    steps: int
    """Environment steps of the run."""
    file: str
    """That asks for it."""
    root: Path
    """Folder of the sweep."""

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.root.joinpath(*self.name.split("/"))

    def load(self) -> tuple[ModuleType, TrainConfig]:
        """The recipe and the configuration.

        Raises:
            UsageError: impossible arguments.
        """
        module = load_recipe(self.recipe)
        config = config_of(module, self.recipe, self.values, f"{self.file}, {self.label}")
        came_from(self.file, config.names)
        return module, dataclasses.replace(config, run_root=str(self.root), progress=False)


def config_of(module: ModuleType, recipe: str, values: Mapping[str, Any], where: str) -> TrainConfig:
    """The configuration that a preset and fields above it make, as `diffac train` would.

    Raises:
        UsageError: a preset or field that does not exist, or values that cannot be.
    """
    fields = dict(values)
    preset = fields.pop("preset", "default")
    if not isinstance(preset, str):
        raise UsageError(f"{where}: preset must be a text, got {preset!r:.200}")
    try:
        base = preset_values(module, recipe, preset, fields.get("env_id"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return make_config(module.Config, {**base, **fields}, where)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an attempt at a run has ended."""

    state: State
    error: str = ""
    """What went wrong, in a sentence."""
    hopeless: bool = False
    """Whether the same would go wrong again."""
    seconds: float = 0.0
    """Of wall time."""
    core_seconds: float = 0.0
    """Of processors, those of the environments' own processes left out."""


def work(job: Job, *callbacks: Callback) -> Outcome:
    """Trains a run of a sweep to its end, or that which a callback makes; goes on from its last checkpoint where it has
    begun already."""
    begin, used = time.perf_counter(), time.process_time()

    def outcome(state: State, error: str = "", hopeless: bool = False) -> Outcome:
        return Outcome(state, error, hopeless, time.perf_counter() - begin, time.process_time() - used)

    try:
        _train(job, callbacks)
    except KeyboardInterrupt:
        return outcome("stopped")
    except (UsageError, DivergenceError) as error:
        return outcome("failed", str(error), hopeless=True)
    except RunError as error:
        return outcome("failed", str(error))
    except Exception as error:
        traceback.print_exc()
        return outcome("failed", f"{type(error).__name__}: {error}")
    return outcome("complete")


def _train(job: Job, callbacks: Sequence[Callback]) -> None:
    if has_begun(job):
        resume(job.folder, load_recipe, *callbacks)
        return
    if job.folder.is_dir():  # a process was killed while it made it
        for name in ("new-config.yaml", "new-manifest.json"):
            remove(job.folder / name)
    module, config = job.load()
    run(module, config, job.recipe, job.folder, *callbacks)


def has_begun(job: Job) -> bool:
    """Whether there is a run to go on with."""
    return (inside(job.root, *job.name.split("/")) / "config.yaml").is_file()
