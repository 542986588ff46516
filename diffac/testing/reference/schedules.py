"""Noise schedules (DDPM = Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.schedules import ScheduleTable
from diffac.testing.reference.gradients import Array


class Schedule(NamedTuple):
    """Coefficients of the forward and of the reverse process, each a list over t = 0..T-1."""

    alpha: list[float]
    sigma: list[float]
    posterior_action: list[float]
    posterior_noisy: list[float]
    posterior_std: list[float]


def vp_betas(num_steps: int, rate_min: float = 0.1, rate_max: float = 10.0) -> list[float]:
    """1 - exp(-integral of the rate of the SDE over one step); the rate is linear in time (2112.07804)."""

    def integral(time: float) -> float:
        return rate_min * time + (rate_max - rate_min) * time**2 / 2

    return [-math.expm1(integral(t / num_steps) - integral((t + 1) / num_steps)) for t in range(num_steps)]


def cosine_betas(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> list[float]:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17 and the clip below it."""

    def f(t: int) -> float:
        return math.cos((t / num_steps + offset) / (1 + offset) * math.pi / 2) ** 2

    return [min(1 - f(t + 1) / f(t), max_beta) for t in range(num_steps)]


def linear_betas(num_steps: int, scale: float = 0.8) -> list[float]:
    """Evenly spaced from scale * 1e-4 to scale * 0.999 (official SDAC code)."""
    gaps = max(num_steps - 1, 1)
    return [scale * (1e-4 + (0.999 - 1e-4) * t / gaps) for t in range(num_steps)]


def schedule(betas: Sequence[float]) -> Schedule:
    """DDPM equations 4 and 7, the latter by multiplying the two Gaussians of Bayes' rule:
    q(a_{t-1} | a_t, a_0) is proportional to N(a_t; sqrt(1-beta) a_{t-1}, beta) N(a_{t-1}; alpha' a_0, sigma'^2),
    primes for the previous time.
    """
    result = Schedule([], [], [], [], [])
    signal = 1.0  # alpha_bar of the previous time
    for t, beta in enumerate(betas):
        if t == 0:  # a_{-1} = a_0 is known
            result.posterior_action.append(1.0)
            result.posterior_noisy.append(0.0)
            result.posterior_std.append(0.0)
        else:
            variance = 1 / ((1 - beta) / beta + 1 / (1 - signal))
            result.posterior_action.append(variance * math.sqrt(signal) / (1 - signal))
            result.posterior_noisy.append(variance * math.sqrt(1 - beta) / beta)
            result.posterior_std.append(math.sqrt(variance))
        signal *= 1 - beta
        result.alpha.append(math.sqrt(signal))
        result.sigma.append(math.sqrt(1 - signal))
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class TabularSchedule:
    """The forward process of DDPM; a time t is an integer or an array of them, one for each batch entry.

    Of the table only beta is used; the coefficients are computed here once more.
    """

    table: ScheduleTable

    @functools.cached_property
    def coefficients(self) -> Schedule:
        """Those that follow from beta."""
        return schedule(self.table.beta.tolist())

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.table.beta)

    def at(self, name: str, t: Any) -> Array:
        """A coefficient at times t [*batch], as [*batch 1]."""
        return np.asarray(getattr(self.coefficients, name))[t][..., None]

    def add_noise(self, action: Array, eps: Array, t: Any) -> Array:
        """A sample of DDPM equation 4."""
        return self.at("alpha", t) * action + self.at("sigma", t) * eps

    def predict_action(self, noisy: Array, eps: Array, t: Any) -> Array:
        """The inverse of `add_noise`."""
        return (noisy - self.at("sigma", t) * eps) / self.at("alpha", t)

    def score(self, eps: Array, t: Any) -> Array:
        """grad log N(noisy; alpha action, sigma^2) = -eps / sigma."""
        return -eps / self.at("sigma", t)
