"""Times of updates alone, ours against naive, for tuning:

    python -m tests.benchmarks.updates --case sdac dacer2 --env HalfCheetah --backend torch equinox --kind ours naive

`--kind` may name switches too (`switches.py`). The last column is the fraction of the machine's matrix-product peak,
measured between the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from .cases import CASES, SIZES, configure
from .flops import update_flops
from .measure import block, cold_caches, peaks, start, take_turns
from .protocol import Process
from .switches import SWITCHES


class Update(NamedTuple):
    """What is known of one contender's updates."""

    backend: str
    kind: str
    seconds: float
    """Of one update: median over rounds of the mean over a block."""
    spread: float
    """Largest over smallest round."""
    compile: float
    """Seconds."""
    fraction: float
    """Of peak, necessary operations only."""


def measure_updates(case: str, env: str, contenders: Sequence[tuple[str, str]], rounds: int) -> list[Update]:
    """Updates of contenders (backend, kind), which take turns."""
    with contextlib.ExitStack() as stack:
        variables = stack.enter_context(cold_caches())
        backends = list(dict.fromkeys(backend for backend, _ in contenders))
        peak = [stack.enter_context(Process("peak", {"backend": backend})) for backend in backends]
        running = []
        for backend, kind in contenders:
            spec = {"case": case, "env": env, "backend": backend, "kind": kind}
            own = dict(SWITCHES[kind].variables) if kind in SWITCHES else {}
            running.append(stack.enter_context(Process("contender", spec, **variables, **own)))
        started = [start(one) for one in running]
        counts = [block(one["after"]) for one in started]
        calls = [partial(one, "update", count=count) for one, count in zip(running, counts, strict=True)]
        calls += [partial(one, "measure") for one in peak]
        answers = take_turns(calls, rounds)
    best = max(max(peaks(rounds).values()) for rounds in answers[len(running) :])
    results = []
    for (backend, kind), seconds, first in zip(contenders, answers, started, strict=False):
        module, config = configure(case, env, backend)
        learner, _, _ = module.build(config, *SIZES[env])
        median = statistics.median(seconds)
        fraction = update_flops(learner, config, *SIZES[env]) / median / best
        results.append(Update(backend, kind, median, max(seconds) / min(seconds), first["compile"], fraction))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=["sdac", "dacer2"])
    parser.add_argument("--env", nargs="+", choices=SIZES, default=["HalfCheetah"])
    parser.add_argument("--backend", nargs="+", default=["torch", "equinox"])
    parser.add_argument("--kind", nargs="+", default=["ours", "naive"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("case         env          backend  kind         ms/update  spread  compile s  of peak  gain", flush=True)
    for case, env in itertools.product(arguments.case, arguments.env):
        pairs = list(itertools.product(arguments.backend, arguments.kind))
        updates = measure_updates(case, env, pairs, arguments.rounds)
        for one in updates:
            ours = next((o.seconds for o in updates if o.backend == one.backend and o.kind == "ours"), one.seconds)
            print(
                f"{case:12s} {env:12s} {one.backend:8s} {one.kind:12s} {1e3 * one.seconds:9.2f} {one.spread:7.2f}"
                f" {one.compile:10.1f} {one.fraction:8.0%} {one.seconds / ours:5.2f}x",
                flush=True,
            )
