"""What has become of the runs of a sweep, one line for each attempt: what is written there, a killed driver knows."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from diffac.errors import DamagedError
from diffac.files.untrusted import append, inside, parse_json, read_bytes
from diffac.messages import note
from diffac.scale.work import Job, Outcome

NAME = "journal.jsonl"


class Entry(NamedTuple):
    """All attempts at a run."""

    state: str = ""
    """Of the last one; empty: there was none."""
    error: str = ""
    attempts: int = 0
    seconds: float = 0.0
    """Of all together."""
    core_seconds: float = 0.0


class Journal:
    """The attempts at the runs of a sweep; nothing is written before the first is added.

    Args:
        root: folder of the sweep.
    """

    def __init__(self, root: Path) -> None:
        self.path = inside(root, NAME)
        self.entries: dict[str, Entry] = {}
        """Name of a run -> what is known."""
        data = read_bytes(self.path) if self.path.exists() else b""
        for line in _lines(data, self.path):
            self._take(line)
        self._file: IO[str] | None = None
        self._ends_in_half_a_line = bool(data) and not data.endswith(b"\n")

    def _take(self, line: Any) -> None:
        name, state, error = (str(line[key]) for key in ("run", "state", "error"))
        seconds, core_seconds = (float(line[key]) for key in ("seconds", "core_seconds"))
        before = self[name]
        self.entries[name] = Entry(
            state, error, before.attempts + 1, before.seconds + seconds, before.core_seconds + core_seconds
        )

    def __getitem__(self, name: str) -> Entry:
        return self.entries.get(name, Entry())

    def add(self, job: Job, outcome: Outcome) -> None:
        """Writes down how an attempt has ended; it is on the disk when this returns."""
        line = {
            "run": job.name,
            "state": outcome.state,
            "error": outcome.error,
            "seconds": round(outcome.seconds, 3),
            "core_seconds": round(outcome.core_seconds, 3),
            "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        if self._file is None:
            self._file = append(self.path)
            self._file.write("\n" if self._ends_in_half_a_line else "")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._take(line)

    def is_complete(self, job: Job) -> bool:
        """Whether the run has come to its end, and its folder is still there."""
        return self[job.name].state == "complete" and (job.folder / "manifest.json").is_file()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _lines(data: bytes, path: Path) -> Iterable[Any]:
    """The entries; a crash may have left half of one."""
    for number, line in enumerate(data.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line, where)
            if not isinstance(entry, dict) or {"run", "state", "error", "seconds", "core_seconds"} - entry.keys():
                raise DamagedError(f"{where} is no entry")
            sum(float(entry[name]) for name in ("seconds", "core_seconds"))
        except (DamagedError, TypeError, ValueError) as error:
            note(f"{error}; it is passed over, and its run looked at again")
            continue
        yield entry
