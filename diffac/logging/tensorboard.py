"""Metrics as TensorBoard's event files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffac.files.paths import absolute


class TensorBoardWriter:
    """Writes metrics to an event file in `directory`; read it with `tensorboard --logdir`.

    By tensorboardX's record writer, and not by its `SummaryWriter`, whose thread can die of a full disk and leave the
    run waiting for it, and whose file of the same second is written over.

    tensorboardX imports torch where torch is installed: make the first writer before JAX runs.

    Args:
        directory: where.
        first_step: hides what earlier files of the folder hold from this step on; None: nothing.
    """

    def __init__(self, directory: Path | str, first_step: int | None = None) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        messages: Any = event_pb2  # made at run time
        summaries: Any = summary_pb2
        self._event, self._summary = messages.Event, summaries.Summary
        suffix = f".{os.getpid()}.{time.time_ns()}"  # two writers of one second have files of their own
        self._writer: Any = EventsWriter(str(absolute(directory) / "events"), suffix)
        if first_step is not None:
            start = messages.SessionLog(status=messages.SessionLog.START)
            for fields in ({"file_version": "brain.Event:2"}, {"session_log": start}):
                self._writer.write_event(self._event(step=first_step, wall_time=time.time(), **fields))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an environment step >= 0."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
