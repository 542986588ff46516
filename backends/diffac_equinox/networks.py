"""Actors and critics. Parameters are drawn on the host, so one key gives the same network in every backend."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffac.errors import UsageError, check_count
from diffac.parts.constructors import check_arguments
from diffac.parts.declaration import Ensemble
from diffac.parts.initialisers import layer_parameters
from diffac.protocols import Prediction
from diffac_equinox.activations import Function, activation
from diffac_equinox.devices import all_devices


def time_embedding(t: Int[Array, "*batch"] | int, dim: int = 16) -> Float[Array, "*batch dim"]:
    """Sinusoidal embedding concat[sin(t f), cos(t f)] / sqrt(dim), f_j = 10000^(-j/(dim/2)) for j < dim/2.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5; the factor 1/sqrt(dim) is that of the official SDAC networks.

    Args:
        t: integers of any shape.
        dim: even and positive.

    Returns:
        [*t dim], of JAX's default float type.

    Raises:
        UsageError: dim is odd or not positive.
    """
    check_count("dim", dim)
    if dim % 2:
        raise UsageError(f"dim must be even (half sines, half cosines), got {dim!r}")
    angle = jnp.asarray(t)[..., None] * 10_000.0 ** (-2 * np.arange(dim // 2) / dim)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1) / math.sqrt(dim)


class Linear(eqx.Module):
    """An affine map; an ensemble of them has a further leading axis in both parameters."""

    weight: Float[Array, "*ensemble out in"]
    bias: Float[Array, "*ensemble out"]

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """x weight^T + bias, without an ensemble axis."""
        return x @ self.weight.T + self.bias


def _check_input(name: str, array: Array, size: int) -> None:
    """Costs nothing in a compiled program, where shapes are known beforehand."""
    if array.shape[-1:] != (size,):
        raise UsageError(f"{name} has shape {array.shape}, but the network was made for a last axis of size {size}")


def _layers(rng: np.random.Generator, sizes: tuple[int, ...], ensemble: int | None = None) -> tuple[Linear, ...]:
    all_devices()  # where there is none, with a sentence
    parameters = layer_parameters(rng, sizes, ensemble)
    return tuple(Linear(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in parameters)


def _rest(layers: tuple[Linear, ...], function: Function, hidden: Array) -> Array:
    """All layers after the first, given the output of the first."""
    for layer in layers[1:]:
        hidden = layer(function(hidden))
    return hidden


def _repeated(x: Array, leading: tuple[int, ...]) -> Array:
    """x [*batch features] for every entry of further leading axes, by a product with ones.

    The gradient then is a product too. It would be a sum over leading axes, for which XLA takes 20 times as long on a
    CPU.
    """
    return jnp.tensordot(jnp.ones(leading, x.dtype), x, 0)


def _reduced(values: Array, ensemble: Ensemble) -> Array:
    """One value [*batch] of those of an ensemble [ensemble *batch]."""
    if ensemble == "min":
        return _smallest(values)
    return values.mean(0) if ensemble == "mean" else values[0]


def _smallest(values: Array) -> Array:
    """min over the ensemble [ensemble *batch], NaN where one is; of equally small ones the first gets the gradient.

    The derivative of `jnp.min` compares values with their minimum for equality; XLA may compute the two in differently
    rounded ways within one compiled program, and then the gradient is lost (seen on CPU with an analytic critic).
    """
    chosen = jax.nn.one_hot(values.argmin(0), len(values), axis=0, dtype=bool)
    return jnp.where(chosen, values, 0).sum(0)


def _clip(x: Array, low: float = -1.0, high: float = 1.0) -> Array:
    """x limited to [low, high], with slope 1 on the bounds, as in torch; that of `jnp.clip` is 1/2 there."""
    return jnp.where((low <= x) & (x <= high), x, jax.lax.stop_gradient(jnp.clip(x, low, high)))


class Condition(NamedTuple):
    """What of a denoiser's first layer depends on the observation alone, and on the time alone."""

    obs_share: Array
    """[*batch hidden]"""
    time_share: Array
    """[T hidden], with the bias."""


class MLPDenoiser(eqx.Module):
    """A diffusion policy's actor, an MLP of concat(obs, noisy, time features); a `ConditionalDenoiser`.

    Time features: `time_embedding`, then Linear(2 time_dim), activation, Linear(time_dim), as in the official SDAC
    code. The concatenation is never formed: the first layer's shares of obs, noisy and time are added, so batch axes
    broadcast and the first and last share can be reused along a chain.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters.
        hidden_sizes: widths of the hidden layers.
        activation: a name known to `activation`.
        time_dim: number of time features, even.
        prediction: what it predicts, "eps", "velocity" or "action"; says how others read its output.

    Raises:
        UsageError: a size is not positive, time_dim is odd, or the activation is unknown.
    """

    time_layers: tuple[Linear, ...]
    layers: tuple[Linear, ...]
    obs_dim: int = eqx.field(static=True)
    action_dim: int = eqx.field(static=True)
    time_dim: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    prediction: Prediction = eqx.field(static=True)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        hidden_sizes: tuple[int, ...] = (256, 256, 256),
        activation: str = "mish",
        time_dim: int = 16,
        prediction: Prediction = "eps",
    ) -> None:
        check_arguments("MLPDenoiser", locals())
        rng = np.random.default_rng(key)
        self.time_layers = _layers(rng, (time_dim, 2 * time_dim, time_dim))
        self.layers = _layers(rng, (obs_dim + action_dim + time_dim, *hidden_sizes, action_dim))
        self.obs_dim, self.action_dim, self.time_dim = obs_dim, action_dim, time_dim
        self.activation, self.prediction = activation, prediction

    def condition(self, obs: Float[Array, "*batch obs"], num_steps: int) -> Condition:
        """The shares of obs and of all times t < num_steps; may stand for `obs` in `__call__`."""
        return Condition(self._obs_share(obs), self._time_share(jnp.arange(num_steps)))

    def __call__(
        self,
        obs: Float[Array, "*#batch obs"] | Condition,
        noisy: Float[Array, "*#batch act"],
        t: Int[Array, "*#batch"] | int,
    ) -> Float[Array, "*#batch act"]:
        """The prediction [*batch action_dim]; batch axes broadcast."""
        _check_input("noisy action", noisy, self.action_dim)
        if isinstance(obs, Condition):
            obs_share, time_share = obs.obs_share, obs.time_share[t]
        else:
            obs_share, time_share = self._obs_share(obs), self._time_share(t)
        obs_share = _repeated(obs_share, noisy.shape[: max(0, noisy.ndim - obs_share.ndim)])
        weight = self.layers[0].weight[:, self.obs_dim : self.obs_dim + self.action_dim]
        return _rest(self.layers, activation(self.activation), obs_share + noisy @ weight.T + time_share)

    def _obs_share(self, obs: Array) -> Array:
        _check_input("obs", obs, self.obs_dim)
        return obs @ self.layers[0].weight[:, : self.obs_dim].T

    def _time_share(self, t: Array | int) -> Array:
        first = self.layers[0]
        embedding = time_embedding(t, self.time_dim).astype(first.weight.dtype)
        features = _rest(self.time_layers, activation(self.activation), self.time_layers[0](embedding))
        return features @ first.weight[:, self.obs_dim + self.action_dim :].T + first.bias


class DeterministicActor(eqx.Module):
    """An action for an observation: a multilayer perceptron with a tanh, the actor of TD3 (arXiv 1802.09477).

    Args:
        obs_dim: number of observation entries.
        action_dim: number of action entries.
        key: determines the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers.
        activation: name for `activation`.

    Raises:
        UsageError: a size is not positive or the activation is unknown.
    """

    layers: tuple[Linear, ...]
    obs_dim: int = eqx.field(static=True)
    action_dim: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        hidden_sizes: tuple[int, ...] = (256, 256, 256),
        activation: str = "mish",
    ) -> None:
        check_arguments("DeterministicActor", locals())
        self.layers = _layers(np.random.default_rng(key), (obs_dim, *hidden_sizes, action_dim))
        self.obs_dim, self.action_dim, self.activation = obs_dim, action_dim, activation

    def __call__(self, obs: Float[Array, "*batch obs"]) -> Float[Array, "*batch act"]:
        """The action [*batch act] in [-1, 1] for obs [*batch obs]."""
        _check_input("obs", obs, self.obs_dim)
        return jnp.tanh(_rest(self.layers, activation(self.activation), self.layers[0](obs)))


class GaussianActor(eqx.Module):
    """Mean and logarithmic standard deviation of a Gaussian, for `TanhGaussianSampler`.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters.
        hidden_sizes: widths of the hidden layers.
        activation: a name known to `activation`.
        log_std_min: lower end to which log_std is clipped.
        log_std_max: upper end.

    Raises:
        UsageError: a size is not positive, the activation is unknown, or log_std_min >= log_std_max.
    """

    layers: tuple[Linear, ...]
    obs_dim: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    log_std_min: float = eqx.field(static=True)
    log_std_max: float = eqx.field(static=True)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        hidden_sizes: tuple[int, ...] = (256, 256, 256),
        activation: str = "mish",
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
    ) -> None:
        check_arguments("GaussianActor", locals())
        self.layers = _layers(np.random.default_rng(key), (obs_dim, *hidden_sizes, 2 * action_dim))
        self.obs_dim, self.activation = obs_dim, activation
        self.log_std_min, self.log_std_max = log_std_min, log_std_max

    def __call__(
        self, obs: Float[Array, "*batch obs"]
    ) -> tuple[Float[Array, "*batch act"], Float[Array, "*batch act"]]:
        """(mean, log_std), each [*batch action_dim]."""
        _check_input("obs", obs, self.obs_dim)
        output = _rest(self.layers, activation(self.activation), self.layers[0](obs))
        mean, log_std = jnp.split(output, 2, axis=-1)
        return mean, _clip(log_std, self.log_std_min, self.log_std_max)


def _ensemble_share(weight: Array, x: Array, num_axes: int) -> Array:
    """x [*batch in] times every member's weight [size out in]: [size *batch out], padded to num_axes batch axes."""
    size, width, length = weight.shape
    # One product serves all members. Its right side is kept as it is written here, because the gradient of the weight
    # then has its rows along x, for which XLA's product is several times faster than for few columns.
    columns = jax.lax.optimization_barrier(weight.reshape(size * width, length).T)
    share = (x.reshape(-1, length) @ columns).reshape(-1, size, width).swapaxes(0, 1)
    padding = (1,) * (num_axes - (x.ndim - 1))
    return share.reshape(size, *padding, *x.shape[:-1], width)


def _ensemble_outputs(layers: tuple[Linear, ...], function: Function, obs: Array, action: Array) -> Array:
    """Outputs [size *batch out] on concat(obs, action), which is never formed, so that batch axes broadcast."""
    first, obs_dim = layers[0], obs.shape[-1]
    num_axes = max(obs.ndim, action.ndim) - 1
    hidden = _ensemble_share(first.weight[..., :obs_dim], obs, num_axes)
    hidden = hidden + _ensemble_share(first.weight[..., obs_dim:], action, num_axes)
    batch = hidden.shape[1:-1]
    # One leading row axis, so that each layer is one batched matrix product.
    hidden = hidden.reshape(len(hidden), -1, hidden.shape[-1]) + first.bias[:, None]
    for layer in layers[1:]:
        hidden = jnp.einsum("eri,eoi->ero", function(hidden), layer.weight) + layer.bias[:, None]
    return hidden.reshape(len(hidden), *batch, hidden.shape[-1])


class EnsembleCritic(eqx.Module):
    """Independent state-action values, with stacked parameters, so that each layer is one batched product.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters.
        size: number of members.
        hidden_sizes: widths of the hidden layers.
        activation: a name known to `activation`.

    Raises:
        UsageError: a size is not positive or the activation is unknown.
    """

    layers: tuple[Linear, ...]
    obs_dim: int = eqx.field(static=True)
    action_dim: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        size: int = 2,
        hidden_sizes: tuple[int, ...] = (256, 256, 256),
        activation: str = "mish",
    ) -> None:
        check_arguments("EnsembleCritic", locals())
        self.layers = _layers(np.random.default_rng(key), (obs_dim + action_dim, *hidden_sizes, 1), size)
        self.obs_dim, self.action_dim, self.size, self.activation = obs_dim, action_dim, size, activation

    def __call__(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> Float[Array, "size *#batch"]:
        """Values [size *batch]."""
        _check_input("obs", obs, self.obs_dim)
        _check_input("action", action, self.action_dim)
        return _ensemble_outputs(self.layers, activation(self.activation), obs, action)[..., 0]


def TwinCritic(
    obs_dim: int,
    action_dim: int,
    *,
    key: int,
    hidden_sizes: tuple[int, ...] = (256, 256, 256),
    activation: str = "mish",
) -> EnsembleCritic:
    """An `EnsembleCritic` of two (clipped double Q-learning, Fujimoto et al. 2018, arXiv 1802.09477)."""
    return EnsembleCritic(obs_dim, action_dim, key=key, size=2, hidden_sizes=hidden_sizes, activation=activation)


class GaussianCritic(eqx.Module):
    """An ensemble of Gaussians of the return (DSAC-T, arXiv 2310.05858); a `DistributionalCritic`.

    Outputs are the mean and a raw number whose softplus is the standard deviation. Arguments and errors as
    `EnsembleCritic`.
    """

    layers: tuple[Linear, ...]
    obs_dim: int = eqx.field(static=True)
    action_dim: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        size: int = 2,
        hidden_sizes: tuple[int, ...] = (256, 256, 256),
        activation: str = "mish",
    ) -> None:
        check_arguments("EnsembleCritic", locals())
        self.layers = _layers(np.random.default_rng(key), (obs_dim + action_dim, *hidden_sizes, 2), size)
        self.obs_dim, self.action_dim, self.size, self.activation = obs_dim, action_dim, size, activation

    def __call__(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> Float[Array, "size *#batch"]:
        """Means [size *batch]."""
        return self.distribution(obs, action)[0]

    def distribution(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> tuple[Float[Array, "size *#batch"], Float[Array, "size *#batch"]]:
        """Mean and standard deviation, each [size *batch]."""
        _check_input("obs", obs, self.obs_dim)
        _check_input("action", action, self.action_dim)
        outputs = _ensemble_outputs(self.layers, activation(self.activation), obs, action)
        return outputs[..., 0], jax.nn.softplus(outputs[..., 1])
