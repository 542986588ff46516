"""What signals do before anything is loaded, and after everything is done: they end the process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Any

ONE_OF_SEVERAL = "DIFFAC_ONE_OF_SEVERAL"
"""In the environment of a process that trains one of several seeds (`diffac.scale.seeds`)."""


def leave_at_once() -> None:
    """Has Ctrl-C, SIGTERM and SIGHUP end the process, wherever it is, while no `StopRequest` is entered.

    That is while modules are imported, which takes seconds, and at its very end: there is nothing to save then, and an
    exception in the middle of an import is taken by some libraries for something else. Ignored signals stay so. One
    process of several seeds ends with the one that has started it, too.
    """
    if os.environ.pop(ONE_OF_SEVERAL, None):
        from diffac.system.orphans import end_with_standard_input

        end_with_standard_input()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)


def _leave(signum: int, frame: Any) -> None:
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:  # else the terminal takes nothing now
            os.write(2, b"\ninterrupted\n")
    os._exit(128 + signum)
