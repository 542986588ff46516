"""The terminal as something that may go away: what cannot be written to it is dropped, and nothing ends for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


class TolerantStream:
    """A text stream that never raises because of what is behind it.

    A reader that has gone (`| head`), a full disk, a terminal or descriptor that was closed: the text is dropped. A
    character that the encoding lacks is written as an escape.

    Args:
        stream: what is behind it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # a copy without attributes yet
            raise AttributeError(name)
        return getattr(self._stream, name)


def tolerant(stream: Any) -> Any:
    """The stream as a `TolerantStream`; None, which Python has for a closed descriptor, takes nothing."""
    if stream is None:
        return TolerantStream(open(os.devnull, "w"))
    return stream if isinstance(stream, TolerantStream) else TolerantStream(stream)


def make_tolerant() -> None:
    """Makes standard output and standard error of this process tolerant, for good.

    Closed descriptors are opened first: otherwise the next file of the run becomes standard error, and gets whatever
    somebody writes there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)


@contextlib.contextmanager
def tolerant_terminal() -> Iterator[None]:
    """Makes standard output and standard error tolerant, for whoever writes to them: print, warnings, other libraries.

    What a stream still holds at the end and cannot write is dropped too.
    """
    before = sys.stdout, sys.stderr
    make_tolerant()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _drop_unwritten(stream)


def _drop_unwritten(stream: Any) -> None:
    """Lets a stream go on to nowhere where it cannot write: Python would end with code 120 for what it still holds."""
    if stream is None:
        return
    try:
        stream.flush()
    except ValueError:
        return
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
