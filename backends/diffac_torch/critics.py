"""Critic objectives: temporal-difference losses. Only the online critic is differentiated, never a target."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from diffac.arguments import LOG_PROB, NEXT_ACTION, check_arguments, check_distributional
from diffac.errors import check_present
from diffac.noise import Noise, NoiseSpec, Normal, Shape
from diffac.protocols import Critic, DistributionalCritic, Loss, State, Transition
from diffac_torch.samplers import Scalar


@dataclasses.dataclass(frozen=True, eq=False)
class MeanSquaredTD:
    """factor sum_i mean (Q_i(s, a) - y)^2 with y = r + gamma (1 - terminated) min_i Q'_i(s', a').

    Fujimoto et al. 2018 (arXiv 1802.09477); with `soft`, temperature * log pi(a'|s') is subtracted from the minimum, as
    in SAC (arXiv 1812.05905, equation 6).

    Metrics: "q_mean"; "q_batch_std", the standard deviation over the batch, averaged over the ensemble; "q_min" and
    "q_max" of batch and ensemble; "q_disagreement", the mean over the batch of the range of the ensemble;
    "target_mean", that of y.

    Args:
        gamma: discount factor, in [0, 1].
        soft: whether the target contains the entropy of the policy.
        factor: of the loss; Stable-Baselines3's SAC has 0.5. It changes nothing but what Adam's eps is added to.

    Raises:
        UsageError: gamma outside [0, 1], or factor is not positive; on a call, a soft target without
            batch.next_log_prob.
    """

    gamma: float = 0.99
    soft: bool = False
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_arguments("MeanSquaredTD", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}

    def init_state(self, critic: Critic) -> State:
        """No state."""
        return {}

    def __call__(
        self,
        critic: Critic,
        target_critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
    ) -> Loss:
        """The loss on a batch, as `CriticObjective` says."""
        check_present("MeanSquaredTD", "batch.next_action", batch.next_action, NEXT_ACTION)
        with torch.no_grad():
            next_value = target_critic(batch.next_obs, batch.next_action).amin(0)
            if self.soft:
                what = "batch.next_log_prob"
                log_prob = check_present("MeanSquaredTD(soft=True)", what, batch.next_log_prob, LOG_PROB)
                next_value = next_value - temperature * log_prob
            target = _bootstrap(batch, self.gamma, next_value)
        q = critic(batch.obs, batch.action)
        value = self.factor * (q - target).square().mean(-1).sum()
        return Loss(value, {**_value_metrics(q.detach()), "target_mean": target.mean()}, state)


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianTD:
    """The distributional loss of DSAC-T (arXiv 2310.05858, equations 22 to 25), as DACER uses it (arXiv 2405.15177).

    For critic i, with everything in <> and omega detached,

        -(omega^2 + 0.1) mean[Q <y - Q> / (<std>^2 + 0.1) + std <(Q - y_b)^2 - std^2> / (<std>^3 + 0.1)]

    where y = r + gamma (1 - terminated) min_i mean'_i, y_b = Q + clip(y_z - Q, -clip omega, clip omega), and y_z
    bootstraps from a sample z = mean' + std' clip(noise, -3, 3) of the critic whose mean is smaller, chosen for each
    transition. omega is a moving average of the batch mean of std_i, set from the first batch. No entropy enters the
    target.

    Noise: "target" [batch], standard normal: one number per transition, since only one critic's sample is used.

    State: "omega" [ensemble]; 0 means: no batch so far.

    Metrics: those of `MeanSquaredTD` for the means; "q_std", the mean of std_i over batch and ensemble.

    Args:
        gamma: discount factor, in [0, 1].
        tau: rate of omega, in (0, 1].
        clip: bound of the distance of y_z from Q, in units of omega.

    Raises:
        UsageError: a number outside its range, or (in `init_state`) a critic without `distribution`.
    """

    gamma: float = 0.99
    tau: float = 0.005
    clip: float = 3.0

    def __post_init__(self) -> None:
        check_arguments("GaussianTD", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape."""
        return {"target": Normal(shape[:-1])}

    def init_state(self, critic: DistributionalCritic) -> State:
        """omega, zero for each member of the ensemble."""
        check_distributional(critic)
        return {"omega": np.zeros(critic.size)}  # type: ignore[attr-defined]

    def __call__(
        self,
        critic: DistributionalCritic,
        target_critic: DistributionalCritic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
    ) -> Loss:
        """The loss on a batch, as `CriticObjective` says."""
        check_present("GaussianTD", "batch.next_action", batch.next_action, NEXT_ACTION)
        mean, std = critic.distribution(batch.obs, batch.action)
        with torch.no_grad():
            next_means, next_stds = target_critic.distribution(batch.next_obs, batch.next_action)
            smaller = next_means.argmin(0, keepdim=True)
            next_mean = next_means.gather(0, smaller).squeeze(0)
            next_std = next_stds.gather(0, smaller).squeeze(0)
            target = _bootstrap(batch, self.gamma, next_mean)
            z = next_mean + next_std * noise["target"].clamp(-3, 3)
            sampled_target = _bootstrap(batch, self.gamma, z)

            batch_std = std.mean(-1)
            omega = state["omega"]
            omega = torch.where(omega == 0, batch_std, (1 - self.tau) * omega + self.tau * batch_std)
            bound = self.clip * omega.unsqueeze(-1)
            # (Q - y_b)^2 needs no y_b: the distance of Q from it is the clipped one
            distance = (sampled_target - mean).clamp(-bound, bound)
            mean_slope = (target - mean) / (std.square() + 0.1)
            std_slope = (distance.square() - std.square()) / (std**3 + 0.1)
        value = -((omega.square() + 0.1) * (mean * mean_slope + std * std_slope).mean(-1)).sum()
        metrics = {**_value_metrics(mean.detach()), "q_std": batch_std.mean(), "target_mean": target.mean()}
        return Loss(value, metrics, {"omega": omega})


def _value_metrics(q: Tensor) -> dict[str, Tensor]:
    """What is logged of values [ensemble batch]."""
    low, high = q.aminmax(dim=0)
    return {
        "q_mean": q.mean(),
        "q_batch_std": q.std(-1, correction=0).mean(),
        "q_min": low.amin(),
        "q_max": high.amax(),
        "q_disagreement": (high - low).mean(),
    }


def _bootstrap(batch: Transition, gamma: float, next_value: Tensor) -> Tensor:
    """r + gamma (1 - terminated) next_value"""
    # In this order: a number times a bool would have torch's default type, whatever that of the values is.
    return batch.reward + gamma * next_value * batch.terminated.logical_not()
