"""Runs the contenders: all of one case and environment at the same time, taking turns, so that ratios are fair."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .protocol import Process

BLOCK_SECONDS = 0.5
"""About how long one turn of a contender takes."""


@contextlib.contextmanager
def cold_caches() -> Iterator[dict[str, str]]:
    """Variables that make compilers begin with nothing, so that compile times are those of a first run."""
    with tempfile.TemporaryDirectory() as folder:
        yield {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TRITON_CACHE_DIR": f"{folder}/triton",
        }


def start(contender: Process) -> dict[str, float]:
    """Builds and warms up; "compile" is what the first updates took beyond the time of later ones."""
    seconds = contender("start")
    return {"compile": seconds["first"] - 2 * seconds["after"], **seconds}


def block(seconds: float) -> int:
    """Updates of one turn: even, because every second one updates the actor."""
    return 2 * max(1, round(BLOCK_SECONDS / seconds / 2))


def take_turns(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[Any]]:
    """The answers of each, call after call, in rounds whose order alternates."""
    answers: list[list[Any]] = [[] for _ in calls]
    for turn in range(rounds):
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for i in order:
            answers[i].append(calls[i]())
    return answers


def peaks(rounds: Iterable[dict[str, float]]) -> dict[str, float]:
    """The median over rounds for each shape."""
    rounds = list(rounds)
    return {title: statistics.median(one[title] for one in rounds) for title in rounds[0]}
