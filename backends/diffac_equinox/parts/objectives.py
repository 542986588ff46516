"""Actor objectives, which `diffac.parts.objectives` declares."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from diffac.errors import check_present
from diffac.noise import Noise
from diffac.parts import objectives as declared
from diffac.parts.critics import LOG_PROB, next_rollout
from diffac.parts.objectives import ALL_NOISE, IMPROVEMENT_BETAS, Regression
from diffac.parts.schedules import KEEP_SIGNAL, check_signal
from diffac.protocols import REPLAY_NUMBER, Array, Batch, Critic, Loss, NoiseSchedule, Policy, Rollout, RowUpdate, State
from diffac_equinox.parts.derivatives import value_and_derivative
from diffac_equinox.parts.diffusion import (
    _output_of,
    add_noise,
    noise_between,
    predicted_action,
    predicted_eps,
    remove_noise,
    score,
)
from diffac_equinox.parts.networks import _reduced
from diffac_equinox.parts.samplers import _condition, _detached

__all__ = [
    "EntropyRegularisedValue",
    "ImprovedReplayProposal",
    "MeanFlowMatching",
    "PolicyProposal",
    "QWeightedProposal",
    "Regression",
    "ReverseProposal",
    "ReweightedScoreMatching",
    "Sum",
    "TimeWeightedQGradient",
    "ValueThroughSampler",
]


class ValueThroughSampler(eqx.Module, declared.ValueThroughSampler):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch."""
        if rollout is None:
            rollout = self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        q = _reduced(critic(batch.obs, rollout.action), self.ensemble)
        q_mean = q.mean()
        unit = jax.lax.stop_gradient(jnp.abs(q).mean() + 1e-8) if self.relative else 1
        clipped = jnp.abs(rollout.action) >= 1
        return Loss(-q_mean / unit, {"q_mean": q_mean, "clipped_fraction": clipped.mean(dtype=q_mean.dtype)}, state)


class TimeWeightedQGradient(eqx.Module, declared.TimeWeightedQGradient):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch; one batched pass of the denoiser over all t."""
        if rollout is None and self.source != "replay":
            rollout = self.sampler.rollout(Policy(_detached(actor), critic, temperature), batch.obs, noise["rollout"])
        t = jnp.arange(self.schedule.num_steps)[:, None]
        if self.source == "chain":
            noisy = self.chain_states(rollout)
        else:
            noisy = add_noise(self.schedule, self.clean_actions(batch.action, rollout), noise["eps"], t)
        noisy = jax.lax.stop_gradient(noisy)

        output = actor(batch.obs, noisy, t)
        eps = predicted_eps(self.schedule, actor, output, noisy, t)
        start = noisy
        if self.contractive_step is not None:
            predicted = predicted_action(self.schedule, actor, jax.lax.stop_gradient(output), noisy, t)
            start = jnp.clip(predicted, -1, 1)
        g = jax.grad(lambda action: _reduced(critic(batch.obs, action), self.ensemble).sum())(start)
        norm = jnp.linalg.norm(g, axis=-1, keepdims=True)
        weight = jnp.exp(self.slope * (t + self.time_offset) + self.intercept).astype(g.dtype)
        target = weight[..., None] * (g / (norm + 1e-8) if self.normalised else g)
        if self.target == "eps":
            target = score(self.schedule, -target, t)

        if self.contractive_step is not None:
            improved = jnp.clip(start + self.contractive_step * target, -1, 1)
            target = score(self.schedule, noise_between(self.schedule, improved, noisy, t), t)
        if self.space == "score":
            error = score(self.schedule, eps, t) - target
        else:
            error = eps + add_noise(self.schedule, jnp.zeros_like(target), target, t)
        loss = (error**2).sum(-1).mean()
        return Loss(loss, {"q_gradient_norm": norm.mean(), "score_error": loss}, state)


class ReweightedScoreMatching(eqx.Module, declared.ReweightedScoreMatching):
    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        regression = _detached(self.proposal(_detached(actor), critic, batch, noise, temperature, state, self.schedule))
        condition = _condition(actor, regression.obs, self.schedule.num_steps)
        output = actor(condition, regression.noisy, regression.t)
        if self.space == "output":
            error = ((output - _output_of(actor, regression.action, regression.target)) ** 2).sum(-1)
            return Loss((regression.weight * error).mean(), regression.metrics, regression.state)
        eps = predicted_eps(self.schedule, actor, output, regression.noisy, regression.t)
        error = ((eps - regression.target) ** 2).sum(-1)
        return Loss((regression.weight * error + regression.spread).mean(), regression.metrics, regression.state)


class MeanFlowMatching(eqx.Module, declared.MeanFlowMatching):
    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        arguments = (_detached(actor), critic, batch, noise["proposal"], temperature, state, ALL_NOISE)
        data = _detached(self.proposal(*arguments))
        t, r = noise["times"].max(0), noise["times"].min(0)
        r = jnp.where(noise["equal"] < self.equal_fraction, t, r)
        clean, eps = data.action, data.target
        noisy, v = (1 - t)[:, None] * clean + t[:, None] * eps, eps - clean
        u, change = value_and_derivative(lambda a, t: actor(data.obs, a, t, r), (noisy, t), (v, jnp.ones_like(t)))
        error = ((u - (v - (t - r)[:, None] * change)) ** 2).sum(-1)
        return Loss((data.weight * error).mean(), data.metrics, data.state)


class ReverseProposal(eqx.Module, declared.ReverseProposal):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch."""
        check_signal(schedule, KEEP_SIGNAL)
        t, action = noise["t"], batch.action
        if self.source == "policy":
            action = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        if self.truncated:
            mean = remove_noise(schedule, noisy, jnp.zeros_like(noisy), t)
            std = remove_noise(schedule, jnp.zeros_like(noisy), -jnp.ones_like(noisy), t)
            free = _truncated_normal(mean, std, noise["particles"])
            eps = (mean - free) / std
        else:
            eps = noise["particles"]
            free = remove_noise(schedule, noisy, eps, t)
        a0 = jnp.clip(free, -1, 1)

        def valued(actions: Array) -> tuple[Array, Array]:
            q = _reduced(critic(batch.obs, actions), self.ensemble)
            return q.sum(), q

        if self.uses_gradient:
            (_, q), gradient = jax.value_and_grad(valued, has_aux=True)(a0)
        else:
            (_, q), gradient = valued(a0), None
        scale = self.value_scale / temperature if self.tempered else self.value_scale
        logits = q * scale
        if self.outside_std is not None:
            logits -= 0.5 * (((free - a0) / self.outside_std) ** 2).sum(-1)
        w = jax.nn.softmax(logits, axis=0)
        target = jnp.einsum("kb,kba->ba", w, eps)
        metrics = {"effective_particles": (1 / (w**2).sum(0)).mean(), "q_mean": q.mean()}
        ones = jnp.ones_like(target[..., 0])
        if gradient is None:
            spread = jnp.einsum("kb,kba->b", w, eps**2) - (target**2).sum(-1)
            action = remove_noise(schedule, noisy, target, t)
            return Regression(batch.obs, noisy, t, target, action, ones, spread, metrics, state)

        slope = scale * gradient * (jnp.abs(a0) < 1)
        if self.outside_std is not None:
            slope -= (free - a0) / self.outside_std**2
        by_gradient = remove_noise(schedule, jnp.zeros_like(noisy), slope, t)
        d = by_gradient - eps
        h, new = self.gradient_weight, state
        if isinstance(h, tuple):
            h = jnp.asarray(h, d.dtype)[t][:, None]
        elif isinstance(h, str):
            h = _least_variance(state)[t][:, None]
            metrics["gradient_weight"] = h.mean()
            new = self._moved(state, t, w, _centred(eps, w), _centred(d, w))
        target += h * jnp.einsum("kb,kba->ba", w, d)
        action = remove_noise(schedule, noisy, target, t)
        return Regression(batch.obs, noisy, t, target, action, ones, jnp.zeros_like(ones), metrics, new)

    def _moved(self, state: State, t: Array, w: Array, eps: Array, d: Array) -> State:
        """The moving averages after a batch, whose noises and differences are centred."""
        moments = {
            "gradient_covariance": jnp.einsum("kb,kba,kba->b", w**2, eps, d),
            "gradient_variance": jnp.einsum("kb,kba,kba->b", w**2, d, d),
        }
        (num_steps,) = state["gradient_variance"].shape
        count = jnp.zeros(num_steps, d.dtype).at[t].add(1)
        rate = jnp.where(count > 0, self.rate, 0.0).astype(d.dtype)
        means = {name: jnp.zeros(num_steps, d.dtype).at[t].add(moment) for name, moment in moments.items()}
        return {name: old + rate * (means[name] / jnp.maximum(count, 1) - old) for name, old in state.items()}


def _centred(x: Array, w: Array) -> Array:
    """x less its mean under w; nothing cancels where one weight is nearly 1, for its x is taken off first."""
    x -= jnp.take_along_axis(x, w.argmax(0)[None, :, None], axis=0)
    return x - jnp.einsum("kb,kba->ba", w, x)


def _least_variance(state: State) -> Array:
    """h of each time, [T]."""
    variance = state["gradient_variance"]
    return jnp.where(variance > 1e-12, -state["gradient_covariance"] / jnp.maximum(variance, 1e-12), 0)


def _truncated_normal(mean: Array, std: Array, uniform: Array) -> Array:
    """N(mean, std^2) restricted to [-1, 1], by the inverse distribution function; increasing in `uniform`.

    An interval right of the mean is mirrored to the left, where the distribution function does not round to 1.
    """
    lo, hi = (-1 - mean) / std, (1 - mean) / std
    mirrored = lo + hi > 0
    low, high = ndtr(jnp.where(mirrored, -hi, lo)), ndtr(jnp.where(mirrored, -lo, hi))
    tiny = jnp.finfo(uniform.dtype).eps
    fraction = jnp.clip(jnp.where(mirrored, 1 - uniform, uniform), tiny, 1 - tiny)
    z = ndtri(low + fraction * (high - low))
    return jnp.clip(mean + std * jnp.where(mirrored, -z, z), -1, 1)


class PolicyProposal(eqx.Module, declared.PolicyProposal):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch."""
        next_action = next_rollout(self, batch).action
        q = _reduced(critic(batch.next_obs, next_action), self.ensemble)
        new = self._moved(state, q)
        if self.faithful_normalisation:
            advantage = q - state["q_mean_ema"] / state["q_std_ema"]
        else:
            correction = -jnp.expm1(new["count"] * math.log1p(-self.rate))  # 1 - (1 - rate)^count
            mean = new["q_mean_ema"] / correction if self.centred else q.max()
            advantage = (q - mean) / (new["q_std_ema"] / correction + 1e-8)
        power = self.value_scale / temperature if self.tempered else self.value_scale
        weight = jnp.exp(power * (jnp.clip(advantage, -3, 3) if self.centred else advantage))
        noisy = add_noise(schedule, next_action, noise["eps"], noise["t"])
        metrics = {"effective_samples": weight.sum() ** 2 / (weight**2).sum(), "q_mean": q.mean()}
        zeros = jnp.zeros_like(weight)
        return Regression(batch.next_obs, noisy, noise["t"], noise["eps"], next_action, weight, zeros, metrics, new)

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The moments after a batch on which the actor does not step."""
        return self._moved(state, _reduced(critic(batch.next_obs, next_rollout(self, batch).action), self.ensemble))

    def _moved(self, state: State, q: Array) -> State:
        return {
            "q_mean_ema": (1 - self.rate) * state["q_mean_ema"] + self.rate * q.mean(),
            "q_std_ema": (1 - self.rate) * state["q_std_ema"] + self.rate * q.std(),
            "count": state["count"] + 1,
        }


class QWeightedProposal(eqx.Module, declared.QWeightedProposal):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch."""
        drawn = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["candidates"])
        q = _reduced(critic(batch.obs, drawn), self.ensemble)
        advantage = (q.max(0) - q).mean(0)  # 0, not a rounding error, where all are worth the same
        best = drawn[q.argmax(0), jnp.arange(q.shape[1])]
        action = jnp.concatenate([best[None], 2 * noise["uniform"] - 1])
        share = jnp.full((1 + self.num_uniform, 1), self.uniform_weight, advantage.dtype).at[0].set(1)
        noisy = add_noise(schedule, action, noise["eps"], noise["t"])
        metrics = {
            "advantage": advantage.mean(),
            "effective_samples": advantage.sum() ** 2
            / jnp.maximum((advantage**2).sum(), jnp.finfo(advantage.dtype).tiny),
            "q_mean": q.mean(),
        }
        weight = share * advantage
        return Regression(
            batch.obs, noisy, noise["t"], noise["eps"], action, weight, jnp.zeros_like(weight), metrics, state
        )


class ImprovedReplayProposal(eqx.Module, declared.ImprovedReplayProposal):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch."""
        number = self.numbers(batch).astype(state[REPLAY_NUMBER].dtype)
        row = number % self.capacity
        before = state[REPLAY_NUMBER][row]
        kept = before == number
        # the same, but what is written depends on what is read: else XLA copies the whole array, to read it later
        number = jnp.where(kept, before, number)
        start = jnp.where(kept[:, None], state["action"][row], batch.action)
        action, q = self._improved(critic, batch.obs, start)
        metrics = {
            "improvement": (_reduced(critic(batch.obs, action), self.ensemble) - q).mean(),
            "action_shift": jnp.abs(action - start).mean(),
            "kept_fraction": kept.mean(dtype=q.dtype),
        }
        newest = jnp.where(row[:, None] == row, number, -1).argmax(1)  # so equal rows get equal values
        new = {"action": RowUpdate(row, action[newest]), REPLAY_NUMBER: RowUpdate(row, number[newest])}
        noisy, ones = add_noise(schedule, action, noise["eps"], noise["t"]), jnp.ones_like(q)
        return Regression(batch.obs, noisy, noise["t"], noise["eps"], action, ones, jnp.zeros_like(q), metrics, new)

    def _improved(self, critic: Critic, obs: Array, start: Array) -> tuple[Array, Array]:
        """The actions after all steps, and the values before them."""

        def valued(action: Array) -> tuple[Array, Array]:
            q = _reduced(critic(obs, action), self.ensemble)
            return q.sum(), q

        def step(carry: tuple[Array, Array, Array], correction: Array) -> tuple[tuple[Array, Array, Array], Array]:
            action, m, v = carry
            gradient, q = jax.grad(valued, has_aux=True)(action)
            if self.max_grad_norm is not None:
                gradient *= jnp.minimum(1, self.max_grad_norm / jnp.linalg.norm(gradient))
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            ascent = (m / correction[0]) / (jnp.sqrt(v / correction[1]) + self.eps)
            return (jnp.clip(action + self.learning_rate * ascent, -1, 1), m, v), q

        b1, b2 = IMPROVEMENT_BETAS
        corrections = 1 - np.power(IMPROVEMENT_BETAS, np.arange(1, self.num_steps + 1)[:, None])
        zeros = jnp.zeros_like(start)
        (action, *_), q = jax.lax.scan(step, (start, zeros, zeros), jnp.asarray(corrections, start.dtype))
        return action, q[0]


class EntropyRegularisedValue(eqx.Module, declared.EntropyRegularisedValue):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch."""
        if rollout is None:
            rollout = self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        log_prob = check_present("EntropyRegularisedValue", "rollout.log_prob", rollout.log_prob, LOG_PROB)
        q_mean, entropy = _reduced(critic(batch.obs, rollout.action), self.ensemble).mean(), -log_prob.mean()
        value = -temperature * entropy - q_mean
        return Loss(value, {"q_mean": q_mean, "entropy": entropy}, state, jax.lax.stop_gradient(log_prob))


class Sum(declared.Sum, eqx.Module):
    pass
