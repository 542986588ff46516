"""Noise schedules (DDPM = Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.protocols import NoiseSchedule
from diffac.testing.reference.gradients import Array, Gradient, Pull


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


def coefficient(schedule: NoiseSchedule, name: str, t: Any) -> Array:
    """alpha or sigma at times t [*batch], as [*batch 1]."""
    function = getattr(schedule, name)
    return np.vectorize(lambda time: function(int(time)), otypes=[np.float64])(t)[..., None]


def add_noise(schedule: NoiseSchedule, action: Array, eps: Array, t: Any) -> Array:
    """A sample of the forward kernel (DDPM equation 4)."""
    return coefficient(schedule, "alpha", t) * action + coefficient(schedule, "sigma", t) * eps


def remove_noise(schedule: NoiseSchedule, noisy: Array, eps: Array, t: Any) -> Array:
    """The action for which `add_noise` gives `noisy`."""
    return (noisy - coefficient(schedule, "sigma", t) * eps) / coefficient(schedule, "alpha", t)


def noise_between(schedule: NoiseSchedule, action: Array, noisy: Array, t: Any) -> Array:
    """The noise for which `add_noise` gives `noisy`."""
    return (noisy - coefficient(schedule, "alpha", t) * action) / coefficient(schedule, "sigma", t)


def score(schedule: NoiseSchedule, eps: Array, t: Any) -> Array:
    """grad log N(noisy; alpha action, sigma^2) = -eps / sigma."""
    return -eps / coefficient(schedule, "sigma", t)


class Posterior(NamedTuple):
    """q(a_{t-1} | a_t, a_0) = N(action a_0 + noisy a_t, std^2)."""

    action: float
    noisy: float
    std: float


def posterior(schedule: NoiseSchedule, t: int) -> Posterior:
    """By Bayes' rule: the product of q(a_t | a_{t-1}) and q(a_{t-1} | a_0) as functions of a_{t-1}, primes for t-1.

    The former is N(r a_{t-1}, v), r = alpha / alpha', v = sigma^2 - r^2 sigma'^2; precisions of Gaussians add.
    """
    if t == 0:  # a_{-1} = a_0 is known
        return Posterior(1.0, 0.0, 0.0)
    before_alpha, before_sigma = schedule.alpha(t - 1), schedule.sigma(t - 1)
    r = schedule.alpha(t) / before_alpha
    v = schedule.sigma(t) ** 2 - r**2 * before_sigma**2
    variance = 1 / (r**2 / v + 1 / before_sigma**2)
    return Posterior(variance * before_alpha / before_sigma**2, variance * r / v, math.sqrt(variance))


def posterior_mean(schedule: NoiseSchedule, action: Array, noisy: Array, t: int) -> Array:
    """Mean of q(a_{t-1} | a_t = noisy, a_0 = action)."""
    weights = posterior(schedule, t)
    return weights.action * action + weights.noisy * noisy


def predicted_action(schedule: NoiseSchedule, actor: Any, obs: Array, noisy: Array, t: Any) -> tuple[Array, Pull]:
    """The clean action that the denoiser predicts; pull(daction) -> (gradient, dnoisy).

    Solved for a from noisy = alpha a + sigma eps and, for a velocity, v = eps - a.
    """
    alpha, sigma = (coefficient(schedule, name, t) for name in ("alpha", "sigma"))
    of_output, of_noisy = {
        "eps": lambda: (-sigma / alpha, 1 / alpha),
        "velocity": lambda: (-sigma / (alpha + sigma), 1 / (alpha + sigma)),
        "action": lambda: (1.0, 0.0),
    }[actor.prediction]()
    return _affine(actor, obs, noisy, t, of_output, of_noisy)


def predicted_eps(schedule: NoiseSchedule, actor: Any, obs: Array, noisy: Array, t: Any) -> tuple[Array, Pull]:
    """The noise that the denoiser predicts; pull(deps) -> (gradient, dnoisy). Solved as in `predicted_action`."""
    alpha, sigma = (coefficient(schedule, name, t) for name in ("alpha", "sigma"))
    of_output, of_noisy = {
        "eps": (1.0, 0.0),
        "velocity": (alpha / (alpha + sigma), 1 / (alpha + sigma)),
        "action": (-alpha / sigma, 1 / sigma),
    }[actor.prediction]
    return _affine(actor, obs, noisy, t, of_output, of_noisy)


def _affine(actor: Any, obs: Array, noisy: Array, t: Any, of_output: Any, of_noisy: Any) -> tuple[Array, Pull]:
    """of_output denoiser(obs, noisy, t) + of_noisy noisy."""
    output, pull_actor = actor(obs, noisy, t)

    def pull(d: Array) -> tuple[Gradient, Array]:
        gradient, dnoisy = pull_actor(of_output * d)
        return gradient, dnoisy + of_noisy * d

    return of_output * output + of_noisy * noisy, pull
