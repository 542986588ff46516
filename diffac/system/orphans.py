"""Processes that diffac starts end with the one that started them, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def end_with_parent() -> None:
    """Ends this process of `multiprocessing` as soon as the one that started it has ended, be it by `kill -9`.

    The system's parent may be another one (a fork server), so what is watched is the pipe that `multiprocessing` keeps
    open between the two: a thread waits for its end, and where the system can be told to (Linux) it kills this process
    then, because no thread runs while a call in C holds the interpreter's lock.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    pipe = parent.sentinel
    if fcntl is not None and hasattr(fcntl, "F_SETSIG"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():
        os._exit(1)
    threading.Thread(target=_end_after, args=(parent,), name="diffac parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
