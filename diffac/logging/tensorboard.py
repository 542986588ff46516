"""Metrics as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TensorBoardWriter:
    """Writes metrics to an event file in `directory`, by tensorboardX; read it with `tensorboard --logdir`.

    tensorboardX imports torch where torch is installed: make the first writer before JAX runs.

    Args:
        directory: where.
        first_step: hides what earlier files of the folder hold from this step on; None: nothing.
    """

    def __init__(self, directory: Path | str, first_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an environment step >= 0."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
