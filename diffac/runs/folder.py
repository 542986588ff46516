"""The folder of a run: what was asked for, on which machine with which versions, and what came out."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffac.errors import DamagedError, UsageError
from diffac.files import checks
from diffac.files.paths import absolute
from diffac.files.untrusted import inside, open_lock, read_json, remove, write_atomically
from diffac.messages import note
from diffac.runs.checkpoints import RUN_ID
from diffac.runs.configs import config_yaml
from diffac.runs.manifest import manifest, manifest_json
from diffac.training.config import TrainConfig

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


def create_run(
    config: TrainConfig,
    recipe_name: str,
    command: Sequence[str] | None = None,
    *,
    recipe_file: str | None = None,
    root: Path | None = None,
    folder: Path | None = None,
) -> Path:
    """Makes `{run_root}/{env_id}/{recipe}/{backend}/seed{N}__{time}/` with `config.yaml` and `manifest.json`.

    Args:
        config: all arguments of the run.
        recipe_name: the recipe, which `config.yaml` names too.
        command: what was typed, for the manifest; None: this process' arguments.
        recipe_file: the recipe's file where it is run as a script, for the manifest; None: it is not.
        root: what `config.run_root` meant when the program began; None: what it means now.
        folder: to make instead, or to use where it is there; it holds no run.

    Returns:
        The folder, from the root on; a number is added to its name where one of that name exists.

    Raises:
        UsageError: the folder cannot be made.
    """
    root = root or absolute(config.run_root)
    parent = root.joinpath(*map(file_name, (config.env_id, recipe_name, config.backend)))
    name = f"seed{config.seed}__{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    about = manifest(command) | {"run_id": uuid.uuid4().hex, "recipe_file": recipe_file}
    try:
        if folder is None:
            folder = _new_folder(parent, name)
        else:
            parent = folder.parent
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", config_yaml(config, recipe_name))
        write_atomically(folder / "manifest.json", manifest_json(about))
    except OSError as error:
        raise UsageError(
            f"cannot make the folder of the run in {parent}: {error.strerror or error}; choose another --run-root"
        ) from error
    return folder


def _new_folder(parent: Path, name: str) -> Path:
    """Makes a folder of that name, with a number behind it where there is one."""
    parent.mkdir(parents=True, exist_ok=True)
    folder, number = parent / name, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = parent / f"{name}_{number}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run: "run_id", "recipe_file" (or None), "resumed" and what `manifest` says.

    Raises:
        UsageError: the folder holds no run.
        DamagedError: the manifest is not what diffac writes.
    """
    path = inside(folder, "manifest.json")
    if not path.exists():
        raise UsageError(
            f"{folder} is not the folder of a run: it needs the manifest.json that `diffac train` writes there"
        )
    found = {"recipe_file": None, "resumed": []} | checks.mapping(read_json(path), str(path), "run_id")
    if not isinstance(found["run_id"], str) or not RUN_ID.fullmatch(found["run_id"]):
        raise DamagedError(f"{path}: run_id must be letters and digits, got {checks.shown(found['run_id'])}")
    if found["recipe_file"] is not None:
        checks.text(found["recipe_file"], f"{path}: recipe_file")
    checks.items(found["resumed"], f"{path}: resumed")
    return found


def finish_folder(folder: Path) -> None:
    """Recognises a folder whose process was killed while it made it: the manifest is written, and the run can begin.

    Raises:
        UsageError: not even the configuration was written; what there is has been removed.
    """
    if not folder.is_dir() or os.path.lexists(folder / "manifest.json"):
        return
    left = {path.name for path in folder.iterdir()}
    if not left <= {"config.yaml", "new-config.yaml", "new-manifest.json"}:
        return
    for name in left - {"config.yaml"}:
        remove(folder / name)
    if "config.yaml" in left:
        write_atomically(folder / "manifest.json", manifest_json(manifest() | {"run_id": uuid.uuid4().hex}))
        note(f"{folder} was left before its run began; it begins now")
    elif left:
        folder.rmdir()
        raise UsageError(f"{folder} was left before its configuration was written; it is removed, train anew")


def note_resume(folder: Path, backend: str, env_step: int) -> None:
    """Adds to the manifest of a run that this process goes on with it."""
    about, now = read_manifest(folder), manifest()
    entry = {"env_step": env_step, "backend": backend} | {
        name: now[name] for name in ("started", "command", "versions")
    }
    about["resumed"] = [*about["resumed"], entry]
    write_atomically(folder / "manifest.json", manifest_json(about))


@contextlib.contextmanager
def lock(folder: Path, what: str = "a run") -> Iterator[None]:
    """Keeps other processes out of a folder. The system releases the lock when the process ends, however it ends.

    Args:
        folder: exists.
        what: it holds, for messages.

    Raises:
        UsageError: another process has it, or the folder cannot be written to.
    """
    path = folder / "lock"
    try:
        file = open_lock(path)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise UsageError(f"{folder} is in use by {holder}; {what} belongs to one process at a time") from None
            except OSError:  # a file system without locks
                pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def file_name(text: str) -> str:
    """The text with everything replaced that a file name had better not contain."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
