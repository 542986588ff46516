"""A run from its first step to its end."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from diffac.files.paths import absolute
from diffac.runs.engine import build
from diffac.runs.folder import create_run, lock
from diffac.runs.recipes import script_of
from diffac.runs.recording import recorded
from diffac.training.callbacks import Callback
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult, train


def run(
    module: ModuleType, config: TrainConfig, name: str, folder: Path | None = None, *callbacks: Callback
) -> TrainResult:
    """Trains what a recipe builds, writes the folder of the run and prints a summary.

    Nothing is written before environment, backend and networks stand.

    Args:
        module: the recipe.
        config: all arguments.
        name: of the recipe.
        folder: of the run; None: a new one, as `create_run` names it.
        callbacks: beside the recipe's own.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after a checkpoint was written if the step under way came to its end.
    """
    root = absolute(config.run_root)
    engine, state, _ = build(module, config)
    folder = create_run(config, name, recipe_file=script_of(module), root=root, folder=folder)
    with lock(folder), recorded(folder, name, engine, config) as record:
        result = train(engine, state, config, **record.beside(module, config, *callbacks))
        record.conclude(result, config)
    return result
