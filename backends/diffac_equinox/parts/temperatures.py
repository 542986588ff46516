"""Temperatures, which `diffac.parts.temperatures` declares, and the entropy of samples."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffac.noise import Noise
from diffac.parts import temperatures as declared
from diffac.protocols import Array, Metrics, Policy, Sampler, State
from diffac_equinox.parts.optimisers import AdamState, adam_direction
from diffac_equinox.parts.samplers import AdditiveNoise

__all__ = [
    "FixedTemperature",
    "MixtureEntropyTemperature",
    "NoiseEntropyTemperature",
    "TargetEntropyTemperature",
    "mixture_entropy",
]


def _samples(sampler: Sampler, policy: Policy, obs: Array, noise: Noise) -> Array:
    """The sampler's actions [num_samples 1 states act]; with two entries if it adds noise, the second without it."""
    if not isinstance(sampler, AdditiveNoise) or sampler.noise_scale == 0:
        noisy = sampler(policy, obs, noise)
        return noisy[:, None]
    clean = sampler.sampler(policy, obs, noise["inner"])
    noisy = sampler.explore(clean, noise, policy.temperature)
    return jnp.stack([noisy, jnp.broadcast_to(clean, noisy.shape)], 1)  # a deterministic actor's has no axis of samples


def _entropies(sampler: Sampler, samples: Array, temperature: Array, action_dim: int, *fit: int) -> dict[str, Array]:
    """Entropies of what `_samples` returned, means over the states, and that of the noise, where there is any."""
    entropy = mixture_entropy(samples, *fit).mean(-1)
    if not isinstance(sampler, AdditiveNoise) or sampler.noise_scale == 0:
        return {"policy_entropy": entropy[0]}
    return {
        "policy_entropy": entropy[0],
        "noise_free_entropy": entropy[1],
        "noise_entropy": sampler.noise_entropy(temperature, action_dim),
    }


def _adam_step(state: State, gradient: Array, learning_rate: float) -> State:
    """One Adam step on the logarithm of the temperature."""
    moments = AdamState(state["m"], state["v"], state["count"])
    direction, new = adam_direction(moments, gradient, b1=0.9, b2=0.999, eps=1e-8)
    log_temperature = state["log_temperature"] - learning_rate * direction
    return {"log_temperature": log_temperature, "m": new.m, "v": new.v, "count": new.count}


class FixedTemperature(eqx.Module, declared.FixedTemperature):
    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """Nothing happens."""
        return state, {}


class NoiseEntropyTemperature(eqx.Module, declared.NoiseEntropyTemperature):
    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step; only the metric policy_entropy looks at the policy."""
        samples = _samples(self.sampler, policy, obs[: self.num_states], noise["samples"])
        metrics = _entropies(self.sampler, samples, policy.temperature, self.action_dim)
        gradient = metrics["noise_entropy"] - self.target_entropy_per_dim * self.action_dim
        return _adam_step(state, gradient, self.learning_rate), metrics


class MixtureEntropyTemperature(eqx.Module, declared.MixtureEntropyTemperature):
    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step."""
        samples = _samples(self.sampler, policy, obs[: self.num_states], noise["samples"])
        action_dim, fit = samples.shape[-1], (self.num_components, self.num_iterations)
        metrics = _entropies(self.sampler, samples, policy.temperature, action_dim, *fit)
        gradient = metrics["policy_entropy"] - self.target_entropy_per_dim * action_dim
        return _adam_step(state, gradient, self.learning_rate), metrics


class TargetEntropyTemperature(eqx.Module, declared.TargetEntropyTemperature):
    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on the entropy of the policy."""
        entropy = -self.check_log_prob(log_prob).mean()
        target = self.target_entropy_per_dim * self.action_dim
        return _adam_step(state, entropy - target, self.learning_rate), {"policy_entropy": entropy}


_LLOYD_ITERATIONS = 10
_TOLERANCE = 1e-3
"""Change of the mean log-likelihood below which a fit has converged: the default of scikit-learn, which DACER uses."""


def mixture_entropy(
    samples: Float[Array, "samples *batch act"],
    num_components: int = 3,
    num_iterations: int = 100,
    covariance_floor: float = 1e-6,
) -> Float[Array, "*batch"]:
    """Entropy of the samples of each batch entry by a Gaussian mixture with full covariances (DACER, arXiv 2405.15177).

    H = -sum_k w_k log w_k + sum_k w_k log((2 pi e)^d |Sigma_k|)/2: an upper bound of the mixture's entropy, exact for
    components far apart. All fits run at once and without random numbers: farthest-point seeds, 10 iterations of
    Lloyd's algorithm, then expectation maximisation, which ends for each entry by scikit-learn's rule (the mean
    log-likelihood changes by less than 1e-3). Three components on one mode never settle, so it matters where they stop.

    The mean over states is scikit-learn's to 2 % where no samples are clipped (with a fixed number of iterations it can
    be 15 % away). Where a clip piles samples up on the bounds (noise of temperature 3) a state's entropy is .1 to .3
    nats away on average, and can be more than 1: less than scikit-learn's own from one seed to another, since a
    component that fits samples on a bound has nearly no volume, and its share decides.

    Args:
        samples: [samples *batch dim]
        num_components: of the mixture.
        num_iterations: of expectation maximisation, at most.
        covariance_floor: added to the diagonal of every covariance, as scikit-learn does.
    """
    declared.check_mixture(num_components, num_iterations, covariance_floor)
    batch, dim = samples.shape[1:-1], samples.shape[-1]
    states = samples.reshape(len(samples), -1, dim).swapaxes(0, 1)
    fit = jax.vmap(lambda x: _entropy_of_fit(x, num_components, num_iterations, covariance_floor))
    return fit(states).reshape(batch)


def _entropy_of_fit(x: Array, num_components: int, num_iterations: int, floor: float) -> Array:
    """The entropy of a mixture fitted to x [samples dim]."""
    dim = x.shape[-1]
    identity = jnp.eye(dim, dtype=x.dtype)

    def maximise(responsibility: Array) -> tuple[Array, Array, Array]:
        """Weights [k], means [k dim] and Cholesky factors of the covariances [k dim dim]."""
        # The small number keeps a component without samples finite; its weight is then nearly 0.
        mass = responsibility.sum(0) + 10 * jnp.finfo(x.dtype).eps
        mean = responsibility.T @ x / mass[:, None]
        deviation = x - mean[:, None]
        covariance = jnp.einsum("sk,ksi,ksj->kij", responsibility, deviation, deviation) / mass[:, None, None]
        return mass / mass.sum(), mean, jnp.linalg.cholesky(covariance + floor * identity)

    def expect(weight: Array, mean: Array, factor: Array) -> tuple[Array, Array]:
        """Responsibilities [samples k] and the mean log-likelihood."""
        # One product with the inverse is many times as fast as a triangular solve with all samples.
        inverse = jax.scipy.linalg.solve_triangular(factor, jnp.broadcast_to(identity, factor.shape), lower=True)
        whitened = (x - mean[:, None]) @ inverse.swapaxes(1, 2)
        log_density = -0.5 * ((whitened**2).sum(-1).T + _log_determinant(factor) + dim * math.log(2 * math.pi))
        log_joint = log_density + jnp.log(weight)
        return jax.nn.softmax(log_joint, axis=-1), jax.nn.logsumexp(log_joint, axis=-1).mean()

    def goes_on(carry: tuple[Any, Array, Array, Array]) -> Array:
        _, likelihood, previous, iteration = carry
        return (iteration < num_iterations) & (jnp.abs(likelihood - previous) >= _TOLERANCE)

    def iterate(carry: tuple[Any, Array, Array, Array]) -> tuple[Any, Array, Array, Array]:
        fit, previous, _, iteration = carry
        responsibility, likelihood = expect(*fit)
        return maximise(responsibility), likelihood, previous, iteration + 1

    responsibility = _nearest(x, _lloyd(x, _farthest_points(x, num_components)))
    infinity = jnp.asarray(jnp.inf, x.dtype)
    # Under vmap the loop runs until the last fit has converged, and leaves those alone that have.
    fit, *_ = jax.lax.while_loop(goes_on, iterate, (maximise(responsibility), -infinity, infinity, 0))
    weight, _, factor = fit
    component_entropy = 0.5 * (dim * math.log(2 * math.pi * math.e) + _log_determinant(factor))
    return (weight * (component_entropy - jnp.log(weight))).sum()


def _log_determinant(factor: Array) -> Array:
    """log |L L^T| for Cholesky factors [k dim dim]."""
    return 2 * jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)


def _squared_distance(x: Array, centre: Array) -> Array:
    return ((x - centre) ** 2).sum(-1)


def _farthest_points(x: Array, number: int) -> Array:
    """The sample farthest from the mean, then repeatedly the one farthest from those chosen so far; [number dim]."""
    chosen = [x[_squared_distance(x, x.mean(0)).argmax()]]
    nearest = _squared_distance(x, chosen[0])
    for _ in range(number - 1):
        chosen.append(x[nearest.argmax()])
        nearest = jnp.minimum(nearest, _squared_distance(x, chosen[-1]))
    return jnp.stack(chosen)


def _nearest(x: Array, centres: Array) -> Array:
    """One-hot membership [samples k] of the nearest centre."""
    distance = _squared_distance(x[:, None], centres)
    return jax.nn.one_hot(distance.argmin(-1), len(centres), dtype=x.dtype)


def _lloyd(x: Array, centres: Array) -> Array:
    """Iterations of k-means; a centre without samples stays where it is."""

    def iterate(_: Array, centres: Array) -> Array:
        member = _nearest(x, centres)
        count = member.sum(0)[:, None]
        return jnp.where(count > 0, member.T @ x / jnp.maximum(count, 1), centres)

    return jax.lax.fori_loop(0, _LLOYD_ITERATIONS, iterate, centres)
