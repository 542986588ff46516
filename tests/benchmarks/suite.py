"""What is measured, and which contenders take turns with each other."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from .cases import BATCH_SIZE, CASES, SIZES, configure
from .flops import update_flops
from .measure import block, cold_caches, peaks, start, take_turns
from .protocol import Process
from .results import Row
from .switches import SWITCHES

PEERS = {"torch": "sb3", "equinox": "sbx"}
CAPACITY = 50_000
FASTEST = ("dacer2", "sac")
"""Cases whose updates are so fast that environments cost something beside them."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        cases: names in `CASES`.
        envs: names in `SIZES`; None: those of each case.
        backends: of ours.
        rounds: turns of each contender.
        peers: interpreter of the environment with the peers; None: without them.
    """

    cases: Sequence[str]
    envs: Sequence[str] | None
    backends: Sequence[str]
    rounds: int
    peers: str | None

    def envs_of(self, case: str) -> Sequence[str]:
        """Where a case is measured."""
        return CASES[case].envs if self.envs is None else self.envs

    def turns(self, seconds: Iterable[float]) -> int:
        """Rounds for updates that take so long: fewer where one is slow, so that everything takes half an hour."""
        return min(self.rounds, 3) if max(seconds) > 0.5 else self.rounds


def _statistic(rounds: int) -> str:
    """Of times of updates."""
    return f"median of {rounds} turns, each a mean"


def updates(plan: Plan, case: str, env: str) -> list[Row]:
    """Time, compile time, fraction of peak, latency and memory of a case, against naive or peers."""
    rows: list[Row] = []

    def add(backend: str, contender: str, measure: str, value: float, unit: str, statistic: str) -> None:
        rows.append(Row(case, env, backend, contender, measure, value, unit, statistic))

    with contextlib.ExitStack() as stack:
        running = dict(_contenders(plan, case, env, stack))
        names = list(running)
        started = {name: start(process) for name, process in running.items()}
        for (backend, contender), seconds in started.items():
            add(backend, contender, "compile", seconds["compile"], "s", "once, caches empty")
        ours = {backend: running[backend, "ours"] for backend in plan.backends}
        for backend, process in ours.items():
            add(backend, "ours", "memory", process("memory")["most"] / 1e9, "GB", "largest so far after 6 updates")
        peak = [stack.enter_context(Process("peak", {"backend": backend})) for backend in plan.backends]

        calls = [partial(running[n], "update", count=block(started[n]["after"])) for n in names]
        calls += [partial(process, "measure") for process in peak]
        rounds = plan.turns(seconds["after"] for seconds in started.values())
        answers, statistic = take_turns(calls, rounds), _statistic(rounds)
        speeds = [peaks(measured) for measured in answers[len(names) :]]
        best = max(max(speed.values()) for speed in speeds)
        for backend, speed in zip(plan.backends, speeds, strict=True):
            for shape, value in speed.items():
                add(backend, "peak", f"product, {shape}", value / 1e9, "GFLOP/s", statistic)
        flops = _flops(case, env, plan.backends[0])
        add("", "", "work", flops / 1e9, "GFLOP", "from the layer shapes")
        for (backend, contender), seconds in zip(names, answers, strict=False):
            median = statistics.median(seconds)
            add(backend, contender, "update", 1e3 * median, "ms", statistic)
            add(backend, contender, "fraction", flops / median / best, "of peak", statistic)

        calls, measures = [], []
        for (backend, contender), process in running.items():
            if contender == "naive":
                continue
            for count in (1, 8):
                calls.append(partial(process, "act", rows=count))
                measures.append((backend, contender, f"act {count}"))
                if contender == "ours" and hasattr(configure(case, env, backend)[1], "num_candidates"):
                    calls.append(partial(process, "act", rows=count, best=False))
                    measures.append((backend, contender, f"act {count} without best-of-N"))
                if contender == "ours" and backend == "torch":
                    for how in ("compiled", "exported"):
                        calls.append(partial(process, f"act_{how}", rows=count))
                        measures.append((backend, contender, f"act {count} {how}"))
        for (backend, contender, measure), seconds in zip(measures, take_turns(calls, 3), strict=True):
            text = "median of 3 turns, each a median"
            add(backend, contender, measure, 1e3 * statistics.median(seconds), "ms", text)
    return rows


def _contenders(
    plan: Plan, case: str, env: str, stack: contextlib.ExitStack
) -> Iterator[tuple[tuple[str, str], Process]]:
    """Processes by (backend, contender), with empty caches of compiled programs."""
    variables = stack.enter_context(cold_caches())
    for backend in plan.backends:
        for kind in ("ours",) if CASES[case].recipe == "sac" else ("ours", "naive"):
            spec = {"case": case, "env": env, "backend": backend, "kind": kind, "capacity": CAPACITY}
            yield (backend, kind), stack.enter_context(Process("contender", spec, **variables))
        if CASES[case].recipe == "sac" and plan.peers:
            sizes = dict(zip(("obs_dim", "action_dim"), SIZES[env], strict=True))
            hidden = list(configure(case, env, backend)[1].hidden_sizes)
            spec = {"package": PEERS[backend], "hidden": hidden, "capacity": CAPACITY, **sizes}
            yield (backend, PEERS[backend]), stack.enter_context(Process("peers", spec, plan.peers))


def _flops(case: str, env: str, backend: str) -> float:
    module, config = configure(case, env, backend)
    assert config.batch_size == BATCH_SIZE
    learner, _, _ = module.build(config, *SIZES[env])
    return update_flops(learner, config, *SIZES[env])


def switches(plan: Plan, case: str, env: str) -> list[Row]:
    """Every optimisation that is measured with this case, on and off."""
    rows: list[Row] = []
    for backend in plan.backends:
        off = [name for name, switch in SWITCHES.items() if case in switch.cases and backend in switch.backends]
        with contextlib.ExitStack() as stack:
            variables = stack.enter_context(cold_caches())
            running = []
            for kind in ["ours", *off] if off else []:
                spec = {"case": case, "env": env, "backend": backend, "kind": kind, "capacity": CAPACITY}
                own = dict(SWITCHES[kind].variables) if kind in SWITCHES else {}
                running.append(stack.enter_context(Process("contender", spec, **variables, **own)))
            first = [start(one)["after"] for one in running]
            rounds = plan.turns(first or [0.0])
            calls = [partial(one, "update", count=block(after)) for one, after in zip(running, first, strict=True)]
            for kind, seconds in zip(["ours", *off], take_turns(calls, rounds), strict=False):
                value = 1e3 * statistics.median(seconds)
                measure = "update beside switches" if kind == "ours" else "update"
                rows.append(Row(case, env, backend, kind, measure, value, "ms", _statistic(rounds)))
    return rows


def calls(plan: Plan, case: str, env: str) -> list[Row]:
    """What surrounds an update: fused calls, batches on the device, adapting the temperature, caches, `predict`."""
    rows: list[Row] = []
    for backend in plan.backends:
        with contextlib.ExitStack() as stack:
            variables = stack.enter_context(cold_caches())
            spec = {"case": case, "env": env, "backend": backend, "capacity": CAPACITY}
            ours = stack.enter_context(Process("contender", spec, **variables))
            cold = start(ours)
            again = start(stack.enter_context(Process("contender", spec, **variables)))
            turns: dict[str, Any] = {
                "update beside calls": partial(ours, "update", count=block(cold["after"])),
                "update, batch on device": partial(ours, "host", count=block(cold["after"])),
                "update, 10 fused": partial(ours, "fused", count=block(10 * cold["after"]) // 2, updates=10),
            }
            interval = _interval(case, env, backend)
            if CASES[case].recipe != "sac":
                adapting = stack.enter_context(Process("contender", {**spec, "interval": 1}, **variables))
                turns["update with adaptation"] = partial(adapting, "update", count=block(start(adapting)["after"]))
            turns["update, 10 fused"]()  # compiles
            rounds = plan.turns([cold["after"]])
            answers = take_turns(list(turns.values()), rounds)
            medians = {name: statistics.median(seconds) for name, seconds in zip(turns, answers, strict=True)}
            for name, median in medians.items():
                rows.append(Row(case, env, backend, "ours", name, 1e3 * median, "ms", _statistic(rounds)))
            once = "once, caches of the run before"
            rows.append(Row(case, env, backend, "ours", "compile, caches full", again["compile"], "s", once))
            if "update with adaptation" in medians:
                plain = medians["update beside calls"]
                share = (medians["update with adaptation"] - plain) / (interval * plain)
                text = f"of the updates' time, one adaptation in {interval} updates"
                rows.append(Row(case, env, backend, "ours", "adaptation", share, "share", text))
            found = ours("predict")
            for name in ("predict", "bare"):
                text = "median, one observation"
                rows.append(Row(case, env, backend, "ours", name, 1e3 * found[name], "ms", text))
    return rows


def _interval(case: str, env: str, backend: str) -> int:
    module, config = configure(case, env, backend)
    return module.build(config, *SIZES[env])[0].temperature.interval


def replay(plan: Plan) -> list[Row]:
    """Memory of a full replay buffer over the bytes of its numbers."""
    spec = {"case": "dacer2", "env": "HalfCheetah", "backend": plan.backends[0], "capacity": 1_000_000}
    raw = 1_000_000 * (4 * (2 * 17 + 6 + 1) + 1)
    with Process("contender", spec) as process:
        ratio = process("memory")["replay"] / raw
    return [Row("", "HalfCheetah", "", "ours", "replay over raw", ratio, "ratio", "1,000,000 transitions, once")]


def training(plan: Plan, case: str, env: str, seconds: float = 8.0) -> list[Row]:
    """Whole runs with synchronous and asynchronous environments."""
    rows = []
    units = {"steps": "1/s"}
    for backend in plan.backends:
        for asynchronous in (False, True) if case in FASTEST else (False,):
            spec = {"case": case, "env": env, "backend": backend, "asynchronous": asynchronous}
            with Process("training", spec) as process:
                found = process("run", seconds=seconds)
            kind = "asynchronous" if asynchronous else "synchronous"
            for name, value in found.items():
                text = f"one run of about {seconds:.0f} s after compilation"
                rows.append(Row(case, env, backend, kind, name, value, units.get(name, "share"), text))
    return rows
