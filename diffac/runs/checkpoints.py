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

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffac.backend import Codec
from diffac.data.replay import NumberedReplay
from diffac.errors import DamagedError, UsageError
from diffac.files import checks, untrusted
from diffac.files.nests import joined
from diffac.files.paths import absolute
from diffac.protocols import Transition
from diffac.runs.configs import RECIPE
from diffac.runs.replay_files import is_segment, row_type_of, rows_at_once, segment_name, transitions_of
from diffac.training.nonfinite import nonfinite_arrays

FORMAT = "diffac checkpoint"
VERSION = 1
NAME = re.compile(r"step_(\d{12,16})(-\d+)?")
FILES = ("learner.safetensors", "run.json", "run.safetensors")
"""Files of a checkpoint beside its manifest and its transitions."""
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")


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
            is_count = own.dtype.kind in "iu" and not own.shape
            if given.dtype.kind != own.dtype.kind or (is_count and (given < 0).any()):
                expected = f"{own.dtype}" + (" from 0 on" if is_count else "")
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
            host = joined(untrusted.read_json(path), arrays)
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
        for _ in self._transitions(capacity, row_type_of(rows)):
            pass

    def restore_replay(self, buffer: NumberedReplay) -> None:
        """Fills the replay memory, piece by piece: no second copy of it is made.

        Raises:
            DamagedError: the stored transitions are of another size, or the memory has another capacity.
        """
        chunks = self._transitions(buffer.capacity, row_type_of(buffer.chunk(0, 0)))
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
        oldest, size = max(0, replay["added"] - capacity), rows_at_once(row_type, capacity)
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
                    yield transitions_of(rows, f"{path}: transitions from number {start} on")


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
    if digest != digest_of(manifest):
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
        if name not in FILES and not is_segment(name):
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
        if name != segment_name(first, end) or name not in files:
            raise DamagedError(f"{where}: transitions {first} to {end - 1} cannot be in {checks.shown(name)}")
    begin = replay["segments"][0][0] if replay["segments"] else added
    if begin > max(0, added - capacity) or (last is not None and last != added):
        raise DamagedError(f"{where}: the segments do not hold the last of {added} transitions")


def digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
