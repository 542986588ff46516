"""Finds what was saved: the checkpoint that a folder means, and where it came from."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from diffac.errors import DamagedError, RunError, UsageError
from diffac.files.paths import absolute
from diffac.files.untrusted import inside
from diffac.messages import command, quoted
from diffac.runs.checkpoints import Checkpoint, read_checkpoint
from diffac.runs.folder import read_manifest
from diffac.runs.store import Store


def warn(text: str) -> None:
    """Tells a caller what does not stop it."""
    warnings.warn(text, stacklevel=2)


def find_checkpoint(
    folder: Path | str, which: Literal["best", "last"] | None = None, say: Callable[[str], None] = warn
) -> Checkpoint:
    """The checkpoint that a folder means.

    Args:
        folder: of a run, of checkpoints, of `Agent.save`, or a checkpoint.
        which: of a run: the best policy or the last checkpoint; None: the best, or the last where there is no best.
        say: told about damaged checkpoints that were passed over.

    Raises:
        UsageError: there is none.
        DamagedError: there are only damaged ones.
    """
    folder = absolute(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give that of a run (runs/.../seed0__...) or of a saved agent")
    if os.path.lexists(folder / "learner.safetensors"):
        return read_checkpoint(folder)
    names = {None: ("best", "checkpoints"), "best": ("best",), "last": ("checkpoints",)}[which]
    is_run = os.path.lexists(folder / "config.yaml")
    damaged = []
    for store in [Store(inside(folder, name)) for name in names] if is_run else [Store(folder)]:
        found, refused = store.newest()
        damaged += [reason for _, reason in refused]
        if found is not None:
            for reason in damaged:
                say(f"{reason}; {found.folder} is used instead")
            return (store.best() or found) if "mean_reward" in found.manifest else found
    if damaged:
        raise DamagedError(damaged[0])
    if not is_run:
        raise UsageError(f"{folder} holds neither a run nor a saved agent nor a checkpoint")
    if which == "best" and Store(folder / "checkpoints").paths():
        raise UsageError(
            f"{folder} has no best policy, because no evaluation has taken place; take the last checkpoint"
        )
    raise UsageError(
        f"{folder} has no checkpoint yet; the first is written after eval_interval or checkpoint_interval steps"
    )


def trained_by(checkpoint: Checkpoint) -> str | None:
    """The file of the recipe, where it cannot be found by its name."""
    if "recipe_file" in checkpoint.manifest:
        return checkpoint.manifest["recipe_file"]
    with contextlib.suppress(UsageError):
        return read_manifest(checkpoint.folder.parent.parent)["recipe_file"]
    return None


def refuse_run(folder: Path) -> None:
    """Keeps `Agent.save` from removing a run's checkpoints."""
    is_part = folder.name in ("best", "checkpoints") and (folder.parent / "config.yaml").exists()
    if is_part or any((folder / name).exists() for name in ("config.yaml", "learner.safetensors")):
        raise UsageError(f"{folder} belongs to a run or is a checkpoint; save the agent to a folder of its own")


def refuse_script(folder: Path, *arguments: str) -> None:
    """Refuses to take the recipe that is installed under a name for the script that made the run."""
    with contextlib.suppress(UsageError):
        if script := read_manifest(folder)["recipe_file"]:
            raise RunError(
                f"{folder} was trained by a script, {quoted(script)} according to its manifest.json; run that script "
                f"yourself, if you trust it, with the arguments: {command(*arguments)}"
            )
