"""Noise schedules and learning-rate schedules as data: float64 numbers, shared by all backends.

Time t runs over {0, ..., T-1} and grows with noise. The forward kernel is `noisy = alpha(t) action + sigma(t) eps`. All
else that a diffusion needs follows from these two functions, whatever they are; a `TabularSchedule` keeps it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np

from diffac.errors import UsageError, check_choice, check_count, check_number
from diffac.protocols import NoiseSchedule, Prediction


class TabularSchedule:
    """A `NoiseSchedule` given by the values of alpha and sigma; two with the same values are equal.

    `diffac.parts.schedules.tabulated` makes one of any schedule, and each part does so with the schedule it is given.

    With primes for time t-1, alpha_step = alpha / alpha' and sigma_step^2 = sigma^2 - alpha_step^2 sigma'^2, the
    reverse kernel q(a_{t-1} | a_t, a_0) is a Gaussian with mean posterior_action a_0 + posterior_noisy a_t and standard
    deviation posterior_std (Ho et al. 2020, arXiv 2006.11239, equations 6 and 7, for any alpha and sigma). Before time
    0 there is no noise: a_{-1} = a_0.

    Args:
        alpha: [T], signal left at each time, at least 0.
        sigma: [T], standard deviation of the noise at each time, greater than 0.

    Raises:
        UsageError: no times, a number outside its range, or sigma / alpha falls from a time to the next.
    """

    def __init__(self, alpha: Any, sigma: Any) -> None:
        self.alphas, self.sigmas = np.array(alpha, np.float64), np.array(sigma, np.float64)
        """[T] each."""
        _check_coefficients(self.alphas, self.sigmas)
        before_alpha, before_sigma = np.append(1.0, self.alphas[:-1]), np.append(0.0, self.sigmas[:-1])
        alpha_step = self.alphas / before_alpha
        variance_step = np.maximum(self.sigmas**2 - (alpha_step * before_sigma) ** 2, 0)
        self.posterior_action = before_alpha * variance_step / self.sigmas**2
        """[T], weight of a_0 in the mean of q(a_{t-1} | a_t, a_0)."""
        self.posterior_noisy = alpha_step * before_sigma**2 / self.sigmas**2
        """[T], weight of a_t in it."""
        self.posterior_std = before_sigma * np.sqrt(variance_step) / self.sigmas
        """[T], standard deviation of q(a_{t-1} | a_t, a_0); zero at t = 0."""
        for array in vars(self).values():
            array.flags.writeable = False  # schedules are shared
        self._hash = hash((self.alphas.tobytes(), self.sigmas.tobytes()))

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.alphas)

    def alpha(self, t: Any) -> Any:
        """Signal left at time t; for an array of times an array of that shape."""
        return self.alphas[t]

    def sigma(self, t: Any) -> Any:
        """Standard deviation of the noise at time t; for an array of times an array of that shape."""
        return self.sigmas[t]

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, TabularSchedule)
            and np.array_equal(self.alphas, other.alphas)
            and np.array_equal(self.sigmas, other.sigmas)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"TabularSchedule(alpha={self.alphas.tolist()}, sigma={self.sigmas.tolist()})"


def _check_coefficients(alpha: np.ndarray, sigma: np.ndarray) -> None:
    if alpha.ndim != 1 or len(alpha) == 0 or alpha.shape != sigma.shape:
        raise UsageError(
            f"alpha and sigma of a noise schedule must be equally many numbers, at least one, got shapes {alpha.shape} "
            f"and {sigma.shape}"
        )
    for name, values, good in (("alpha", alpha, alpha >= 0), ("sigma", sigma, sigma > 0)):
        wrong = ~(good & np.isfinite(values))
        if wrong.any():
            t = int(wrong.argmax())
            least, given = "at least 0" if name == "alpha" else "greater than 0", float(values[t])
            raise UsageError(f"{name}({t}) of a noise schedule must be a finite number, {least}, got {given!r}")
    falls = np.flatnonzero(alpha[1:] * sigma[:-1] > alpha[:-1] * sigma[1:] * (1 + 1e-12))
    if len(falls):
        t = int(falls[0])
        raise UsageError(
            f"noise must grow with time: sigma/alpha falls from time {t} to {t + 1}, where alpha is {alpha[t]:.6g} and "
            f"{alpha[t + 1]:.6g}, sigma {sigma[t]:.6g} and {sigma[t + 1]:.6g}"
        )


def tabulated(schedule: NoiseSchedule) -> TabularSchedule:
    """The values of a schedule at all of its times: alpha(t) and sigma(t) are called with Python's integers.

    Raises:
        UsageError: it is no `NoiseSchedule`, or its numbers make no sense (see `TabularSchedule`).
    """
    if isinstance(schedule, TabularSchedule):
        return schedule
    check_schedule("schedule", schedule)
    times = range(schedule.num_steps)
    return TabularSchedule(*([_value(schedule, name, t) for t in times] for name in ("alpha", "sigma")))


def _value(schedule: NoiseSchedule, name: str, t: int) -> float:
    value = getattr(schedule, name)(t)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{type(schedule).__name__}.{name}({t}) must be a number, got {value!r}") from None


def check_schedule(name: str, value: Any) -> None:
    """Refuses what is no `NoiseSchedule`.

    Raises:
        UsageError: says what it is and what is missing.
    """
    if isinstance(value, TabularSchedule):
        return
    missing = [member for member in ("num_steps", "alpha", "sigma") if not hasattr(value, member)]
    if missing or isinstance(value, type):
        raise UsageError(
            f"{name} must be a noise schedule with num_steps, alpha(t) and sigma(t), such as vp_schedule(5), got "
            f"{value!r}"
        )
    check_count(f"{type(value).__name__}.num_steps", value.num_steps)


def prediction_of(denoiser: Any) -> Prediction:
    """What a denoiser predicts, "eps" where it does not say.

    Raises:
        UsageError: its attribute `prediction` is none of these.
    """
    prediction: Any = getattr(denoiser, "prediction", "eps")
    check_choice(f"{type(denoiser).__name__}.prediction", prediction, get_args(Prediction))
    return prediction


_PREDICT_OTHERWISE = 'use a denoiser with prediction="velocity" or "action", or a schedule that keeps some signal'
KEEP_SIGNAL = "there is no reverse kernel; use a schedule that keeps some signal, such as flow_schedule(20, last=0.98)"


def check_signal(schedule: NoiseSchedule, advice: str = _PREDICT_OTHERWISE) -> None:
    """Refuses a schedule that leaves no signal at some time, where an action cannot be told from its noise.

    Args:
        schedule: the forward process.
        advice: what to do, for the message.

    Raises:
        UsageError: alpha is 0 at some time.
    """
    alphas = tabulated(schedule).alphas
    if not alphas.all():
        raise UsageError(
            f"alpha({int(alphas.argmin())}) of the schedule is 0, where noise says nothing about the action; {advice}"
        )


def check_flow(part: str, schedule: NoiseSchedule) -> None:
    """Refuses a schedule that is no flow, alpha = 1 - s and sigma = s, for a part of that name.

    Raises:
        UsageError: alpha + sigma is not 1 at some time.
    """
    table = tabulated(schedule)
    off = np.abs(table.alphas + table.sigmas - 1)
    if off.max() > 1e-9:
        t = int(off.argmax())
        raise UsageError(
            f"{part} needs a flow, alpha = 1 - s and sigma = s, such as flow_schedule(20); at time {t} this schedule "
            f"has alpha {table.alphas[t]:.6g} and sigma {table.sigmas[t]:.6g}; for any other schedule use DDIMSampler"
        )


def schedule_from_betas(beta: Any) -> TabularSchedule:
    """The variance-preserving schedule that adds the variances `beta` [T], one a step (Ho et al. 2020, equation 4).

    Raises:
        UsageError: beta is empty, not one-dimensional, or leaves (0, 1).
    """
    beta = np.array(beta, np.float64)
    if beta.ndim != 1 or len(beta) == 0 or not np.all((beta > 0) & (beta < 1)):
        raise UsageError(f"beta must be a non-empty vector of numbers strictly between 0 and 1, got {beta!r}")
    alpha_bar = np.cumprod(1 - beta)
    return TabularSchedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def vp_schedule(num_steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> TabularSchedule:
    """Discretised variance-preserving SDE with a linear rate (Xiao et al. 2022, arXiv 2112.07804; used by DACER).

    `alpha(T-1)` is the same for every T: exp(-(beta_min + beta_max) / 4).

    Args:
        num_steps: T >= 1.
        beta_min: rate of the SDE at time 0.
        beta_max: rate of the SDE at time 1.
    """
    check_count("num_steps", num_steps)
    check_number("beta_min", beta_min, "[0, inf)")
    check_number("beta_max", beta_max, "(0, inf)")
    i = np.arange(1, num_steps + 1, dtype=np.float64)
    exponent = beta_min / num_steps + 0.5 * (beta_max - beta_min) * (2 * i - 1) / num_steps**2
    return schedule_from_betas(1 - np.exp(-exponent))


def cosine_schedule(
    num_steps: int, offset: float = 0.008, max_beta: float = 0.999, start: float = 0.0, end: float = 1.0
) -> TabularSchedule:
    """Cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17).

    Args:
        num_steps: T >= 1.
        offset: s of the equation, at least 0.
        max_beta: beta is clipped there.
        start: time of the equation, in [0, 1), at which there is no noise yet. The T times are evenly spread over
            (start, end].
        end: time of the equation, in (0, 1], that is T-1 here. MaxEntDP (arXiv 2502.11612) goes from 0.001 to 0.9946.
    """
    check_count("num_steps", num_steps)
    check_number("offset", offset, "[0, inf)")
    check_number("max_beta", max_beta, "(0, 1)")
    check_number("start", start, "[0, 1]")
    check_number("end", end, "[0, 1]")
    if not start < end:
        raise UsageError(f"start must be less than end, got start={start!r} and end={end!r}")
    time = start + (end - start) * (np.arange(num_steps + 1, dtype=np.float64) / num_steps)
    alpha_bar = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    return schedule_from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def linear_beta_schedule(num_steps: int, scale: float = 0.8) -> TabularSchedule:
    """beta = scale * linspace(1e-4, 0.999, T), the schedule of the official SDAC code (scale 0.8)."""
    check_count("num_steps", num_steps)
    check_number("scale", scale, "(0, 1]")
    return schedule_from_betas(scale * np.linspace(1e-4, 0.999, num_steps))


def flow_schedule(num_steps: int, last: float = 1.0) -> TabularSchedule:
    """The straight line from action to noise: alpha = 1 - s, sigma = s (flow matching, arXiv 2210.02747).

    The times are evenly spread, s = last (t+1)/T. With last = 1 no signal is left at time T-1, so a denoiser must
    predict "velocity" or "action", and there is no reverse kernel.

    Args:
        num_steps: T >= 1.
        last: s at time T-1, in (0, 1]; below 1, ours, for what needs some signal at all times (`ReverseProposal`).
    """
    check_count("num_steps", num_steps)
    check_number("last", last, "(0, 1]")
    s = last * (np.arange(1, num_steps + 1, dtype=np.float64) / num_steps)
    return TabularSchedule(1 - s, s)


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
