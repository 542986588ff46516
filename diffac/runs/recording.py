"""What stands around the training of a run: messages, logs, checkpoints, signals, and errors that say how to go on."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffac.backend import codec_of
from diffac.errors import RunError, UsageError
from diffac.files.untrusted import inside
from diffac.logging import ConsoleWriter, CsvWriter, JsonlWriter, TensorBoardWriter, TrackerWriter, Writer, Writers
from diffac.messages import command, note, say
from diffac.runs.checkpointer import Checkpointer
from diffac.runs.checkpoints import Checkpoint
from diffac.runs.configs import RECIPE
from diffac.runs.engine import chosen, own_callbacks
from diffac.runs.folder import read_manifest
from diffac.runs.logs import save_evaluations
from diffac.runs.manifest import manifest
from diffac.system.signals import Interrupted, StopRequest
from diffac.training.callbacks import Callback, CallbackError, Callbacks
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult
from diffac.training.nonfinite import DivergenceError
from diffac.training.state import Training
from diffac.values import plain, vars_of


class Record:
    """What the training of a run writes to.

    Args:
        writer: for the metrics.
        checkpointer: of the run.
    """

    def __init__(self, writer: Writer, checkpointer: Checkpointer) -> None:
        self.writer, self.checkpointer = writer, checkpointer
        self._begin, self.last_words = time.perf_counter(), [""]

    def beside(self, module: ModuleType, config: TrainConfig, *callbacks: Callback) -> dict[str, Any]:
        """What a run gives to `train` beside the learner: its logs and checkpoints, and what the recipe chooses."""
        callback = Callbacks(_SaveEvaluations(self.checkpointer), *own_callbacks(module, config), *callbacks)
        logs = {"writer": self.writer, "checkpointer": self.checkpointer, "callback": callback}
        return {**logs, **chosen(module, config)}

    def conclude(self, result: TrainResult, config: TrainConfig) -> None:
        """Has the summary of the run printed when all is written."""
        self.last_words = _report(result, config, self.checkpointer, time.perf_counter() - self._begin)


@contextlib.contextmanager
def recorded(
    folder: Path, name: str, engine: Any, config: TrainConfig, checkpoint: Checkpoint | None = None
) -> Iterator[Record]:
    """A context in which a run is trained in its folder, which must be locked; says how it begins and ends.

    Args:
        folder: of the run.
        name: of the recipe.
        engine: runs the learner.
        config: all arguments.
        checkpoint: what the run goes on from; None: it begins.

    Raises:
        Interrupted: somebody wants the end.
        RunError: with what the run can go on from.
    """
    first = 0 if checkpoint is None else checkpoint.env_step
    start = [] if checkpoint is None else [f"from step {first:,} of {config.total_timesteps:,}"]
    say(f"{name} on {config.env_id}, backend {config.backend}, seed {config.seed}", *start, folder)
    with StopRequest() as stop, _logging(folder, name, engine, config, checkpoint, stop) as record:
        yield record
    say(*record.last_words, folder)


@contextlib.contextmanager
def _logging(
    folder: Path, name: str, engine: Any, config: TrainConfig, checkpoint: Checkpoint | None, stop: StopRequest
) -> Iterator[Record]:
    """Closes the logs, and says in every error what the run can go on from."""
    info = {
        "run_id": read_manifest(folder)["run_id"],
        "config": plain({RECIPE: name, **vars_of(config)}),
        "versions": manifest()["versions"],
    }
    console = ConsoleWriter(config.total_timesteps, bar=config.progress)
    writer = Writers(console)
    checkpointer = Checkpointer(
        folder, codec_of(engine, config.backend),
        interval=config.checkpoint_interval, info=info, checkpoint=checkpoint, stop=stop, say=note,
    )  # fmt: skip
    stop.last_words = lambda: _interrupted(folder, checkpointer)
    try:
        first = 0 if checkpoint is None else checkpoint.env_step
        writer = Writers(*_writers(folder, config, first, info), console)
        yield Record(writer, checkpointer)
    except KeyboardInterrupt as error:
        signum = getattr(error, "signum", signal.SIGINT)
        raise Interrupted(signum, _interrupted(folder, checkpointer)) from None
    except DivergenceError as error:
        raise DivergenceError(f"{error}{_last_good(checkpointer)}") from error
    except UsageError:
        raise
    except RunError as error:
        raise RunError(f"{error}{_last(checkpointer)}") from error
    except OSError as error:
        text = f"the run cannot write to {folder}: {error.strerror or error}{_last(checkpointer)}"
        raise RunError(text) from error
    finally:
        with contextlib.suppress(OSError):
            writer.close()


class _SaveEvaluations(Callback):
    """Writes all evaluations after each of them."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.checkpointer = checkpointer

    def on_evaluation(self, training: Training) -> None:
        path = self.checkpointer.folder / "evaluations.npz"
        try:
            self.checkpointer.check_folder()
            save_evaluations(path, training.evaluations)
        except RunError as error:
            raise CallbackError(str(error)) from error
        except OSError as error:
            raise CallbackError(f"the run cannot write to {path}: {error.strerror or error}") from error


def _writers(folder: Path, config: TrainConfig, first: int, info: Mapping[str, Any]) -> list[Writer]:
    """Everything that logs, but for the terminal; what was logged before from step `first` + 1 on does not count."""
    writers: list[Writer] = [
        CsvWriter(folder / "metrics.csv"),
        JsonlWriter(folder / "metrics.jsonl"),
        TensorBoardWriter(folder, first + 1),
    ]
    if config.track is not None:
        inside(folder, config.track)  # where the tracker puts files of its own
        run_id, recipe = info["run_id"], info["config"][RECIPE]
        name = f"{recipe} {config.env_id} seed{config.seed} {run_id[:8]}"
        writers.append(
            TrackerWriter(config.track, run_name=name, run_id=run_id, config=info["config"], folder=folder, say=note)
        )
    return writers


def _interrupted(folder: Path, checkpointer: Checkpointer) -> str:
    """What a run that a signal has ended leaves behind."""
    saved = 0 if checkpointer.checkpoint is None else checkpointer.checkpoint.env_step
    lost = checkpointer.env_step - saved
    unsaved = f"; the {lost:,} steps after {f'step {saved:,}' if saved else 'its start'} were not saved" if lost else ""
    return f"interrupted; what was written until then is in {folder}{_last(checkpointer)}{unsaved}"


def _last(checkpointer: Checkpointer) -> str:
    folder = checkpointer.find_folder()
    if checkpointer.checkpoint is None or folder is None:
        return ""
    resume_it = command("diffac", "resume", folder)
    return f"; go on from step {checkpointer.checkpoint.env_step:,} with: {resume_it}"


def _last_good(checkpointer: Checkpointer) -> str:
    if checkpointer.checkpoint is None:
        return "; there was no checkpoint yet"
    return f"; the last good checkpoint is {checkpointer.checkpoint.folder}, from where it would diverge again"


def _report(result: TrainResult, config: TrainConfig, checkpointer: Checkpointer, seconds: float) -> list[str]:
    """What a run that has ended by itself has come to; a callback may have stopped it, before any evaluation even."""
    lines = []
    if result.evaluations:
        returns = result.evaluations[-1].returns
        lines.append(f"final return {returns.mean():.1f} +- {returns.std():.1f} over {len(returns)} episodes")
    assert checkpointer.checkpoint is not None, "a run ends with a checkpoint"
    done, updates = (checkpointer.checkpoint.entry(name) for name in ("env_step", "updates"))
    minutes, rest = divmod(round(seconds), 60)
    lines.append(f"{done:,} environment steps, {updates:,} updates, {minutes} min {rest} s")
    if done < config.total_timesteps:
        lines.append(f"a callback stopped it before step {config.total_timesteps:,}{_last(checkpointer)}")
    return lines
