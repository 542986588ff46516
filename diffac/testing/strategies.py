"""Hypothesis strategies for diffac: few shapes, many values.

A compiled backend compiles once per shape, so these strategies vary only numbers: the random stream, the scale of
everything, the temperature, how many transitions are terminal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


class Situation(NamedTuple):
    """The numbers from which a test builds its networks, batch and noise."""

    seed: int
    """Seed of everything random."""
    magnitude: float
    """Scale of observations and rewards."""
    spread: float
    """Scale of the networks' parameters, relative to 1/sqrt(fan in)."""
    temperature: float
    """The entropy coefficient."""
    termination: float
    """Probability that a transition is terminal; 0 and 1 occur."""

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator; the same one each time."""
        return np.random.default_rng(self.seed)


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive numbers between 10^low and 10^high, evenly spread over their logarithm."""
    return st.floats(low, high, allow_nan=False).map(lambda exponent: float(10.0**exponent))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of random generators."""
    return st.integers(0, 2**32 - 1)


def situations() -> st.SearchStrategy[Situation]:
    """Ordinary to unusual numbers: magnitudes 0.01 to 10, temperatures 0.03 to 30."""
    return st.builds(
        Situation,
        seed=seeds(),
        magnitude=powers_of_ten(-2, 1),
        spread=powers_of_ten(-0.5, 0.3),
        temperature=powers_of_ten(-1.5, 1.5),
        termination=st.sampled_from([0.0, 0.3, 1.0]),
    )
