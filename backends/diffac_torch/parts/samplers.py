"""Samplers, which `diffac.parts.samplers` declares."""

import math
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffac.noise import EXPLORATION, Noise
from diffac.parts import samplers as declared
from diffac.parts.schedules import tabulated
from diffac.protocols import Policy, Rollout
from diffac_torch.parts.diffusion import _add_scaled, add_noise, noise_between, posterior_mean, predicted_action
from diffac_torch.parts.networks import _condition, _reduced

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
    "TanhGaussianSampler",
]

Scalar: TypeAlias = float | Float[Tensor, ""]


class DDPMSampler(declared.DDPMSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action and all T states of the chain; obs may have fewer batch axes than the noise."""
        states: list[Tensor] = []
        action = self._chain(policy.actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(policy.actor, obs, noise)

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, states: list[Tensor] | None = None) -> Tensor:
        schedule = tabulated(self.schedule)
        cond = _condition(actor, obs, schedule.num_steps)
        noisy, std = self.first_scale * noise["start"], self.step_std
        for t in range(schedule.num_steps - 1, 0, -1):
            if states is not None:
                states.append(noisy)
            action = predicted_action(schedule, actor, actor(cond, noisy, t), noisy, t)
            if self.clip == "action":
                action = action.clamp(-1, 1)
            noisy = _add_scaled(posterior_mean(schedule, action, noisy, t), float(std[t]), noise["steps"][t - 1])
            if self.clip == "state":
                noisy = noisy.clamp(-1, 1)
        if states is not None:
            states.append(noisy)
        return predicted_action(schedule, actor, actor(cond, noisy, 0), noisy, 0).clamp(-1, 1)


def _times(sampler: declared.DeterministicDiffusionSampler) -> list[int]:
    """The times at which the denoiser is evaluated, increasing."""
    last = sampler.schedule.num_steps - 1
    if sampler.num_steps == 1:
        return [last]
    return np.linspace(0, last, sampler.num_steps or last + 1).round().astype(int).tolist()


class DDIMSampler(declared.DDIMSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action and the states at which the denoiser was evaluated, in the order of time."""
        states: list[Tensor] = []
        action = self._chain(policy.actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(policy.actor, obs, noise)

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, states: list[Tensor] | None = None) -> Tensor:
        schedule = tabulated(self.schedule)
        cond = _condition(actor, obs, schedule.num_steps)
        noisy = self.first_scale * noise["start"]
        *earlier, t = _times(self)
        while True:
            if states is not None:
                states.append(noisy)
            action = predicted_action(schedule, actor, actor(cond, noisy, t), noisy, t).clamp(-1, 1)
            if not earlier:
                return action
            eps = noise_between(schedule, action, noisy, t)
            t = earlier.pop()
            noisy = add_noise(schedule, action, eps, t)


class HeunSampler(declared.HeunSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action and the states from which steps were taken, in the order of time."""
        states: list[Tensor] = []
        action = self._chain(policy.actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(policy.actor, obs, noise)

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, states: list[Tensor] | None = None) -> Tensor:
        schedule = tabulated(self.schedule)
        cond = _condition(actor, obs, schedule.num_steps)

        def clean(noisy: Tensor, t: int) -> Tensor:
            return predicted_action(schedule, actor, actor(cond, noisy, t), noisy, t).clamp(-1, 1)

        noisy = self.first_scale * noise["start"]
        *earlier, t = _times(self)
        while True:
            if states is not None:
                states.append(noisy)
            action = clean(noisy, t)
            if not earlier:
                return action
            s, following = float(schedule.sigma(t)), earlier.pop()
            s_following = float(schedule.sigma(following))
            velocity = (noisy - action) / s
            euler = _add_scaled(noisy, s_following - s, velocity)
            velocity_there = (euler - clean(euler, following)) / s_following
            noisy, t = _add_scaled(noisy, (s_following - s) / 2, velocity + velocity_there), following


class MeanFlowSampler(declared.MeanFlowSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action and the states from which steps were taken, in the order of time."""
        states: list[Tensor] = []
        action = self._chain(policy.actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(policy.actor, obs, noise)

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, states: list[Tensor] | None = None) -> Tensor:
        noisy, dt = self.start_scale * noise["start"], 1 / self.num_steps
        for k in range(self.num_steps, 0, -1):
            if states is not None:
                states.append(noisy)
            noisy = _add_scaled(noisy, -dt, actor(obs, noisy, k * dt, (k - 1) * dt))
        return noisy.clamp(-1, 1)


class LangevinSampler(declared.LangevinSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action and the log-ratio [*batch] of its path."""
        ratios: list[Tensor] = []
        u = self._chain(policy.actor, obs, noise, ratios)
        log_prior = -0.5 * noise["start"].square() - math.log(self.prior_std) - 0.5 * math.log(2 * math.pi)
        log_ratio = log_prior + torch.stack(ratios).sum(0) - _log_slope(u)
        return Rollout(u.tanh(), log_prob=log_ratio.sum(-1))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(policy.actor, obs, noise).tanh()

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, ratios: list[Tensor] | None = None) -> Tensor:
        """The last state; to ratios, for each step log forward - log backward of each entry.

        With g = (x' + x) / s^2 - f a step back misses its mean by eta g - sqrt(2 eta) xi, so that the squares of xi,
        the largest numbers, cancel.
        """
        cond, step_size = _condition(actor, obs, self.num_steps), actor.step_size()
        x, factors, variance = self.prior_std * noise["start"], self.step_factors, self.prior_std**2
        for t in range(self.num_steps - 1, -1, -1):
            xi, eta = noise["steps"][t], float(factors[t]) * step_size
            drift, scale = actor(cond, x, t), (2 * eta).sqrt()
            following = x + eta * (drift - x / variance) + scale * xi
            if ratios is not None:
                g = (following + x) / variance - drift
                ratios.append(g * (0.25 * eta * g - 0.5 * scale * xi))
            x = following
        return x


class DeterministicSampler(declared.DeterministicSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*batch obs"], noise: Noise) -> Rollout:
        """The action."""
        return Rollout(self.check_output(policy.actor(obs)))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*batch obs"], noise: Noise) -> Float[Tensor, "*batch act"]:
        """The action, [*batch act]."""
        return self.check_output(policy.actor(obs))


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), as exact as float64."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u, threshold=40))


class TanhGaussianSampler(declared.TanhGaussianSampler):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action and its log-probability [*batch]."""
        mean, log_std = self.check_output(policy.actor(obs))
        eps = noise[EXPLORATION]
        u = mean + log_std.exp() * eps
        log_normal = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = _log_slope(u)
        if self.epsilon > 0:
            log_slope = torch.log(1 - u.tanh().square() + self.epsilon)
        return Rollout(u.tanh(), log_prob=(log_normal - log_slope).sum(-1))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        mean, log_std = self.check_output(policy.actor(obs))
        return torch.tanh(mean + log_std.exp() * noise[EXPLORATION])


class BestOf(declared.BestOf):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Action, states and log-probability of the chosen candidate."""
        candidates = self.sampler.rollout(policy, obs, noise["candidates"])
        best = self._best(policy.critic, obs, candidates.action)
        _, noisy, log_prob, noise_free = candidates
        return Rollout(
            torch.take_along_dim(candidates.action, best.unsqueeze(-1), 0).squeeze(0),
            None if noisy is None else torch.take_along_dim(noisy, best[None, ..., None], 1).squeeze(1),
            None if log_prob is None else torch.take_along_dim(log_prob, best, 0).squeeze(0),
            None if noise_free is None else torch.take_along_dim(noise_free, best.unsqueeze(-1), 0).squeeze(0),
        )

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The chosen action alone, [*batch act] in [-1, 1]."""
        actions = self.sampler(policy, obs, noise["candidates"])
        best = self._best(policy.critic, obs, actions).unsqueeze(-1)
        return actions.gather(0, best.expand(1, *actions.shape[1:])).squeeze(0)  # take_along_dim cannot be exported

    @torch.no_grad()
    def _best(self, critic: Any, obs: Tensor, actions: Tensor) -> Tensor:
        """Index of the best candidate, [1 *batch]."""
        critic = self.check_critic(critic)
        return _reduced(critic(obs, actions), self.ensemble).argmax(0, keepdim=True)


class AdditiveNoise(declared.AdditiveNoise):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """Noisy action, with the states and the action of the noise-free chain."""
        inner = self.sampler.rollout(policy, obs, noise["inner"])
        noise_free = inner.action if inner.noise_free is None else inner.noise_free
        return Rollout(self.explore(inner.action, noise, policy.temperature), inner.noisy, noise_free=noise_free)

    def noise_entropy(self, temperature: Tensor, action_dim: int) -> Tensor:
        """Entropy in nats of the added noise alone, before any clip: d/2 log(2 pi e (noise_scale temperature)^2)."""
        variance = (self.noise_scale * temperature) ** 2
        return 0.5 * action_dim * torch.log(2 * math.pi * math.e * variance)

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The noisy action alone, [*batch act]."""
        action = self.sampler(policy, obs, noise["inner"])
        return self.explore(action, noise, policy.temperature)

    def explore(self, action: Tensor, noise: Noise, temperature: Scalar | None) -> Tensor:
        """Actions of the inner sampler with the noise."""
        scale = self.noise_scale * self.check_temperature(temperature)
        added = scale * noise[EXPLORATION]
        if self.noise_clip is not None:
            added = added.clamp(-self.noise_clip, self.noise_clip)
        action = action + added
        return action.clamp(-1, 1) if self.clip else action


class LogProbability(declared.LogProbability):
    def rollout(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Rollout:
        """The inner rollout with the log-probability [*batch] of its action."""
        inner = self.sampler.rollout(policy, obs, noise["inner"])
        return inner._replace(log_prob=self._log_prob(policy.actor, obs, inner.action, noise["noises"]))

    def __call__(self, policy: Policy, obs: Float[Tensor, "*#batch obs"], noise: Noise) -> Float[Tensor, "*#batch act"]:
        """The inner sampler's action alone, [*batch act]."""
        return self.sampler(policy, obs, noise["inner"])

    @torch.no_grad()
    def _log_prob(self, actor: Any, obs: Tensor, action: Tensor, noises: Tensor) -> Tensor:
        schedule, action_dim = self.schedule, action.shape[-1]
        cond = _condition(actor, obs, schedule.num_steps)
        log_prob = torch.full_like(action[..., 0], -0.5 * action_dim * math.log(2 * math.pi * math.e))
        for t, (signal, weight) in enumerate(zip(*self.signal_and_weight, strict=True)):
            noisy = add_noise(schedule, action, noises[t], t)
            predicted = predicted_action(schedule, actor, actor(cond, noisy, t), noisy, t).clamp(-1, 1)
            error = noises[t] - noise_between(schedule, predicted, noisy, t)
            log_prob = log_prob + float(weight) * (float(signal) * action_dim - error.square().sum(-1).mean(0))
        return log_prob
