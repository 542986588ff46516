"""Finds what may be runs below a folder, whatever else lies there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffac.messages import printable

PAGE = "report.html"
"""Name of a report's page; what belongs to it is not searched for runs."""
PARTS_OF_A_REPORT = {"data", "pictures"}
NOT_SEARCHED = {"checkpoints", "best", "videos"}
EVALUATIONS, CONFIG, MANIFEST, METRICS = "evaluations.npz", "config.yaml", "manifest.json", "metrics.csv"
SEARCH = "search.json"
"""Of a search for the best settings."""
RUN = {CONFIG, MANIFEST}
"""Files of every run of diffac. Its `evaluations/` is not searched: what is there was played after the training."""
DEPTH = 32
"""Levels of folders that are searched."""
LONGEST_REASON = 300


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that looked like a run and is not used."""

    source: str
    reason: str

    @classmethod
    def because(cls, source: Path | str, error: Exception) -> Skipped:
        """What an error says, without the place if it is named there again."""
        text = str(error).replace(f"{source}{os.sep}", "").removeprefix(f"{source} ").removeprefix(f"{source}: ")
        return cls(str(source), printable(text or type(error).__name__, LONGEST_REASON))


class Folder(NamedTuple):
    """What may be runs in a folder."""

    path: Path
    names: list[str]
    """Of everything in it that is no folder, or has the name of a file that is read; sorted."""


def search(root: Path) -> Iterator[Folder | Skipped]:
    """All folders from `root` down, and what cannot be looked into. Symbolic links are not followed."""
    waiting = [(root, 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(str(path), f"the folder cannot be searched: {error.strerror or error}")
            continue
        all_names = {entry.name for entry in entries}
        unwanted = NOT_SEARCHED | (PARTS_OF_A_REPORT if PAGE in all_names else set())
        unwanted |= {"evaluations"} if all_names >= RUN else set()
        names, folders = [], []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in unwanted:
                continue
            if entry.is_symlink():
                if is_read(entry.name) or _is_folder_or_lost(entry):
                    yield Skipped(entry.path, "a symbolic link, which is not followed; give what it points to instead")
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
                if entry.name in (EVALUATIONS, *RUN):
                    names.append(entry.name)
            else:
                names.append(entry.name)
        yield Folder(path, names)
        if depth < DEPTH:
            waiting += [(folder, depth + 1) for folder in reversed(folders)]
        else:
            for folder in folders:
                yield Skipped(str(folder), f"not searched: more than {DEPTH} folders deep")


def is_read(name: str) -> bool:
    """Whether files of that name are looked into."""
    return name in (EVALUATIONS, *RUN) or name.endswith(".csv")


def _is_folder_or_lost(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir() or not os.path.exists(link.path)
    except OSError:  # a circle
        return True
