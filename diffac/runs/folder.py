"""The folder of a run: what was asked for, on which machine with which versions, and what came out."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffac.errors import DamagedError, UsageError
from diffac.files import checks
from diffac.files.paths import absolute
from diffac.files.untrusted import inside, open_lock, read_bytes, read_json, remove, write_atomically
from diffac.logging.files import csv_row
from diffac.messages import note
from diffac.runs.checkpoints import RUN_ID
from diffac.runs.configs import config_yaml
from diffac.system.versions import installed_versions
from diffac.training.config import TrainConfig
from diffac.training.evaluation import EvaluationRecord

EVALUATED = "eval/mean_reward"
"""What every line of an evaluation has."""

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

PACKAGES = ("diffac", "numpy", "gymnasium", "mujoco", "torch", "jax", "jaxlib", "equinox", "optax")
"""Packages whose versions a manifest holds, where they are installed."""


def create_run(
    config: TrainConfig,
    recipe_name: str,
    command: Sequence[str] | None = None,
    *,
    recipe_file: str | None = None,
    root: Path | None = None,
) -> Path:
    """Makes `{run_root}/{env_id}/{recipe}/{backend}/seed{N}__{time}/` with `config.yaml` and `manifest.json`.

    Args:
        config: all arguments of the run.
        recipe_name: the recipe, which `config.yaml` names too.
        command: what was typed, for the manifest; None: this process' arguments.
        recipe_file: the recipe's file where it is run as a script, for the manifest; None: it is not.
        root: what `config.run_root` meant when the program began; None: what it means now.

    Returns:
        The folder, from the root on; a number is added to its name where one of that name exists.

    Raises:
        UsageError: the folder cannot be made.
    """
    root = root or absolute(config.run_root)
    parent = root.joinpath(*map(_file_name, (config.env_id, recipe_name, config.backend)))
    name = f"seed{config.seed}__{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder, number = parent / name, 1
    about = manifest(command) | {"run_id": uuid.uuid4().hex, "recipe_file": recipe_file}
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
                folder = parent / f"{name}_{number}"
        write_atomically(folder / "config.yaml", config_yaml(config, recipe_name))
        write_atomically(folder / "manifest.json", _json(about))
    except OSError as error:
        raise UsageError(
            f"cannot make the folder of the run in {parent}: {error.strerror or error}; choose another --run-root"
        ) from error
    return folder


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
        write_atomically(folder / "manifest.json", _json(manifest() | {"run_id": uuid.uuid4().hex}))
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
    write_atomically(folder / "manifest.json", _json(about))


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run. The system releases the lock when the process ends, however it ends.

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
                raise UsageError(f"{folder} is in use by {holder}; a run belongs to one process at a time") from None
            except OSError:  # a file system without locks
                pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def rewind(folder: Path, env_step: int, evaluations: Sequence[EvaluationRecord]) -> None:
    """Takes out of a run what was logged after a step, because it is about to happen again.

    Lines of `metrics.csv` and `metrics.jsonl` with a greater step go, a line that was not finished, and that of an
    evaluation which the step is still to get; `evaluations.npz` is written anew.

    Raises:
        DamagedError: one of the first two is no file.
    """
    evaluated = bool(evaluations) and evaluations[-1].env_step == env_step

    def stays(line: Mapping[str, Any]) -> bool:
        if not math.isfinite(step := float(line["step"])):
            raise ValueError(step)
        return step < env_step or (step == env_step and (evaluated or not line.get(EVALUATED)))

    _rewind(inside(folder, "metrics.jsonl"), lambda line, _: stays(json.loads(line)))
    _rewind(inside(folder, "metrics.csv"), lambda line, first: stays(_csv_line(line, first)), has_header=True)
    if evaluations:
        save_evaluations(folder / "evaluations.npz", evaluations)
    else:
        (folder / "evaluations.npz").unlink(missing_ok=True)


def _rewind(path: Path, stays: Callable[[str, str], bool], has_header: bool = False) -> None:
    """Keeps some lines of a log.

    What is no line of it (a power failure leaves NUL bytes) is left out; where such a thing stands, the file as it was
    is kept beside it.

    Args:
        path: of the log; need not exist.
        stays: whether a line does, given it and the first one; raises an error for what is no line.
        has_header: whether the first line is no entry.
    """
    if not path.exists():
        return
    data = read_bytes(path)
    lines = [line.decode(errors="replace") for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]]
    kept, damaged = [], False
    for number, line in enumerate(lines):
        try:
            if has_header and number == 0:
                kept.append(_header(line))
            elif stays(line, lines[0]):
                kept.append(f"{line}\n")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, StopIteration, csv.Error):
            damaged = True
    if damaged:
        aside = path.with_name(f"damaged-{path.name}")
        write_atomically(aside, data)
        note(f"{path} held lines that are none of its own; as it was, it is now {aside}")
    write_atomically(path, "".join(kept).encode())


def _header(line: str) -> str:
    """The first line of a table: names, without what a spreadsheet would calculate."""
    if "step" not in (names := next(csv.reader([line]))):
        raise ValueError(line)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(csv_row(names))
    return text.getvalue()


def _csv_line(line: str, first: str) -> dict[str, str]:
    """A line of numbers in a table, by the names in its first one."""
    cells = next(csv.reader([line]))
    for cell in filter(None, cells):
        float(cell)
    return dict(zip(next(csv.reader([first])), cells, strict=False))


def manifest(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, machine and command of this process. Imports none of the packages whose versions it states."""
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "python": platform.python_version(),
        "versions": installed_versions(*PACKAGES),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "git_revision": git_revision(Path(__file__).parents[2]),
    }


def git_revision(folder: Path) -> str | None:
    """The revision of a source folder, with "-dirty" after changes; None where it is no git repository."""
    if not (folder / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def save_evaluations(path: Path, evaluations: Sequence[EvaluationRecord]) -> None:
    """Writes all evaluations, under the names of Stable-Baselines3's `EvalCallback` plus `updates`.

    `timesteps` [n], `updates` [n], `results` [n, episodes], `ep_lengths` [n, episodes]. Nobody sees half a file.
    """
    content = io.BytesIO()
    np.savez(
        content,
        timesteps=np.array([record.env_step for record in evaluations]),
        updates=np.array([record.updates for record in evaluations]),
        results=np.array([record.returns for record in evaluations]),
        ep_lengths=np.array([record.lengths for record in evaluations]),
    )
    write_atomically(path, content.getvalue())


def _json(value: Any) -> bytes:
    """Bytes of a path that are no text become question marks, as what is no text is not read."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="replace")


def _file_name(text: str) -> str:
    """The text with everything replaced that a file name had better not contain."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
