"""Folders of checkpoints: writes them, finds them, removes the old ones."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from diffac.data.replay import NumberedReplay
from diffac.errors import RunError, UsageError
from diffac.files import untrusted
from diffac.files.durable import flush_folder, free_path, link_file, write_file
from diffac.files.nests import split
from diffac.files.paths import absolute
from diffac.runs.checkpoints import FORMAT, NAME, VERSION, Checkpoint, digest_of, read_checkpoint
from diffac.runs.replay_files import npy_pieces, segment_name
from diffac.training.snapshot import Snapshot

KEPT = 2
"""Checkpoints of a run that are kept."""


class Store:
    """A folder of checkpoints.

    Args:
        folder: need not exist.
        keep: checkpoints that are kept: the last one written, and of the others those with the most steps.
    """

    def __init__(self, folder: Path | str, keep: int = KEPT) -> None:
        self.folder, self.keep = absolute(folder), keep

    def paths(self) -> list[Path]:
        """All checkpoints, newest first: by their steps, because a clock can go backwards."""
        found = [path for path in self.folder.glob("step_*") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.name, reverse=True)

    def open(self, path: Path, run_id: str | None = None) -> Checkpoint:
        """One of `paths`, as `read_checkpoint` does it, but for those that lead out of the folder."""
        return read_checkpoint(untrusted.inside(self.folder, path.name), run_id)

    def newest(
        self, run_id: str | None = None, check: Callable[[Checkpoint], None] = lambda _: None
    ) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
        """The newest checkpoint that is whole, and those newer than it that are not, with the reason.

        Args:
            run_id: the run that it must belong to; None: any.
            check: refuses a checkpoint by a `RunError` or `UsageError`.
        """
        refused = []
        for path in self.paths():
            try:
                check(found := self.open(path, run_id))
                return found, refused
            except (RunError, UsageError, OSError) as error:
                refused.append((path, str(error)))
        return None, refused

    def best(self) -> Checkpoint | None:
        """The whole checkpoint with the highest mean_reward, of those that have one."""
        whole = []
        for path in self.paths():
            with contextlib.suppress(RunError, UsageError, OSError):
                whole.append(self.open(path))
        evaluated = [checkpoint for checkpoint in whole if "mean_reward" in checkpoint.manifest]
        return max(evaluated, key=lambda checkpoint: checkpoint.manifest["mean_reward"], default=None)

    def set_aside(self, path: Path) -> Path:
        """Renames a checkpoint that was refused, so that it neither counts nor is lost."""
        return path.rename(free_path(path.with_name(f"damaged-{path.name}")))

    def clean(self) -> None:
        """Removes what a process that was killed while it wrote or removed a checkpoint has left."""
        for pattern in ("new-step_*", "old-step_*"):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    untrusted.remove(path)

    def write(
        self,
        info: Mapping[str, Any],
        learner: Mapping[str, np.ndarray],
        snapshot: Snapshot | None = None,
        previous: Checkpoint | None = None,
    ) -> Checkpoint:
        """Writes a checkpoint and removes those that are no longer kept.

        Args:
            info: entries of the manifest, "env_step" among them.
            learner: arrays of the learner's state.
            snapshot: what a run needs besides; None: nothing, the checkpoint holds a policy only.
            previous: the checkpoint of this run before, whose transitions are shared. One of the same step, which
                lacks its evaluation, is replaced.

        Raises:
            RunError: it could not be written. Those there were are as they were.
        """
        final = free_path(self.folder / f"step_{info['env_step']:012d}")
        beside = final.with_name(f"new-{final.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            untrusted.remove(beside)
            beside.mkdir()
            files = {"learner.safetensors": write_file(beside / "learner.safetensors", [_safetensors(learner)])}
            manifest = {"format": FORMAT, "version": VERSION, **info, "files": files}
            if snapshot is not None:
                arrays: dict[str, np.ndarray] = {}
                files["run.json"] = write_file(beside / "run.json", [_json(split(snapshot.host, "", arrays))])
                files["run.safetensors"] = write_file(beside / "run.safetensors", [_safetensors(arrays)])
                manifest["replay"] = _write_replay(beside, snapshot.buffer, files, previous)
            manifest = json.loads(_json(manifest))  # as it will be read
            manifest["sha256"] = digest_of(manifest)
            write_file(beside / "manifest.json", [_json(manifest)])
            flush_folder(beside)
            beside.rename(final)
            flush_folder(self.folder)
            flush_folder(self.folder.parent)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise RunError(
                f"the checkpoint at step {info['env_step']:,} could not be written to {self.folder}: "
                f"{error.strerror or error}"
            ) from error
        del manifest["sha256"]
        others = [path for path in self.paths() if path != final]
        replaced = [previous.folder] if previous is not None and previous.env_step == info["env_step"] else []
        for path in [*replaced, *[path for path in others if path not in replaced][self.keep - 1 :]]:
            _remove(path)
        return Checkpoint(final, manifest)


def _write_replay(
    folder: Path, buffer: NumberedReplay, files: dict[str, Any], previous: Checkpoint | None
) -> dict[str, Any]:
    """Links the files of the checkpoint before that are still needed and writes the rows that are new."""
    oldest = max(0, buffer.added - buffer.capacity)
    segments = []
    for first, end, name in [] if previous is None else previous.manifest["replay"]["segments"]:
        if end > oldest:
            assert previous is not None
            link_file(previous.folder / name, folder / name)
            files[name] = previous.manifest["files"][name]
            segments.append([first, end, name])
    first, end = segments[-1][1] if segments else oldest, buffer.added
    if first < end:
        name = segment_name(first, end)
        files[name] = write_file(folder / name, npy_pieces(buffer, first, end))
        segments.append([first, end, name])
    return {"capacity": buffer.capacity, "added": buffer.added, "segments": segments}


def _safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    return save_safetensors({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _json(value: Any) -> bytes:
    """A JSON file that can be read again."""
    data = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode(errors="replace")
    if len(data) > untrusted.JSON_LIMIT:
        raise OSError(f"its {len(data):,} bytes of JSON are more than the {untrusted.JSON_LIMIT:,} that are read")
    return data


def _remove(folder: Path) -> None:
    """Removes a checkpoint; under another name first, so that a half-removed one is not taken for one."""
    with contextlib.suppress(OSError):
        untrusted.remove(folder.rename(free_path(folder.with_name(f"old-{folder.name}"))))
