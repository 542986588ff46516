"""Critic objectives, which `diffac.parts.critics` declares."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from diffac.noise import Noise
from diffac.parts import critics as declared
from diffac.parts.critics import next_rollout
from diffac.protocols import Array, Batch, Critic, DistributionalCritic, HistogramCritic, Loss, State
from diffac_equinox.kernels import projection
from diffac_equinox.parts.networks import _atoms, _counted, _reduced

__all__ = ["CategoricalTD", "GaussianTD", "MeanSquaredTD"]


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


def _entropy(objective: declared.CriticObjectivePart, batch: Batch) -> dict[str, Array]:
    """What is logged of a soft target."""
    return {"entropy": -objective.next_log_prob(batch).mean()} if objective.soft else {}


class MeanSquaredTD(eqx.Module, declared.MeanSquaredTD):
    def __call__(
        self, critic: Critic, target_critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        next_value = _reduced(
            target_critic(batch.next_obs, next_rollout(self, batch).action), self.ensemble, noise.get("pair")
        )
        if self.soft:
            next_value = next_value - temperature * self.next_log_prob(batch)
        y = batch.reward + batch.discount * next_value
        q = critic(batch.obs, batch.action)
        value = self.factor * _weighted(batch, (q - y) ** 2).mean(-1).sum()
        metrics = {**_value_metrics(jax.lax.stop_gradient(q)), "target_mean": y.mean()}
        return Loss(value, metrics | _entropy(self, batch), state)


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
        if self.huber_delta is None:
            mean_term = q * (y - q_fixed) / (std_fixed**2 + 0.1)
            std_term = std * ((q_fixed - y_b) ** 2 - std_fixed**2) / (std_fixed**3 + 0.1)
            error = -(omega[:, None] ** 2 + 0.1) * (mean_term + std_term)
        else:
            ratio = jnp.clip(omega[:, None] ** 2 / (std_fixed**2 + 0.1), 0.1, 10)
            spread = optax.losses.huber_loss(q_fixed - y_b, delta=self.huber_delta)
            std_term = std * (std_fixed**2 - spread) / (std_fixed + 0.1)
            error = ratio * (optax.losses.huber_loss(q - y, delta=self.huber_delta) + std_term)
        loss = _weighted(batch, error).mean(-1).sum()
        metrics = {**_value_metrics(q_fixed), "q_std": std.mean(), "target_mean": y.mean()}
        return Loss(loss, metrics | _entropy(self, batch), {"omega": omega})


def _gaussian_goal(y: Array, z: Array, sigma: float) -> Array:
    """Mass [batch atoms] of N(y, (sigma * distance of atoms)^2) in the bins around the atoms z [atoms], y [batch]."""
    width = (z[-1] - z[0]) / (len(z) - 1)
    edges = z[0] + width * (jnp.arange(len(z) + 1) - 0.5)
    below = jax.scipy.special.erf((edges - jnp.clip(y, z[0], z[-1])[:, None]) / (2**0.5 * sigma * width))
    return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


def _shifted_goal(probability: Array, returns: Array, z: Array) -> Array:
    """Probabilities of the atoms z [atoms] after C51's projection of those of returns, both [batch atoms]."""
    position = (jnp.clip(returns, z[0], z[-1]) - z[0]) * (len(z) - 1) / (z[-1] - z[0])
    return projection.divided(probability, position, len(z))


class CategoricalTD(eqx.Module, declared.CategoricalTD):
    def __call__(
        self,
        critic: HistogramCritic,
        target_critic: HistogramCritic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
    ) -> Loss:
        """The loss on a batch."""
        pair = noise.get("pair")
        next_p = jax.nn.softmax(target_critic.logits(batch.next_obs, next_rollout(self, batch).action))
        next_q = next_p @ _atoms(target_critic, next_p)
        cost = temperature * self.next_log_prob(batch) if self.soft else jnp.zeros_like(batch.reward)
        y = batch.reward + batch.discount * (_reduced(next_q, self.ensemble, pair) - cost)

        logits = critic.logits(batch.obs, batch.action)
        z = _atoms(critic, logits)
        if self.projection == "hl_gauss":
            goal = _gaussian_goal(y, z, self.sigma)
        else:
            returns = batch.reward[:, None] + batch.discount[:, None] * (z - cost[:, None])
            if self.ensemble == "mean":
                chosen = next_p.mean(0)
            else:
                smaller = _counted(next_q, self.ensemble, pair).argmin(0)
                chosen = jnp.take_along_axis(_counted(next_p, self.ensemble, pair), smaller[None, :, None], 0)[0]
            goal = _shifted_goal(chosen, returns, z)
        loss = -_weighted(batch, (goal * jax.nn.log_softmax(logits)).sum(-1)).mean(-1).sum()

        p = jax.nn.softmax(jax.lax.stop_gradient(logits))
        q = p @ z
        q_std = jnp.sqrt((p * (z - q[..., None]) ** 2).sum(-1)).mean()
        metrics = {**_value_metrics(q), "q_std": q_std, "target_mean": y.mean()}
        return Loss(loss, metrics | _entropy(self, batch), state)
