"""Critic objectives, which `diffac.parts.critics` declares."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from diffac.noise import Noise
from diffac.parts import critics as declared
from diffac.parts.critics import next_rollout
from diffac.protocols import Array, Batch, Critic, DistributionalCritic, Loss, State
from diffac_equinox.parts.networks import _reduced

__all__ = ["GaussianTD", "MeanSquaredTD"]


def _weighted(batch: Batch, errors: Array) -> Array:
    """Errors [ensemble batch], each times the weight of its transition."""
    return errors if batch.weight is None else batch.weight * errors


def _value_metrics(q: Array) -> dict[str, Array]:
    """What is logged of values [ensemble batch]."""
    low, high = q.min(0), q.max(0)
    return {
        "q_mean": q.mean(),
        "q_batch_std": q.std(-1).mean(),
        "q_min": low.min(),
        "q_max": high.max(),
        "q_disagreement": (high - low).mean(),
    }


class MeanSquaredTD(eqx.Module, declared.MeanSquaredTD):
    def __call__(
        self, critic: Critic, target_critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        next_value = _reduced(
            target_critic(batch.next_obs, next_rollout(self, batch).action), self.ensemble, noise.get("pair")
        )
        entropy = {}
        if self.soft:
            log_prob = self.next_log_prob(batch)
            next_value = next_value - temperature * log_prob
            entropy["entropy"] = -log_prob.mean()
        y = batch.reward + batch.discount * next_value
        q = critic(batch.obs, batch.action)
        value = self.factor * _weighted(batch, (q - y) ** 2).mean(-1).sum()
        metrics = {**_value_metrics(jax.lax.stop_gradient(q)), "target_mean": y.mean(), **entropy}
        return Loss(value, metrics, state)


class GaussianTD(eqx.Module, declared.GaussianTD):
    def __call__(
        self,
        critic: DistributionalCritic,
        target_critic: DistributionalCritic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
    ) -> Loss:
        """The loss on a batch."""
        next_mean, next_std = target_critic.distribution(batch.next_obs, next_rollout(self, batch).action)
        smaller = next_mean.argmin(0, keepdims=True)
        next_mean, next_std = (jnp.take_along_axis(x, smaller, 0)[0] for x in (next_mean, next_std))
        if self.soft:  # in both targets
            next_mean = next_mean - temperature * self.next_log_prob(batch)
        y = batch.reward + batch.discount * next_mean
        y_z = batch.reward + batch.discount * (next_mean + next_std * jnp.clip(noise["target"], -3, 3))

        q, std = critic.distribution(batch.obs, batch.action)
        q_fixed, std_fixed = jax.lax.stop_gradient((q, std))
        batch_std = std_fixed.mean(-1)
        omega = jnp.where(state["omega"] == 0, batch_std, (1 - self.tau) * state["omega"] + self.tau * batch_std)
        width = self.clip * omega[:, None]
        y_b = q_fixed + jnp.clip(y_z - q_fixed, -width, width)
        mean_term = q * (y - q_fixed) / (std_fixed**2 + 0.1)
        std_term = std * ((q_fixed - y_b) ** 2 - std_fixed**2) / (std_fixed**3 + 0.1)
        loss = -((omega**2 + 0.1) * _weighted(batch, mean_term + std_term).mean(-1)).sum()
        metrics = {**_value_metrics(q_fixed), "q_std": std.mean(), "target_mean": y.mean()}
        return Loss(loss, metrics, {"omega": omega})
