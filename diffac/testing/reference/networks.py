"""Networks, bound to their parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from diffac.testing.reference.gradients import (
    Array,
    Gradient,
    Parameters,
    Pull,
    add,
    clip,
    concatenate,
    sigmoid,
    softmax,
    zeros,
)


def activation(name: str, x: Array) -> tuple[Array, Array]:
    """The textbook forms and their slopes; Mish is x tanh(softplus(x)) (Misra 2019, arXiv 1908.08681)."""
    match name:
        case "mish":
            gate = np.tanh(np.logaddexp(0, x))
            return x * gate, gate + x * (1 - gate**2) * sigmoid(x)
        case "gelu":  # x times the normal distribution function
            law = np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2)) / 2
            return x * law, law + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        case "relu":
            return np.maximum(x, 0), (x > 0).astype(np.float64)
        case "silu":
            s = sigmoid(x)
            return x * s, s + x * s * (1 - s)
        case "tanh":
            return np.tanh(x), 1 - np.tanh(x) ** 2
        case _:
            raise ValueError(name)


def perceptron(
    parameters: Parameters, x: Array, act: str = "mish", prefix: str = "layers", member: int | None = None
) -> tuple[Array, Pull]:
    """W_n act(... act(W_0 x + b_0) ...) + b_n, with the parameters of one member where they are stacked.

    pull(dy) -> (gradient, dx) is backpropagation (Rumelhart et al. 1986).
    """
    depth = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in parameters)
    which: Any = ... if member is None else member
    weights = [parameters[f"{prefix}.{i}.weight"][which] for i in range(depth)]
    inputs, slopes = [], []
    for i in range(depth):
        inputs.append(x)
        x = x @ weights[i].T + parameters[f"{prefix}.{i}.bias"][which]
        if i < depth - 1:
            x, slope = activation(act, x)
            slopes.append(slope)

    def pull(dy: Array) -> tuple[Gradient, Array]:
        gradient = zeros(parameters)
        for i in reversed(range(depth)):
            if i < depth - 1:
                dy = dy * slopes[i]
            rows, columns = (a.reshape(-1, a.shape[-1]) for a in (dy, inputs[i]))
            gradient[f"{prefix}.{i}.weight"][which] = rows.T @ columns
            gradient[f"{prefix}.{i}.bias"][which] = rows.sum(0)
            dy = dy @ weights[i]
        return gradient, dy

    return x, pull


def perceptron_derivative(
    parameters: Parameters, x: Array, dx: Array, act: str = "mish", prefix: str = "layers"
) -> Array:
    """The derivative of a `perceptron` without members along dx: each layer's, one after the other."""
    depth = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in parameters)
    for i in range(depth):
        weight = parameters[f"{prefix}.{i}.weight"]
        x, dx = x @ weight.T + parameters[f"{prefix}.{i}.bias"], dx @ weight.T
        if i < depth - 1:
            x, slope = activation(act, x)
            dx = slope * dx
    return dx


def layer_norm(x: Array, weight: Array, bias: Array) -> tuple[Array, Pull]:
    """(x - mean) / sqrt(variance + 1e-6), times weight, plus bias, over the last axis (Ba et al. 2016, 1607.06450).

    pull(dy) -> (dx, dweight, dbias). x moves mean and variance too, so dx has no share along 1 and little along y.
    """
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    y = centred / std

    def pull(d: Array) -> tuple[Array, Array, Array]:
        dy, rows = d * weight, tuple(range(x.ndim - 1))
        dx = (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)) / std
        return dx, (d * y).sum(rows), d.sum(rows)

    return y * weight + bias, pull


def simba(parameters: Parameters, x: Array, member: int | None = None) -> tuple[Array, Pull]:
    """Linear; x + Linear(relu(Linear(LayerNorm(x)))) again and again; LayerNorm; Linear (arXiv 2410.09754).

    pull(dy) -> (gradient, dx), as that of `perceptron`.
    """
    which: Any = ... if member is None else member
    blocks = sum(name.startswith("layers.") and name.endswith(".up.weight") for name in parameters)
    pulls: list[tuple[str, str, Pull]] = []

    def apply(kind: str, name: str, x: Array) -> Array:
        weight, bias = (parameters[f"{name}.{end}"][which] for end in ("weight", "bias"))
        if kind == "norm":
            y, pull = layer_norm(x, weight, bias)
        else:
            y = x @ weight.T + bias

            def pull(d: Array) -> tuple[Array, Array, Array]:
                rows, columns = (a.reshape(-1, a.shape[-1]) for a in (d, x))
                return d @ weight, rows.T @ columns, rows.sum(0)

        pulls.append((kind, name, pull))
        return y

    x = apply("linear", "layers.0", x)
    slopes = []
    for i in range(1, blocks + 1):
        inner = apply("linear", f"layers.{i}.up", apply("norm", f"layers.{i}.norm", x))
        inner, slope = activation("relu", inner)
        slopes.append(slope)
        x = x + apply("linear", f"layers.{i}.down", inner)
    x = apply("norm", f"layers.{blocks + 1}", x)
    x = apply("linear", f"layers.{blocks + 2}", x)

    def pull(dy: Array) -> tuple[Gradient, Array]:
        gradient, left = zeros(parameters), list(pulls)

        def back(d: Array) -> Array:
            _, name, pull_one = left.pop()
            d, gradient[f"{name}.weight"][which], gradient[f"{name}.bias"][which] = pull_one(d)
            return d

        d = back(back(dy))
        for slope in reversed(slopes):
            d = d + back(back(back(d) * slope))
        return gradient, back(d)

    return x, pull


def simba_derivative(parameters: Parameters, x: Array, dx: Array) -> Array:
    """The derivative of a `simba` without members along dx, as `perceptron_derivative`."""
    blocks = sum(name.startswith("layers.") and name.endswith(".up.weight") for name in parameters)

    def linear(name: str, x: Array, dx: Array) -> tuple[Array, Array]:
        weight = parameters[f"layers.{name}.weight"]
        return x @ weight.T + parameters[f"layers.{name}.bias"], dx @ weight.T

    def norm(name: str, x: Array, dx: Array) -> tuple[Array, Array]:
        weight, bias = (parameters[f"layers.{name}.{end}"] for end in ("weight", "bias"))
        centred, dcentred = (a - a.mean(-1, keepdims=True) for a in (x, dx))
        variance = (centred**2).mean(-1, keepdims=True) + 1e-6
        dvariance = 2 * (centred * dcentred).mean(-1, keepdims=True)
        dy = dcentred / np.sqrt(variance) - centred * dvariance / (2 * variance**1.5)
        return weight * centred / np.sqrt(variance) + bias, weight * dy

    x, dx = linear("0", x, dx)
    for i in range(1, blocks + 1):
        inner, dinner = linear(f"{i}.up", *norm(f"{i}.norm", x, dx))
        inner, slope = activation("relu", inner)
        y, dy = linear(f"{i}.down", inner, slope * dinner)
        x, dx = x + y, dx + dy
    return linear(f"{blocks + 2}", *norm(f"{blocks + 1}", x, dx))[1]


def body_derivative(parameters: Parameters, x: Array, dx: Array, act: str) -> Array:
    """Of a `body` without members along dx."""
    if "layers.1.up.weight" in parameters:
        return simba_derivative(parameters, x, dx)
    return perceptron_derivative(parameters, x, dx, act)


def body(parameters: Parameters, x: Array, act: str, member: int | None = None) -> tuple[Array, Pull]:
    """A SimBa if the parameters are one's, else a perceptron."""
    if "layers.1.up.weight" in parameters:
        return simba(parameters, x, member)
    return perceptron(parameters, x, act, member=member)


def time_embedding(t: Any, dim: int = 16) -> Array:
    """Sines, then cosines, of t times a geometric series of frequencies (Vaswani et al. 2017), over sqrt(dim)."""
    t = np.asarray(t, np.float64)
    waves = [wave(t / 10_000 ** (2 * j / dim)) for wave in (np.sin, np.cos) for j in range(dim // 2)]
    return np.stack(waves, axis=-1) / math.sqrt(dim)


def wave_slopes(embedding: Array) -> Array:
    """The derivative of a `time_embedding` in its time, from its value: frequencies times (cosines, -sines)."""
    sines, cosines = np.split(embedding, 2, axis=-1)
    half = sines.shape[-1]
    frequencies = 10_000 ** (-np.arange(half) / half)
    return np.concatenate([frequencies * cosines, -frequencies * sines], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class MLPDenoiser:
    """An MLP of (obs, noisy action, features of the embedded time), as in DACER and SDAC."""

    parameters: Parameters
    activation: str = "mish"
    prediction: str = "eps"

    def __call__(self, obs: Array, noisy: Array, t: Any) -> tuple[Array, Pull]:
        """What it predicts [*batch act]; pull(doutput) -> (gradient, dnoisy)."""
        dim = self.parameters["time_layers.0.weight"].shape[1]
        time, pull_time = perceptron(self.parameters, time_embedding(t, dim), self.activation, "time_layers")
        x, split = concatenate(obs, noisy, time)
        output, pull_layers = body(self.parameters, x, self.activation)

        def pull(doutput: Array) -> tuple[Gradient, Array]:
            gradient, dx = pull_layers(doutput)
            _, dnoisy, dtime = split(dx)
            return add(gradient, pull_time(dtime)[0]), dnoisy

        return output, pull


@dataclasses.dataclass(frozen=True, eq=False)
class LangevinActor:
    """The network of an MLPDenoiser as a drift, and two parameters besides, of the step size."""

    parameters: Parameters
    activation: str = "mish"
    prediction: str = "drift"

    def __call__(self, obs: Array, noisy: Array, t: Any) -> tuple[Array, Pull]:
        """The drift [*batch act]; pull(doutput) -> (gradient, dnoisy)."""
        return MLPDenoiser(self.parameters, self.activation)(obs, noisy, t)

    def step_size(self) -> tuple[Array, Pull]:
        """softplus(raw_delta) / softplus(raw_precision), [act]; pull(dstep) -> gradient."""
        raw = self.parameters["raw_delta"], self.parameters["raw_precision"]
        delta, precision = (np.logaddexp(0, array) for array in raw)

        def pull(dstep: Array) -> Gradient:
            gradient = zeros(self.parameters)
            gradient["raw_delta"] = np.asarray((dstep / precision).sum() * sigmoid(raw[0]))
            gradient["raw_precision"] = -dstep * delta / precision**2 * sigmoid(raw[1])
            return gradient

        return delta / precision, pull


@dataclasses.dataclass(frozen=True, eq=False)
class MeanFlowActor:
    """An MLP of (obs, noisy action, features of t and t - r), t and r the times of a mean velocity."""

    parameters: Parameters
    activation: str = "mish"

    def waves(self, t: Any, r: Any) -> Array:
        """The embeddings of both, side by side."""
        dim = self.parameters["time_layers.0.weight"].shape[1] // 2
        times = np.broadcast_arrays(np.asarray(t), np.asarray(t) - np.asarray(r))
        return np.concatenate([time_embedding(time, dim) for time in times], axis=-1)

    def __call__(self, obs: Array, noisy: Array, t: Any, r: Any) -> tuple[Array, Pull]:
        """The mean velocity [*batch act]; pull(doutput) -> (gradient, dnoisy)."""
        time, pull_time = perceptron(self.parameters, self.waves(t, r), self.activation, "time_layers")
        x, split = concatenate(obs, noisy, time)
        output, pull_layers = body(self.parameters, x, self.activation)

        def pull(doutput: Array) -> tuple[Gradient, Array]:
            gradient, dx = pull_layers(doutput)
            _, dnoisy, dtime = split(dx)
            return add(gradient, pull_time(dtime)[0]), dnoisy

        return output, pull

    def derivative(self, obs: Array, noisy: Array, t: Array, r: Array, dnoisy: Array, dt: Array) -> Array:
        """Of the mean velocity along (dnoisy, dt), at fixed r: the chain rule forwards. A wave's slope is another one.

        Batch axes broadcast; dt has those of the times.
        """
        waves = self.waves(t, r)
        of_t, of_difference = np.split(waves, 2, axis=-1)
        slopes = np.concatenate([wave_slopes(of_t), wave_slopes(of_difference)], axis=-1)
        arguments = (self.activation, "time_layers")
        dtime = perceptron_derivative(self.parameters, waves, slopes * dt[..., None], *arguments)
        time, _ = perceptron(self.parameters, waves, *arguments)
        dx = concatenate(np.zeros(obs.shape), dnoisy, dtime)[0]
        return body_derivative(self.parameters, concatenate(obs, noisy, time)[0], dx, self.activation)


@dataclasses.dataclass(frozen=True, eq=False)
class DeterministicActor:
    """The hyperbolic tangent of an MLP, the actor of TD3."""

    parameters: Parameters
    activation: str = "mish"

    def __call__(self, obs: Array) -> tuple[Array, Pull]:
        """The action [*batch act]; pull(daction) -> gradient."""
        outputs, pull_outputs = body(self.parameters, obs, self.activation)
        action = np.tanh(outputs)
        return action, lambda daction: pull_outputs(daction / np.cosh(outputs) ** 2)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianActor:
    """Mean and clipped logarithm of the standard deviation, the actor of SAC."""

    parameters: Parameters
    activation: str = "mish"
    log_std_min: float = -20.0
    log_std_max: float = 2.0

    def __call__(self, obs: Array) -> tuple[tuple[Array, Array], Pull]:
        """(mean, log_std), each [*batch act]; pull(dmean, dlog_std) -> gradient."""
        outputs, pull_outputs = body(self.parameters, obs, self.activation)
        mean, raw = np.split(outputs, 2, axis=-1)
        log_std, slope = clip(raw, self.log_std_min, self.log_std_max)

        def pull(dmean: Array, dlog_std: Array) -> Gradient:
            return pull_outputs(np.concatenate([dmean, dlog_std * slope], axis=-1))[0]

        return (mean, log_std), pull


def ensemble(parameters: Parameters, obs: Array, action: Array, act: str) -> tuple[Array, Pull]:
    """Outputs of all critics, [ensemble *batch outputs]; pull(doutputs) -> (gradient, daction)."""
    x, split = concatenate(obs, action)
    members = [body(parameters, x, act, i) for i in range(len(parameters["layers.0.weight"]))]

    def pull(doutputs: Array) -> tuple[Gradient, Array]:
        gradients, dx = zip(*(pull_one(d) for (_, pull_one), d in zip(members, doutputs, strict=True)), strict=True)
        return add(*gradients), split(sum(dx))[1]

    return np.stack([y for y, _ in members]), pull


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleCritic:
    """Several state-action values (two: TD3)."""

    parameters: Parameters
    activation: str = "mish"

    def __call__(self, obs: Array, action: Array) -> tuple[Array, Pull]:
        """Values [ensemble *batch]; pull(dvalues) -> (gradient, daction)."""
        outputs, pull_outputs = ensemble(self.parameters, obs, action, self.activation)
        return outputs[..., 0], lambda dvalues: pull_outputs(dvalues[..., None])


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianCritic:
    """Several Gaussian laws of the return (DSAC-T); as a plain critic, their means."""

    parameters: Parameters
    activation: str = "mish"

    def __call__(self, obs: Array, action: Array) -> tuple[Array, Pull]:
        """Means [ensemble *batch]; pull(dmean) -> (gradient, daction)."""
        (mean, _), pull = self.distribution(obs, action)
        return mean, lambda dmean: pull(dmean, np.zeros(dmean.shape))

    def distribution(self, obs: Array, action: Array) -> tuple[tuple[Array, Array], Pull]:
        """Mean, and standard deviation log(1 + exp(output)); pull(dmean, dstd) -> (gradient, daction)."""
        outputs, pull_outputs = ensemble(self.parameters, obs, action, self.activation)
        mean, raw = outputs[..., 0], outputs[..., 1]

        def pull(dmean: Array, dstd: Array) -> tuple[Gradient, Array]:
            return pull_outputs(np.stack([dmean, dstd * sigmoid(raw)], axis=-1))

        return (mean, np.logaddexp(0, raw)), pull


@dataclasses.dataclass(frozen=True, eq=False)
class CategoricalCritic:
    """Several distributions of the return on fixed atoms (C51); as a plain critic, their means."""

    parameters: Parameters
    activation: str = "mish"
    v_min: float = -400.0
    v_max: float = 400.0

    def atoms(self) -> Array:
        """Returns, equally spaced, as many as the last layer has outputs."""
        last = max(int(name.split(".")[1]) for name in self.parameters)
        count = self.parameters[f"layers.{last}.bias"].shape[-1]
        return self.v_min + (self.v_max - self.v_min) * np.arange(count) / (count - 1)

    def logits(self, obs: Array, action: Array) -> tuple[Array, Pull]:
        """Logits [ensemble *batch atoms]; pull(dlogits) -> (gradient, daction)."""
        return ensemble(self.parameters, obs, action, self.activation)

    def __call__(self, obs: Array, action: Array) -> tuple[Array, Pull]:
        """Means [ensemble *batch]; pull(dmean) -> (gradient, daction). d mean / d logit_k = p_k (z_k - mean)."""
        logits, pull_logits = self.logits(obs, action)
        atoms, law = self.atoms(), np.moveaxis(softmax(np.moveaxis(logits, -1, 0)), 0, -1)
        mean = law @ atoms

        def pull(dmean: Array) -> tuple[Gradient, Array]:
            return pull_logits(dmean[..., None] * law * (atoms - mean[..., None]))

        return mean, pull


def bound(network: Any, parameters: Parameters) -> Any:
    """The network with other parameters."""
    return dataclasses.replace(network, parameters=parameters)
