"""What follows from a noise schedule, of any kind, and from what a denoiser predicts.

A time `t` is a Python integer, or integers [*batch]; other times than those of the schedule are the caller's error.
Coefficients are compile-time constants.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

from diffac.parts.schedules import check_signal, prediction_of, tabulated
from diffac.protocols import NoiseSchedule

Time: TypeAlias = Int[Array, "*#batch"] | int
Action: TypeAlias = Float[Array, "*#batch act"]


def add_noise(schedule: NoiseSchedule, action: Action, eps: Action, t: Time) -> Action:
    """alpha(t) action + sigma(t) eps: a sample of the forward kernel."""
    alpha, sigma = _coefficients(schedule, t, action.dtype)
    return alpha * action + sigma * eps


def remove_noise(schedule: NoiseSchedule, noisy: Action, eps: Action, t: Time) -> Action:
    """(noisy - sigma(t) eps) / alpha(t): the inverse of `add_noise`, not clipped."""
    alpha, sigma = _coefficients(schedule, t, noisy.dtype)
    return (noisy - sigma * eps) / alpha


def noise_between(schedule: NoiseSchedule, action: Action, noisy: Action, t: Time) -> Action:
    """(noisy - alpha(t) action) / sigma(t): the noise that leads from one to the other."""
    alpha, sigma = _coefficients(schedule, t, noisy.dtype)
    return (noisy - alpha * action) / sigma


def score(schedule: NoiseSchedule, eps: Action, t: Time) -> Action:
    """-eps / sigma(t): the score of the noised density that belongs to a predicted noise."""
    _, sigma = _coefficients(schedule, t, eps.dtype)
    return -eps / sigma


def posterior_mean(schedule: NoiseSchedule, action: Action, noisy: Action, t: Time) -> Action:
    """Mean of q(a_{t-1} | a_t = noisy, a_0 = action); at t = 0 it is the action. See `TabularSchedule`."""
    table = tabulated(schedule)
    from_action = _coefficient(table.posterior_action, t, action.dtype)
    return from_action * action + _coefficient(table.posterior_noisy, t, noisy.dtype) * noisy


def predicted_action(schedule: NoiseSchedule, denoiser: Any, output: Action, noisy: Action, t: Time) -> Action:
    """The clean action that a denoiser's output stands for, not clipped; see `diffac.protocols.Prediction`.

    Raises:
        UsageError: the denoiser predicts noise, and the schedule leaves no signal at some time; or it predicts
            something unknown.
    """
    prediction = prediction_of(denoiser)
    if prediction == "action":
        return output
    if prediction == "eps":
        check_signal(schedule)
        return remove_noise(schedule, noisy, output, t)
    alpha, sigma = _coefficients(schedule, t, noisy.dtype)
    return (noisy - sigma * output) / (alpha + sigma)


def predicted_eps(schedule: NoiseSchedule, denoiser: Any, output: Action, noisy: Action, t: Time) -> Action:
    """The noise that a denoiser's output stands for; see `diffac.protocols.Prediction`.

    Raises:
        UsageError: the denoiser predicts something unknown.
    """
    prediction = prediction_of(denoiser)
    if prediction == "eps":
        return output
    if prediction == "action":
        return noise_between(schedule, output, noisy, t)
    alpha, sigma = _coefficients(schedule, t, noisy.dtype)
    return (noisy + alpha * output) / (alpha + sigma)


def _output_of(denoiser: Any, action: Array, eps: Array) -> Array:
    """What a denoiser should output for a noised action: its noise, its clean action, or eps - action (`Prediction`).

    Raises:
        UsageError: the denoiser predicts something unknown.
    """
    prediction = prediction_of(denoiser)
    return {"eps": eps, "action": action, "velocity": eps - action}[prediction]


def _coefficients(schedule: NoiseSchedule, t: Time, dtype: DTypeLike) -> tuple[Any, Any]:
    """alpha(t) and sigma(t)."""
    table = tabulated(schedule)
    return _coefficient(table.alphas, t, dtype), _coefficient(table.sigmas, t, dtype)


def _coefficient(values: np.ndarray, t: Time, dtype: DTypeLike) -> Array | float:
    """values[t]: a Python float for a Python integer, else [*t 1], which broadcasts against actions."""
    return float(values[t]) if isinstance(t, int) else jnp.asarray(values, dtype)[t][..., None]
