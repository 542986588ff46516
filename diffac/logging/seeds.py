"""Metrics of several seeds in one terminal."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console

from diffac.logging.console import ConsoleWriter, progress_bar, standard_error
from diffac.logging.writers import Writer

MEANS = {"rollout/ep_rew_mean": "return", "eval/mean_reward": "eval"}
"""Metrics of which the bar shows the mean over the seeds, and how it calls them; of the last one the range too."""
TOTALS = {"time/fps": "steps/s", "time/updates_per_second": "updates/s"}
"""Metrics of which it shows the sum."""


class SeedsConsole:
    """Progress of several seeds: one bar for all, or plain lines that begin with the seed where it cannot be redrawn.

    The bar counts the steps of the slowest seed. Behind it: means over the seeds (least..greatest), total speed.

    Args:
        seeds: whose progress it is.
        total_steps: environment steps of each.
        bar: False for plain lines in any case.
        console: where to write; None: standard error.
    """

    def __init__(
        self, seeds: Sequence[int], total_steps: int, *, bar: bool = True, console: Console | None = None
    ) -> None:
        console = console or standard_error()
        self._total = total_steps
        self._lock = threading.Lock()
        self._steps = dict.fromkeys(seeds, 0)
        self._shown: dict[int, dict[str, float]] = {seed: {} for seed in seeds}
        self._progress = None
        self._writers: dict[int, Writer]
        if bar and console.is_terminal:
            self._progress = progress_bar(console, width=10)
            self._task = self._progress.add_task("", total=total_steps, text=f"{len(seeds)} seeds")
            self._progress.start()
            self._writers = {seed: _Share(self, seed) for seed in seeds}
        else:
            self._writers = {
                seed: ConsoleWriter(total_steps, bar=False, console=console, prefix=f"seed {seed}: ") for seed in seeds
            }

    def writer(self, seed: int) -> Writer:
        """What receives the metrics of one seed."""
        return self._writers[seed]

    def drop(self, seed: int) -> None:
        """The seed has failed and counts no more."""
        with self._lock:
            if len(self._steps) > 1:
                del self._steps[seed], self._shown[seed]

    def update(self, seed: int, step: int, metrics: Mapping[str, float]) -> None:
        """What one seed has to say."""
        with self._lock:
            if self._progress is None or seed not in self._steps:
                return
            self._steps[seed] = step
            self._shown[seed] |= metrics
            part = f"{len(self._steps)} of " if len(self._steps) < len(self._writers) else ""
            text = "  ".join([f"{part}{len(self._writers)} seeds", *self._means(), *self._totals()])
            self._progress.update(self._task, completed=min(*self._steps.values(), self._total), text=text)

    def _means(self) -> list[str]:
        found = {short: values for name, short in MEANS.items() if (values := self._values(name))}
        texts = [f"{short} {np.mean(values):.4g}" for short, values in found.items()]
        if values := found.get("eval"):
            texts[-1] += f" ({min(values):.4g}..{max(values):.4g})"
        return texts

    def _totals(self) -> list[str]:
        found = ((short, self._values(name)) for name, short in TOTALS.items())
        return [f"{short} {sum(v):.4g}" for short, v in found if v]

    def _values(self, name: str) -> list[float]:
        return [shown[name] for shown in self._shown.values() if name in shown]

    def close(self) -> None:
        """Ends the display."""
        if self._progress is not None:
            self._progress.stop()


class _Share:
    """Passes the metrics of one seed on."""

    def __init__(self, console: SeedsConsole, seed: int) -> None:
        self._console, self._seed = console, seed

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._console.update(self._seed, step, metrics)

    def close(self) -> None:
        """The display goes on for the others."""
