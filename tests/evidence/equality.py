"""Do both backends learn alike? A permutation test on the curves of runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test


class Comparison(NamedTuple):
    """Of two groups of curves."""

    distance: float
    """Between the mean curves, averaged over the evaluations."""
    p_value: float
    """Share of all divisions of the curves into two such groups whose mean curves are at least as far apart."""


def compare(one: np.ndarray, other: np.ndarray) -> Comparison:
    """An exact test of the hypothesis that both groups of curves, [evaluations seeds], come from one law.

    Seeds are exchanged as whole curves, so that evaluations of a run may depend on each other. Runs of one seed are not
    taken as pairs: they begin alike, and go apart by chaos within hundreds of updates.
    """
    curves = np.concatenate([one, other], axis=1)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        means = (curves[:, seeds.astype(int)].mean(1) for seeds in (first, second))
        return float(np.abs(np.subtract(*means)).mean())

    seeds = np.split(np.arange(curves.shape[1]), [one.shape[1]])
    found = permutation_test(seeds, distance, vectorized=False, n_resamples=np.inf, alternative="greater")
    return Comparison(float(found.statistic), float(found.pvalue))
