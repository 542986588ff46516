"""Networks: the reference's, with initial parameters from a key, and calls that return values without pullbacks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffac.parts.constructors import check_arguments
from diffac.parts.initialisers import layer_parameters
from diffac.testing import reference

Sizes = tuple[int, ...]
HIDDEN = (256, 256, 256)


def layers(
    rng: np.random.Generator, sizes: Sizes, prefix: str = "layers", ensemble: int | None = None
) -> dict[str, Any]:
    """Initial parameters by name, drawn in the order in which every backend draws them."""
    named = {}
    for i, (weight, bias) in enumerate(layer_parameters(rng, sizes, ensemble)):
        named |= {f"{prefix}.{i}.weight": weight, f"{prefix}.{i}.bias": bias}
    return named


class Network:
    """A network of the reference, `bound` to its parameters; training replaces it."""

    bound: Any


class Condition(NamedTuple):
    """What may stand for the observation along a chain. Nothing is computed beforehand here."""

    obs: Any


class MLPDenoiser(Network):
    """A diffusion policy's actor."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        hidden_sizes: Sizes = HIDDEN,
        activation: str = "mish",
        time_dim: int = 16,
        prediction: str = "eps",
    ) -> None:
        check_arguments("MLPDenoiser", locals())
        rng = np.random.default_rng(key)
        arrays = layers(rng, (time_dim, 2 * time_dim, time_dim), "time_layers")
        arrays |= layers(rng, (obs_dim + action_dim + time_dim, *hidden_sizes, action_dim))
        self.bound = reference.MLPDenoiser(arrays, activation, prediction)
        self.prediction = prediction

    def condition(self, obs: Any, num_steps: int) -> Condition:
        return Condition(obs)

    def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
        return self.bound(obs.obs if isinstance(obs, Condition) else obs, noisy, t)[0]


class DeterministicActor(Network):
    """An action."""

    def __init__(
        self, obs_dim: int, action_dim: int, *, key: int, hidden_sizes: Sizes = HIDDEN, activation: str = "mish"
    ) -> None:
        check_arguments("DeterministicActor", locals())
        arrays = layers(np.random.default_rng(key), (obs_dim, *hidden_sizes, action_dim))
        self.bound = reference.DeterministicActor(arrays, activation)

    def __call__(self, obs: Any) -> Any:
        return self.bound(obs)[0]


class GaussianActor(Network):
    """Mean and logarithm of the standard deviation."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        hidden_sizes: Sizes = HIDDEN,
        activation: str = "mish",
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
    ) -> None:
        check_arguments("GaussianActor", locals())
        arrays = layers(np.random.default_rng(key), (obs_dim, *hidden_sizes, 2 * action_dim))
        self.bound = reference.GaussianActor(arrays, activation, log_std_min, log_std_max)

    def __call__(self, obs: Any) -> Any:
        return self.bound(obs)[0]


class EnsembleCritic(Network):
    """Several state-action values."""

    outputs, kind = 1, reference.EnsembleCritic

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        key: int,
        size: int = 2,
        hidden_sizes: Sizes = HIDDEN,
        activation: str = "mish",
    ) -> None:
        check_arguments("EnsembleCritic", locals())
        sizes = (obs_dim + action_dim, *hidden_sizes, self.outputs)
        self.size = size
        self.bound = self.kind(layers(np.random.default_rng(key), sizes, ensemble=size), activation)

    def __call__(self, obs: Any, action: Any) -> Any:
        return self.bound(obs, action)[0]


def TwinCritic(
    obs_dim: int, action_dim: int, *, key: int, hidden_sizes: Sizes = HIDDEN, activation: str = "mish"
) -> EnsembleCritic:
    """Two of them."""
    return EnsembleCritic(obs_dim, action_dim, key=key, hidden_sizes=hidden_sizes, activation=activation)


class GaussianCritic(EnsembleCritic):
    """Several Gaussian laws of the return."""

    outputs, kind = 2, reference.GaussianCritic

    def distribution(self, obs: Any, action: Any) -> Any:
        return self.bound.distribution(obs, action)[0]


def lifted(network: Any) -> Any:
    """What the reference takes for a network: it returns (value, pullback). A plain function has no pullback."""
    if network is None:
        return None
    if isinstance(network, Network):
        return network.bound
    if hasattr(network, "parameters"):
        return network

    def call(*arguments: Any) -> Any:
        return network(*arguments), None

    call.prediction = getattr(network, "prediction", "eps")  # type: ignore[attr-defined]
    return call
