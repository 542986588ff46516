"""Where metrics go: a CSV file, TensorBoard, the terminal. The x axis is environment steps."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffac.errors import UsageError

PLAIN_INTERVAL_S = 10.0
"""Least number of seconds between two plain lines of the console, evaluations aside."""
SHORT = {
    "rollout/ep_rew_mean": "return",
    "eval/mean_reward": "eval",
    "train/critic_loss": "critic",
    "train/actor_loss": "actor",
    "time/fps": "steps/s",
    "time/updates_per_second": "updates/s",
}
"""Metrics that the console shows, and how it calls them."""


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
        for writer in self.writers:
            writer.close()


class CsvWriter:
    """One line for each call, one column for each name, cells empty where a name was missing.

    A name that comes up later adds a column: the file is then written anew beside the old one and renamed. A file that
    exists is continued.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
        self._file = self.path.open("a", newline="")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        if new := [name for name in row if name not in self._columns]:
            self._add_columns(new)
        csv.writer(self._file, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        self._file.flush()

    def _add_columns(self, names: Sequence[str]) -> None:
        self._file.close()
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self._columns += names
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self._columns)
            writer.writerows(row + [""] * (len(self._columns) - len(row)) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self._file = self.path.open("a", newline="")

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Writes metrics to an event file in `directory`, by tensorboardX; read it with `tensorboard --logdir`.

    tensorboardX imports torch where torch is installed: make the first writer before JAX runs.

    Raises:
        UsageError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path | str) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise UsageError(
                f"TensorBoardWriter needs the package {error.name!r}; run: python -m pip install 'diffac[log]'"
            ) from error
        self._writer = SummaryWriter(str(directory))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an environment step >= 0."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class ConsoleWriter:
    """Progress in the terminal: a bar, or plain lines where it cannot be redrawn.

    Args:
        total_steps: environment steps of the run.
        bar: False for plain lines in any case.
        console: where to write; None: standard error.
    """

    def __init__(self, total_steps: int, *, bar: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total = total_steps
        self._shown: dict[str, float] = {}
        self._last_line = -float("inf")
        self._progress = None
        if bar and self._console.is_terminal:
            self._progress = Progress(
                MofNCompleteColumn(),
                TextColumn("steps"),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=total_steps, text="")
            self._progress.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._shown |= {name: value for name, value in metrics.items() if name in SHORT}
        text = "  ".join(f"{short} {self._shown[name]:.4g}" for name, short in SHORT.items() if name in self._shown)
        if self._progress is not None:
            self._progress.update(self._task, completed=min(step, self._total), text=text)
        elif "eval/mean_reward" in metrics or time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            self._console.print(f"{step:,}/{self._total:,} steps  {text}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
