"""Networks: the reference's, with initial parameters from a key, and calls that return values without pullbacks."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffac.parts import networks as declared
from diffac.parts.initialisers import Initialiser
from diffac.testing import reference

Sizes = tuple[int, ...]


def layers(
    initialiser: Initialiser,
    sizes: Sizes,
    prefix: str = "layers",
    ensemble: int | None = None,
    last_scale: float = 1.0,
) -> dict[str, Any]:
    """Initial parameters by name, drawn in the order in which every backend draws them."""
    named = {}
    for i, (weight, bias) in enumerate(initialiser.layers(sizes, ensemble, last_scale)):
        named |= {f"{prefix}.{i}.weight": weight, f"{prefix}.{i}.bias": bias}
    return named


def body(
    network: declared.Network, initialiser: Initialiser, inputs: int, outputs: int, ensemble: int | None = None
) -> dict[str, Any]:
    """Initial parameters by name of what is between input and output."""
    widths = tuple(network.hidden_sizes)
    if network.body == "mlp":
        return layers(initialiser, (inputs, *widths, outputs), ensemble=ensemble, last_scale=network.last_scale)
    made = initialiser.simba(inputs, widths, outputs, ensemble, network.last_scale)
    return {f"layers.{i}.{name}": array for i, layer in enumerate(made) for name, array in layer.items()}


class Network:
    """A network of the reference, `bound` to its parameters; training replaces it."""

    bound: Any


class Condition(NamedTuple):
    """What may stand for the observation along a chain. Nothing is computed beforehand here."""

    obs: Any


class OfNoisy(Network):
    """A network of (obs, noisy action, integer time)."""

    def arrays(self, initialiser: Initialiser) -> dict[str, Any]:
        own: Any = self
        named = layers(initialiser, (own.time_dim, 2 * own.time_dim, own.time_dim), "time_layers")
        return named | body(own, initialiser, own.obs_dim + own.action_dim + own.time_dim, own.action_dim)

    def condition(self, obs: Any, num_steps: int) -> Condition:
        return Condition(obs)

    def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
        return self.bound(obs.obs if isinstance(obs, Condition) else obs, noisy, t)[0]


class MLPDenoiser(OfNoisy, declared.MLPDenoiser):
    def build(self, initialiser: Initialiser) -> None:
        self.bound = reference.MLPDenoiser(self.arrays(initialiser), self.activation, self.prediction)


class LangevinActor(OfNoisy, declared.LangevinActor):
    def build(self, initialiser: Initialiser) -> None:
        delta, precision = self.initial_raw
        arrays = {"raw_delta": delta, "raw_precision": precision, **self.arrays(initialiser)}
        self.bound = reference.LangevinActor(arrays, self.activation)

    def step_size(self) -> Any:
        return self.bound.step_size()[0]


class MeanFlowActor(declared.MeanFlowActor, Network):
    def build(self, initialiser: Initialiser) -> None:
        arrays = layers(initialiser, (2 * self.time_dim, 2 * self.time_dim, self.time_dim), "time_layers")
        arrays |= body(self, initialiser, self.obs_dim + self.action_dim + self.time_dim, self.action_dim)
        self.bound = reference.MeanFlowActor(arrays, self.activation)

    def __call__(self, obs: Any, noisy: Any, t: Any, r: Any) -> Any:
        return self.bound(obs, noisy, t, r)[0]


class DeterministicActor(declared.DeterministicActor, Network):
    def build(self, initialiser: Initialiser) -> None:
        arrays = body(self, initialiser, self.obs_dim, self.action_dim)
        self.bound = reference.DeterministicActor(arrays, self.activation)

    def __call__(self, obs: Any) -> Any:
        return self.bound(obs)[0]


class GaussianActor(declared.GaussianActor, Network):
    def build(self, initialiser: Initialiser) -> None:
        arrays = body(self, initialiser, self.obs_dim, 2 * self.action_dim)
        self.bound = reference.GaussianActor(arrays, self.activation, self.log_std_min, self.log_std_max)

    def __call__(self, obs: Any) -> Any:
        return self.bound(obs)[0]


class Values(Network):
    """An ensemble."""

    outputs, kind = 1, reference.EnsembleCritic

    def build(self, initialiser: Initialiser) -> None:
        own: Any = self
        arrays = body(own, initialiser, own.obs_dim + own.action_dim, self.outputs, own.size)
        self.bound = self.kind(arrays, own.activation)

    def __call__(self, obs: Any, action: Any) -> Any:
        return self.bound(obs, action)[0]


class TwinCritic(Values, declared.TwinCritic):
    pass


class EnsembleCritic(Values, declared.EnsembleCritic):
    pass


class GaussianCritic(Values, declared.GaussianCritic):
    outputs, kind = 2, reference.GaussianCritic

    def distribution(self, obs: Any, action: Any) -> Any:
        return self.bound.distribution(obs, action)[0]


class CategoricalCritic(Values, declared.CategoricalCritic):
    @property
    def outputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_atoms

    def kind(self, arrays: Any, activation: str) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return reference.CategoricalCritic(arrays, activation, self.v_min, self.v_max)

    def logits(self, obs: Any, action: Any) -> Any:
        return self.bound.logits(obs, action)[0]


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
