"""A whole training run, environments and replay memory included, at one update for each environment step."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from diffac.backend import get_backend
from diffac.data.environments import make_envs
from diffac.data.vectors import close, dims
from diffac.training.loop import Loop

from .cases import configure
from .devices import choose
from .protocol import serve

LEARNING_STARTS = 2_000


class Rows:
    """Keeps the lines of metrics."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line."""
        self.rows.append(metrics)

    def close(self) -> None:
        """Nothing to close."""


class Run:
    """A run that is advanced.

    Args:
        case: name in `CASES`.
        env: name in `SIZES`.
        backend: "torch" or "equinox".
        asynchronous: a process for each environment.
    """

    def __init__(self, case: str, env: str, backend: str, asynchronous: bool) -> None:
        importlib.import_module(f"diffac_{backend}").configure()
        choose(backend)
        values = {"asynchronous": asynchronous, "num_envs": 5, "updates_per_env_step": 1.0}
        values |= {"learning_starts": LEARNING_STARTS, "eval_interval": 10**9, "log_interval": 50}
        self.module, self.config = configure(case, env, backend, **values)

    def run(self, seconds: float) -> dict[str, float]:
        """Trains about so long after everything is compiled; what the loop made of the time.

        Returns:
            "steps": environment steps a second; "act", "env", "update", "other": shares of the wall time as they are
            logged; "learner": share of acting and updating without the drawing of batches; "host": drawing of batches
            and everything else on the host, over the learner's time.
        """
        envs = make_envs(self.config.env_id, 1)
        sizes = dims(envs)
        close(envs)
        learner, actor, critic = self.module.build(self.config, *sizes)
        writer, sampling = Rows(), 0.0
        with Loop(
            get_backend(self.config.backend).Engine(learner), learner.init(actor, critic), self.config
        ) as training:
            sample = training.buffer.sample

            def timed_sample(*arguments: Any) -> Any:
                nonlocal sampling
                begin = time.perf_counter()
                batches = sample(*arguments)
                sampling += time.perf_counter() - begin
                return batches

            training.buffer.sample = timed_sample  # type: ignore[method-assign]
            warm = LEARNING_STARTS + 100
            training.advance(warm, writer=writer)
            begin = time.perf_counter()
            training.advance(warm + 50, writer=writer)
            count = max(100, int(seconds / (time.perf_counter() - begin)) * 50)
            writer.rows.clear()
            sampling, begin = 0.0, time.perf_counter()
            training.advance(warm + 50 + count, writer=writer)
            wall = time.perf_counter() - begin
        shares = {
            name: statistics.fmean(row[f"time/{name}_fraction"] for row in writer.rows)
            for name in ("act", "env", "update", "other")
        }
        learner_share = shares["act"] + shares["update"] - sampling / wall
        host = (sampling / wall + shares["other"]) / learner_share
        return {"steps": count / wall, "learner": learner_share, "host": host, **shares}


if __name__ == "__main__":
    run = Run(**json.loads(sys.argv[1]))
    serve({"run": run.run})
