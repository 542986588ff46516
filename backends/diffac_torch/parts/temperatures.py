"""Temperatures, which `diffac.parts.temperatures` declares, and the entropy of samples."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffac.noise import Noise
from diffac.parts import temperatures as declared
from diffac.protocols import Metrics, Policy, Sampler, State
from diffac_torch.parts.samplers import AdditiveNoise

__all__ = [
    "FixedTemperature",
    "MixtureEntropyTemperature",
    "NoiseEntropyTemperature",
    "TargetEntropyTemperature",
    "mixture_entropy",
]

_TOLERANCE = 1e-3
"""Change of a fit's mean log-likelihood below which it is settled, as in scikit-learn."""


class FixedTemperature(declared.FixedTemperature):
    def value(self, state: State) -> Float[Tensor, ""]:
        """The temperature, a scalar."""
        return state["log_temperature"].exp()

    def update(
        self, state: State, policy: Policy, obs: Tensor, noise: Noise, log_prob: Tensor | None = None
    ) -> tuple[State, Metrics]:
        """The same state, no metrics."""
        return state, {}


class NoiseEntropyTemperature(declared.NoiseEntropyTemperature):
    def value(self, state: State) -> Float[Tensor, ""]:
        """The temperature, a scalar."""
        return state["log_temperature"].exp()

    @torch.no_grad()
    def update(
        self, state: State, policy: Policy, obs: Tensor, noise: Noise, log_prob: Tensor | None = None
    ) -> tuple[State, Metrics]:
        """One step; only the metric policy_entropy looks at the policy."""
        samples = _samples(self.sampler, policy, obs[: self.num_states], noise["samples"])
        metrics = _entropies(self.sampler, samples, policy.temperature, self.action_dim)
        gradient = metrics["noise_entropy"] - self.target_entropy_per_dim * self.action_dim
        return _adam_step(state, gradient, self.learning_rate), metrics


class MixtureEntropyTemperature(declared.MixtureEntropyTemperature):
    def value(self, state: State) -> Float[Tensor, ""]:
        """The temperature, a scalar."""
        return state["log_temperature"].exp()

    @torch.no_grad()
    def update(
        self, state: State, policy: Policy, obs: Tensor, noise: Noise, log_prob: Tensor | None = None
    ) -> tuple[State, Metrics]:
        """One step."""
        samples = _samples(self.sampler, policy, obs[: self.num_states], noise["samples"])
        action_dim, fit = samples.shape[-1], (self.num_components, self.num_iterations)
        metrics = _entropies(self.sampler, samples, policy.temperature, action_dim, *fit)
        gradient = metrics["policy_entropy"] - self.target_entropy_per_dim * action_dim
        return _adam_step(state, gradient, self.learning_rate), metrics


class TargetEntropyTemperature(declared.TargetEntropyTemperature):
    def value(self, state: State) -> Float[Tensor, ""]:
        """The temperature, a scalar."""
        return state["log_temperature"].exp()

    @torch.no_grad()
    def update(
        self, state: State, policy: Policy, obs: Tensor, noise: Noise, log_prob: Tensor | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on the entropy of the policy."""
        entropy = -self.check_log_prob(log_prob).mean()
        target = self.target_entropy_per_dim * self.action_dim
        return _adam_step(state, entropy - target, self.learning_rate), {"policy_entropy": entropy}


def mixture_entropy(
    samples: Float[Tensor, "S *batch d"],
    num_components: int = 3,
    num_iterations: int = 100,
    covariance_floor: float = 1e-6,
) -> Float[Tensor, "*batch"]:
    """Entropy of a full-covariance Gaussian mixture fitted to the samples of each batch entry, all entries at once.

    H = -sum_k w_k log w_k + sum_k w_k log((2 pi e)^d |Sigma_k|) / 2, an upper bound of the mixture's entropy, exact for
    components far apart (DACER, arXiv 2405.15177). The fit is deterministic: farthest-point centres, ten Lloyd
    iterations, then expectation maximisation, which ends for each entry by the rule of scikit-learn, with which DACER
    fits: the mean log-likelihood changes by less than 1e-3. Components on a single mode drift on for long, so where it
    ends matters. Computed in float64, since covariances of clipped actions are nearly singular, and returned in the
    dtype of the samples.

    The mean over states is scikit-learn's to 2 % where no samples are clipped. Where a clip piles samples up on the
    bounds (noise of temperature 3) a state's entropy is .1 to .3 nats away on average, and can be more than 1: less
    than scikit-learn's own from one seed to another, since a component that fits samples on a bound has nearly no
    volume, and its share decides.

    Args:
        samples: [S *batch d], S samples for each entry.
        num_components: number of Gaussians, at least 1; one that loses all samples contributes nothing.
        num_iterations: of expectation maximisation, at most.
        covariance_floor: added to the diagonal of each covariance.

    Returns:
        Entropies [*batch] in nats.
    """
    declared.check_mixture(num_components, num_iterations, covariance_floor)
    _, *batch, d = samples.shape
    x = samples.detach().double().flatten(1, -2).transpose(0, 1) if batch else samples.detach().double().unsqueeze(0)
    responsibility = _clusters(x, num_components)
    moving = torch.arange(len(x), device=x.device)
    previous = x.new_full((len(x),), -math.inf)
    for _ in range(num_iterations):
        fit = _maximisation(x[moving], responsibility[moving], covariance_floor)
        responsibility[moving], likelihood = _expectation(x[moving], *fit)
        unsettled = (likelihood - previous).abs() >= _TOLERANCE
        moving, previous = moving[unsettled], likelihood[unsettled]
        if len(moving) == 0:
            break
    weight, _, cholesky = _maximisation(x, responsibility, covariance_floor)
    log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    gaussian = 0.5 * (d * math.log(2 * math.pi * math.e) + log_det)
    return (weight * gaussian - torch.xlogy(weight, weight)).sum(-1).reshape(batch).to(samples.dtype)


def _clusters(x: Tensor, num_components: int) -> Tensor:
    """One-hot membership [n S k] of samples x [n S d], from farthest-point seeds and ten Lloyd iterations."""
    nearest = (x - x.mean(1, keepdim=True)).square().sum(-1)
    chosen = []
    for k in range(num_components):
        index = nearest.argmax(1)[:, None, None].expand(-1, 1, x.shape[-1])
        chosen.append(x.gather(1, index))
        distance = (x - chosen[-1]).square().sum(-1)
        nearest = distance if k == 0 else torch.minimum(nearest, distance)
    centres = torch.cat(chosen, 1)

    def membership() -> Tensor:
        distance = (x.unsqueeze(2) - centres.unsqueeze(1)).square().sum(-1)
        return torch.nn.functional.one_hot(distance.argmin(-1), num_components).to(x.dtype)

    for _ in range(10):
        member = membership()
        count = member.sum(1).unsqueeze(-1)
        centres = torch.where(count > 0, member.mT @ x / count.clamp(min=1), centres)
    return membership()


def _maximisation(x: Tensor, responsibility: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [n k], means [n k d] and Cholesky factors of the covariances [n k d d]."""
    count = responsibility.sum(1) + 10 * torch.finfo(x.dtype).eps
    mean = responsibility.mT @ x / count.unsqueeze(-1)
    centred = x.unsqueeze(1) - mean.unsqueeze(2)
    weighted = responsibility.mT.unsqueeze(-1) * centred
    covariance = weighted.mT @ centred / count[..., None, None]
    covariance.diagonal(dim1=-2, dim2=-1).add_(floor)
    return count / count.sum(-1, keepdim=True), mean, torch.linalg.cholesky_ex(covariance).L


def _expectation(x: Tensor, weight: Tensor, mean: Tensor, cholesky: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities [n S k], and the mean log-likelihood [n] up to a constant."""
    # A product with the inverse is many times as fast as a triangular solve for all samples.
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    inverse = torch.linalg.solve_triangular(cholesky, identity, upper=False)
    white = (x.unsqueeze(1) - mean.unsqueeze(2)) @ inverse.mT
    log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_joint = (weight.log() - log_det).unsqueeze(-1) - 0.5 * white.square().sum(-1)
    return torch.softmax(log_joint, dim=1).mT, torch.logsumexp(log_joint, dim=1).mean(-1)


def _samples(sampler: Sampler, policy: Policy, obs: Tensor, noise: Noise) -> Tensor:
    """The sampler's actions [num_samples 1 states act]; with two entries if it adds noise, the second without it."""
    if not isinstance(sampler, AdditiveNoise) or sampler.noise_scale == 0:
        noisy = sampler(policy, obs, noise)
        return noisy.unsqueeze(1)
    clean = sampler.sampler(policy, obs, noise["inner"])
    noisy = sampler.explore(clean, noise, policy.temperature)
    return torch.stack([noisy, clean.expand_as(noisy)], 1)  # a deterministic actor's has no axis of samples


def _entropies(sampler: Sampler, samples: Tensor, temperature: Tensor, action_dim: int, *fit: int) -> dict[str, Tensor]:
    """Entropies of what `_samples` returned, means over the states, and that of the noise, where there is any."""
    entropy = mixture_entropy(samples, *fit).mean(-1)
    if not isinstance(sampler, AdditiveNoise) or sampler.noise_scale == 0:
        return {"policy_entropy": entropy[0]}
    return {
        "policy_entropy": entropy[0],
        "noise_free_entropy": entropy[1],
        "noise_entropy": sampler.noise_entropy(temperature, action_dim),
    }


def _adam_step(state: State, gradient: Tensor, learning_rate: float) -> State:
    """One step of Adam (arXiv 1412.6980, algorithm 1) with its usual constants, on the logarithm of the temperature."""
    count = state["count"] + 1
    m = 0.9 * state["m"] + 0.1 * gradient
    v = 0.999 * state["v"] + 0.001 * gradient.square()
    step = learning_rate * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8)
    return {"log_temperature": state["log_temperature"] - step, "m": m, "v": v, "count": count}
