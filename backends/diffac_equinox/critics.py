"""Critic objectives: temporal-difference losses whose only differentiated argument is the critic."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.arguments import LOG_PROB, NEXT_ACTION, check_arguments, check_distributional
from diffac.errors import check_present
from diffac.noise import Noise, NoiseSpec, Normal, Shape
from diffac.protocols import Array, Critic, DistributionalCritic, Loss, State, Transition


def _discounted(batch: Transition, gamma: float, next_value: Array) -> Array:
    """r + gamma (1 - terminated) next_value"""
    return batch.reward + gamma * jnp.where(batch.terminated, 0, next_value)


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


class MeanSquaredTD(eqx.Module):
    """factor sum_i mean_B (Q_i - y)^2 with y = r + gamma (1 - terminated) min_j Q'_j(s', a').

    Clipped double Q-learning (Fujimoto et al. 2018, arXiv 1802.09477); soft: the target has -temperature log pi(a'|s')
    beside the minimum (SAC, arXiv 1812.05905, equation 3).

    Metrics: q_mean; q_batch_std, the standard deviation over the batch, averaged over the ensemble; q_min and q_max of
    batch and ensemble; q_disagreement, the mean over the batch of the range of the ensemble; target_mean, that of y.

    Args:
        gamma: discount, in [0, 1].
        soft: whether the entropy belongs to the value.
        factor: of the loss; Stable-Baselines3's SAC has 0.5. It changes nothing but what Adam's eps is added to.

    Raises:
        UsageError: gamma or factor is out of range; on a call with soft: the batch has no next_log_prob.
    """

    gamma: float = 0.99
    soft: bool = False
    factor: float = 1.0

    def __check_init__(self) -> None:
        check_arguments("MeanSquaredTD", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}

    def init_state(self, critic: Critic) -> State:
        """No state."""
        return {}

    def __call__(
        self, critic: Critic, target_critic: Critic, batch: Transition, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        check_present("MeanSquaredTD", "batch.next_action", batch.next_action, NEXT_ACTION)
        next_value = target_critic(batch.next_obs, batch.next_action).min(0)
        if self.soft:
            what = "batch.next_log_prob"
            log_prob = check_present("MeanSquaredTD(soft=True)", what, batch.next_log_prob, LOG_PROB)
            next_value = next_value - temperature * log_prob
        y = _discounted(batch, self.gamma, next_value)
        q = critic(batch.obs, batch.action)
        value = self.factor * ((q - y) ** 2).mean(-1).sum()
        return Loss(value, {**_value_metrics(jax.lax.stop_gradient(q)), "target_mean": y.mean()}, state)


class GaussianTD(eqx.Module):
    """The loss of Gaussian critics of DSAC-T (Duan et al. 2023, arXiv 2310.05858), as DACER has it (arXiv 2405.15177).

    The value is the sum over the online critics i of

        -(omega_i^2 + 0.1) mean[Q_i (y - q)/(s^2 + 0.1) + std_i ((q - y_b)^2 - s^2)/(s^3 + 0.1)]

    with q and s the detached Q_i and std_i. The expected target y and a sampled target y_z come from the target critic
    with the smaller mean, chosen *for each sample*; y_b = q + clip(y_z - q, -clip omega_i, clip omega_i); omega_i is
    the running mean of std_i, set by the first batch.

    Metrics: those of `MeanSquaredTD` for the means; q_std, the mean of std_i over batch and ensemble.

    Args:
        gamma: discount, in [0, 1].
        tau: rate of omega, in (0, 1].
        clip: deviations of a sampled return that are believed, in units of omega.

    Raises:
        UsageError: an argument is out of range, or the critic has no `distribution`.
    """

    gamma: float = 0.99
    tau: float = 0.005
    clip: float = 3.0

    def __check_init__(self) -> None:
        check_arguments("GaussianTD", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "target" [batch]: one number for each state serves, as only one critic's sample is used."""
        return {"target": Normal(shape[:-1])}

    def init_state(self, critic: Any) -> State:
        """omega [ensemble], 0 before the first batch."""
        check_distributional(critic)
        return {"omega": np.zeros(critic.size)}  # type: ignore[attr-defined]

    def __call__(
        self,
        critic: DistributionalCritic,
        target_critic: DistributionalCritic,
        batch: Transition,
        noise: Noise,
        temperature: Array,
        state: State,
    ) -> Loss:
        """The loss on a batch."""
        check_present("GaussianTD", "batch.next_action", batch.next_action, NEXT_ACTION)
        next_mean, next_std = target_critic.distribution(batch.next_obs, batch.next_action)
        smaller = next_mean.argmin(0, keepdims=True)
        next_mean, next_std = (jnp.take_along_axis(x, smaller, 0)[0] for x in (next_mean, next_std))
        y = _discounted(batch, self.gamma, next_mean)
        y_z = _discounted(batch, self.gamma, next_mean + next_std * jnp.clip(noise["target"], -3, 3))

        q, std = critic.distribution(batch.obs, batch.action)
        q_fixed, std_fixed = jax.lax.stop_gradient((q, std))
        batch_std = std_fixed.mean(-1)
        omega = jnp.where(state["omega"] == 0, batch_std, (1 - self.tau) * state["omega"] + self.tau * batch_std)
        width = self.clip * omega[:, None]
        y_b = q_fixed + jnp.clip(y_z - q_fixed, -width, width)
        mean_term = q * (y - q_fixed) / (std_fixed**2 + 0.1)
        std_term = std * ((q_fixed - y_b) ** 2 - std_fixed**2) / (std_fixed**3 + 0.1)
        loss = -((omega**2 + 0.1) * (mean_term + std_term).mean(-1)).sum()
        metrics = {**_value_metrics(q_fixed), "q_std": std.mean(), "target_mean": y.mean()}
        return Loss(loss, metrics, {"omega": omega})
