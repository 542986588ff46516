"""Critic objectives, which `diffac.parts.critics` declares."""

import math

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from diffac.noise import Noise
from diffac.parts import critics as declared
from diffac.parts.critics import next_rollout
from diffac.protocols import Batch, Critic, DistributionalCritic, HistogramCritic, Loss, State
from diffac_torch.kernels import projection
from diffac_torch.parts.networks import _atoms, _counted, _reduced
from diffac_torch.parts.samplers import Scalar

__all__ = ["CategoricalTD", "GaussianTD", "MeanSquaredTD"]


class MeanSquaredTD(declared.MeanSquaredTD):
    def __call__(
        self,
        critic: Critic,
        target_critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
    ) -> Loss:
        """The loss on a batch, as `CriticObjective` says."""
        next_action = next_rollout(self, batch).action
        with torch.no_grad():
            next_value = _reduced(target_critic(batch.next_obs, next_action), self.ensemble, noise.get("pair"))
            if self.soft:
                next_value = next_value - temperature * self.next_log_prob(batch)
            target = batch.reward + batch.discount * next_value
        q = critic(batch.obs, batch.action)
        value = self.factor * _weighted(batch, (q - target).square()).mean(-1).sum()
        metrics = {**_value_metrics(q.detach()), "target_mean": target.mean(), **_entropy(self, batch)}
        return Loss(value, metrics, state)


class GaussianTD(declared.GaussianTD):
    def __call__(
        self,
        critic: DistributionalCritic,
        target_critic: DistributionalCritic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
    ) -> Loss:
        """The loss on a batch, as `CriticObjective` says."""
        next_action = next_rollout(self, batch).action
        mean, std = critic.distribution(batch.obs, batch.action)
        with torch.no_grad():
            next_means, next_stds = target_critic.distribution(batch.next_obs, next_action)
            smaller = next_means.argmin(0, keepdim=True)
            next_mean = next_means.gather(0, smaller).squeeze(0)
            next_std = next_stds.gather(0, smaller).squeeze(0)
            if self.soft:  # in the expected target, and in the sampled one below
                next_mean = next_mean - temperature * self.next_log_prob(batch)
            target = batch.reward + batch.discount * next_mean
            z = next_mean + next_std * noise["target"].clamp(-3, 3)
            sampled_target = batch.reward + batch.discount * z

            batch_std = std.mean(-1)
            omega = state["omega"]
            omega = torch.where(omega == 0, batch_std, (1 - self.tau) * omega + self.tau * batch_std)
            bound = self.clip * omega.unsqueeze(-1)
            # Q - y_b needs no y_b: the distance of Q from it is the clipped one
            distance = (sampled_target - mean).clamp(-bound, bound)
        variance = omega.square().unsqueeze(-1)
        if self.huber_delta is None:
            errors = _likelihood_form(mean, std, target, distance, variance)
        else:
            errors = _huber_form(mean, std, target, distance, variance, self.huber_delta)
        value = _weighted(batch, errors).mean(-1).sum()
        metrics = {**_value_metrics(mean.detach()), "q_std": batch_std.mean(), "target_mean": target.mean()}
        return Loss(value, {**metrics, **_entropy(self, batch)}, {"omega": omega})


def _likelihood_form(mean: Tensor, std: Tensor, target: Tensor, distance: Tensor, variance: Tensor) -> Tensor:
    """The paper's loss [ensemble batch]: slopes of the Gaussian's log-likelihood, smoothed and held fixed."""
    with torch.no_grad():
        mean_slope = (target - mean) / (std.square() + 0.1)
        std_slope = (distance.square() - std.square()) / (std**3 + 0.1)
    return -(variance + 0.1) * (mean * mean_slope + std * std_slope)


def _huber_form(mean: Tensor, std: Tensor, target: Tensor, distance: Tensor, variance: Tensor, delta: float) -> Tensor:
    """The loss [ensemble batch] of the authors' code since July 2025."""
    with torch.no_grad():
        ratio = (variance / (std.square() + 0.1)).clamp(0.1, 10)
        spread = huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=delta)
        std_slope = (std.square() - spread) / (std + 0.1)
    return ratio * (huber_loss(mean, target.expand_as(mean), reduction="none", delta=delta) + std * std_slope)


class CategoricalTD(declared.CategoricalTD):
    def __call__(
        self,
        critic: HistogramCritic,
        target_critic: HistogramCritic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
    ) -> Loss:
        """The loss on a batch, as `CriticObjective` says."""
        next_action, pair = next_rollout(self, batch).action, noise.get("pair")
        logits = critic.logits(batch.obs, batch.action)
        atoms = _atoms(critic, logits)
        with torch.no_grad():
            next_probabilities = target_critic.logits(batch.next_obs, next_action).softmax(-1)
            next_q = next_probabilities @ _atoms(target_critic, next_probabilities)
            cost = temperature * self.next_log_prob(batch) if self.soft else torch.zeros_like(batch.reward)
            target = batch.reward + batch.discount * (_reduced(next_q, self.ensemble, pair) - cost)
            if self.projection == "hl_gauss":
                goal = _smeared(target, atoms, self.sigma)
            else:
                returns = batch.reward + batch.discount * (atoms.unsqueeze(-1) - cost)
                goal = _projected(self._chosen(next_probabilities, next_q, pair), returns.mT, atoms)
            probabilities = logits.softmax(-1)
            q = probabilities @ atoms
            variance = (probabilities * (atoms - q.unsqueeze(-1)).square()).sum(-1)
        errors = -(goal * logits.log_softmax(-1)).sum(-1)
        metrics = {**_value_metrics(q), "q_std": variance.sqrt().mean(), "target_mean": target.mean()}
        return Loss(_weighted(batch, errors).mean(-1).sum(), {**metrics, **_entropy(self, batch)}, state)

    def _chosen(self, probabilities: Tensor, q: Tensor, pair: Tensor | None) -> Tensor:
        """One distribution [batch atoms] of those of an ensemble [ensemble batch atoms] with means [ensemble batch]."""
        if self.ensemble == "mean":
            return probabilities.mean(0)
        counted, smaller = (_counted(x, self.ensemble, pair) for x in (probabilities, q))
        return counted.take_along_dim(smaller.argmin(0)[None, :, None], 0).squeeze(0)


def _smeared(target: Tensor, atoms: Tensor, sigma: float) -> Tensor:
    """Mass [batch atoms] of normal distributions about targets [batch] in the bins around atoms [atoms]."""
    width = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    edges = torch.cat([atoms - width / 2, atoms[-1:] + width / 2])
    distance = edges - target.clamp(atoms[0], atoms[-1]).unsqueeze(-1)
    below = torch.erf(distance / (math.sqrt(2) * sigma * width))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def _projected(probabilities: Tensor, returns: Tensor, atoms: Tensor) -> Tensor:
    """Probabilities [batch atoms] of returns [batch atoms], clipped to the atoms' range, divided among the atoms."""
    width = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    positions = (returns.clamp(atoms[0], atoms[-1]) - atoms[0]) / width
    return projection.divided(probabilities, positions, len(atoms))


def _entropy(objective: declared.CriticObjectivePart, batch: Batch) -> dict[str, Tensor]:
    """What is logged of a soft target."""
    return {"entropy": -objective.next_log_prob(batch).mean()} if objective.soft else {}


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


def _weighted(batch: Batch, errors: Tensor) -> Tensor:
    """Errors [ensemble batch], each times the weight of its transition."""
    return errors if batch.weight is None else batch.weight * errors
