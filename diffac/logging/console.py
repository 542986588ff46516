"""Metrics in the terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffac.system.terminal import tolerant

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
PLAIN_LINE = re.compile(r"([\d,]+)/[\d,]+ steps  (.*)")
"""What a plain line matches: the step, and the metrics."""


def standard_error() -> Console:
    """The console on standard error, which may go away."""
    return Console(file=tolerant(sys.stderr))


def progress_bar(console: Console) -> Progress:
    """A bar of environment steps, and the field `text` behind it."""
    return Progress(
        MofNCompleteColumn(),
        TextColumn("steps"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        redirect_stdout=tolerant(sys.stdout).isatty(),  # what goes to a file stays there
    )


class ConsoleWriter:
    """Progress in the terminal: a bar, or plain lines where it cannot be redrawn.

    Args:
        total_steps: environment steps of the run.
        bar: False for plain lines in any case.
        console: where to write; None: standard error.
    """

    def __init__(self, total_steps: int, *, bar: bool = True, console: Console | None = None) -> None:
        self._console = console or standard_error()
        self._total = total_steps
        self._shown: dict[str, float] = {}
        self._last_line = -float("inf")
        self._progress = None
        if bar and self._console.is_terminal:
            self._progress = progress_bar(self._console)
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
