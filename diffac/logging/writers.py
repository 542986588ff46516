"""What receives metrics, and several of them as one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Protocol


class Writer(Protocol):
    """Receives metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an environment step; each call may bring others. Safe on disk, where there is one, on return."""
        ...

    def close(self) -> None:
        """Ends writing; may be called twice."""
        ...


class Writers:
    """Passes everything on to several writers."""

    def __init__(self, *writers: Writer) -> None:
        self.writers = writers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self.writers:
            writer.write(step, metrics)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # closes all of them, whichever fails
            for writer in self.writers:
                stack.callback(writer.close)
