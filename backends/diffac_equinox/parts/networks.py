"""Actors and critics. Parameters are drawn on the host, so one key gives the same network in every backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffac.errors import UsageError, check_count
from diffac.parts import networks as declared
from diffac.parts.critics import check_pair
from diffac.parts.declaration import TargetEnsemble
from diffac.parts.initialisers import Initialiser
from diffac.parts.inputs import check_width
from diffac.protocols import HistogramCritic
from diffac_equinox.devices import all_devices
from diffac_equinox.kernels.products import ensemble_outputs, repeated
from diffac_equinox.parts.activations import Function, activation


def time_embedding(t: Int[Array, "*batch"] | Float[Array, "*batch"] | int, dim: int = 16) -> Float[Array, "*batch dim"]:
    """Sinusoidal embedding concat[sin(t f), cos(t f)] / sqrt(dim), f_j = 10000^(-j/(dim/2)) for j < dim/2.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5; the factor 1/sqrt(dim) is that of the official SDAC networks.

    Args:
        t: integers or floats of any shape.
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
        """x weight^T + bias; for an ensemble x is [size rows in]."""
        if self.weight.ndim == 3:
            return jnp.einsum("eri,eoi->ero", x, self.weight) + self.bias[:, None]
        return x @ self.weight.T + self.bias


class Norm(eqx.Module):
    """LayerNorm; an ensemble of them has a further leading axis in both parameters."""

    weight: Float[Array, "*ensemble features"]
    bias: Float[Array, "*ensemble features"]

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """x with mean 0 and variance 1 in each row, times weight, plus bias; for an ensemble x is [size rows in]."""
        weight, bias = (p if p.ndim == 1 else p[:, None] for p in (self.weight, self.bias))
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


class Block(eqx.Module):
    """x + Linear(ReLU(Linear(LayerNorm(x))))."""

    norm: Norm
    up: Linear
    down: Linear

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """The sum."""
        return x + self.down(jax.nn.relu(self.up(self.norm(x))))


def _layers(
    initialiser: Initialiser, sizes: tuple[int, ...], ensemble: int | None = None, last_scale: float = 1.0
) -> tuple[Linear, ...]:
    all_devices()  # where there is none, with a sentence
    parameters = initialiser.layers(sizes, ensemble, last_scale)
    return tuple(Linear(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in parameters)


def _body(
    network: declared.Network, initialiser: Initialiser, inputs: int, outputs: int, ensemble: int | None = None
) -> tuple[Any, ...]:
    """The layers of a network, from its input to its output."""
    widths = tuple(network.hidden_sizes)
    if network.body == "mlp":
        return _layers(initialiser, (inputs, *widths, outputs), ensemble, network.last_scale)
    all_devices()
    drawn = initialiser.simba(inputs, widths, outputs, ensemble, network.last_scale)
    parameters = [{n: jnp.asarray(x) for n, x in layer.items()} for layer in drawn]
    first, *blocks, norm, last = parameters

    def part(arrays: dict[str, Array], kind: type, prefix: str) -> Any:
        return kind(arrays[f"{prefix}.weight"], arrays[f"{prefix}.bias"])

    made = (Block(part(b, Norm, "norm"), part(b, Linear, "up"), part(b, Linear, "down")) for b in blocks)
    return (Linear(**first), *made, Norm(**norm), Linear(**last))


def _between(network: declared.Network) -> Function:
    """What stands between the layers; a SimBa's blocks have it inside."""
    return activation(network.activation) if network.body == "mlp" else lambda hidden: hidden


def _rest(layers: tuple[Any, ...], function: Function, hidden: Array) -> Array:
    """All layers after the first, given the output of the first."""
    for layer in layers[1:]:
        hidden = layer(function(hidden))
    return hidden


def _reduced(values: Array, ensemble: TargetEnsemble, pair: Array | None = None) -> Array:
    """One value [*batch] of those of an ensemble [ensemble *batch]; pair: the noise of `pair_spec`."""
    return values.mean(0) if ensemble == "mean" else _smallest(_counted(values, ensemble, pair))


def _counted(values: Array, ensemble: TargetEnsemble, pair: Array | None = None) -> Array:
    """What is given of an ensemble [ensemble ...], of the members of which the smallest is taken."""
    match ensemble:
        case "first":
            return values[:1]
        case "random_pair":
            return values[_pair(pair, len(values))]
        case _:
            return values


def _pair(noise: Any, size: int) -> Array:
    """Two different members [2] of an ensemble, as `pair_spec` says."""
    check_pair(size)
    first = jnp.minimum(jnp.floor(noise[0] * size), size - 1)  # float32 may round a product up to n
    second = jnp.minimum(jnp.floor(noise[1] * (size - 1)), size - 2)
    return jnp.stack([first, jnp.where(second < first, second, second + 1)]).astype(int)


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


class _OfNoisy:
    """Networks of (obs, noisy action, integer time)."""

    time_layers: Any
    layers: Any
    obs_dim: int
    action_dim: int
    time_dim: int
    activation: Any

    def build(self, initialiser: Initialiser) -> None:
        self.time_layers = _layers(initialiser, (self.time_dim, 2 * self.time_dim, self.time_dim))
        inputs = self.obs_dim + self.action_dim + self.time_dim
        network: Any = self
        self.layers = _body(network, initialiser, inputs, self.action_dim)

    def condition(self, obs: Float[Array, "*batch obs"], num_steps: int) -> Condition:
        """The shares of obs and of all times t < num_steps; may stand for `obs` in `__call__`."""
        return Condition(self._obs_share(obs), self._time_share(jnp.arange(num_steps)))

    def __call__(
        self,
        obs: Float[Array, "*#batch obs"] | Condition,
        noisy: Float[Array, "*#batch act"],
        t: Int[Array, "*#batch"] | int,
    ) -> Float[Array, "*#batch act"]:
        """The output [*batch action_dim]; batch axes broadcast."""
        check_width("noisy action", noisy, self.action_dim)
        if isinstance(obs, Condition):
            obs_share, time_share = obs.obs_share, obs.time_share[t]
        else:
            obs_share, time_share = self._obs_share(obs), self._time_share(t)
        obs_share = repeated(obs_share, noisy.shape[: max(0, noisy.ndim - obs_share.ndim)])
        weight = self.layers[0].weight[:, self.obs_dim : self.obs_dim + self.action_dim]
        network: Any = self
        return _rest(self.layers, _between(network), obs_share + noisy @ weight.T + time_share)

    def _obs_share(self, obs: Array) -> Array:
        check_width("obs", obs, self.obs_dim)
        return obs @ self.layers[0].weight[:, : self.obs_dim].T

    def _time_share(self, t: Array | int) -> Array:
        first = self.layers[0]
        embedding = time_embedding(t, self.time_dim).astype(first.weight.dtype)
        features = _rest(self.time_layers, activation(self.activation), self.time_layers[0](embedding))
        return features @ first.weight[:, self.obs_dim + self.action_dim :].T + first.bias


class MLPDenoiser(_OfNoisy, declared.MLPDenoiser, eqx.Module):
    time_layers: tuple[Linear, ...] = eqx.field(kw_only=True)
    layers: tuple[Any, ...] = eqx.field(kw_only=True)


class LangevinActor(_OfNoisy, declared.LangevinActor, eqx.Module):
    raw_delta: Float[Array, ""] = eqx.field(kw_only=True)
    raw_precision: Float[Array, " act"] = eqx.field(kw_only=True)
    time_layers: tuple[Linear, ...] = eqx.field(kw_only=True)
    layers: tuple[Any, ...] = eqx.field(kw_only=True)

    def build(self, initialiser: Initialiser) -> None:
        super().build(initialiser)
        self.raw_delta, self.raw_precision = map(jnp.asarray, self.initial_raw)

    def step_size(self) -> Float[Array, " act"]:
        """delta / precision, [act]."""
        return jax.nn.softplus(self.raw_delta) / jax.nn.softplus(self.raw_precision)


RealTime: TypeAlias = Float[Array, "*#batch"] | float


class MeanFlowActor(declared.MeanFlowActor, eqx.Module):
    time_layers: tuple[Linear, ...] = eqx.field(kw_only=True)
    layers: tuple[Any, ...] = eqx.field(kw_only=True)

    def build(self, initialiser: Initialiser) -> None:
        self.time_layers = _layers(initialiser, (2 * self.time_dim, 2 * self.time_dim, self.time_dim))
        inputs = self.obs_dim + self.action_dim + self.time_dim
        self.layers = _body(self, initialiser, inputs, self.action_dim)

    def __call__(
        self, obs: Float[Array, "*#batch obs"], noisy: Float[Array, "*#batch act"], t: RealTime, r: RealTime
    ) -> Float[Array, "*#batch act"]:
        """The mean velocity [*batch action_dim] from t down to r; batch axes broadcast."""
        check_width("obs", obs, self.obs_dim)
        check_width("noisy action", noisy, self.action_dim)
        first = self.layers[0]
        t, r = jnp.broadcast_arrays(jnp.asarray(t), jnp.asarray(r))
        waves = time_embedding(jnp.stack([t, t - r], axis=-1), self.time_dim).reshape(*t.shape, -1)
        hidden = self.time_layers[0](waves.astype(first.weight.dtype))
        features = _rest(self.time_layers, activation(self.activation), hidden)
        of_obs, of_noisy, of_time = jnp.split(first.weight, (self.obs_dim, self.obs_dim + self.action_dim), axis=1)
        hidden = obs @ of_obs.T + noisy @ of_noisy.T + features @ of_time.T + first.bias
        return _rest(self.layers, _between(self), hidden)


class DeterministicActor(declared.DeterministicActor, eqx.Module):
    layers: tuple[Any, ...] = eqx.field(kw_only=True)

    def build(self, initialiser: Initialiser) -> None:
        self.layers = _body(self, initialiser, self.obs_dim, self.action_dim)

    def __call__(self, obs: Float[Array, "*batch obs"]) -> Float[Array, "*batch act"]:
        """The action [*batch act] in [-1, 1] for obs [*batch obs]."""
        check_width("obs", obs, self.obs_dim)
        return jnp.tanh(_rest(self.layers, _between(self), self.layers[0](obs)))


class GaussianActor(declared.GaussianActor, eqx.Module):
    layers: tuple[Any, ...] = eqx.field(kw_only=True)

    def build(self, initialiser: Initialiser) -> None:
        self.layers = _body(self, initialiser, self.obs_dim, 2 * self.action_dim)

    def __call__(
        self, obs: Float[Array, "*batch obs"]
    ) -> tuple[Float[Array, "*batch act"], Float[Array, "*batch act"]]:
        """(mean, log_std), each [*batch action_dim]."""
        check_width("obs", obs, self.obs_dim)
        output = _rest(self.layers, _between(self), self.layers[0](obs))
        mean, log_std = jnp.split(output, 2, axis=-1)
        return mean, _clip(log_std, self.log_std_min, self.log_std_max)


class _Values:
    """What the classes of critics share, which cannot inherit from one another."""

    outputs = 1
    layers: Any
    obs_dim: int
    action_dim: int
    size: int
    hidden_sizes: tuple[int, ...]
    activation: str

    def build(self, initialiser: Initialiser) -> None:
        network: Any = self
        self.layers = _body(network, initialiser, self.obs_dim + self.action_dim, self.outputs, self.size)

    def __call__(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> Float[Array, "size *#batch"]:
        """Values [size *batch]."""
        return self._outputs(obs, action)[..., 0]

    def _outputs(self, obs: Array, action: Array) -> Array:
        """[size *batch outputs]"""
        check_width("obs", obs, self.obs_dim)
        check_width("action", action, self.action_dim)
        network: Any = self
        return ensemble_outputs(self.layers, _between(network), obs, action)


class TwinCritic(_Values, declared.TwinCritic, eqx.Module):
    layers: tuple[Any, ...] = eqx.field(kw_only=True)


class EnsembleCritic(_Values, declared.EnsembleCritic, eqx.Module):
    layers: tuple[Any, ...] = eqx.field(kw_only=True)


class GaussianCritic(_Values, declared.GaussianCritic, eqx.Module):
    layers: tuple[Any, ...] = eqx.field(kw_only=True)
    outputs = 2

    def distribution(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> tuple[Float[Array, "size *#batch"], Float[Array, "size *#batch"]]:
        """Mean and standard deviation, each [size *batch]."""
        outputs = self._outputs(obs, action)
        return outputs[..., 0], jax.nn.softplus(outputs[..., 1])


class CategoricalCritic(_Values, declared.CategoricalCritic, eqx.Module):
    layers: tuple[Any, ...] = eqx.field(kw_only=True)

    @property
    def outputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the last layer."""
        return self.num_atoms

    def __call__(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> Float[Array, "size *#batch"]:
        """Means [size *batch]."""
        probabilities = jax.nn.softmax(self._outputs(obs, action))
        return probabilities @ _atoms(self, probabilities)

    def logits(
        self, obs: Float[Array, "*#batch obs"], action: Float[Array, "*#batch act"]
    ) -> Float[Array, "size *#batch atoms"]:
        """Unnormalised log-probabilities [size *batch atoms]."""
        return self._outputs(obs, action)


def _atoms(critic: HistogramCritic, logits: Array) -> Array:
    """The returns [atoms] of which a critic has given logits [... atoms]."""
    return jnp.linspace(critic.v_min, critic.v_max, logits.shape[-1], dtype=logits.dtype)
