"""One run from its first step or its last checkpoint to its end: folder, lock, writers, checkpoints, messages."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffac.backend import codec_of
from diffac.data.code_by_name import came_from
from diffac.data.environments import close, dims, make_envs
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.files.untrusted import inside, write_atomically
from diffac.logging import ConsoleWriter, CsvWriter, JsonlWriter, TensorBoardWriter, TrackerWriter, Writer, Writers
from diffac.logging.trackers import load_tracker
from diffac.messages import command, note, quoted, say
from diffac.runs.checkpoints import Checkpoint, Checkpointer, Store
from diffac.runs.configs import RECIPE, config_yaml, make_config, read_config
from diffac.runs.engine import configure_for, start_engine
from diffac.runs.folder import (
    create_run,
    finish_folder,
    lock_run,
    manifest,
    note_resume,
    read_manifest,
    rewind,
    save_evaluations,
)
from diffac.system.signals import Interrupted, StopRequest
from diffac.training.callbacks import Callback, CallbackError
from diffac.training.config import TrainConfig
from diffac.training.evaluation import records
from diffac.training.loop import TrainResult, train
from diffac.training.nonfinite import DivergenceError
from diffac.training.snapshot import check_host
from diffac.training.state import Training
from diffac.values import plain, vars_of

FREE = {
    "backend", "device", "asynchronous", "progress", "replay_on_device", "run_root", "checkpoint_interval",
    "step_timeout", "track",
}  # fmt: skip
"""What may be changed in `config.yaml` before a run is resumed; anything else would make another run of it."""


def run(module: ModuleType, config: TrainConfig, name: str) -> TrainResult:
    """Trains what a recipe builds, writes the folder of the run and prints a summary.

    Nothing is written before environment, backend and networks stand.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after a checkpoint was written if the step under way came to its end.
    """
    root = absolute(config.run_root)
    engine, state, _ = build(module, config)
    folder = create_run(config, name, recipe_file=script_of(module), root=root)
    with lock_run(folder):
        return _train_in(folder, name, engine, state, config, None)


def resume(
    folder: Path | str, find_recipe: Callable[[str], ModuleType], *, backend: str | None = None
) -> TrainResult | None:
    """Goes on with a run from its last whole checkpoint, or from the start where none was written yet.

    On the same machine with the same backend and versions, the run becomes what it would have become without the stop,
    bit for bit, where the environments can be saved (docs/use/runs.md).

    Args:
        folder: of the run; may have been moved.
        find_recipe: the recipe's module for its name, as `config.yaml` says it.
        backend: goes on in this backend, from the same weights and optimiser states; None: that of `config.yaml`.

    Returns:
        As `train`; None where the run is complete.

    Raises:
        UsageError: no run, one that another process works on, a `config.yaml` that was changed, or no whole checkpoint.
        Interrupted: as for `run`.
    """
    folder = absolute(folder)
    finish_folder(folder)
    about = read_manifest(folder)
    with lock_run(folder):
        name, values = read_config(inside(folder, "config.yaml"))
        module = find_recipe(name)
        config = make_config(module.Config, values, str(folder / "config.yaml"))
        came_from(str(folder / "config.yaml"), config.names)
        if backend is not None:
            config = dataclasses.replace(config, backend=backend)
        store, best = (Store(inside(folder, kept)) for kept in ("checkpoints", "best"))
        for kept in (store, best):
            kept.clean()

        sizes: tuple[int, int] | None = None
        engine = state = None

        def check(found: Checkpoint) -> None:
            """Refuses what the run cannot go on from; of learner and replay memory as soon as their sizes are known."""
            _check_same(module, config, found, folder)
            obs_dim = None if sizes is None else sizes[0]
            check_host(found.host(), f"{found.folder}, run.json", num_envs=config.num_envs, obs_dim=obs_dim)
            if sizes is not None:
                found.check_replay(config.buffer_size, *sizes)
                found.learner_state(codec_of(engine, config.backend), state)

        checkpoint, refused = store.newest(about["run_id"], check)
        complete = (
            checkpoint is not None
            and checkpoint.env_step >= config.total_timesteps
            and not checkpoint.host()["evaluation_due"]
        )
        if not complete and (checkpoint is not None or not refused):
            engine, state, sizes = build(module, config)
            checkpoint, refused = store.newest(about["run_id"], check)
        for reason in dict.fromkeys(reason for _, reason in refused):
            note(reason)
        if checkpoint is None and refused:
            raise UsageError(f"none of the {len(refused)} checkpoints of {folder} is whole; the reasons are above")
        if complete:
            say(f"the run is complete: {config.total_timesteps:,} environment steps", folder)
            return None

        env_step, evaluations = 0, []
        if checkpoint is not None:
            env_step = checkpoint.env_step
            evaluations = records(checkpoint.host())
            _tell_differences(config, checkpoint)
        try:
            for path, _ in refused:
                note(f"the damaged checkpoint is now {store.set_aside(path)}")
            rewind(folder, env_step, evaluations)
            note_resume(folder, config.backend, env_step)
            if backend is not None:
                write_atomically(folder / "config.yaml", config_yaml(config, name))
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
        return _train_in(folder, name, engine, state, config, checkpoint)


def build(module: ModuleType, config: TrainConfig) -> tuple[Any, Any, tuple[int, int]]:
    """The engine and the learner's first state, for the environments' dimensions; and these, (obs_dim, action_dim)."""
    importlib.import_module("tensorboardX")  # imports torch, which must come before jax
    if config.track is not None:
        load_tracker(config.track)
    probe = make_envs(config.env_id, 1, **config.env_arguments)
    try:
        sizes = dims(probe)
    finally:
        close(probe)
    configure_for(config)
    return *start_engine(module, config, *sizes), sizes


def _train_in(
    folder: Path, name: str, engine: Any, state: Any, config: TrainConfig, checkpoint: Checkpoint | None
) -> TrainResult:
    """Trains in the folder of a run, which must be locked, and says how it goes."""
    first = 0 if checkpoint is None else checkpoint.env_step
    start = [] if checkpoint is None else [f"from step {first:,} of {config.total_timesteps:,}"]
    say(f"{name} on {config.env_id}, backend {config.backend}, seed {config.seed}", *start, folder)
    begin = time.perf_counter()
    with StopRequest() as stop:
        result = _train_until_stopped(folder, name, engine, state, config, checkpoint, stop)
    say(*_report(result, time.perf_counter() - begin), folder)
    return result


def _train_until_stopped(
    folder: Path,
    name: str,
    engine: Any,
    state: Any,
    config: TrainConfig,
    checkpoint: Checkpoint | None,
    stop: StopRequest,
) -> TrainResult:
    """Raises `Interrupted` where somebody wants the end, and errors with what the run can go on from."""
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
        return train(
            engine, state, config,
            writer=writer, checkpointer=checkpointer, callback=_SaveEvaluations(checkpointer),
        )  # fmt: skip
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


def _check_same(module: ModuleType, config: TrainConfig, checkpoint: Checkpoint, folder: Path) -> None:
    """Refuses a `config.yaml` that was changed."""
    _, saved = checkpoint.config
    before, now = vars_of(make_config(module.Config, saved, str(checkpoint.folder))), vars_of(config)
    for key, value in now.items():
        if key not in FREE and before[key] != value:
            raise UsageError(
                f"{folder / 'config.yaml'} says {key}: {value!r}, but the run was trained with {before[key]!r}; put "
                f"it back, or begin another run with: diffac train --config"
            )


def _tell_differences(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Says what makes the rest of the run differ, if only in the last bits."""
    before = checkpoint.config[1].get("backend", config.backend)
    if before != config.backend:
        note(f"the run goes on in {config.backend} from the weights and optimiser states of {before}")
    installed = manifest()["versions"]
    for package, version in checkpoint.entry("versions").items():
        if installed.get(package, version) != version:
            note(f"{package} was {quoted(version)} and is {installed[package]}: the run may differ in the last bits")


def script_of(module: ModuleType) -> str | None:
    """The file of a recipe that is run as a script."""
    return str(Path(str(module.__file__)).resolve()) if module.__name__ == "__main__" else None


def refuse_script(folder: Path, *arguments: str) -> None:
    """Refuses to take the recipe that is installed under a name for the script that made the run."""
    with contextlib.suppress(UsageError):
        if script := read_manifest(folder)["recipe_file"]:
            raise RunError(
                f"{folder} was trained by a script, {quoted(script)} according to its manifest.json; run that script "
                f"yourself, if you trust it, with the arguments: {command(*arguments)}"
            )


def _report(result: TrainResult, seconds: float) -> list[str]:
    last = result.evaluations[-1]
    minutes, rest = divmod(round(seconds), 60)
    return [
        f"final return {last.returns.mean():.1f} +- {last.returns.std():.1f} over {len(last.returns)} episodes",
        f"{last.env_step:,} environment steps, {last.updates:,} updates, {minutes} min {rest} s",
    ]
