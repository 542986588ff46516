"""The current folder, which environments may change."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator


class OwnFolder:
    """Where an environment works: what it changes about the current folder lasts while it is at work, and no longer.

    A path that is given afterwards then means what it would have meant before. Of environments in other threads than
    the main one nothing is known: the current folder is one for all threads.
    """

    def __init__(self) -> None:
        self._folder: str | None = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The current folder is that of the environment within, and afterwards the one that it was before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outside = _current()
        _change(self._folder)
        try:
            yield
        finally:
            self._folder = _current()
            _change(outside)


def _current() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _change(folder: str | None) -> None:
    with contextlib.suppress(OSError):
        if folder is not None:
            os.chdir(folder)
