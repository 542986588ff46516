"""Samplers: rollout(...) -> (Rollout, pull), and pull(daction, dlog_prob) -> gradient of the actor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from diffac.noise import EXPLORATION, Noise, NoiseSpec, Normal, Shape
from diffac.protocols import NoiseSchedule, Policy, Rollout
from diffac.testing.reference.gradients import Array, Gradient, Pull, add, best_of, clip, reduced, unbroadcast, zeros
from diffac.testing.reference.schedules import (
    add_noise,
    noise_between,
    posterior,
    posterior_mean,
    predicted_action,
)

__all__ = [
    "AdditiveNoise",
    "BestOf",
    "DDIMSampler",
    "DDPMSampler",
    "DeterministicSampler",
    "HeunSampler",
    "LangevinSampler",
    "LogProbability",
    "MeanFlowSampler",
    "RolloutAndPull",
    "TanhGaussianSampler",
    "first_scale",
]

RolloutAndPull = tuple[Rollout, Pull]


def first_scale(sampler: Any) -> float:
    """Standard deviation of the first state of a chain."""
    schedule, given = sampler.schedule, sampler.start_scale
    return schedule.sigma(schedule.num_steps - 1) if given is None else given


@dataclasses.dataclass(frozen=True, eq=False)
class DDPMSampler:
    """DDPM algorithm 2 with the predicted action clipped to the box in every step, or else each state after a step.

    The noise of a step has the variance of the posterior, or that of the forward step: sigma^2 - r^2 sigma'^2 with
    r = alpha / alpha', primes for t-1; or there is none.
    """

    schedule: NoiseSchedule
    start_scale: float | None = None
    clip: str = "action"
    variance: str = "posterior"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The start, and the noise added after each time but 0: entry t-1 after time t."""
        return {"start": Normal(shape), "steps": Normal((self.schedule.num_steps - 1, *shape))}

    def std(self, t: int) -> float:
        """Of the noise of the step from t."""
        s = self.schedule
        if self.variance == "zero":
            return 0.0
        if self.variance == "posterior":
            return posterior(s, t).std
        return math.sqrt(s.sigma(t) ** 2 - (s.alpha(t) / s.alpha(t - 1) * s.sigma(t - 1)) ** 2)

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action, and the states [T *batch act] in which the denoiser was asked."""
        times = range(self.schedule.num_steps)
        noisy = first_scale(self) * noise["start"]
        states, pulls, slopes, of_states = {}, {}, {}, {}
        for t in reversed(times):
            states[t], slopes[t], of_states[t] = noisy, 1.0, 1.0
            action, pulls[t] = predicted_action(self.schedule, policy.actor, obs, noisy, t)
            if self.clip == "action" or t == 0:
                action, slopes[t] = clip(action)
            noisy = posterior_mean(self.schedule, action, noisy, t)
            if t > 0:
                noisy = noisy + self.std(t) * noise["steps"][t - 1]
                if self.clip == "state":
                    noisy, of_states[t] = clip(noisy)

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            gradient, dnoisy = zeros(policy.actor.parameters), daction  # of what the step at time t ends in
            for t in times:
                weights = posterior(self.schedule, t)
                dnoisy = dnoisy * of_states[t]
                through_actor, dstate = pulls[t](weights.action * dnoisy * slopes[t])
                gradient = add(gradient, through_actor)
                dnoisy = weights.noisy * dnoisy + dstate
            return gradient

        return Rollout(noisy, np.stack([states[t] for t in times])), pull


@dataclasses.dataclass(frozen=True, eq=False)
class DDIMSampler:
    """DDIM equation 12 with its sigma = 0; the predicted action is clipped, and the noise is the one that fits it.

    The times are spread evenly from 0 to T-1, rounded as NumPy does; a single one is T-1.
    """

    schedule: NoiseSchedule
    start_scale: float | None = None
    num_steps: int | None = None

    @property
    def times(self) -> list[int]:
        """Where the denoiser is asked, increasing."""
        last, number = self.schedule.num_steps - 1, self.num_steps or self.schedule.num_steps
        return [last] if number == 1 else np.linspace(0, last, number).round().astype(int).tolist()

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The start; the rest is deterministic."""
        return {"start": Normal(shape)}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action, and the states in which the denoiser was asked, in the order of time."""
        schedule, times = self.schedule, self.times
        following = dict(zip(times[1:], times, strict=False))  # a time -> the next one down
        noisy = action = first_scale(self) * noise["start"]
        states, pulls, slopes = {}, {}, {}
        for t in reversed(times):
            states[t] = noisy
            action, pulls[t] = predicted_action(schedule, policy.actor, obs, noisy, t)
            action, slopes[t] = clip(action)
            if t in following:
                noisy = add_noise(schedule, action, noise_between(schedule, action, noisy, t), following[t])

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            gradient, dnoisy = zeros(policy.actor.parameters), np.zeros(daction.shape)
            for t in times:
                share = 0.0  # of the present state in the next one
                if t in following:
                    share = schedule.sigma(following[t]) / schedule.sigma(t)
                    daction = (schedule.alpha(following[t]) - share * schedule.alpha(t)) * dnoisy
                through_actor, dstate = pulls[t](daction * slopes[t])
                gradient = add(gradient, through_actor)
                dnoisy = share * dnoisy + dstate
            return gradient

        return Rollout(action, np.stack([states[t] for t in times])), pull


@dataclasses.dataclass(frozen=True, eq=False)
class HeunSampler:
    """Heun's method (the trapezoidal rule with Euler's step as prediction) for dx/ds = (x - a) / s, s = sigma.

    a is the predicted action, clipped; the last step is Euler's, which ends in it. The times are DDIM's.
    """

    schedule: NoiseSchedule
    start_scale: float | None = None
    num_steps: int | None = None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The start; the rest is deterministic."""
        return {"start": Normal(shape)}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action, and the states from which steps were taken, in the order of time."""
        schedule, times = self.schedule, DDIMSampler(self.schedule, num_steps=self.num_steps).times

        def clean(x: Array, t: int) -> tuple[Array, Pull]:
            action, pull = predicted_action(schedule, policy.actor, obs, x, t)
            action, slope = clip(action)
            return action, lambda daction: pull(daction * slope)

        def velocity(x: Array, t: int) -> tuple[Array, Pull]:
            action, pull_action = clean(x, t)

            def pull(dv: Array) -> tuple[Gradient, Array]:
                gradient, dx = pull_action(-dv / schedule.sigma(t))
                return gradient, dx + dv / schedule.sigma(t)

            return (x - action) / schedule.sigma(t), pull

        x, states, pulls = first_scale(self) * noise["start"], [], []
        for t, following in zip(times[:0:-1], times[-2::-1], strict=True):
            states.append(x)
            h = schedule.sigma(following) - schedule.sigma(t)
            first, pull_first = velocity(x, t)
            second, pull_second = velocity(x + h * first, following)
            pulls.append((h, pull_first, pull_second))
            x = x + h / 2 * (first + second)
        states.append(x)
        action, pull_last = clean(x, times[0])

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            gradient, dx = pull_last(daction)
            for h, pull_first, pull_second in reversed(pulls):
                through_second, deuler = pull_second(h / 2 * dx)
                through_first, dstart = pull_first(h / 2 * dx + h * deuler)
                gradient, dx = add(gradient, through_second, through_first), dx + deuler + dstart
            return gradient

        return Rollout(action, np.stack(states[::-1])), pull


@dataclasses.dataclass(frozen=True, eq=False)
class MeanFlowSampler:
    """x(r) = x(t) - (t - r) u(x(t), t, r) from t = 1 to 0 in equal steps; the end is clipped."""

    num_steps: int = 1
    start_scale: float = 1.0

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The start; the rest is deterministic."""
        return {"start": Normal(shape)}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action, and the states from which steps were taken, in the order of time."""
        x, states, pulls = self.start_scale * noise["start"], [], []
        for k in reversed(range(self.num_steps)):
            states.append(x)
            u, pull_u = policy.actor(obs, x, (k + 1) / self.num_steps, k / self.num_steps)
            pulls.append(pull_u)
            x = x - u / self.num_steps
        action, slope = clip(x)

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            gradient, dx = zeros(policy.actor.parameters), daction * slope
            for pull_u in reversed(pulls):
                through_actor, dstate = pull_u(-dx / self.num_steps)
                gradient, dx = add(gradient, through_actor), dx + dstate
            return gradient

        return Rollout(action, np.stack(states[::-1])), pull


def log_normal(x: Array, mean: Array | float, variance: Array | float) -> Array:
    """The logarithm of a normal density, entry by entry."""
    return -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * math.pi * variance)


@dataclasses.dataclass(frozen=True, eq=False)
class LangevinSampler:
    """DIME's chain, and the log-ratio of its path to the path back by the prior's diffusion; a = tanh(x_N).

    k counts steps as in the paper, forwards; time and noise of step k have the index N-1-k.
    """

    num_steps: int = 16
    prior_std: float = 2.5

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The start, and the noise of each step."""
        return {"start": Normal(shape), "steps": Normal((self.num_steps, *shape))}

    def factor(self, k: int) -> float:
        """c_k, a cosine from 1 to nearly 0.001."""
        left = (self.num_steps - k) / self.num_steps
        return 0.999 * math.cos(math.pi / 2 * (1.008 - left) / 1.008) ** 2 + 0.001

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action and the log-ratio, each kernel's density written out."""
        step, pull_step = policy.actor.step_size()
        variance, x, kept = self.prior_std**2, self.prior_std * noise["start"], []
        log_ratio = log_normal(x, 0.0, variance)
        for k in range(self.num_steps):
            t, eta = self.num_steps - 1 - k, self.factor(k) * step
            xi = noise["steps"][t]
            drift, pull_drift = policy.actor(obs, x, t)
            mean = x + eta * (drift - x / variance)
            after = mean + np.sqrt(2 * eta) * xi
            mean_back = after - eta * after / variance
            log_ratio = log_ratio + log_normal(after, mean, 2 * eta) - log_normal(x, mean_back, 2 * eta)
            kept.append((k, eta, xi, drift, pull_drift, x, after, x - mean_back))
            x = after
        log_cosh = np.logaddexp(x, -x) - math.log(2)
        end = x

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            dlog = np.zeros(end.shape) if dlog_prob is None else np.broadcast_to(dlog_prob[..., None], end.shape)
            gradient, dstep = zeros(policy.actor.parameters), np.zeros(step.shape)
            dafter = daction * np.exp(-2 * log_cosh) + 2 * np.tanh(end) * dlog
            for k, eta, xi, drift, pull_drift, before, after, missed in reversed(kept):
                # log forward has xi and eta alone, and eta goes from both normalisations: missed^2 / (4 eta) is left
                dmissed = dlog * missed / (2 * eta)
                deta = -dlog * missed**2 / (4 * eta**2) + dmissed * after / variance
                dafter = dafter - dmissed * (1 - eta / variance)
                deta = deta + dafter * (drift - before / variance + xi / np.sqrt(2 * eta))
                through_actor, dbefore = pull_drift(dafter * eta)
                gradient = add(gradient, through_actor)
                dstep = dstep + self.factor(k) * unbroadcast(deta, step.shape)
                dafter = dmissed + dafter * (1 - eta / variance) + dbefore
            return add(gradient, pull_step(dstep))

        return Rollout(np.tanh(end), log_prob=(log_ratio + 2 * log_cosh).sum(-1)), pull


@dataclasses.dataclass(frozen=True, eq=False)
class DeterministicSampler:
    """What the actor says."""

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """None."""
        return {}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action."""
        action, pull = policy.actor(obs)
        return Rollout(action), lambda daction, dlog_prob=None: pull(daction)


@dataclasses.dataclass(frozen=True, eq=False)
class TanhGaussianSampler:
    """SAC's bounded actions (appendix C): a = tanh(u), log pi(a) = log N(u) - sum log(1 - tanh^2 u + epsilon)."""

    epsilon: float = 0.0

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """One number for each action entry."""
        return {EXPLORATION: Normal(shape)}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The action and its log-probability; 1 - tanh^2 = 1 / cosh^2 = s, and d log(s + epsilon) / du = -2 tanh w."""
        eps = noise[EXPLORATION]
        (mean, log_std), pull_actor = policy.actor(obs)
        u = mean + np.exp(log_std) * eps
        log_density = -0.5 * eps**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_cosh = np.logaddexp(u, -u) - math.log(2)
        w = 1 / (1 + self.epsilon * np.exp(2 * log_cosh))  # s / (s + epsilon)

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            du, dlog_density = daction * np.exp(-2 * log_cosh), np.zeros(u.shape)
            if dlog_prob is not None:
                dlog_density = np.broadcast_to(dlog_prob[..., None], u.shape)
                du = du + 2 * np.tanh(u) * w * dlog_density
            dlog_std = du * np.exp(log_std) * eps - dlog_density
            return pull_actor(unbroadcast(du, mean.shape), unbroadcast(dlog_std, log_std.shape))

        log_slope = -2 * log_cosh - np.log(w)
        return Rollout(np.tanh(u), log_prob=(log_density - log_slope).sum(-1)), pull


@dataclasses.dataclass(frozen=True, eq=False)
class BestOf:
    """For each state the candidate whose smallest value is the largest (SDAC). The choice has no gradient."""

    sampler: Any
    num_candidates: int = 32
    ensemble: str = "min"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The inner sampler's for all candidates."""
        return {"candidates": self.sampler.noise_spec((self.num_candidates, *shape))}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """Everything the inner sampler says about the best of its candidates."""
        all_of_them, pull_all = self.sampler.rollout(policy, obs, noise["candidates"])
        action, noisy, log_prob, noise_free = all_of_them
        best = best_of(reduced(policy.critic(obs, action)[0], self.ensemble)[0])[None]

        def pull(daction: Array, dlog_prob: Array | None = None) -> Gradient:
            dactions = np.zeros(action.shape)
            np.put_along_axis(dactions, best[..., None], daction[None], axis=0)
            if dlog_prob is None:
                return pull_all(dactions)
            dlog_probs = np.zeros(action.shape[:-1])
            np.put_along_axis(dlog_probs, best, dlog_prob[None], axis=0)
            return pull_all(dactions, dlog_probs)

        chosen = Rollout(
            np.take_along_axis(action, best[..., None], axis=0)[0],
            None if noisy is None else np.take_along_axis(noisy, best[None, ..., None], axis=1)[:, 0],
            None if log_prob is None else np.take_along_axis(log_prob, best, axis=0)[0],
            None if noise_free is None else np.take_along_axis(noise_free, best[..., None], axis=0)[0],
        )
        return chosen, pull


@dataclasses.dataclass(frozen=True, eq=False)
class AdditiveNoise:
    """DACER's exploration: noise_scale * temperature * N(0, I) is added, and the sum goes back into the box."""

    sampler: Any
    noise_scale: float = 0.1
    clip: bool = True
    noise_clip: float | None = None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The inner sampler's, and one number for each action entry."""
        return {"inner": self.sampler.noise_spec(shape), EXPLORATION: Normal(shape)}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The noisy action, with the states of the inner chain; its log-probability is not known."""
        inner, pull_inner = self.sampler.rollout(policy, obs, noise["inner"])
        added = self.noise_scale * policy.temperature * noise[EXPLORATION]
        if self.noise_clip is not None:
            added = np.clip(added, -self.noise_clip, self.noise_clip)
        action = inner.action + added
        action, slope = clip(action) if self.clip else (action, np.ones(action.shape))
        noise_free = inner.action if inner.noise_free is None else inner.noise_free
        rollout = Rollout(action, inner.noisy, noise_free=noise_free)
        return rollout, lambda daction, dlog_prob=None: pull_inner(daction * slope)

    def noise_entropy(self, temperature: Any, action_dim: int) -> Any:
        """Entropy of N(0, std^2 I), std = noise_scale * temperature."""
        return action_dim * (0.5 * math.log(2 * math.pi) + 0.5 + np.log(self.noise_scale * temperature))


@dataclasses.dataclass(frozen=True, eq=False)
class LogProbability:
    """MaxEntDP's estimate of log pi(a): the error of the denoiser, integrated over half the log-SNR.

    With l = log(alpha^2 / sigma^2) and s = 1 / (1 + exp(-l)), ds = s (1 - s) dl, so that half an interval of l is
    (s_before - s) / (2 s (1 - s)); the error is that of the later time, and before the first s is 1. A noise misses by
    alpha / sigma times what the predicted action, clipped, misses the action by. Nothing of it has a gradient.
    """

    sampler: Any
    schedule: NoiseSchedule
    num_noises: int = 50

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The inner sampler's, and that of the noisings."""
        count = (self.schedule.num_steps, self.num_noises)
        return {"inner": self.sampler.noise_spec(shape), "noises": Normal((*count, *shape))}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> tuple[Rollout, Pull]:
        """The inner rollout with the log-probability of its action."""
        inner, pull_inner = self.sampler.rollout(policy, obs, noise["inner"])
        log_prob = self.estimate(policy.actor, obs, inner.action, noise["noises"])
        return inner._replace(log_prob=log_prob), lambda daction, dlog_prob=None: pull_inner(daction)

    def estimate(self, actor: Any, obs: Array, action: Array, noises: Array) -> Array:
        """log pi(action), [*batch]."""
        d, before = action.shape[-1], 1.0
        total = np.full(action.shape[:-1], -d / 2 * (math.log(2 * math.pi) + 1))
        for t in range(self.schedule.num_steps):
            ratio = self.schedule.alpha(t) / self.schedule.sigma(t)
            signal = 1 / (1 + ratio**-2)
            noisy = add_noise(self.schedule, action, noises[t], t)
            predicted, _ = clip(predicted_action(self.schedule, actor, obs, noisy, t)[0])
            error = ratio**2 * ((predicted - action) ** 2).sum(-1).mean(0)
            total = total + (before - signal) / (2 * signal * (1 - signal)) * (signal * d - error)
            before = signal
        return total
