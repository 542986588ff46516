"""What the C library does with memory that a program frees."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's `mallopt`."""
_LARGE, _MOST = 128 * 1024, 32 * 1024 * 1024
"""Bytes from which glibc at first asks the system for a block of its own, and the most to which freeing raises that."""
_DEFAULT_MMAP_MAX = 65_536

_keeps = False


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, on Linux with glibc; does nothing elsewhere.

    Every update frees and takes the same tens of megabytes again. By default large blocks go back to the system each
    time, and each page of them costs a fault when it is next touched. This holds for the main thread; in others glibc
    keeps no block above 64 MB. The price is that memory used once stays with the process.
    """
    global _keeps
    if (library := _glibc()) is not None:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        _keeps = True


@contextlib.contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Within it large blocks go back to the system all the same; does nothing but on Linux with glibc.

    For work that takes large blocks once, with many small ones that stay in between: on the heap those would leave
    holes that no later block fits, gigabytes of them. Afterwards it is as `keep_freed_memory` says, or, where that was
    not called, as glibc has it once a block of 32 MB was freed.
    """
    if (library := _glibc()) is None:
        yield
        return
    library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
    library.mallopt(_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _MOST)
        if _keeps:
            library.mallopt(_MMAP_MAX, 0)
        else:
            library.mallopt(_TRIM_THRESHOLD, 2 * _MOST)


def _glibc() -> Any:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        return library
    return None
