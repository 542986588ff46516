"""Temperatures, and the entropy of a mixture fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from diffac.noise import Noise, NoiseSpec, Shape
from diffac.protocols import Metrics, Policy, State
from diffac.testing.reference.gradients import Array, softmax
from diffac.testing.reference.samplers import AdditiveNoise

__all__ = [
    "AdaptiveTemperature",
    "FixedTemperature",
    "MixtureEntropyTemperature",
    "NoiseEntropyTemperature",
    "TargetEntropyTemperature",
    "adam",
    "clusters",
    "entropies",
    "initial_temperature",
    "log_gaussian",
    "maximisation",
    "mixture_entropy",
    "temperature_step",
]


def adam(
    parameter: Any,
    gradient: Any,
    m: Any,
    v: Any,
    count: Any,
    rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Any, Any, Any, Any]:
    """Algorithm 1 of Kingma and Ba 2015 (arXiv 1412.6980); `count` steps were done before."""
    count = count + 1
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * gradient**2
    m_hat, v_hat = m / (1 - b1**count), v / (1 - b2**count)
    return parameter - rate * m_hat / (np.sqrt(v_hat) + eps), m, v, count


def initial_temperature(temperature: float) -> State:
    """Log temperature with Adam's state."""
    return {"log_temperature": np.array(math.log(temperature)), **{name: np.zeros(()) for name in ("m", "v", "count")}}


def temperature_step(state: State, entropy: Any, target: float, rate: float) -> State:
    """One Adam step on log temperature with gradient H - target: too much entropy lowers it (DACER)."""
    numbers = adam(state["log_temperature"], entropy - target, state["m"], state["v"], state["count"], rate)
    return dict(zip(("log_temperature", "m", "v", "count"), numbers, strict=True))


def mixture_entropy(
    samples: Array, num_components: int = 3, num_iterations: int = 100, covariance_floor: float = 1e-6
) -> Array:
    """DACER's entropy [*batch] of samples [S *batch d]: of a Gaussian mixture with full covariances, fitted to them.

    H = sum_k w_k (-log w_k + log((2 pi e)^d |Sigma_k|) / 2). Expectation maximisation (Dempster et al. 1977) ends where
    the mean log-likelihood changes by less than 1e-3, which is scikit-learn's rule.
    """
    batch, dim = samples.shape[1:-1], samples.shape[-1]
    entries = samples.reshape(len(samples), -1, dim).swapaxes(0, 1)
    return np.array([_mixture_entropy(x, num_components, num_iterations, covariance_floor) for x in entries]).reshape(
        batch
    )


def _mixture_entropy(x: Array, num_components: int, num_iterations: int, floor: float) -> float:
    responsibility, before = clusters(x, num_components), -np.inf
    for _ in range(num_iterations):
        fit = maximisation(x, responsibility, floor)
        log_joint = np.stack([math.log(w) + log_gaussian(x, mean, covariance) for w, mean, covariance in fit])
        responsibility = softmax(log_joint)
        log_likelihood = np.logaddexp.reduce(log_joint, axis=0).mean()
        if abs(log_likelihood - before) < 1e-3:
            break
        before = log_likelihood
    entropy = 0.0
    for w, _, covariance in maximisation(x, responsibility, floor):
        _, log_determinant = np.linalg.slogdet(2 * math.pi * math.e * covariance)
        entropy += w * (0.5 * log_determinant - math.log(w))
    return entropy


def clusters(x: Array, number: int) -> Array:
    """Membership [number S], 1 or 0, of samples x [S d]: farthest points (Gonzalez 1985), then ten steps of Lloyd 1982.

    The first centre is the sample farthest from the mean; a centre without samples stays where it is.
    """

    def distances(centres: list[Array]) -> Array:
        return np.stack([((x - centre) ** 2).sum(-1) for centre in centres])

    centres = [x[distances([x.mean(0)])[0].argmax()]]
    while len(centres) < number:
        centres.append(x[distances(centres).min(0).argmax()])
    for _ in range(10):
        nearest = distances(centres).argmin(0)
        centres = [x[nearest == k].mean(0) if (nearest == k).any() else centre for k, centre in enumerate(centres)]
    nearest = distances(centres).argmin(0)
    return np.stack([(nearest == k).astype(np.float64) for k in range(number)])


def maximisation(x: Array, responsibility: Array, floor: float) -> list[tuple[float, Array, Array]]:
    """Weight, mean and covariance of every component; a tiny mass keeps one that lost its samples finite."""
    masses = responsibility.sum(-1) + 10 * np.finfo(np.float64).eps
    fit = []
    for r, mass in zip(responsibility, masses, strict=True):
        mean = r @ x / mass
        covariance = (x - mean).T @ (r[:, None] * (x - mean)) / mass + floor * np.eye(x.shape[1])
        fit.append((mass / masses.sum(), mean, covariance))
    return fit


def log_gaussian(x: Array, mean: Array, covariance: Array) -> Array:
    """log N(x; mean, covariance) of every sample x [S d]."""
    _, log_determinant = np.linalg.slogdet(2 * math.pi * covariance)
    distance = ((x - mean) * np.linalg.solve(covariance, (x - mean).T).T).sum(-1)
    return -0.5 * (log_determinant + distance)


@dataclasses.dataclass(frozen=True, eq=False)
class FixedTemperature:
    """A constant."""

    temperature: float = 1.0

    @property
    def interval(self) -> int:
        """Never."""
        return 0

    def init_state(self) -> State:
        """The logarithm of the temperature."""
        return {"log_temperature": np.array(math.log(self.temperature))}

    def value(self, state: State) -> Any:
        """The temperature."""
        return np.exp(state["log_temperature"])

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """None."""
        return {}

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """Nothing happens."""
        return state, {}


class AdaptiveTemperature:
    """What the rules below have in common: Adam on the logarithm, towards `target_entropy_per_dim`."""

    initial: float

    def init_state(self) -> State:
        """Log temperature with Adam's state."""
        return initial_temperature(self.initial)

    def value(self, state: State) -> Any:
        """The temperature."""
        return np.exp(state["log_temperature"])


def entropies(sampler: Any, policy: Policy, obs: Array, noise: Noise, *fit: int) -> tuple[dict[str, Any], int]:
    """Of the policy's actions, means over the states; where it explores, without the noise and of the noise alone.

    Also the number of entries of an action.
    """
    rollout, _ = sampler.rollout(policy, obs, noise)
    metrics, dim = {"policy_entropy": mixture_entropy(rollout.action, *fit).mean()}, rollout.action.shape[-1]
    if isinstance(sampler, AdditiveNoise) and sampler.noise_scale > 0:
        clean, _ = sampler.sampler.rollout(policy, obs, noise["inner"])
        actions = np.broadcast_to(clean.action, rollout.action.shape)  # a deterministic actor's have no axis of samples
        metrics["noise_free_entropy"] = mixture_entropy(actions, *fit).mean()
        metrics["noise_entropy"] = sampler.noise_entropy(policy.temperature, dim)
    return metrics, dim


def samples_spec(sampler: Any, num_samples: int, num_states: int, shape: Shape) -> NoiseSpec:
    """Noise for samples [num_samples states act] at the first states of a batch of actions of that shape."""
    return {"samples": sampler.noise_spec((num_samples, min(num_states, shape[0]), shape[1]))}


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseEntropyTemperature(AdaptiveTemperature):
    """Steers the entropy of the exploration noise alone (official SDAC code); the policy's is only reported."""

    action_dim: int
    sampler: AdditiveNoise
    initial: float = 5.0
    target_entropy_per_dim: float = -0.9
    interval: int = 250
    learning_rate: float = 7e-3
    num_states: int = 16
    num_samples: int = 128

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Of samples [num_samples states act] at the batch's first states."""
        return samples_spec(self.sampler, self.num_samples, self.num_states, shape)

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step."""
        metrics, _ = entropies(self.sampler, policy, obs[: self.num_states], noise["samples"])
        metrics["noise_entropy"] = self.sampler.noise_entropy(policy.temperature, self.action_dim)
        target = self.target_entropy_per_dim * self.action_dim
        return temperature_step(state, metrics["noise_entropy"], target, self.learning_rate), metrics


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureEntropyTemperature(AdaptiveTemperature):
    """Steers the policy's entropy, estimated by a Gaussian mixture for each state (DACER)."""

    sampler: Any
    initial: float = 3.0
    target_entropy_per_dim: float = -0.9
    interval: int = 10_000
    learning_rate: float = 0.03
    num_states: int = 64
    num_samples: int = 200
    num_components: int = 3
    num_iterations: int = 100

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Of samples [num_samples states act] at the batch's first states."""
        return samples_spec(self.sampler, self.num_samples, self.num_states, shape)

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step."""
        fit = self.num_components, self.num_iterations
        metrics, dim = entropies(self.sampler, policy, obs[: self.num_states], noise["samples"], *fit)
        target = self.target_entropy_per_dim * dim
        return temperature_step(state, metrics["policy_entropy"], target, self.learning_rate), metrics


@dataclasses.dataclass(frozen=True, eq=False)
class TargetEntropyTemperature(AdaptiveTemperature):
    """Steers the policy's entropy -E[log pi] (SAC, section 5), on the logarithm, as most codes do."""

    action_dim: int
    initial: float = 1.0
    target_entropy_per_dim: float = -1.0
    interval: int = 1
    learning_rate: float = 3e-4

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """None: the log-probabilities are the actor loss's own."""
        return {}

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step."""
        entropy = -np.mean(np.asarray(log_prob))
        target = self.target_entropy_per_dim * self.action_dim
        return temperature_step(state, entropy, target, self.learning_rate), {"policy_entropy": entropy}
