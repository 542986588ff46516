"""What the C library does with memory that a program frees."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, on Linux with glibc; does nothing elsewhere.

    Every update frees and takes the same tens of megabytes again. By default large blocks go back to the system each
    time, and each page of them costs a fault when it is next touched. This holds for the main thread; in others glibc
    keeps no block above 64 MB. The price is that memory used once stays with the process.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
