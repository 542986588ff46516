"""The entropy coefficient and the rules that adapt it."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffac.arguments import check_arguments
from diffac.errors import UsageError
from diffac.noise import Noise, NoiseSpec, Shape
from diffac.protocols import Array, Critic, Metrics, Sampler, State
from diffac_equinox.optimisers import AdamState, adam_direction
from diffac_equinox.samplers import AdditiveNoise


def _samples(sampler: Sampler, actor: Any, critic: Critic, obs: Array, noise: Noise, temperature: Array) -> Array:
    """The sampler's actions [num_samples 1 states act]; with two entries if it adds noise, the second without it."""
    arguments = {"critic": critic, "temperature": temperature}
    if not _adds_noise(sampler):
        noisy = sampler(actor, obs, noise, **arguments)
        return noisy[:, None]
    clean = sampler.sampler(actor, obs, noise["inner"], **arguments)
    noisy = sampler.explore(clean, noise, temperature)
    return jnp.stack([noisy, clean], 1)


def _entropies(sampler: Sampler, samples: Array, temperature: Array, action_dim: int, *fit: int) -> dict[str, Array]:
    """Entropies of what `_samples` returned, means over the states, and that of the noise, where there is any."""
    entropy = mixture_entropy(samples, *fit).mean(-1)
    if not _adds_noise(sampler):
        return {"policy_entropy": entropy[0]}
    return {
        "policy_entropy": entropy[0],
        "noise_free_entropy": entropy[1],
        "noise_entropy": sampler.noise_entropy(temperature, action_dim),
    }


def _adds_noise(sampler: Sampler) -> TypeGuard[AdditiveNoise]:
    return isinstance(sampler, AdditiveNoise) and sampler.noise_scale > 0


def _samples_spec(sampler: Sampler, num_samples: int, num_states: int, shape: Shape) -> NoiseSpec:
    """Noise for num_samples actions at each of the first num_states states of a batch of actions of that shape."""
    batch, action_dim = shape
    return {"samples": sampler.noise_spec((num_samples, min(num_states, batch), action_dim))}


def _adam_state(initial: float) -> State:
    zeros = {name: np.array(0.0) for name in ("m", "v", "count")}
    return {"log_temperature": np.array(math.log(initial)), **zeros}


def _adam_step(state: State, gradient: Array, learning_rate: float) -> State:
    """One Adam step on the logarithm of the temperature."""
    moments = AdamState(state["m"], state["v"], state["count"])
    direction, new = adam_direction(moments, gradient, b1=0.9, b2=0.999, eps=1e-8)
    log_temperature = state["log_temperature"] - learning_rate * direction
    return {"log_temperature": log_temperature, "m": new.m, "v": new.v, "count": new.count}


class FixedTemperature(eqx.Module):
    """A temperature that never changes.

    Args:
        temperature: positive.

    Raises:
        UsageError: temperature is not positive.
    """

    temperature: float = 1.0

    def __check_init__(self) -> None:
        check_arguments("FixedTemperature", vars(self))

    @property
    def interval(self) -> int:
        """0: never updated."""
        return 0

    def init_state(self) -> State:
        """The logarithm of the temperature."""
        return {"log_temperature": np.array(math.log(self.temperature))}

    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}

    def update(
        self, state: State, actor: Any, critic: Critic, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """Nothing happens."""
        return state, {}


class NoiseEntropyTemperature(eqx.Module):
    """Adapts the temperature to the entropy of the exploration noise alone (official SDAC code, arXiv 2502.00361).

    H = d/2 log(2 pi e (noise_scale temperature)^2) does not depend on the policy, so this is a fixed annealing from
    `initial` to the temperature at which H is the target: one Adam step on log temperature with gradient H - target.
    It cannot see a policy that has collapsed, so the policy's entropy is estimated beside it, from few states.

    Noise: "samples", the sampler's for [num_samples states act]. State: "log_temperature" and its Adam moments "m",
    "v", "count", each 0-d. Metrics: noise_entropy, H; policy_entropy, `mixture_entropy` of the sampler's actions, and
    noise_free_entropy, that of the actions before the noise. The policy has collapsed where the first two are equal.

    Args:
        action_dim: d.
        sampler: the acting policy, with its exploration noise.
        initial: temperature at the start.
        target_entropy_per_dim: the target divided by d.
        interval: updates of the learner between two steps, of which the first is in update 0; 0: never.
        learning_rate: of Adam, on the logarithm of the temperature.
        num_states: of the batch, at most, on which the policy's entropy is estimated.
        num_samples: actions for each of them.

    Raises:
        UsageError: a number is out of range.
    """

    action_dim: int
    sampler: AdditiveNoise
    initial: float = 5.0
    target_entropy_per_dim: float = -0.9
    interval: int = 250
    learning_rate: float = 7e-3
    num_states: int = 16
    num_samples: int = 128

    def __check_init__(self) -> None:
        check_arguments("NoiseEntropyTemperature", vars(self))

    def init_state(self) -> State:
        """The logarithm of the temperature, and Adam's state."""
        return _adam_state(self.initial)

    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "samples": the sampler's, for actions [num_samples states act]."""
        return _samples_spec(self.sampler, self.num_samples, self.num_states, shape)

    def update(
        self, state: State, actor: Any, critic: Critic, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step; only the metric policy_entropy looks at the policy."""
        temperature = self.value(state)
        samples = _samples(self.sampler, actor, critic, obs[: self.num_states], noise["samples"], temperature)
        metrics = _entropies(self.sampler, samples, temperature, self.action_dim)
        gradient = metrics["noise_entropy"] - self.target_entropy_per_dim * self.action_dim
        return _adam_step(state, gradient, self.learning_rate), metrics


class MixtureEntropyTemperature(eqx.Module):
    """Adapts the temperature to a mixture estimate of the policy's entropy (DACER, arXiv 2405.15177, section 4.2).

    For each state, `mixture_entropy` of num_samples actions; H is the mean over states. One Adam step on log
    temperature with gradient H - target. Metrics: policy_entropy, H; if the sampler is an `AdditiveNoise` that adds
    any, noise_entropy, that of the noise alone, and noise_free_entropy, that of the actions before the noise. The
    policy has collapsed where the first two are equal.

    Args:
        sampler: draws the actions, with its exploration noise.
        initial: first temperature.
        target_entropy_per_dim: the target divided by the dimension of an action.
        interval: updates of the learner between two steps, of which the first is in update 0; 0: never.
            10,000 suits the paper's 1.5 million updates.
        learning_rate: of Adam.
        num_states: of the batch, at most, over which H is averaged; the paper takes all 256, at four times the cost.
        num_samples: actions for each of them.
        num_components: of the mixture.
        num_iterations: of its fit, at most.

    Raises:
        UsageError: a number is out of range.
    """

    sampler: Sampler
    initial: float = 3.0
    target_entropy_per_dim: float = -0.9
    interval: int = 10_000
    learning_rate: float = 0.03
    num_states: int = 64
    num_samples: int = 200
    num_components: int = 3
    num_iterations: int = 100

    def __check_init__(self) -> None:
        check_arguments("MixtureEntropyTemperature", vars(self))

    def init_state(self) -> State:
        """The logarithm of the temperature, and Adam's state."""
        return _adam_state(self.initial)

    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "samples": the sampler's, for actions [num_samples states act]."""
        return _samples_spec(self.sampler, self.num_samples, self.num_states, shape)

    def update(
        self, state: State, actor: Any, critic: Critic, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step."""
        temperature = self.value(state)
        samples = _samples(self.sampler, actor, critic, obs[: self.num_states], noise["samples"], temperature)
        action_dim, fit = samples.shape[-1], (self.num_components, self.num_iterations)
        metrics = _entropies(self.sampler, samples, temperature, action_dim, *fit)
        gradient = metrics["policy_entropy"] - self.target_entropy_per_dim * action_dim
        return _adam_step(state, gradient, self.learning_rate), metrics


class TargetEntropyTemperature(eqx.Module):
    """Adapts the temperature to the entropy of a policy with known log-probabilities (SAC, arXiv 1812.05905, section
    5).

    H = -mean log pi, with the log-probabilities of the actor's loss in the same update (algorithm 1). One Adam step on
    log temperature with gradient H - target: the paper's gradient, divided by the temperature, as most implementations
    have it. Metrics: policy_entropy, H.

    Args:
        action_dim: d.
        initial: first temperature.
        target_entropy_per_dim: the target divided by d.
        interval: updates of the learner between two steps, of which the first is in update 0; 0: never.
        learning_rate: of Adam.

    Raises:
        UsageError: a number is out of range; on an update: the actor's loss has no log-probabilities.
    """

    action_dim: int
    initial: float = 1.0
    target_entropy_per_dim: float = -1.0
    interval: int = 1
    learning_rate: float = 3e-4

    def __check_init__(self) -> None:
        check_arguments("TargetEntropyTemperature", vars(self))

    def init_state(self) -> State:
        """The logarithm of the temperature, and Adam's state."""
        return _adam_state(self.initial)

    def value(self, state: State) -> Array:
        """The temperature."""
        return jnp.exp(state["log_temperature"])

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}

    def update(
        self, state: State, actor: Any, critic: Critic, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on the entropy of the policy."""
        if log_prob is None:
            raise UsageError(
                "TargetEntropyTemperature steps on the log-probabilities of the actor's loss, and there are none; use "
                "an actor objective that knows them, such as EntropyRegularisedValue, and an interval that is a "
                "multiple of the learner's actor_delay"
            )
        entropy = -log_prob.mean()
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
    check_arguments("mixture_entropy", locals())
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
