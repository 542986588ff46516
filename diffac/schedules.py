"""Noise schedules and learning-rate schedules as data: float64 tables and numbers, shared by all backends.

Time t runs over {0, ..., T-1} and grows with noise. The forward kernel is `noisy = alpha[t] action + sigma[t] eps`.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from diffac.errors import UsageError, check_count, check_number


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleTable:
    """All coefficients of a variance-preserving schedule of T steps; each field is a float64 array of shape [T].

    Ho et al. 2020 (arXiv 2006.11239), equations 4 to 7, with `alpha` for the square root of the cumulative product.
    """

    beta: np.ndarray
    """Variance added by forward step t, in (0, 1)."""
    alpha: np.ndarray
    """Signal kept after t+1 forward steps, sqrt(prod(1 - beta))."""
    sigma: np.ndarray
    """Noise present after t+1 forward steps, sqrt(1 - alpha^2)."""
    posterior_action: np.ndarray
    """Weight of the predicted clean action in the mean of q(a_{t-1} | a_t, a_0)."""
    posterior_noisy: np.ndarray
    """Weight of a_t in the mean of q(a_{t-1} | a_t, a_0)."""
    posterior_std: np.ndarray
    """Standard deviation of q(a_{t-1} | a_t, a_0); zero at t = 0."""

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.beta)


def table_from_betas(beta: np.ndarray) -> ScheduleTable:
    """The table that belongs to forward variances `beta` [T].

    Raises:
        UsageError: beta is empty, not one-dimensional, or leaves (0, 1).
    """
    beta = np.array(beta, np.float64)
    if beta.ndim != 1 or len(beta) == 0 or not np.all((beta > 0) & (beta < 1)):
        raise UsageError(f"beta must be a non-empty vector of numbers strictly between 0 and 1, got {beta!r}")
    alpha_bar = np.cumprod(1 - beta)
    alpha_bar_prev = np.concatenate([[1.0], alpha_bar[:-1]])
    table = ScheduleTable(
        beta=beta,
        alpha=np.sqrt(alpha_bar),
        sigma=np.sqrt(1 - alpha_bar),
        posterior_action=beta * np.sqrt(alpha_bar_prev) / (1 - alpha_bar),
        posterior_noisy=(1 - alpha_bar_prev) * np.sqrt(1 - beta) / (1 - alpha_bar),
        posterior_std=np.sqrt(beta * (1 - alpha_bar_prev) / (1 - alpha_bar)),
    )
    for field in dataclasses.fields(table):
        getattr(table, field.name).flags.writeable = False  # tables are shared
    return table


def vp_table(num_steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> ScheduleTable:
    """Discretised variance-preserving SDE with a linear rate (Xiao et al. 2022, arXiv 2112.07804; used by DACER).

    `alpha[T-1]` is the same for every T: exp(-(beta_min + beta_max) / 4).

    Args:
        num_steps: T >= 1.
        beta_min: rate of the SDE at time 0.
        beta_max: rate of the SDE at time 1.
    """
    check_count("num_steps", num_steps)
    check_number("beta_min", beta_min, "[0, inf)")
    check_number("beta_max", beta_max, "(0, inf)")
    return _vp_table(num_steps, beta_min, beta_max)


# Backends compile a table in as a constant: one object, one compilation.


@functools.cache
def _vp_table(num_steps: int, beta_min: float, beta_max: float) -> ScheduleTable:
    i = np.arange(1, num_steps + 1, dtype=np.float64)
    exponent = beta_min / num_steps + 0.5 * (beta_max - beta_min) * (2 * i - 1) / num_steps**2
    return table_from_betas(1 - np.exp(-exponent))


def cosine_table(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> ScheduleTable:
    """Cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17); beta is clipped at `max_beta`."""
    check_count("num_steps", num_steps)
    check_number("offset", offset, "[0, inf)")
    check_number("max_beta", max_beta, "(0, 1)")
    return _cosine_table(num_steps, offset, max_beta)


@functools.cache
def _cosine_table(num_steps: int, offset: float, max_beta: float) -> ScheduleTable:
    time = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    alpha_bar = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    return table_from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def linear_table(num_steps: int, scale: float = 0.8) -> ScheduleTable:
    """beta = scale * linspace(1e-4, 0.999, T), the schedule of the official SDAC code (scale 0.8)."""
    check_count("num_steps", num_steps)
    check_number("scale", scale, "(0, 1]")
    return _linear_table(num_steps, scale)


@functools.cache
def _linear_table(num_steps: int, scale: float) -> ScheduleTable:
    return table_from_betas(scale * np.linspace(1e-4, 0.999, num_steps))


@dataclasses.dataclass(frozen=True)
class LinearSchedule:
    """A number that is `initial` until `begin`, `final` from `end` on, and linear in between (all counted in steps)."""

    initial: float
    final: float
    begin: int
    end: int

    def __post_init__(self) -> None:
        check_number("initial", self.initial)
        check_number("final", self.final)
        check_count("begin", self.begin, 0)
        check_count("end", self.end)
        if not self.begin < self.end:
            raise UsageError(f"a LinearSchedule needs 0 <= begin < end, got begin={self.begin} and end={self.end}")
