"""What runs will cost: the first seconds of one of each kind, and what the rest takes at that rate."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from diffac.errors import RunError, UsageError
from diffac.runs.engine import build, chosen
from diffac.scale.executors import Executor, execute
from diffac.scale.work import Job, Outcome
from diffac.training.callbacks import Callback
from diffac.training.config import TrainConfig
from diffac.training.loop import train
from diffac.training.state import Training

MINUTE = 60.0
"""Seconds for all kinds together, on each core."""
SHORTEST = 2.0
"""... but at least so many for each kind."""
RANDOM_STEPS = 1_000
"""Random steps before the updates that are measured, at most, unless a batch needs more."""


class Cost(NamedTuple):
    """Seconds that a run takes on this machine."""

    start: float
    """Until the first updates are done: imports, environments, networks, programs."""
    random_step: float
    """An environment step without updates."""
    step: float
    """An environment step with the updates that it earns."""
    evaluation: float
    """All episodes of one. Early policies are measured, whose episodes may be shorter."""

    def of(self, config: TrainConfig) -> float:
        """The whole run."""
        random = min(config.learning_starts, config.total_timesteps)
        steps = random * self.random_step + (config.total_timesteps - random) * self.step
        return self.start + steps + math.ceil(config.total_timesteps / config.eval_interval) * self.evaluation


def measure(job: Job, seconds: float) -> Cost | Outcome:
    """Trains for some seconds after the first updates, and writes nothing.

    Returns:
        The cost; where the run cannot begin, how it has failed.
    """
    try:
        module, config = job.load()
        random = min(config.learning_starts, max(RANDOM_STEPS, config.batch_size))
        short = dataclasses.replace(
            config, learning_starts=random, eval_interval=max(random, config.batch_size) + 10 * config.num_envs
        )
        begin = time.perf_counter()
        engine, state, _ = build(module, short)
        clock = _Clock(begin, seconds)
        train(engine, state, short, callback=clock, **chosen(module, short))
        return clock.cost()
    except (UsageError, RunError) as error:
        return Outcome("failed", str(error))


class Kind(NamedTuple):
    """Runs that differ in their seed only."""

    label: str
    jobs: list[Job]
    seconds: float
    """Of each of them."""


def estimate(jobs: Sequence[Job], executor: Executor, cores: int) -> list[Kind]:
    """What runs will cost, by a minute of measuring: the first run of each kind, as many at a time as in the sweep.

    Args:
        jobs: the runs.
        executor: executes them; is closed.
        cores: how many measure at a time.

    Raises:
        RunError: one cannot begin.
    """
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        values = sorted((name, repr(value)) for name, value in job.values.items() if name != "seed")
        kinds.setdefault(repr((job.recipe, values)), []).append(job)
    seconds = max(SHORTEST, MINUTE * cores / len(kinds))
    found = []
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(executor):
        firsts = {same[0].name: same for same in kinds.values()}
        apart = [dataclasses.replace(same[0], root=Path(folder)) for same in kinds.values()]
        for job, cost in execute(partial(measure, seconds=seconds), apart, executor):
            if isinstance(cost, Outcome):
                raise RunError(f"{job.label}: {cost.error}")
            label = " ".join(word for word in job.label.split() if not word.startswith("seed=")) or job.recipe
            found.append(Kind(label, firsts[job.name], cost.of(job.load()[1])))
    return found


class _Clock(Callback):
    """Measures steps and evaluations, and stops training when it has seen enough.

    Args:
        begin: of the run.
        seconds: of steps with updates.
    """

    def __init__(self, begin: float, seconds: float) -> None:
        self.begin, self.seconds = begin, seconds
        self.last: float | None = None
        self.random, self.learning = [0.0, 0], [0.0, 0]
        self.started = self.evaluation = 0.0

    def on_step(self, training: Training) -> bool:
        now = time.perf_counter()
        config = training.config
        if self.last is not None and training.updates < 2 * config.fused_updates:
            if training.env_step <= config.learning_starts:
                self._add(self.random, now, config)
            self.started = now - self.begin  # the first updates compile
        elif self.last is not None:
            self._add(self.learning, now, config)
        self.last = now
        return not (self.evaluation and self.learning[0] >= self.seconds)

    def on_evaluation(self, training: Training) -> None:
        now = time.perf_counter()
        assert self.last is not None
        self.evaluation, self.last = now - self.last, now

    def _add(self, phase: list[float], now: float, config: TrainConfig) -> None:
        assert self.last is not None
        phase[0] += now - self.last
        phase[1] += config.num_envs

    def cost(self) -> Cost:
        """What was measured; of a run that is over before it, all of it."""
        random, learning = (time / max(steps, 1) for time, steps in (self.random, self.learning))
        start = max(0.0, self.started - self.random[0])
        return Cost(start, random, learning or random, self.evaluation)
