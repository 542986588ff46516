"""The line that a person reads while programs are compiled."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from diffac.messages import note
from diffac.system.signals import children_undisturbed

SILENT = 1.5
"""Seconds that may pass before anything is said: with programs from a cache, or without any, nothing is."""

_speaking = threading.Lock()


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """What is done within compiles programs: if it takes longer than `SILENT`, a line says so.

    Of several threads that wait for their programs only one says it. The processes of a compiler do not get the signals
    that the terminal sends to the whole group, so that they do not die of a Ctrl-C that the run survives.

    Args:
        what: is compiled, such as "the update".
    """
    speaks = _speaking.acquire(blocking=False)
    text = f"compiling {what}; about a minute the first time on this machine, cached afterwards"
    timer = threading.Timer(SILENT, note, [text])
    timer.daemon = True
    if speaks:
        timer.start()
    try:
        with children_undisturbed():
            yield
    finally:
        timer.cancel()
        if speaks:
            _speaking.release()
