"""Hypothesis strategies for diffac: few shapes, many values.

A compiled backend compiles once per shape, so sizes and activations come from the short list of `parts.OTHER_DIMS`,
while numbers vary freely: the random stream, the scale of everything, the temperature, how many transitions end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from diffac.testing.parts import DIMS, OTHER_DIMS, Dims
from diffac.testing.problems import Problem, make_problem


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive numbers between 10^low and 10^high, evenly spread over their logarithm."""
    return st.floats(low, high, allow_nan=False).map(lambda exponent: float(10.0**exponent))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of random generators."""
    return st.integers(0, 2**32 - 1)


def dims() -> st.SearchStrategy[Dims]:
    """Observation and action dimensions, batch, particles, diffusion steps, hidden layers and their activation."""
    return st.sampled_from((DIMS, *OTHER_DIMS))


def terminations() -> st.SearchStrategy[float]:
    """Probabilities that a transition ends its episode: never, sometimes, always."""
    return st.sampled_from([0.0, 0.3, 1.0])


def problems(kind: str, name: str, sizes: st.SearchStrategy[Dims] | None = None) -> st.SearchStrategy[Problem]:
    """Ordinary to unusual numbers for a row: observations and rewards 0.01 to 10, temperatures 0.03 to 30.

    Args:
        kind: a key of `problems.KINDS`.
        name: a row of its table.
        sizes: `dims()` by default.
    """
    return _problems(kind, name, sizes, magnitude=powers_of_ten(-2, 1), temperature=powers_of_ten(-1.5, 1.5))


def extreme_problems(kind: str, name: str, sizes: st.SearchStrategy[Dims] | None = None) -> st.SearchStrategy[Problem]:
    """Observations and rewards up to 10,000, or nearly nothing; temperatures 0.01 to 1,000.

    Not lower: DPMD's weights exp(3 / temperature) leave double precision at a temperature of 0.004.
    """
    magnitude = st.one_of(powers_of_ten(2, 4), powers_of_ten(-8, -4))
    return _problems(kind, name, sizes, magnitude=magnitude, temperature=powers_of_ten(-2, 3))


def _problems(
    kind: str,
    name: str,
    sizes: st.SearchStrategy[Dims] | None,
    *,
    magnitude: st.SearchStrategy[float],
    temperature: st.SearchStrategy[float],
) -> st.SearchStrategy[Problem]:
    def make(seed: int, **numbers: Any) -> Problem:
        return make_problem(kind, name, np.random.default_rng(seed), **numbers)

    return st.builds(
        make,
        seed=seeds(),
        dims=dims() if sizes is None else sizes,
        magnitude=magnitude,
        spread=powers_of_ten(-0.5, 0.3),
        temperature=temperature,
        termination=terminations(),
    )
