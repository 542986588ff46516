"""What follows from a noise schedule, of any kind, and from what a denoiser predicts.

A time `t` is a Python integer, or integers [*batch]; other times than those of the schedule are the caller's error.
"""

from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffac.parts.schedules import TabularSchedule, check_signal, prediction_of, tabulated
from diffac.protocols import NoiseSchedule

Time: TypeAlias = int | Int[Tensor, "*#batch"]
Coefficient: TypeAlias = float | Float[Tensor, "*#batch 1"]
Action: TypeAlias = Float[Tensor, "*#batch act"]


def add_noise(schedule: NoiseSchedule, action: Action, eps: Action, t: Time) -> Action:
    """alpha(t) action + sigma(t) eps: a sample of the forward kernel."""
    alpha, sigma = _coefficients(schedule, t, action.dtype)
    return _add_scaled(alpha * action, sigma, eps)


def remove_noise(schedule: NoiseSchedule, noisy: Action, eps: Action, t: Time) -> Action:
    """(noisy - sigma(t) eps) / alpha(t): the inverse of `add_noise`, not clipped."""
    alpha, sigma = _coefficients(schedule, t, noisy.dtype)
    return _add_scaled(noisy, -sigma, eps) / alpha


def noise_between(schedule: NoiseSchedule, action: Action, noisy: Action, t: Time) -> Action:
    """(noisy - alpha(t) action) / sigma(t): the noise that leads from one to the other."""
    alpha, sigma = _coefficients(schedule, t, noisy.dtype)
    return _add_scaled(noisy, -alpha, action) / sigma


def score(schedule: NoiseSchedule, eps: Action, t: Time) -> Action:
    """-eps / sigma(t): the score of the noised density that belongs to a predicted noise."""
    _, sigma = _coefficients(schedule, t, eps.dtype)
    return -eps / sigma


def posterior_mean(schedule: NoiseSchedule, action: Action, noisy: Action, t: Time) -> Action:
    """Mean of q(a_{t-1} | a_t = noisy, a_0 = action); at t = 0 it is the action. See `TabularSchedule`."""
    table = tabulated(schedule)
    from_action = _coefficient(table, "posterior_action", t, action.dtype)
    return _add_scaled(from_action * action, _coefficient(table, "posterior_noisy", t, action.dtype), noisy)


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
    return _add_scaled(noisy, -sigma, output) / (alpha + sigma)


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
    return _add_scaled(noisy, alpha, output) / (alpha + sigma)


def _output_of(denoiser: Any, action: Action, eps: Action) -> Action:
    """What a denoiser should output for a noised action: its noise, its clean action, or eps - action (`Prediction`).

    Raises:
        UsageError: the denoiser predicts something unknown.
    """
    prediction = prediction_of(denoiser)
    return {"eps": eps, "action": action, "velocity": eps - action}[prediction]


_tensors: WeakKeyDictionary[TabularSchedule, dict[tuple[str, torch.dtype, torch.device], Tensor]] = WeakKeyDictionary()


def _coefficients(schedule: NoiseSchedule, t: Time, dtype: torch.dtype) -> tuple[Any, Any]:
    """alpha(t) and sigma(t)."""
    table = tabulated(schedule)
    return _coefficient(table, "alphas", t, dtype), _coefficient(table, "sigmas", t, dtype)


def _coefficient(table: TabularSchedule, name: str, t: Time, dtype: torch.dtype) -> Coefficient:
    """A float, or [*batch 1] of the type for an array t."""
    values = getattr(table, name)
    if not isinstance(t, Tensor):
        return float(values[t])
    tensors, key = _tensors.setdefault(table, {}), (name, dtype, t.device)
    if key not in tensors:
        with torch.inference_mode(False):  # else a table first needed while acting could never be used in training
            tensors[key] = torch.tensor(values, dtype=dtype, device=t.device)
    return tensors[key][t].unsqueeze(-1)


def _add_scaled(x: Tensor, coefficient: Coefficient, y: Tensor) -> Tensor:
    """x + coefficient y in one kernel: acting for one observation costs as much as its number of kernels."""
    if isinstance(coefficient, Tensor):
        return torch.addcmul(x, coefficient, y)
    return torch.add(x, y, alpha=coefficient)
