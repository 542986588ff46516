"""How far the runs of a sweep are: what a person sees while it goes on."""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diffac.errors import DamagedError
from diffac.files.untrusted import open_regular
from diffac.logging.console import standard_error
from diffac.messages import note, printable
from diffac.scale.journal import Journal
from diffac.scale.work import Job, Outcome

TAIL = 2**14
"""Bytes at the end of a log that are looked at: some lines."""
REFRESH = 1.0
"""Seconds between two looks at the logs."""
MOST_ROWS = 20
"""Runs that the table shows at a time."""


class Progress(NamedTuple):
    """Of a run under way, as far as its log tells."""

    step: int = 0
    rate: float = 0.0
    """Environment steps a second."""
    last_return: float | None = None
    """Of the last evaluation; before the first one, of training episodes."""


def progress_of(job: Job) -> Progress:
    """Reads the end of the run's log."""
    found: dict[str, Any] = {}
    try:
        with open_regular(job.folder / "metrics.jsonl") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except (OSError, DamagedError):
        return Progress()
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # the first one may begin before the tail
            continue
        if isinstance(values, dict):
            found = {**values, **found}
        if "eval/mean_reward" in found and "time/fps" in found:
            break
    returns = found.get("eval/mean_reward", found.get("rollout/ep_rew_mean"))
    return Progress(int(found.get("step") or 0), float(found.get("time/fps") or 0.0), returns)


class Lines:
    """A line for each run that ends, where a table cannot be redrawn.

    Args:
        jobs: all runs of the sweep.
        journal: of the sweep.
    """

    def __init__(self, jobs: list[Job], journal: Journal) -> None:
        self.jobs, self.journal = jobs, journal
        self.under_way: dict[str, Job] = {}
        self.settled = {job.name for job in jobs if journal.is_complete(job)}
        """Names of the runs that are complete, or tried no more."""
        self.counts = collections.Counter(complete=len(self.settled))

    def begun(self, job: Job) -> None:
        self.under_way[job.name] = job

    def ended(self, job: Job, outcome: Outcome, again: bool) -> None:
        del self.under_way[job.name]
        if not again:
            self.counts[outcome.state] += 1
            self.settled.add(job.name)
        last = progress_of(job).last_return
        what = {
            "complete": "complete" + (f", return {last:.1f}" if last is not None else ""),
            "stopped": "stopped, and saved",
            "failed": f"failed{', is tried again' if again else ''}: {outcome.error}",
        }[outcome.state]
        self.tell(f"{job.label}: {what} ({duration(outcome.seconds)}); {self.counted()}")

    def tell(self, text: str) -> None:
        note(text)

    def counted(self) -> str:
        """How many are complete, under way, failed."""
        waiting = len(self.jobs) - sum(self.counts.values()) - len(self.under_way)
        others = {"running": len(self.under_way), "failed": self.counts["failed"], "waiting": waiting}
        counts = [f"{number} {name}" for name, number in others.items() if number]
        return ", ".join([f"{self.counts['complete']} of {len(self.jobs)} complete", *counts])

    def refresh(self) -> None:
        pass

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveTable(Lines):
    """The runs under way in a table that is drawn again and again; arguments as for `Lines`."""

    def __init__(self, jobs: list[Job], journal: Journal) -> None:
        super().__init__(jobs, journal)
        self._live = Live(Text(self.counted()), console=standard_error(), auto_refresh=False, transient=True)
        self._looked = -math.inf

    def refresh(self) -> None:
        if time.monotonic() >= self._looked + REFRESH:
            self._looked = time.monotonic()
            self._live.update(self._drawn(), refresh=True)

    def tell(self, text: str) -> None:
        self._live.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def _drawn(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("run", no_wrap=True)
        for name in ("steps", "of", "steps/s", "return", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        seen = {name: progress_of(job) for name, job in self.under_way.items()}
        for name, job in list(self.under_way.items())[:MOST_ROWS]:
            step, rate, last = seen[name]
            left = duration((job.steps - step) / rate) if rate else ""
            cells = (
                f"{step:,}",
                f"{job.steps:,}",
                f"{rate:,.0f}" if rate else "",
                "" if last is None else f"{last:.1f}",
            )
            table.add_row(printable(job.label, 60), *cells, left)
        hidden = len(self.under_way) - MOST_ROWS
        more = f"and {hidden} more under way\n" if hidden > 0 else ""
        return Group(table, Text(f"{more}{self.counted()}{self._time_left(seen)}"))

    def _time_left(self, seen: Mapping[str, Progress]) -> str:
        """For the whole sweep, if all runs go on as those under way do."""
        rate = sum(progress.rate for progress in seen.values())
        if not rate:
            return ""
        waiting = sum(job.steps for job in self.jobs if job.name not in self.settled and job.name not in self.under_way)
        left = waiting + sum(self.under_way[name].steps - progress.step for name, progress in seen.items())
        return f"; about {duration(left / rate)} left"

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def duration(seconds: float) -> str:
    """Such as "2 h 5 min", "12 min", "3 min 5 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s" if minutes else f"{rest} s"
