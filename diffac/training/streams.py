"""The random numbers of a run: a stream for each purpose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Streams(NamedTuple):
    """The random numbers of a run, one independent stream for each purpose, so that no purpose disturbs another."""

    envs: np.random.Generator
    random_actions: np.random.Generator
    acting: np.random.Generator
    replay: np.random.Generator
    updates: np.random.Generator
    evaluation: np.random.Generator

    @classmethod
    def from_seed(cls, seed: int) -> Streams:
        """The streams that belong to a seed."""
        children = np.random.SeedSequence(seed).spawn(len(cls._fields))
        return cls(*map(np.random.default_rng, children))


def integer(rng: np.random.Generator) -> int:
    """A seed or key: uniform in {0, ..., 2^31 - 1}."""
    return int(rng.integers(2**31))
