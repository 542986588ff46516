"""Statistics of few runs: interquartile mean, stratified bootstrap, performance profile, probability of improvement.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021).

Scores come in *strata*, one for each environment: a list of arrays [..., seeds], whose numbers of seeds may differ.
Leading axes are points of a curve, or resamples of the bootstrap. Every run counts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2_000
"""Bootstrap samples behind an interval."""
AT_ONCE = 2**22
"""Numbers that are drawn at once: a bound on memory, whatever the number of seeds and points."""
LEVEL = 0.95
"""Probability with which an interval shall cover the true value."""
MIN_SEEDS = 2
"""Seeds of a method in an environment below which there is no interval at all."""
FEW_SEEDS = 5
"""Seeds below which an interval is much narrower than it claims; docs/use/reports.md gives the coverage."""


class Interval(NamedTuple):
    """Bounds of a confidence interval; NaN where there are too few seeds for one."""

    low: np.ndarray
    high: np.ndarray


def iqm(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Interquartile mean: the mean of what is left when the lowest and the highest quarter of the runs are trimmed.

    Fewer than four runs have no quarter to trim: then it is the mean. [..., seeds] each -> [...].
    """
    from scipy.stats import trim_mean  # an extra, and slow to import

    return np.asarray(trim_mean(np.concatenate(strata, axis=-1), 0.25, axis=-1))


def profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Performance profile: the share of runs whose score exceeds a threshold.

    Args:
        strata: [..., seeds] each.
        thresholds: [points]

    Returns:
        [..., points] in [0, 1].
    """
    scores = np.concatenate(strata, axis=-1)
    return (scores[..., None, :] > thresholds[:, None]).mean(axis=-1)


def improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> np.ndarray:
    """Probability that a run of X beats a run of Y, a tie counting half; the mean over the environments.

    In each environment the Mann-Whitney statistic divided by the number of pairs.

    Args:
        x: scores of X, [..., seeds] for each environment.
        y: scores of Y in the same environments; the numbers of seeds may differ from those of X.

    Returns:
        [...] in [0, 1].
    """
    pairs = ((a[..., :, None], b[..., None, :]) for a, b in zip(x, y, strict=True))
    return np.mean([((a > b) + 0.5 * (a == b)).mean(axis=(-2, -1)) for a, b in pairs], axis=0)


def improvement_interval(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Interval:
    """`bootstrap(improvement, x, y)`, by a table of who beats whom in place of a comparison for every resample.

    Args:
        x: scores of X, [seeds] for each environment.
        y: scores of Y in the same environments.
    """
    tables = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in zip(x, y, strict=True)]

    def statistic(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
        strata = zip(ours, theirs, tables, strict=True)
        return np.mean([((_counts(a) @ table) * _counts(b)).sum(-1) / table.size for a, b, table in strata], axis=0)

    return bootstrap(statistic, *([np.arange(len(scores)) for scores in strata] for strata in (x, y)))


def _counts(drawn: np.ndarray) -> np.ndarray:
    """Indices [..., seeds] -> how often each of them was drawn, [..., seeds]."""
    rows = drawn.reshape(-1, n := drawn.shape[-1])
    counts = np.bincount((rows + n * np.arange(len(rows))[:, None]).ravel(), minlength=rows.size)
    return counts.reshape(drawn.shape)


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval by stratified bootstrap: seeds are drawn with replacement within each environment.

    Args:
        statistic: of as many lists of strata as there are samples.
        samples: lists of strata, [*points, seeds] each. A seed that is drawn brings its whole curve.
        resamples: how often to draw.
        seed: of the drawing, so that the same runs give the same report.

    Returns:
        Bounds of a 95 % interval, of the statistic's shape; NaN where a stratum has fewer than `MIN_SEEDS` seeds.
    """
    if any(stratum.shape[-1] < MIN_SEEDS for strata in samples for stratum in strata):
        nothing = np.full(np.shape(statistic(*samples)), np.nan)
        return Interval(nothing, nothing)
    rng = np.random.default_rng(seed)
    drawn = [[rng.integers(n, size=(resamples, n)) for n in (s.shape[-1] for s in strata)] for strata in samples]
    chunk = max(1, AT_ONCE // sum(stratum.size for strata in samples for stratum in strata))
    values = [
        statistic(*(
            [_take(stratum, seeds[first : first + chunk]) for stratum, seeds in zip(*pair, strict=True)]
            for pair in zip(samples, drawn, strict=True)
        ))
        for first in range(0, resamples, chunk)
    ]  # fmt: skip
    low, high = np.quantile(np.concatenate(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Interval(low, high)


def _take(stratum: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """[*points, seeds], [resamples, seeds] -> [resamples, *points, seeds]."""
    return np.moveaxis(stratum[..., seeds], -2, 0)


def mean_std(scores: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1; NaN for a single score) of [seeds]."""
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
