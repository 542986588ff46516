"""Actors and critics. Their parameters are drawn on the host, so one key gives the same network in every backend."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

import numpy as np

from diffac.errors import UsageError, check_count
from diffac.parts.arguments import Argument, count
from diffac.parts.declaration import STATIC, Count, Part, Real, Whole, declared
from diffac.parts.initialisers import Initialiser, Law
from diffac.protocols import Activation, Array, Prediction

__all__ = [
    "CategoricalCritic",
    "DeterministicActor",
    "EnsembleCritic",
    "GaussianActor",
    "GaussianCritic",
    "LangevinActor",
    "MLPDenoiser",
    "MeanFlowActor",
    "TwinCritic",
]


def _check_sizes(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list):
        raise UsageError(f"{name} must be widths of layers, such as (256, 256), got {value!r}")
    for i, size in enumerate(value):
        check_count(f"{name}[{i}]", size)


def _check_even(time_dim: int) -> None:
    if time_dim % 2:
        raise UsageError(f"time_dim must be even (half sines, half cosines), got {time_dim!r}")


Body = Literal["mlp", "simba"]
"""What is between input and output: a multilayer perceptron, or the residual blocks of SimBa (arXiv 2410.09754).

A SimBa of widths (w, ..., w) is a linear layer of width w, a block x + Linear(ReLU(Linear_4w(LayerNorm(x)))) for each
width, LayerNorm (with 1e-6 beside the variance), and a linear output. Its blocks begin He-normal, its first and last
layer orthogonal, biases at 0.
"""
_WRONG_SIZES = ((8, 0), (8, -1), (2.5,), (None,), 256, "256", None)
Widths = Annotated[Sequence[int], Argument(_check_sizes, wrong=_WRONG_SIZES, convert=tuple)]
"""Of hidden layers."""

Declaration = TypeVar("Declaration", bound=type["Network"])


@dataclass_transform(eq_default=False)
def network(cls: Declaration) -> Declaration:
    """Declares a network: when one is made, its arguments are checked, and its parameters drawn from the key."""
    cls = declared(check=False)(cls)
    keep: Any = cls.__init__

    @functools.wraps(keep)
    def init(self: Any, *sizes: Any, **options: Any) -> None:
        keep(self, *sizes, **options)
        self.check(key=options["key"])
        self.build(Initialiser(options["key"], self.initialiser))

    cls.__init__ = init
    return cls


@network
class Network(Part):
    """What all networks share. Their arguments describe them; the key is not kept.

    A backend's class adds `build`, which draws the initial parameters.
    """

    obs_dim: Count = dataclasses.field(metadata=STATIC)
    action_dim: Count = dataclasses.field(metadata=STATIC)
    key: dataclasses.InitVar[Whole] = dataclasses.field(kw_only=True)
    hidden_sizes: Widths = dataclasses.field(default=(256, 256, 256), kw_only=True, metadata=STATIC)
    activation: Activation = dataclasses.field(default="mish", kw_only=True, metadata=STATIC)
    initialiser: Law = dataclasses.field(default="truncated_normal", kw_only=True, metadata=STATIC)
    body: Body = dataclasses.field(default="mlp", kw_only=True, metadata=STATIC)

    last_scale: ClassVar[float] = 1.0
    """Factor of the last layer's initial parameters."""

    def check(self, **others: Any) -> None:
        """As every part's; the blocks of a SimBa have one width."""
        super().check(**others)
        if self.body == "simba" and len(set(self.hidden_sizes)) != 1:
            raise UsageError(
                "hidden_sizes of a SimBa must be the same width once for each block, such as (256, 256), got "
                f"{self.hidden_sizes!r}"
            )

    def build(self, initialiser: Initialiser) -> None:
        """Draws the initial parameters; called when the arguments have been checked."""
        raise NotImplementedError


@network
class MLPDenoiser(Network):
    """A diffusion policy's actor, a multilayer perceptron on (obs, noisy, time features); a `ConditionalDenoiser`.

    Time features: a sinusoidal embedding of the time (`time_embedding`), then Linear(2 time_dim), activation,
    Linear(time_dim), as in the official SDAC code, also before a SimBa. The concatenation is never formed: the first
    layer's shares of obs, noisy and time are added, so batch axes broadcast, and the first and last share serve a whole
    chain.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        time_dim: number of time features, even.
        prediction: what it predicts, "eps", "velocity" or "action"; says how others read its output.

    Raises:
        UsageError: a size is not positive, blocks differ in width, time_dim is odd, or the activation or the
            initialiser is unknown.
    """

    time_dim: Count = dataclasses.field(default=16, kw_only=True, metadata=STATIC)
    prediction: Prediction = dataclasses.field(default="eps", kw_only=True, metadata=STATIC)

    def check(self, **others: Any) -> None:
        """As every part's; time_dim is even."""
        super().check(**others)
        _check_even(self.time_dim)

    def condition(self, obs: Array, num_steps: int) -> Any:
        """The shares of obs and of all times t < num_steps in the first layer; may stand for obs in a call."""
        raise NotImplementedError

    def __call__(self, obs: Any, noisy: Array, t: Array | int) -> Array:
        """The prediction [*batch act]; obs [*batch obs] or what `condition` returned, t an integer or [*batch]."""
        raise NotImplementedError


@network
class MeanFlowActor(Network):
    """A flow policy's actor that says mean velocities: a multilayer perceptron on (obs, noisy, time features).

    A `MeanVelocity`. Time features: the sinusoidal embeddings (`time_embedding`) of t and of t - r side by side, then
    Linear(2 time_dim), activation, Linear(time_dim). MeanFlow (Geng et al. 2025, arXiv 2505.13447) also tells its
    network t and t - r. Times enter as they are, in [0, 1], so that no wave turns faster than the output should: the
    loss differentiates in t, and steep features make it noisy.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; relu has no second derivative, so its derivative in t has jumps, and so has that
            of a SimBa.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        time_dim: number of time features, even.

    Raises:
        UsageError: a size is not positive, blocks differ in width, time_dim is odd, or the activation or the
            initialiser is unknown.
    """

    time_dim: Count = dataclasses.field(default=16, kw_only=True, metadata=STATIC)

    def check(self, **others: Any) -> None:
        """As every part's; time_dim is even."""
        super().check(**others)
        _check_even(self.time_dim)

    def __call__(self, obs: Array, noisy: Array, t: Array | float, r: Array | float) -> Array:
        """The mean velocity [*batch act] from t down to r for obs [*batch obs]; t, r numbers or [*batch]."""
        raise NotImplementedError


@network
class LangevinActor(Network):
    """The drift and the step size of a Langevin diffusion: a multilayer perceptron on (obs, noisy, time features).

    The actor of DIME (Celik et al. 2025, arXiv 2502.02316), for `LangevinSampler`; a `LangevinDrift`. The network is
    that of `MLPDenoiser`, with a last layer that starts at 1e-8 of its usual size, so that the first policy is that of
    the drift towards the prior alone. Two more parameters are learnt: the step size is delta / precision, where delta
    is a number and precision has one for each action entry. Each is the softplus of its parameter ("raw_delta",
    "raw_precision"), so they stay positive; they start at 0.1 and 1.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        time_dim: number of time features, even.

    Raises:
        UsageError: a size is not positive, blocks differ in width, time_dim is odd, or the activation or the
            initialiser is unknown.
    """

    prediction: ClassVar[Literal["drift"]] = "drift"
    last_scale: ClassVar[float] = 1e-8

    time_dim: Count = dataclasses.field(default=16, kw_only=True, metadata=STATIC)

    def check(self, **others: Any) -> None:
        """As every part's; time_dim is even."""
        super().check(**others)
        _check_even(self.time_dim)

    @property
    def initial_raw(self) -> tuple[np.ndarray, np.ndarray]:
        """The parameters "raw_delta" 0-d and "raw_precision" [action_dim] at the start: softplus inverted."""
        return np.log(np.expm1(np.array(0.1))), np.full(self.action_dim, np.log(np.expm1(1.0)))

    def condition(self, obs: Array, num_steps: int) -> Any:
        """The shares of obs and of all times t < num_steps in the first layer; may stand for obs in a call."""
        raise NotImplementedError

    def __call__(self, obs: Any, noisy: Array, t: Array | int) -> Array:
        """The drift [*batch act]; obs [*batch obs] or what `condition` returned, t an integer or [*batch]."""
        raise NotImplementedError

    def step_size(self) -> Array:
        """delta / precision, [action_dim]."""
        raise NotImplementedError


@network
class DeterministicActor(Network):
    """An action for an observation: a multilayer perceptron with a tanh, the actor of TD3 (arXiv 1802.09477).

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).

    Raises:
        UsageError: a size is not positive, blocks differ in width, or the activation or the initialiser is unknown.
    """

    def __call__(self, obs: Array) -> Array:
        """The action [*batch act] in [-1, 1] for obs [*batch obs]."""
        raise NotImplementedError


@network
class GaussianActor(Network):
    """Mean and logarithmic standard deviation of a diagonal Gaussian: a multilayer perceptron, the actor of SAC.

    Haarnoja et al. 2018 (arXiv 1801.01290), appendix C. `TanhGaussianSampler` draws from it.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        log_std_min: lower bound of the logarithmic standard deviation.
        log_std_max: upper bound; beyond a bound it is clipped and its gradient is zero.

    Raises:
        UsageError: a size is not positive, blocks differ in width, the activation or the initialiser is unknown, or
            log_std_min >= log_std_max.
    """

    log_std_min: Real = dataclasses.field(default=-20.0, kw_only=True, metadata=STATIC)
    log_std_max: Real = dataclasses.field(default=2.0, kw_only=True, metadata=STATIC)

    def check(self, **others: Any) -> None:
        """As every part's; the bounds are in order."""
        super().check(**others)
        low, high = self.log_std_min, self.log_std_max
        if low >= high:
            raise UsageError(f"log_std_min must be below log_std_max, got {low!r} and {high!r}")

    def __call__(self, obs: Array) -> tuple[Array, Array]:
        """(mean, log_std), each [*batch act], for obs [*batch obs]."""
        raise NotImplementedError


class CriticNetwork(Part):
    """A `Critic`, which a backend computes."""

    def __call__(self, obs: Array, action: Array) -> Array:
        """Values [size *batch] of obs [*batch obs] and action [*batch act]; of a distribution the means."""
        raise NotImplementedError


@network
class TwinCritic(CriticNetwork, Network):
    """Two independent state-action values (clipped double Q-learning, Fujimoto et al. 2018, arXiv 1802.09477).

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).

    Raises:
        UsageError: a size is not positive, blocks differ in width, or the activation or the initialiser is unknown.
    """

    size: ClassVar[int] = 2
    """Number of members."""


@network
class EnsembleCritic(CriticNetwork, Network):
    """Independent state-action values, with stacked parameters, so that each layer is one batched product.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        size: number of members.

    Raises:
        UsageError: a size is not positive, blocks differ in width, or the activation or the initialiser is unknown.
    """

    size: Count = dataclasses.field(default=2, kw_only=True, metadata=STATIC)


@network
class GaussianCritic(CriticNetwork, Network):
    """An ensemble of Gaussians of the return (DSAC-T, arXiv 2310.05858; DACER, arXiv 2405.15177).

    A `DistributionalCritic`. Outputs are the mean and a number whose softplus is the standard deviation.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        size: number of members.

    Raises:
        UsageError: a size is not positive, blocks differ in width, or the activation or the initialiser is unknown.
    """

    size: Count = dataclasses.field(default=2, kw_only=True, metadata=STATIC)

    def distribution(self, obs: Array, action: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the return, each [size *batch]; the standard deviation is positive."""
        raise NotImplementedError


@network
class CategoricalCritic(CriticNetwork, Network):
    """An ensemble of distributions of the return on fixed atoms (C51, Bellemare et al. 2017, arXiv 1707.06887).

    A `HistogramCritic`. Outputs are the logits of the probabilities of num_atoms returns, equally spaced from v_min to
    v_max; a value is their mean, so it never leaves that range. The defaults are ours, for locomotion with rewards
    times 0.2.

    Args:
        obs_dim: length of an observation.
        action_dim: length of an action.
        key: seed of the initial parameters, equal in all backends.
        hidden_sizes: widths of the hidden layers, or of the blocks of a SimBa, which are equal.
        activation: between the layers; a SimBa has ReLU.
        initialiser: law of the initial parameters: "truncated_normal" as in DACER and SDAC, or "uniform" as in PyTorch;
            a SimBa has its own.
        body: a perceptron, "mlp", or "simba" (arXiv 2410.09754).
        size: number of members.
        num_atoms: at least 2.
        v_min: the smallest return that can be told apart, in units of the scaled reward.
        v_max: the largest.

    Raises:
        UsageError: a size is not positive, blocks differ in width, there are less than 2 atoms, v_min >= v_max, or the
            activation or the initialiser is unknown.
    """

    size: Count = dataclasses.field(default=2, kw_only=True, metadata=STATIC)
    num_atoms: Annotated[int, count(least=2)] = dataclasses.field(default=101, kw_only=True, metadata=STATIC)
    v_min: Real = dataclasses.field(default=-400.0, kw_only=True, metadata=STATIC)
    v_max: Real = dataclasses.field(default=400.0, kw_only=True, metadata=STATIC)

    def check(self, **others: Any) -> None:
        """As every part's; the range is one."""
        super().check(**others)
        if self.v_min >= self.v_max:
            raise UsageError(f"v_min must be below v_max, got {self.v_min!r} and {self.v_max!r}")

    def logits(self, obs: Array, action: Array) -> Array:
        """Unnormalised log-probabilities [size *batch num_atoms]."""
        raise NotImplementedError
