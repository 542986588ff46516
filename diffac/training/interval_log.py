"""What is logged of training, from one line of metrics to the next. docs/use/metrics.md explains every name."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffac.data.stepper import Episode
from diffac.protocols import Metrics

EPISODE_WINDOW = 100
"""Episodes over which `rollout/ep_...` is averaged."""
TIMED = ("act", "env", "update")
"""Parts of the loop whose time is measured."""
NONFINITE = "_nonfinite"
"""End of the names of metrics that count what is NaN or infinite; they are looked at and not logged."""


class _Timer:
    """Adds the wall time of a block to an entry of a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self.table, self.name = table, name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] += time.perf_counter() - self.begin


class _Clock:
    """Seconds of a run; it stands still until `go_on`, and from `pause` until the next one.

    Args:
        now: reads seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.restore(0.0)

    def restore(self, elapsed: float) -> None:
        """Stands at that many seconds."""
        self._paused: float | None = self._now()
        self._begin = self._paused - elapsed

    def __call__(self) -> float:
        """Seconds until now."""
        return (self._now() if self._paused is None else self._paused) - self._begin

    def pause(self) -> None:
        self._paused = self._now()

    def go_on(self) -> None:
        if self._paused is not None:
            self._begin += self._now() - self._paused
        self._paused = None


class IntervalLog:
    """Collects what is logged at the end of an interval. The learner's metrics stay on the device until then.

    Args:
        fetch: the engine's.
    """

    def __init__(self, fetch: Callable[[Sequence[Metrics]], Mapping[str, np.ndarray]]) -> None:
        self.episodes: collections.deque[Episode] = collections.deque(maxlen=EPISODE_WINDOW)
        self._wall, self._cores = _Clock(time.perf_counter), _Clock(time.process_time)
        self._interval_begin = 0.0
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        self._fetch = fetch
        self._on_device: list[Metrics] = []
        self._columns: dict[str, np.ndarray] = {}
        self._when: list[list[int]] = []
        self._last = (0, 0)

    def timed(self, name: str) -> _Timer:
        """A context whose wall time counts for `time/{name}_fraction`; one of `TIMED`."""
        return _Timer(self._seconds, name)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """A context whose wall time is `time/compile`, and is left out of the interval's rates."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._seconds["compile"] += seconds
            self.skip(seconds)

    def average(self, name: str, values: Any) -> None:
        """Adds numbers of the host to the mean that is logged under that name."""
        values = np.asarray(values)
        sums = self._sums[name]
        sums[0] += float(values.sum())
        sums[1] += values.size

    def keep(self, metrics: Metrics, env_step: int, updates: int) -> None:
        """Keeps what a call of the learner returned, at that many environment steps, after that many updates."""
        self._on_device.append(metrics)
        self._when.append([env_step, updates])

    def skip(self, seconds: float) -> None:
        """Leaves that much time, just spent on something else than steps, out of the interval's rates."""
        self._interval_begin += seconds

    def pause(self) -> None:
        """From now on until `go_on`, time does not count."""
        self._wall.pause()
        self._cores.pause()

    def go_on(self) -> None:
        """Time counts again."""
        self._wall.go_on()
        self._cores.go_on()

    def save(self) -> dict[str, Any]:
        """The interval under way as plain data."""
        self._bring()
        elapsed = self._wall()
        return {
            "episodes": [list(episode) for episode in self.episodes],
            "metrics": dict(self._columns),
            "when": [list(mark) for mark in self._when],
            "sums": {name: list(sums) for name, sums in self._sums.items()},
            "seconds": dict(self._seconds),
            "last": list(self._last),
            "elapsed": elapsed,
            "interval_elapsed": elapsed - self._interval_begin,
            "core_seconds": self._cores(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `save` was called; the time between does not count."""
        self._wall.restore(saved["elapsed"])
        self._cores.restore(saved["core_seconds"])
        self._interval_begin = saved["elapsed"] - saved["interval_elapsed"]
        self.episodes.extend(Episode(*episode) for episode in saved["episodes"])
        self._columns = dict(saved["metrics"])
        self._when = [list(mark) for mark in saved["when"]]
        self._sums.update({name: list(sums) for name, sums in saved["sums"].items()})
        self._seconds.update(saved["seconds"])
        self._last = (saved["last"][0], saved["last"][1])

    def nonfinite(self) -> str | None:
        """What was the first NaN or infinity of this interval, and when; None: there was none."""
        self._bring()
        found = [
            (int(np.argmax(column > 0)), name.removesuffix(NONFINITE))
            for name, column in self._columns.items()
            if name.endswith(NONFINITE) and (column > 0).any()
        ]
        if not found:
            return None
        row, part = min(found)
        what = "a number of the learner's state" if part == "state" else f"the {part}'s loss or gradient"
        env_step, updates = self._when[row]
        first = 1 + (self._when[row - 1][1] if row else self._last[1])
        range_ = f"update {updates:,}" if first >= updates else f"one of the updates {first:,} to {updates:,}"
        when = f"after update {updates:,}" if part == "state" else f"in {range_}"
        return f"{what} was NaN or infinite {when} (environment step {env_step:,})"

    def flush(self, env_step: int, updates: int) -> dict[str, float]:
        """The metrics of the interval that ends now."""
        now = self._wall()
        self._bring()
        elapsed, (last_step, last_updates) = now - self._interval_begin, self._last
        metrics: dict[str, float] = {}
        if self.episodes:
            metrics["rollout/ep_rew_mean"] = float(np.mean([episode.ret for episode in self.episodes]))
            metrics["rollout/ep_len_mean"] = float(np.mean([episode.length for episode in self.episodes]))
        metrics |= {name: total / count for name, (total, count) in self._sums.items()}
        metrics |= {
            f"train/{name}": float(np.nanmean(column))
            for name, column in self._columns.items()
            if not name.endswith(NONFINITE) and not np.isnan(column).all()
        }
        fractions = {name: self._seconds[name] / elapsed for name in TIMED}
        fractions["other"] = max(0.0, 1 - sum(fractions.values()))
        metrics |= {
            "train/updates": updates,
            "time/total_timesteps": env_step,
            "time/time_elapsed": now,
            "time/core_seconds": self._cores(),
            "time/fps": (env_step - last_step) / elapsed,
            "time/updates_per_second": (updates - last_updates) / elapsed,
            "time/compile": self._seconds["compile"],
            **{f"time/{name}_fraction": fraction for name, fraction in fractions.items()},
        }
        self._last = (env_step, updates)
        self._seconds.clear()
        self._sums.clear()
        self._columns, self._when = {}, []
        self._interval_begin = now
        return metrics

    def _bring(self) -> None:
        """Fetches what is on the device, all at once, and puts it below what is here."""
        if not self._on_device:
            return
        new, there = len(self._on_device), len(self._when) - len(self._on_device)
        fetched = self._fetch(self._on_device)
        self._columns = {
            name: np.concatenate(
                [self._columns.get(name, np.full(there, np.nan)), fetched.get(name, np.full(new, np.nan))]
            )
            for name in dict.fromkeys([*self._columns, *fetched])
        }
        self._on_device = []
