"""A contender of ours: a recipe in one backend as it is, with one optimisation off, or the naive implementation.

Its commands are the names in `COMMANDS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from diffac import system
from diffac.backend import get_backend
from diffac.noise import draw
from diffac.parts.export import signature

from .cases import BATCH_SIZE, CASES, SIZES, configure, filled_replay
from .devices import choose, put, wait
from .protocol import memory, serve


class Contender:
    """Everything about one contender that can be measured; times are in seconds, of one update or one call.

    Args:
        case: name in `CASES`.
        env: name in `SIZES`.
        backend: "torch" or "equinox".
        kind: "ours", "naive", or the name of a switch in `switches`.
        capacity: of the replay memory, filled.
        interval: updates between two adaptations of the temperature; None: the recipe's.
    """

    def __init__(
        self,
        case: str,
        env: str,
        backend: str,
        kind: str = "ours",
        capacity: int = 50_000,
        interval: int | None = None,
    ) -> None:
        self.case, self.env, self.backend, self.kind, self.interval = case, env, backend, kind, interval
        self.obs_dim, self.action_dim = SIZES[env]
        importlib.import_module(f"diffac_{backend}").configure()
        choose(backend)
        self.module, self.config = configure(case, env, backend)
        if kind not in ("ours", "naive"):
            from .switches import SWITCHES

            SWITCHES[kind].off(kind, backend)
        self.onnx: bytes | None = None
        self.compiled: Any = None
        empty, _ = memory()
        self.buffer, self.rng, self.key = filled_replay(env, capacity), np.random.default_rng(1), 0
        self.before, _ = memory()
        self.replay = self.before - empty

    def start(self) -> dict[str, float]:
        """Builds everything; the time until the first updates, with and without the actor, are done."""
        begin = time.perf_counter()
        learner, actor, critic = self.module.build(self.config, self.obs_dim, self.action_dim)
        if self.interval is not None:
            rule = dataclasses.replace(learner.temperature, interval=self.interval)
            learner = dataclasses.replace(learner, temperature=rule)
        if self.kind == "naive":
            naive = importlib.import_module(f"{__package__}.naive_{self.backend}").Naive(learner, actor, critic)
            self.state, self.once = naive, self._naive
        else:
            system.memory.keep_freed_memory()
            self.engine = get_backend(self.backend).Engine(learner)
            self.state, self.once = self.engine.init(actor, critic), self._ours
        self._run(self.once, 2)
        return {"first": time.perf_counter() - begin, "after": self._run(self.once, 4) / 4}

    def _batch(self, updates: int = 1) -> Any:
        self.key += 1
        return self.buffer.sample(self.rng, updates, BATCH_SIZE)

    def _ours(self) -> Any:
        self.state, metrics = self.engine.update(self.state, self._batch(), self.key)
        return self.state, metrics

    def _naive(self) -> Any:
        batch = self._batch()
        loss = self.state.update(type(batch)(*(array[0] for array in batch[:5])), self.key)
        return getattr(self.state, "state", None), loss

    def _run(self, call: Callable[[], Any], count: int) -> float:
        """Seconds for so many calls, until their results are there."""
        begin = time.perf_counter()
        for _ in range(count):
            results = call()
        wait(self.backend, results)
        return time.perf_counter() - begin

    def update(self, count: int) -> float:
        """Time of an update, its batch drawn from the replay memory: the mean over an even number of them."""
        return self._run(self.once, count) / count

    def fused(self, count: int, updates: int) -> float:
        """Time of an update where one call does several."""

        def call() -> Any:
            self.state, metrics = self.engine.update(self.state, self._batch(updates), self.key)
            return self.state, metrics

        return self._run(call, count) / (count * updates)

    def host(self, count: int, updates: int = 1) -> float:
        """Time of an update whose batch is on the device already: what the host adds is the difference to `update`."""
        batch = put(self.backend, self._batch(updates))

        def call() -> Any:
            self.key += 1
            self.state, metrics = self.engine.update(self.state, batch, self.key)
            return self.state, metrics

        return self._run(call, count) / (count * updates)

    def act(self, rows: int, best: bool = True, draws: bool = False) -> float:
        """Median time of an action for so many observations, from NumPy to NumPy.

        Args:
            rows: observations.
            best: with best-of-N where the recipe has it.
            draws: with the drawing of its noise.
        """
        engine = self.engine if best else without_best(self.engine)
        spec = engine.act_noise_spec((rows, self.action_dim))
        obs, noise = self._obs(rows), draw(self.rng, spec)
        return median_time(lambda: engine.act(self.state, obs, draw(self.rng, spec) if draws else noise))

    def act_compiled(self, rows: int) -> float:
        """`act`, after `Engine.compile_act`, with all of its recipe's candidates."""
        if self.compiled is None:
            self.compiled = type(self.engine)(self.engine.learner)
            self.compiled.compile_act(self.state, self.obs_dim, self.action_dim, (rows,))
        engine, obs = self.compiled, self._obs(rows)
        noise = draw(self.rng, engine.act_noise_spec((rows, self.action_dim)))
        return median_time(lambda: engine.act(self.state, obs, noise))

    def act_exported(self, rows: int) -> float:
        """Median time of an action of the exported policy in onnxruntime, from NumPy to NumPy, noise given."""
        import onnxruntime

        from diffac_torch.engine.export import export_policy

        bound = np.ones(self.action_dim, np.float32)
        sign = signature(self.engine, self.obs_dim, -bound, bound)
        if self.onnx is None:
            self.onnx = export_policy(self.engine.learner, self.state, sign, "onnx", "{}")
        session = onnxruntime.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
        arrays = (self._obs(rows), *sign.draw(self.rng, rows))
        inputs = {entry.name: array for entry, array in zip(session.get_inputs(), arrays, strict=True)}
        return median_time(lambda: session.run(None, inputs))

    def _obs(self, rows: int) -> np.ndarray:
        return self.rng.standard_normal((rows, self.obs_dim), np.float32)

    def predict(self) -> dict[str, float]:
        """Median time of `Agent.predict` for one observation, and of the bare call inside it."""
        from diffac.agent import Agent

        values = {name: getattr(self.config, name) for name in ("hidden_sizes", "backend")}
        agent = Agent.from_recipe(CASES[self.case].recipe, f"{self.env}-v5", **values)
        obs, rows = self._obs(1)[0].astype(np.float64), self._obs(1)
        noise = draw(self.rng, agent.engine.act_noise_spec((1, self.action_dim)))
        return {
            "predict": median_time(lambda: agent.predict(obs, deterministic=False)),
            "bare": median_time(lambda: agent.engine.act(agent.state, rows, noise)),
        }

    def memory(self) -> dict[str, float]:
        """Bytes beyond the replay memory and the imported packages, now and at most so far; those of the former."""
        now, most = memory()
        return {"now": now - self.before, "most": most - self.before, "replay": self.replay}


def median_time(call: Callable[[], Any]) -> float:
    """Seconds of a call that returns NumPy arrays; it is repeated for about a third of a second."""
    for _ in range(5):
        begin = time.perf_counter()
        call()
        last = time.perf_counter() - begin
    times = []
    for _ in range(min(300, max(10, int(0.3 / last)))):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def without_best(engine: Any) -> Any:
    """The same engine, whose learner's sampler draws one candidate only."""
    learner = engine.learner
    outer = learner.sampler
    inner: Any = getattr(outer, "sampler", None)
    if not hasattr(inner, "num_candidates"):
        return engine
    return type(engine)(dataclasses.replace(learner, sampler=dataclasses.replace(outer, sampler=inner.sampler)))


COMMANDS = ("start", "update", "fused", "host", "act", "act_compiled", "act_exported", "predict", "memory")

if __name__ == "__main__":
    contender = Contender(**json.loads(sys.argv[1]))
    serve({name: getattr(contender, name) for name in COMMANDS})
