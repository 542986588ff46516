"""Processes that diffac starts end with the one that started them, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def end_with_parent() -> None:
    """Ends this process of `multiprocessing` as soon as the one that started it has ended, be it by `kill -9`.

    The system's parent may be another one (a fork server), so what is watched is the pipe that `multiprocessing` keeps
    open between the two.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_with(parent.sentinel, parent.join)


def end_with_standard_input() -> None:
    """Ends this process as soon as the one that started it has, which alone holds the other end of standard input."""
    _end_with(0, lambda: os.read(0, 1))


def _end_with(pipe: int, wait: Callable[[], object]) -> None:
    """Ends this process when a pipe ends.

    A thread waits for that, and where the system can be told to (Linux) it kills this process then, because no thread
    runs while a call in C holds the interpreter's lock.

    Args:
        pipe: its descriptor.
        wait: returns when the pipe has ended.
    """
    if fcntl is not None and hasattr(fcntl, "F_SETSIG"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([pipe], [], [], 0)[0]:  # it has ended before the system was told
        os._exit(1)
    threading.Thread(target=_end_after, args=(wait,), name="diffac parent", daemon=True).start()


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)
