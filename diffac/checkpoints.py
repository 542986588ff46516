"""Checkpoints: everything a run needs to go on, in one directory without a pickle.

A checkpoint is `step_{env_step}/` with

* `manifest.json`: format, run, step, configuration, versions, what the environments do on resume, and for each file its
  size and SHA-256; last of all its own SHA-256,
* `learner.safetensors`: parameters, slow copies, optimiser states, by the names of the backend's `to_arrays`,
* `run.json` and `run.safetensors`: counters, random states, environments, statistics of the running interval,
* `replay_{first}_{end}.npy`: transitions number first to end - 1 of the run.

The replay memory is a ring, but the rows added in a run have numbers, and a checkpoint stores rows, not the ring: it
writes those that are new since the checkpoint before and shares the files of the others with it by hard links. A file
is never changed after it was written, so two checkpoints cannot spoil one another, and the file system frees a file
when the last checkpoint that needs it goes.

A checkpoint is written beside its place, flushed to the disk and renamed: whatever has its name is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from diffac.backend import get_backend
from diffac.divergence import diverged, nonfinite_arrays
from diffac.errors import RunError, UsageError
from diffac.messages import note
from diffac.protocols import Transition
from diffac.replay import NumberedReplay
from diffac.signals import Stop, undisturbed

FORMAT = "diffac checkpoint"
VERSION = 1
KEPT = 2
"""Checkpoints of a run that are kept."""
CHUNK = 2**23
"""Bytes that are read or written at once."""
NAME = re.compile(r"step_\d{12}(-\d+)?")
FIELDS = Transition._fields[:5]
NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without hard links answer."""


class Codec(Protocol):
    """Turns a learner's state into named arrays and back; a backend is one, and a learner can be one itself."""

    def to_arrays(self, state: Any, /) -> Mapping[str, np.ndarray]:
        """All arrays of a state, copied to the host."""
        ...

    def from_arrays(self, state: Any, arrays: Mapping[str, np.ndarray], /) -> Any:
        """The state with these arrays in place of its own."""
        ...


def codec_of(learner: Any, backend: str) -> Codec:
    """The learner itself where it is a `Codec`, else its backend."""
    return learner if hasattr(learner, "to_arrays") else get_backend(backend)


class Snapshot(NamedTuple):
    """A run between two steps."""

    state: Any
    """The learner's."""
    buffer: NumberedReplay
    host: dict[str, Any]
    """The rest: a nest of dictionaries, lists, numbers, texts and NumPy arrays."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums are right, as `read_checkpoint` returns it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def env_step(self) -> int:
        """Environment steps done."""
        return self.manifest["env_step"]

    def learner_arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the learner's state, for the backend's `from_arrays`."""
        return load_safetensors((self.folder / "learner.safetensors").read_bytes())

    def host(self) -> dict[str, Any]:
        """What `Snapshot.host` was."""
        arrays = load_safetensors((self.folder / "run.safetensors").read_bytes())
        return _join(json.loads((self.folder / "run.json").read_text()), arrays)

    def restore_replay(self, buffer: NumberedReplay) -> None:
        """Fills the replay memory, by way of memory maps: no second copy of it is made.

        Raises:
            RunError: the stored transitions are of another size, or the memory has another capacity.
        """
        replay = self.manifest["replay"]
        expected = _row_type(buffer.chunk(0, 0))
        if replay["capacity"] != buffer.capacity:
            raise RunError(f"{self.folder} belongs to a replay memory of {replay['capacity']} transitions")
        oldest = max(0, replay["added"] - buffer.capacity)

        def chunks() -> Iterator[Transition]:
            for first, _, name in replay["segments"]:
                try:
                    rows = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
                except ValueError as error:
                    raise RunError(f"{self.folder / name} holds no transitions: {error}") from error
                if rows.dtype != expected:
                    raise RunError(f"{self.folder / name} holds transitions of another environment")
                size = _chunk_rows(expected, buffer.capacity)
                for start in range(max(0, oldest - first), len(rows), size):
                    chunk = rows[start : start + size]
                    yield Transition(*(chunk[name] for name in FIELDS))

        buffer.restore(oldest, chunks())


def read_checkpoint(folder: Path | str, run_id: str | None = None) -> Checkpoint:
    """Opens a checkpoint and verifies all of its files.

    Args:
        folder: `.../checkpoints/step_{env_step}`.
        run_id: the run that it must belong to; None: any.

    Raises:
        UsageError: there is no checkpoint.
        RunError: it is truncated, altered, of another run, or of a newer diffac.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{folder} is no checkpoint: it has no manifest.json")
    try:
        manifest = json.loads(path.read_text())
        digest = manifest.pop("sha256")
        if manifest["format"] != FORMAT:
            raise KeyError
        if manifest["version"] > VERSION:
            raise RunError(f"checkpoint {folder} was written by a newer diffac; upgrade diffac to read it")
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"checkpoint {folder} is damaged: manifest.json is not what diffac writes") from None
    if digest != _digest(manifest):
        raise RunError(f"checkpoint {folder} is damaged: manifest.json was altered")
    if run_id is not None and manifest["run_id"] != run_id:
        raise RunError(f"checkpoint {folder} belongs to another run ({manifest['run_id']})")
    for name, (size, sha256) in files.items():
        file = folder / name
        if not file.is_file():
            raise RunError(f"checkpoint {folder} is damaged: {name} is missing")
        if file.stat().st_size != size:
            raise RunError(f"checkpoint {folder} is damaged: {name} has {file.stat().st_size} bytes, not {size}")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                raise RunError(f"checkpoint {folder} is damaged: {name} was altered")
    return Checkpoint(folder, manifest)


class Store:
    """A folder of checkpoints.

    Args:
        folder: need not exist.
        keep: checkpoints that are kept: the last one written, and of the others those with the most steps.
    """

    def __init__(self, folder: Path | str, keep: int = KEPT) -> None:
        self.folder, self.keep = Path(folder), keep

    def paths(self) -> list[Path]:
        """All checkpoints, newest first: by their steps, because a clock can go backwards."""
        found = [path for path in self.folder.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: path.name, reverse=True)

    def newest(self, run_id: str | None = None) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
        """The newest checkpoint that is whole, and those newer than it that are not, with the reason."""
        refused = []
        for path in self.paths():
            try:
                return read_checkpoint(path, run_id), refused
            except (RunError, UsageError, OSError) as error:
                refused.append((path, str(error)))
        return None, refused

    def best(self) -> Checkpoint | None:
        """The whole checkpoint with the highest mean_reward."""
        whole = []
        for path in self.paths():
            with contextlib.suppress(RunError, UsageError, OSError):
                whole.append(read_checkpoint(path))
        return max(whole, key=lambda checkpoint: checkpoint.manifest.get("mean_reward", -math.inf), default=None)

    def set_aside(self, path: Path) -> Path:
        """Renames a checkpoint that was refused, so that it neither counts nor is lost."""
        return path.rename(_free(path.with_name(f"damaged-{path.name}")))

    def clean(self) -> None:
        """Removes what a process that was killed while it wrote or removed a checkpoint has left."""
        for pattern in ("new-step_*", "old-step_*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

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
        final = _free(self.folder / f"step_{info['env_step']:012d}")
        beside = final.with_name(f"new-{final.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            files = {"learner.safetensors": _write(beside / "learner.safetensors", [_safetensors(learner)])}
            manifest = {"format": FORMAT, "version": VERSION, **info, "files": files}
            if snapshot is not None:
                arrays: dict[str, np.ndarray] = {}
                text = json.dumps(_split(snapshot.host, "", arrays), indent=1, allow_nan=False)
                files["run.json"] = _write(beside / "run.json", [text.encode()])
                files["run.safetensors"] = _write(beside / "run.safetensors", [_safetensors(arrays)])
                manifest["replay"] = _write_replay(beside, snapshot.buffer, files, previous)
            manifest["sha256"] = _digest(manifest)
            _write(beside / "manifest.json", [json.dumps(manifest, indent=1).encode()])
            _flush_folder(beside)
            beside.rename(final)
            _flush_folder(self.folder)
            _flush_folder(self.folder.parent)
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


class Checkpointer:
    """Keeps a run on disk: `checkpoints/` to go on from, `best/` with the policy of the best evaluation.

    Args:
        folder: of the run.
        codec: of the learner's state.
        interval: environment steps between two checkpoints; there is one at the end too.
        info: entries of every manifest, "run_id" among them.
        checkpoint: what the run goes on from; None: it begins.
        stop: whether somebody wants the run to end; looked at after every save.
        say: told what a person should know.
    """

    def __init__(
        self,
        folder: Path | str,
        codec: Codec,
        *,
        interval: int,
        info: Mapping[str, Any],
        checkpoint: Checkpoint | None = None,
        stop: Stop | None = None,
        say: Callable[[str], None] = note,
    ) -> None:
        self.folder, self.codec, self.interval = Path(folder), codec, interval
        self.info, self.checkpoint, self.stop, self.say = dict(info), checkpoint, stop, say
        self.store, self.best_store = Store(self.folder / "checkpoints"), Store(self.folder / "best", keep=1)
        best = self.best_store.best()
        self._best = -math.inf if best is None else best.manifest["mean_reward"]
        self.env_step = 0 if checkpoint is None else checkpoint.env_step
        """Environment steps done when it was last asked whether a checkpoint is due."""

    def restore(self, state: Any, buffer: NumberedReplay) -> tuple[Any, dict[str, Any] | None]:
        """The learner's state and `Snapshot.host` to go on from, and fills the buffer; (state, None) at the beginning.

        Raises:
            UsageError: the arrays do not fit the learner.
        """
        if self.checkpoint is None:
            return state, None
        self.checkpoint.restore_replay(buffer)
        return self.codec.from_arrays(state, self.checkpoint.learner_arrays()), self.checkpoint.host()

    def due(self, before: int, env_step: int, last: bool) -> bool:
        """Whether the run is to be saved now.

        Args:
            before: environment steps before the last step.
            env_step: environment steps after it.
            last: whether the run ends here.
        """
        self.env_step = env_step
        return last or env_step // self.interval > before // self.interval

    def is_at(self, env_step: int) -> bool:
        """Whether the last checkpoint is of that step."""
        return self.checkpoint is not None and self.checkpoint.env_step == env_step

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint.

        Raises:
            DivergenceError: a number of the learner is NaN or infinite; nothing is written.
            RunError: it could not be written.
            KeyboardInterrupt: it was, and somebody wants the run to stop.
        """
        env_step = snapshot.host["env_step"]
        for path in self.folder.glob("metrics.*"):  # a checkpoint vouches for the lines up to its step
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.fsync(file.fileno())
        restart = snapshot.host["environments"]["restart"]
        info = self.info | {
            "env_step": env_step,
            "updates": snapshot.host["updates"],
            "environments": "saved" if restart is None else f"restart: {restart}",
        }
        arrays = self._arrays(snapshot.state, env_step)
        try:
            with undisturbed():
                self.checkpoint = self.store.write(info, arrays, snapshot, self.checkpoint)
        except RunError as error:
            before = self.checkpoint
            rest = "there is none before it" if before is None else f"that of step {before.env_step:,} is whole"
            raise RunError(f"{error}; {rest}") from error
        if self.stop is not None:
            self.stop.raise_if_requested()

    def after_evaluation(self, env_step: int, updates: int, mean_reward: float, state: Any) -> None:
        """Keeps the policy where it is the best so far."""
        if mean_reward > self._best:
            info = self.info | {"env_step": env_step, "updates": updates, "mean_reward": mean_reward}
            arrays = self._arrays(state, env_step)
            with undisturbed():
                self.best_store.write(info, arrays)
            self._best = mean_reward

    def _arrays(self, state: Any, env_step: int) -> Mapping[str, np.ndarray]:
        """The arrays of a learner's state, if it is worth keeping."""
        arrays = self.codec.to_arrays(state)
        if nonfinite_arrays(arrays):
            raise diverged(f"found when a checkpoint was due at environment step {env_step:,}", arrays)
        return arrays


def _write_replay(
    folder: Path, buffer: NumberedReplay, files: dict[str, Any], previous: Checkpoint | None
) -> dict[str, Any]:
    """Links the files of the checkpoint before that are still needed and writes the rows that are new."""
    oldest = max(0, buffer.added - buffer.capacity)
    segments = []
    for first, end, name in [] if previous is None else previous.manifest["replay"]["segments"]:
        if end > oldest:
            assert previous is not None
            _link(previous.folder / name, folder / name)
            files[name] = previous.manifest["files"][name]
            segments.append([first, end, name])
    first, end = segments[-1][1] if segments else oldest, buffer.added
    if first < end:
        name = f"replay_{first:012d}_{end:012d}.npy"
        files[name] = _write(folder / name, _npy(buffer, first, end))
        segments.append([first, end, name])
    return {"capacity": buffer.capacity, "added": buffer.added, "segments": segments}


def _npy(buffer: NumberedReplay, first: int, end: int) -> Iterator[Any]:
    """Rows as a file in NumPy's format, piece by piece.

    Not through a memory map: on a full disk, writing to one kills the process.
    """
    row_type = _row_type(buffer.chunk(0, 0))
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(row_type), "fortran_order": False, "shape": (end - first,)}
    np.lib.format.write_array_header_1_0(header, described)
    yield header.getvalue()
    size = _chunk_rows(row_type, end - first)
    while first < end:
        rows = buffer.chunk(first, min(end, first + size))
        chunk = np.empty(len(rows.reward), row_type)
        for name in FIELDS:
            chunk[name] = getattr(rows, name)
        yield chunk.view(np.uint8)
        first += len(chunk)


def _row_type(rows: Transition) -> np.dtype:
    """One transition as a record."""
    return np.dtype([(name, getattr(rows, name).dtype, getattr(rows, name).shape[1:]) for name in FIELDS])


def _chunk_rows(row_type: np.dtype, most: int) -> int:
    return max(1, min(most, CHUNK // row_type.itemsize))


def _safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    return save_safetensors({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _split(node: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """A nest for JSON; its arrays go into `arrays`, under their paths."""
    if isinstance(node, np.ndarray):
        arrays[path] = node
        return {"__array__": path}
    if isinstance(node, Mapping):
        return {name: _split(value, f"{path}/{name}", arrays) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_split(value, f"{path}/{i}", arrays) for i, value in enumerate(node)]
    if isinstance(node, float) and not math.isfinite(node):
        return {"__float__": repr(float(node))}
    return node


def _join(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `_split`, but for tuples, which become lists."""
    if isinstance(node, list):
        return [_join(value, arrays) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {"__array__"}:
        return arrays[node["__array__"]]
    if node.keys() == {"__float__"}:
        return float(node["__float__"])
    return {name: _join(value, arrays) for name, value in node.items()}


def _write(path: Path, pieces: Iterable[Any]) -> dict[str, Any]:
    """Writes a file to the disk, not only to the system's memory; its size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with source.open("rb") as file:
            _write(target, iter(lambda: file.read(CHUNK), b""))


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Removes a checkpoint; under another name first, so that a half-removed one is not taken for one."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(_free(folder.with_name(f"old-{folder.name}"))))


def _free(path: Path) -> Path:
    """The path, with a number where it exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
