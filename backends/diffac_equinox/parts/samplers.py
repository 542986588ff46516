"""Samplers, which `diffac.parts.samplers` declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.noise import EXPLORATION, Noise
from diffac.parts import samplers as declared
from diffac.parts.schedules import tabulated
from diffac.protocols import Array, Policy, Rollout
from diffac_equinox.parts.diffusion import add_noise, noise_between, posterior_mean, predicted_action
from diffac_equinox.parts.networks import _clip, _reduced

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

Tree = TypeVar("Tree")
_LONGEST_UNROLLED = 8
"""Chains up to this length are unrolled, which saves the loop's overhead; longer ones are scanned, to compile fast."""


def _condition(actor: Any, obs: Array, num_steps: int) -> Any:
    """What stands for `obs` along a chain: the share that does not change, where the actor offers one."""
    return actor.condition(obs, num_steps) if hasattr(actor, "condition") else obs


def _run_backwards(
    step: Callable[[Any, tuple[Array | int, Any]], tuple[Any, Array]],
    start: Any,
    times: Sequence[int],
    inputs: Any = None,
) -> tuple[Any, Array]:
    """Carries `start` through step(carry, (t, inputs of t)) from the last of `times` to the first.

    Returns:
        The last carry, and the second results of `step`, stacked in the order of `times`.
    """
    if not 0 < len(times) <= _LONGEST_UNROLLED:
        return jax.lax.scan(step, start, (np.asarray(times, np.int32), inputs), reverse=True)
    carry, outputs = start, []
    for i in reversed(range(len(times))):
        carry, output = step(carry, (times[i], None if inputs is None else inputs[i]))
        outputs.append(output)
    return carry, jnp.stack(outputs[::-1])


def _detached(tree: Tree) -> Tree:
    """The same values, without gradient. Detaching the *inputs* of a computation saves tracing its derivative."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


class DDPMSampler(eqx.Module, declared.DDPMSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Runs the whole chain; obs may have fewer batch axes than the noise."""
        schedule = tabulated(self.schedule)
        condition = _condition(policy.actor, obs, schedule.num_steps)

        def predict(noisy: Array, t: Array | int) -> Array:
            return predicted_action(schedule, policy.actor, policy.actor(condition, noisy, t), noisy, t)

        def step(noisy: Array, t_and_noise: tuple[Array | int, Array]) -> tuple[Array, Array]:
            t, eps = t_and_noise
            action = predict(noisy, t)
            mean = posterior_mean(schedule, _clip(action) if self.clip == "action" else action, noisy, t)
            state = mean + jnp.asarray(self.step_std, eps.dtype)[t] * eps
            return _clip(state) if self.clip == "state" else state, noisy

        start, times = self.first_scale * noise["start"], range(1, schedule.num_steps)
        noisy, later = _run_backwards(step, start, times, noise["steps"])
        return Rollout(_clip(predict(noisy, 0)), jnp.concatenate([noisy[None], later]))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program the states on the way are not kept."""
        return self.rollout(policy, obs, noise).action


def _times(sampler: declared.DeterministicDiffusionSampler) -> list[int]:
    """The times of the steps, increasing."""
    last = sampler.schedule.num_steps - 1
    number = sampler.num_steps or sampler.schedule.num_steps
    return np.linspace(0 if number > 1 else last, last, number).round().astype(int).tolist()


class DDIMSampler(eqx.Module, declared.DDIMSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Runs the whole chain; obs may have fewer batch axes than the noise."""
        schedule = self.schedule
        condition = _condition(policy.actor, obs, schedule.num_steps)
        *earlier, first = _times(self)

        def predict(noisy: Array, t: Array | int) -> tuple[Array, Array]:
            action = _clip(predicted_action(schedule, policy.actor, policy.actor(condition, noisy, t), noisy, t))
            return action, noise_between(schedule, action, noisy, t)

        def step(action_and_eps: tuple[Array, Array], t_and_nothing: tuple[Array | int, None]) -> tuple[Any, Array]:
            t, _ = t_and_nothing
            noisy = add_noise(schedule, *action_and_eps, t)
            return predict(noisy, t), noisy

        start = self.first_scale * noise["start"]
        (action, _), later = _run_backwards(step, predict(start, first), earlier)
        return Rollout(action, jnp.concatenate([later, start[None]]))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program the states on the way are not kept."""
        return self.rollout(policy, obs, noise).action


class HeunSampler(eqx.Module, declared.HeunSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Runs the whole chain; obs may have fewer batch axes than the noise."""
        schedule, times = tabulated(self.schedule), _times(self)
        condition = _condition(policy.actor, obs, schedule.num_steps)

        def predict(noisy: Array, t: Array | int) -> Array:
            return _clip(predicted_action(schedule, policy.actor, policy.actor(condition, noisy, t), noisy, t))

        def velocity(noisy: Array, t: Array | int) -> Array:
            action = predict(noisy, t)
            return noise_between(schedule, action, noisy, t) - action

        def step(noisy: Array, t_and_next: tuple[Array | int, Array]) -> tuple[Array, Array]:
            t, following = t_and_next
            s = jnp.asarray(schedule.sigmas, noisy.dtype)
            dt, here = s[following] - s[t], velocity(noisy, t)
            there = velocity(noisy + dt * here, following)
            return noisy + 0.5 * dt * (here + there), noisy

        start = self.first_scale * noise["start"]
        noisy, later = _run_backwards(step, start, times[1:], jnp.asarray(times[:-1], jnp.int32))
        return Rollout(predict(noisy, times[0]), jnp.concatenate([noisy[None], later]))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program the states on the way are not kept."""
        return self.rollout(policy, obs, noise).action


class MeanFlowSampler(eqx.Module, declared.MeanFlowSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Runs all steps; obs may have fewer batch axes than the noise."""
        grid = np.linspace(0, 1, self.num_steps + 1)

        def step(noisy: Array, t_and_r: tuple[Array | int, Array]) -> tuple[Array, Array]:
            k, r = t_and_r
            t, r = jnp.asarray(grid, noisy.dtype)[k], jnp.asarray(r)
            return noisy - (t - r) * policy.actor(obs, noisy, t, r), noisy

        start = self.start_scale * noise["start"]
        earlier = grid[:-1].astype(start.dtype)
        action, states = _run_backwards(step, start, range(1, self.num_steps + 1), earlier)
        return Rollout(_clip(action), states)

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program the states on the way are not kept."""
        return self.rollout(policy, obs, noise).action


class LangevinSampler(eqx.Module, declared.LangevinSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Action and the log-ratio of its path; obs may have fewer batch axes than the noise."""
        actor, start, variance = policy.actor, noise["start"], self.prior_std**2
        condition = _condition(actor, obs, self.num_steps)
        sizes = jnp.asarray(self.step_factors, start.dtype)[:, None] * actor.step_size()

        def step(x: Array, t_and_noise: tuple[Array | int, Array]) -> tuple[Array, Array]:
            t, xi = t_and_noise
            eta, drift = sizes[t], actor(condition, x, t)
            after = x + eta * (drift - x / variance) + jnp.sqrt(2 * eta) * xi
            # the step back misses its mean by sqrt(eta) (missed - sqrt(2) xi), so that the square of xi cancels
            missed = jnp.sqrt(eta) * ((x + after) / variance - drift)
            return after, (missed**2 / 4 - missed * xi / math.sqrt(2)).sum(-1)

        u, log_ratios = _run_backwards(step, self.prior_std * start, range(self.num_steps), noise["steps"])
        log_prior = -0.5 * start**2 - 0.5 * math.log(2 * math.pi * variance)
        return Rollout(jnp.tanh(u), log_prob=log_ratios.sum(0) + (log_prior - _log_slope(u)).sum(-1))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program nothing else is kept."""
        return self.rollout(policy, obs, noise).action


class DeterministicSampler(eqx.Module, declared.DeterministicSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """The action."""
        return Rollout(self.check_output(policy.actor(obs)))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action, [*batch act]."""
        return self.check_output(policy.actor(obs))


def _log_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2), exact where tanh saturates."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


class TanhGaussianSampler(eqx.Module, declared.TanhGaussianSampler):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Action and its log-probability."""
        mean, log_std = self.check_output(policy.actor(obs))
        eps = noise[EXPLORATION]
        u = mean + jnp.exp(log_std) * eps
        log_density = -0.5 * eps**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = _log_slope(u)
        if self.epsilon > 0:
            log_slope = jnp.log(1 - jnp.tanh(u) ** 2 + self.epsilon)
        return Rollout(jnp.tanh(u), log_prob=(log_density - log_slope).sum(-1))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`."""
        return self.rollout(policy, obs, noise).action


class BestOf(eqx.Module, declared.BestOf):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """The rollout of the best candidate of each state."""
        ranked = self.check_critic(policy.critic)
        action, noisy, log_prob, noise_free = self.sampler.rollout(policy, obs, noise["candidates"])
        best = _reduced(ranked(obs, jax.lax.stop_gradient(action)), self.ensemble).argmax(0)

        def choose(candidates: Array | None, axis: int) -> Array | None:
            if candidates is None:
                return None
            index = best.reshape(best.shape + (1,) * (candidates.ndim - axis - 1 - best.ndim))
            index = jnp.expand_dims(index, tuple(range(axis + 1)))
            return jnp.take_along_axis(candidates, index, axis).squeeze(axis)

        return Rollout(choose(action, 0), choose(noisy, 1), choose(log_prob, 0), choose(noise_free, 0))

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program nothing else is kept."""
        return self.rollout(policy, obs, noise).action


class AdditiveNoise(eqx.Module, declared.AdditiveNoise):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """The inner rollout with the noise on its action."""
        inner = self.sampler.rollout(policy, obs, noise["inner"])
        noise_free = inner.action if inner.noise_free is None else inner.noise_free
        return Rollout(self.explore(inner.action, noise, policy.temperature), inner.noisy, noise_free=noise_free)

    def explore(self, action: Array, noise: Noise, temperature: Array | None) -> Array:
        """Actions of the inner sampler with the noise."""
        scale = self.noise_scale * self.check_temperature(temperature)
        added = scale * noise[EXPLORATION]
        if self.noise_clip is not None:
            added = jnp.clip(added, -self.noise_clip, self.noise_clip)
        action = action + added
        return _clip(action) if self.clip else action

    def noise_entropy(self, temperature: Array, action_dim: int) -> Array:
        """Entropy in nats of the added noise alone, before any clip: d/2 log(2 pi e (noise_scale temperature)^2)."""
        variance = (self.noise_scale * temperature) ** 2
        return 0.5 * action_dim * jnp.log(2 * math.pi * math.e * variance)

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout`; in a compiled program nothing else is kept."""
        return self.rollout(policy, obs, noise).action


class LogProbability(eqx.Module, declared.LogProbability):
    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """The inner rollout with the log-probability of its action."""
        inner = self.sampler.rollout(policy, obs, noise["inner"])
        actor, action = _detached((policy.actor, inner.action))
        d, noises = action.shape[-1], noise["noises"]
        condition = _condition(actor, obs, self.schedule.num_steps)

        def add(log_prob: Array, at_time: tuple[Array, ...]) -> tuple[Array, None]:
            t, eps, signal, weight = at_time
            noisy = add_noise(self.schedule, action, eps, t)
            output = actor(condition, noisy, t)
            predicted = _clip(predicted_action(self.schedule, actor, output, noisy, t))
            error = eps - noise_between(self.schedule, predicted, noisy, t)
            return log_prob + weight * (signal * d - (error**2).sum(-1).mean(0)), None

        start = jnp.full_like(action[..., 0], -0.5 * d * math.log(2 * math.pi * math.e))
        tables = (jnp.asarray(table, action.dtype) for table in self.signal_and_weight)
        log_prob, _ = jax.lax.scan(add, start, (jnp.arange(self.schedule.num_steps), noises, *tables))
        return inner._replace(log_prob=log_prob)

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The inner sampler's action."""
        return self.sampler(policy, obs, noise["inner"])
