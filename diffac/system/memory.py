"""What the C library does with memory that a program frees."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""
_DEFAULT_MMAP_MAX = 65_536

_keeps = False


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, on Linux with glibc; does nothing elsewhere.

    Every update frees and takes the same tens of megabytes again. By default large blocks go back to the system each
    time, and each page of them costs a fault when it is next touched. This holds for the main thread; in others glibc
    keeps no block above 64 MB. The price is that memory used once stays with the process.
    """
    global _keeps
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        _keeps = True


@contextlib.contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Within it large blocks go back to the system all the same.

    For work that takes large blocks once, with many small ones that stay in between: on the heap those would leave
    holes that no later block fits, gigabytes of them.
    """
    if not _keeps:
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, 0)
