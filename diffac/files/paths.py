"""Paths that people give, and folders that somebody may rename meanwhile."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from diffac.errors import UsageError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path that somebody has typed, with the home folder that `~` or `~user` at its beginning means.

    Raises:
        UsageError: there is no such user, and no file or folder of that name.
    """
    text = os.path.expanduser(path)
    if text.startswith("~") and not os.path.lexists(first := Path(text).parts[0]):
        raise UsageError(f"{text}: there is no user {first[1:]!r} with a home folder, nor a folder {first!r}")
    return Path(text)


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path that somebody has typed, `expanded` and from the root on, so that it stays right wherever one goes.

    Raises:
        UsageError: as for `expanded`, or there is no current folder any more.
    """
    try:
        return expanded(path).absolute()
    except OSError as error:
        raise UsageError(f"{path}: the current folder does not exist any more; change to another one") from error


class Place:
    """A folder that somebody may rename, replace or delete while a run writes to it.

    Args:
        folder: exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None
        if os.name != "nt":  # there, a folder in use cannot be renamed
            # While it is open, no other folder gets its number, whatever becomes of it.
            self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            weakref.finalize(self, os.close, self._handle)

    @property
    def is_there(self) -> bool:
        """Whether the folder still is where it was."""
        try:
            now = os.stat(self.folder)
        except OSError:
            return False
        return self._handle is None or os.path.samestat(now, os.fstat(self._handle))

    def find(self) -> Path | None:
        """Where the folder lies now; None where it was deleted, or the system does not say (only Linux does)."""
        if self.is_there:
            return self.folder
        try:
            found = Path(os.readlink(f"/proc/self/fd/{self._handle}"))
            return found if os.path.samestat(os.stat(found), os.fstat(self._handle or 0)) else None
        except OSError:
            return None
