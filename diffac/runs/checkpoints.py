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

A checkpoint is written beside its place, flushed to the disk and renamed: whatever has its name is complete. It may
also come from a stranger: nothing in it is taken for what it should be before it was looked at (docs/use/security.md).
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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from diffac.backend import Codec
from diffac.data.replay import NumberedReplay
from diffac.errors import DamagedError, RunError, UsageError
from diffac.files import checks, untrusted
from diffac.files.paths import Place, absolute
from diffac.messages import note
from diffac.protocols import Transition
from diffac.runs.configs import RECIPE
from diffac.system.signals import Stop, undisturbed
from diffac.training.nonfinite import diverged, nonfinite_arrays
from diffac.training.snapshot import Snapshot

FORMAT = "diffac checkpoint"
VERSION = 1
KEPT = 2
"""Checkpoints of a run that are kept."""
CHUNK = 2**23
"""Bytes that are read or written at once."""
NAME = re.compile(r"step_(\d{12,16})(-\d+)?")
FILES = ("learner.safetensors", "run.json", "run.safetensors")
"""Files of a checkpoint beside its manifest and its transitions."""
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
FIELDS = Transition._fields
METRICS = ("metrics.csv", "metrics.jsonl")
NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without hard links answer."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums are right, as `read_checkpoint` returns it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def env_step(self) -> int:
        """Environment steps done."""
        return self.manifest["env_step"]

    def entry(self, name: str) -> Any:
        """An entry of the manifest that `Store.write` leaves to its caller.

        Raises:
            DamagedError: it is missing.
        """
        return checks.mapping(self.manifest, f"{self.folder / 'manifest.json'}", name)[name]

    @property
    def config(self) -> tuple[str, dict[str, Any]]:
        """The recipe's name, and all arguments as they were written: what `make_config` checks.

        Raises:
            DamagedError: they are missing.
        """
        where = f"{self.folder / 'manifest.json'}: config"
        values = dict(checks.mapping(self.entry("config"), where, RECIPE))
        return checks.text(values.pop(RECIPE), f"{where}: {RECIPE}"), values

    def learner_arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the learner's state, for the backend's `from_arrays`.

        Raises:
            DamagedError: it holds none, or one of them is not finite.
        """
        path = self._file("learner.safetensors")
        arrays = untrusted.read_safetensors(path)
        if bad := nonfinite_arrays(arrays):
            raise DamagedError(f"{path} holds numbers that are not finite: {', '.join(map(checks.shown, bad[:3]))}")
        return arrays

    def learner_state(self, codec: Codec, state: Any) -> Any:
        """The learner's state with the arrays of the checkpoint in place of its own; that one may be consumed.

        Raises:
            UsageError: the arrays do not fit the learner.
        """
        arrays, path = self.learner_arrays(), self.folder / "learner.safetensors"
        for name, own in codec.to_arrays(state).items():
            given = arrays.get(name)
            if given is None:  # the codec says it better, with all the others
                continue
            if given.dtype.kind != own.dtype.kind or (given.dtype.kind in "iu" and (given < 0).any()):
                expected = f"{own.dtype}" + (" from 0 on" if own.dtype.kind in "iu" else "")
                raise DamagedError(f"{path}: {name} must hold {expected}, got {given.dtype} {checks.shown(given)}")
        try:
            return codec.from_arrays(state, arrays)
        except UsageError:
            raise
        except Exception as error:  # a codec of somebody else
            raise DamagedError(f"{path} does not fit the learner: {type(error).__name__}: {error}") from error

    def host(self) -> dict[str, Any]:
        """What `Snapshot.host` was; `diffac.training.snapshot` tells whether a run can go on from it.

        Raises:
            DamagedError: the files hold no such nest.
        """
        path = self._file("run.json")
        arrays = untrusted.read_safetensors(self._file("run.safetensors"))
        try:
            host = _join(untrusted.read_json(path), arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path} does not belong to run.safetensors: {checks.shown(str(error))}") from error
        where = f"{self.folder}, run.json"
        host = checks.mapping(host, where)
        for name in {"env_step", "updates"} & host.keys():
            if checks.whole(host[name], f"{where}: {name}") != self.entry(name):
                raise DamagedError(f"{where}: {name} is {host[name]}, but {self.entry(name)} in manifest.json")
        return host

    def check_replay(self, capacity: int, obs_dim: int, action_dim: int) -> None:
        """Looks at all transitions.

        Args:
            capacity: of the replay memory.
            obs_dim: entries of an observation.
            action_dim: entries of an action.

        Raises:
            DamagedError: there are others than a run with such a replay memory has.
        """
        obs, reward = np.zeros((0, obs_dim), np.float32), np.zeros(0, np.float32)
        rows = Transition(obs, np.zeros((0, action_dim), np.float32), reward, obs, np.zeros(0, bool), np.zeros(0, bool))
        for _ in self._transitions(capacity, _row_type(rows)):
            pass

    def restore_replay(self, buffer: NumberedReplay) -> None:
        """Fills the replay memory, piece by piece: no second copy of it is made.

        Raises:
            DamagedError: the stored transitions are of another size, or the memory has another capacity.
        """
        chunks = self._transitions(buffer.capacity, _row_type(buffer.chunk(0, 0)))
        buffer.restore(max(0, self.entry("replay")["added"] - buffer.capacity), chunks)

    def _file(self, name: str) -> Path:
        """The path of one of the files that the manifest names."""
        if name not in self.manifest["files"]:
            raise DamagedError(f"{self.folder} lacks {name}: a run cannot go on from it")
        return untrusted.inside(self.folder, name)

    def _transitions(self, capacity: int, row_type: np.dtype) -> Iterator[Transition]:
        """The last `capacity` transitions, in pieces."""
        replay = self.entry("replay")
        if replay["capacity"] != capacity:
            raise DamagedError(f"{self.folder} belongs to a replay memory of {replay['capacity']} transitions")
        oldest, size = max(0, replay["added"] - capacity), _chunk_rows(row_type, capacity)
        for first, end, name in replay["segments"]:
            path = self._file(name)
            with untrusted.open_regular(path) as file:
                try:
                    shape, dtype = untrusted.npy_header(file, os.fstat(file.fileno()).st_size)
                except ValueError as error:
                    raise DamagedError(f"{path} holds no transitions: {error}") from error
                if dtype != row_type:
                    raise DamagedError(f"{path} holds transitions of another environment")
                if shape != (end - first,):
                    raise DamagedError(f"{path} holds other transitions than number {first} to {end - 1}")
                skipped = max(0, oldest - first)
                file.seek(skipped * row_type.itemsize, os.SEEK_CUR)
                for start in range(first + skipped, end, size):
                    rows = np.frombuffer(file.read(min(size, end - start) * row_type.itemsize), row_type)
                    yield _transition(rows, f"{path}: transitions from number {start} on")


def read_checkpoint(folder: Path | str, run_id: str | None = None) -> Checkpoint:
    """Opens a checkpoint and verifies all of its files.

    Args:
        folder: `.../checkpoints/step_{env_step}`.
        run_id: the run that it must belong to; None: any.

    Raises:
        UsageError: there is no checkpoint.
        DamagedError: it is truncated, altered, of another run, or of a newer diffac.
    """
    folder = absolute(folder)
    path = untrusted.inside(folder, "manifest.json")
    if not path.exists():
        raise UsageError(f"{folder} is no checkpoint: it has no manifest.json")
    damaged = f"checkpoint {folder} is damaged: "
    try:
        manifest = untrusted.read_json(path)
        digest = manifest.pop("sha256")
        if manifest["format"] != FORMAT:
            raise KeyError
    except (ValueError, KeyError, TypeError, AttributeError):  # DamagedError is a ValueError
        raise DamagedError(f"{damaged}manifest.json is not what diffac writes") from None
    if checks.whole(manifest.get("version"), f"{path}: version", 1) > VERSION:
        raise DamagedError(f"checkpoint {folder} was written by a newer diffac; upgrade diffac to read it")
    if digest != _digest(manifest):
        raise DamagedError(f"{damaged}manifest.json was altered")
    _check_manifest(manifest, str(path))
    if (name := NAME.fullmatch(folder.name)) and int(name[1]) != manifest["env_step"]:
        raise DamagedError(f"checkpoint {folder} is damaged: its manifest.json is of step {manifest['env_step']}")
    if run_id is not None and manifest["run_id"] != run_id:
        raise DamagedError(f"checkpoint {folder} belongs to another run ({manifest['run_id']})")
    for name, entry in manifest["files"].items():
        file = untrusted.inside(folder, name)
        if not file.exists():
            raise DamagedError(f"{damaged}{name} is missing")
        with untrusted.open_regular(file) as opened:
            if (size := os.fstat(opened.fileno()).st_size) != entry["size"]:
                raise DamagedError(f"{damaged}{name} has {size} bytes, not {entry['size']}")
            content: Any = opened
            if hashlib.file_digest(content, "sha256").hexdigest() != entry["sha256"]:
                raise DamagedError(f"{damaged}{name} was altered")
    return Checkpoint(folder, manifest)


def _check_manifest(manifest: dict[str, Any], where: str) -> None:
    """Refuses a manifest that another program than diffac has signed: everything that is in it is what it must be."""
    checks.mapping(manifest, where, "run_id", "env_step", "updates", "files")
    if not isinstance(manifest["run_id"], str) or not RUN_ID.fullmatch(manifest["run_id"]):
        raise DamagedError(f"{where}: run_id must be letters and digits, got {checks.shown(manifest['run_id'])}")
    for name in ("env_step", "updates"):
        checks.whole(manifest[name], f"{where}: {name}")
    for name, entry in checks.mapping(manifest["files"], f"{where}: files", "learner.safetensors").items():
        if name not in FILES and not _is_segment(name):
            raise DamagedError(f"{where}: no file of a checkpoint is called {checks.shown(name)}")
        entry = checks.mapping(entry, f"{where}: {name}", "size", "sha256")
        checks.whole(entry["size"], f"{where}: size of {name}")
        if not isinstance(entry["sha256"], str) or not SHA256.fullmatch(entry["sha256"]):
            raise DamagedError(f"{where}: sha256 of {name} must be 64 digits, got {checks.shown(entry['sha256'])}")
    if "mean_reward" in manifest:
        checks.number(manifest["mean_reward"], f"{where}: mean_reward")
    if "environments" in manifest:
        checks.text(manifest["environments"], f"{where}: environments")
    if manifest.get("recipe_file") is not None:
        checks.text(manifest["recipe_file"], f"{where}: recipe_file")
    if "config" in manifest:
        checks.mapping(manifest["config"], f"{where}: config")
    if "versions" in manifest:
        for package, version in checks.mapping(manifest["versions"], f"{where}: versions").items():
            checks.text(package, f"{where}: a name in versions")
            checks.text(version, f"{where}: version of {package}")
    if "replay" in manifest:
        _check_replay(manifest["replay"], manifest["files"], f"{where}: replay")


def _check_replay(replay: Any, files: Mapping[str, Any], where: str) -> None:
    """Refuses segments that are not, one after the other, all that a replay memory holds."""
    checks.mapping(replay, where, "capacity", "added", "segments")
    capacity = checks.whole(replay["capacity"], f"{where}: capacity", 1)
    added = checks.whole(replay["added"], f"{where}: added")
    last = None
    for segment in checks.items(replay["segments"], f"{where}: segments"):
        first, end, name = checks.items(segment, f"{where}: a segment", 3)
        least, most = (0, added) if last is None else (last, last)
        checks.whole(first, f"{where}: beginning of a segment", least, most)
        last = checks.whole(end, f"{where}: end of a segment", first + 1, added)
        if name != _segment(first, end) or name not in files:
            raise DamagedError(f"{where}: transitions {first} to {end - 1} cannot be in {checks.shown(name)}")
    begin = replay["segments"][0][0] if replay["segments"] else added
    if begin > max(0, added - capacity) or (last is not None and last != added):
        raise DamagedError(f"{where}: the segments do not hold the last of {added} transitions")


def _segment(first: int, end: int) -> str:
    """Name of the file with transitions number first to end - 1."""
    return f"replay_{first:012d}_{end:012d}.npy"


def _is_segment(name: str) -> bool:
    return re.fullmatch(r"replay_\d{12,16}_\d{12,16}\.npy", name) is not None


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
        return path.rename(_free(path.with_name(f"damaged-{path.name}")))

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
        final = _free(self.folder / f"step_{info['env_step']:012d}")
        beside = final.with_name(f"new-{final.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            untrusted.remove(beside)
            beside.mkdir()
            files = {"learner.safetensors": _write(beside / "learner.safetensors", [_safetensors(learner)])}
            manifest = {"format": FORMAT, "version": VERSION, **info, "files": files}
            if snapshot is not None:
                arrays: dict[str, np.ndarray] = {}
                files["run.json"] = _write(beside / "run.json", [_json(_split(snapshot.host, "", arrays))])
                files["run.safetensors"] = _write(beside / "run.safetensors", [_safetensors(arrays)])
                manifest["replay"] = _write_replay(beside, snapshot.buffer, files, previous)
            manifest = json.loads(_json(manifest))  # as it will be read
            manifest["sha256"] = _digest(manifest)
            _write(beside / "manifest.json", [_json(manifest)])
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
        self.folder, self.codec, self.interval = absolute(folder), codec, interval
        self.info, self.checkpoint, self.stop, self.say = dict(info), checkpoint, stop, say
        self.store = Store(untrusted.inside(self.folder, "checkpoints"))
        self.best_store = Store(untrusted.inside(self.folder, "best"), keep=1)
        best = self.best_store.best()
        self._best = -math.inf if best is None else best.manifest["mean_reward"]
        self.env_step = 0 if checkpoint is None else checkpoint.env_step
        """Environment steps done when it was last asked whether a checkpoint is due."""
        self._place = Place(self.folder) if self.folder.is_dir() else None
        self._looked = -math.inf

    def find_folder(self) -> Path | None:
        """Where the folder of the run lies now, also if somebody has renamed it; None where that is not known."""
        return self.folder if self._place is None else self._place.find()

    def check_folder(self) -> None:
        """Refuses to write to a folder that is not the one the run began in; makes it where the run has none yet.

        Raises:
            RunError: it was renamed, replaced or deleted.
        """
        if self._place is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._place = Place(self.folder)
            except OSError as error:
                raise RunError(f"the run cannot write to {self.folder}: {error.strerror or error}") from error
        if not self._place.is_there:
            now = self._place.find()
            what = "deleted or replaced" if now is None else f"renamed to {now}"
            raise RunError(f"the folder of the run, {self.folder}, was {what} meanwhile; nothing more is written")

    def restore(self, state: Any, buffer: NumberedReplay) -> tuple[Any, dict[str, Any] | None]:
        """The learner's state and `Snapshot.host` to go on from, and fills the buffer; (state, None) at the beginning.

        Raises:
            UsageError: the arrays do not fit the learner.
        """
        if self.checkpoint is None:
            return state, None
        self.checkpoint.restore_replay(buffer)
        return self.checkpoint.learner_state(self.codec, state), self.checkpoint.host()

    def due(self, before: int, env_step: int, last: bool) -> bool:
        """Whether the run is to be saved now.

        Args:
            before: environment steps before the last step.
            env_step: environment steps after it.
            last: whether the run ends here.

        Raises:
            RunError: the folder is gone, which is looked at once a second.
        """
        self.env_step = env_step
        if (now := time.monotonic()) > self._looked + 1:
            self._looked = now
            self.check_folder()
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
        self.check_folder()
        env_step = snapshot.host["env_step"]
        for name in METRICS:  # a checkpoint vouches for the lines up to its step
            with contextlib.suppress(OSError, DamagedError), untrusted.open_regular(self.folder / name) as file:
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
        """Keeps the policy where it is the best so far.

        Raises:
            RunError: it could not be written.
        """
        self.check_folder()
        if self._best < mean_reward < math.inf:
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
        name = _segment(first, end)
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


def _transition(rows: np.ndarray, where: str) -> Transition:
    """Records as columns.

    Raises:
        DamagedError: a number is not finite, or a bool neither true nor false.
    """
    columns = {name: rows[name] for name in FIELDS}
    for name, values in columns.items():
        good = values.view(np.uint8) <= 1 if values.dtype == bool else np.isfinite(values)
        if not good.all():
            raise DamagedError(f"{where}: {name} holds what is no number")
    return Transition(**columns)


def _chunk_rows(row_type: np.dtype, most: int) -> int:
    return max(1, min(most, CHUNK // row_type.itemsize))


def _safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    return save_safetensors({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _json(value: Any) -> bytes:
    """A JSON file that can be read again."""
    data = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode(errors="replace")
    if len(data) > untrusted.JSON_LIMIT:
        raise OSError(f"its {len(data):,} bytes of JSON are more than the {untrusted.JSON_LIMIT:,} that are read")
    return data


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


def _join(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_split`, but for tuples, which become lists. Takes the arrays: each has one place.

    Raises:
        KeyError, TypeError, ValueError: the arrays are others.
    """
    if isinstance(node, list):
        return [_join(value, arrays) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {"__array__"}:
        return arrays.pop(node["__array__"])
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
        untrusted.remove(folder.rename(_free(folder.with_name(f"old-{folder.name}"))))


def _free(path: Path) -> Path:
    """The path, with a number where it exists."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
