"""A run from its last checkpoint to its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffac.backend import codec_of
from diffac.data.code_by_name import came_from
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.files.untrusted import inside, write_atomically
from diffac.messages import note, quoted, say
from diffac.runs.checkpoints import Checkpoint
from diffac.runs.configs import config_yaml, make_config, read_config
from diffac.runs.engine import build
from diffac.runs.folder import finish_folder, lock, note_resume, read_manifest
from diffac.runs.logs import rewind
from diffac.runs.manifest import manifest
from diffac.runs.recording import recorded
from diffac.runs.store import Store
from diffac.training.callbacks import Callback
from diffac.training.config import TrainConfig
from diffac.training.evaluation import records
from diffac.training.loop import TrainResult, train
from diffac.training.snapshot import check_host
from diffac.values import vars_of

FREE = {
    "backend", "device", "asynchronous", "progress", "replay_on_device", "run_root", "checkpoint_interval",
    "step_timeout", "track",
}  # fmt: skip
"""What may be changed in `config.yaml` before a run is resumed; anything else would make another run of it."""


def resume(
    folder: Path | str, find_recipe: Callable[[str], ModuleType], *callbacks: Callback, backend: str | None = None
) -> TrainResult | None:
    """Goes on with a run from its last whole checkpoint, or from the start where none was written yet.

    On the same machine with the same backend and versions, the run becomes what it would have become without the stop,
    bit for bit, where the environments can be saved (docs/use/runs.md).

    Args:
        folder: of the run; may have been moved.
        find_recipe: the recipe's module for its name, as `config.yaml` says it.
        callbacks: beside the recipe's own.
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
    with lock(folder):
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
        engine: Any = None
        state: Any = None

        def check(found: Checkpoint) -> None:
            """Refuses what the run cannot go on from; of learner and replay memory as soon as their sizes are known."""
            _check_same(module, config, found, folder)
            obs_dim = None if sizes is None else sizes[0]
            check_host(
                found.host(),
                f"{found.folder}, run.json",
                num_envs=config.num_envs,
                obs_dim=obs_dim,
                normalise_obs=config.normalise_obs,
            )
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
        with recorded(folder, name, engine, config, checkpoint) as record:
            result = train(engine, state, config, **record.beside(module, config, *callbacks))
            record.conclude(result, config)
        return result


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
