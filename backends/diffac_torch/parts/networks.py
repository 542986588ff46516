"""Networks: denoiser, Gaussian actor, and ensembles of critics with stacked parameters.

The first layer of a network is never applied to a concatenation. Its weight is cut into the shares of its inputs and
the shares are added, so that batch axes broadcast and what depends on the observation alone is computed once for all
particles and denoising steps.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffac.errors import UsageError, check_count
from diffac.parts import networks as declared
from diffac.parts.critics import check_pair
from diffac.parts.declaration import TargetEnsemble
from diffac.parts.initialisers import Initialiser
from diffac.parts.inputs import check_width
from diffac.protocols import HistogramCritic
from diffac_torch.devices import check_defaults
from diffac_torch.kernels.products import affine, ensemble_outputs
from diffac_torch.parts.activations import activation
from diffac_torch.parts.diffusion import Time


def time_embedding(t: int | Int[Tensor, "*t"] | Float[Tensor, "*t"], dim: int = 16) -> Float[Tensor, "*t dim"]:
    """Sinusoidal embedding of times: [sin(t f), cos(t f)] / sqrt(dim) with f_j = 10000^(-j / (dim/2)), j < dim/2.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, scaled to norm 1/sqrt(2) as in the official SDAC networks.

    Args:
        t: an integer, or [*t] of integers, or of floats whose dtype the result then has.
        dim: even and positive.

    Raises:
        UsageError: dim is odd or not positive.
    """
    check_count("dim", dim)
    if dim % 2:
        raise UsageError(f"dim must be even (half sines, half cosines), got {dim!r}")
    t = torch.as_tensor(t)
    if not t.is_floating_point():
        t = t.to(torch.get_default_dtype())
    half = dim // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = t.unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1) / dim**0.5


class Linear(nn.Module):
    """An affine map [rows in] -> [rows out]; or an ensemble of them, [size rows in] -> [size rows out]."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.get_default_dtype()))
        self.bias = nn.Parameter(torch.as_tensor(bias, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return affine(x, self.weight, self.bias)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class Norm(nn.Module):
    """LayerNorm of [rows features]; or an ensemble of them, of [size rows features]."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.get_default_dtype()))
        self.bias = nn.Parameter(torch.as_tensor(bias, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        if self.weight.ndim == 1:
            return normed * self.weight + self.bias
        return normed * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)


class Block(nn.Module):
    """x + Linear(ReLU(Linear(LayerNorm(x))))."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.norm = Norm(arrays["norm.weight"], arrays["norm.bias"])
        self.up = Linear(arrays["up.weight"], arrays["up.bias"])
        self.down = Linear(arrays["down.weight"], arrays["down.bias"])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def _layers(
    initialiser: Initialiser, sizes: tuple[int, ...], ensemble: int | None = None, last_scale: float = 1.0
) -> nn.ModuleList:
    check_defaults()
    return nn.ModuleList([Linear(weight, bias) for weight, bias in initialiser.layers(sizes, ensemble, last_scale)])


def _body(
    network: declared.Network, initialiser: Initialiser, inputs: int, outputs: int, ensemble: int | None = None
) -> nn.ModuleList:
    """The layers of a network, from its input to its output."""
    widths = tuple(network.hidden_sizes)
    if network.body == "mlp":
        return _layers(initialiser, (inputs, *widths, outputs), ensemble, network.last_scale)
    check_defaults()
    first, *blocks, norm, last = initialiser.simba(inputs, widths, outputs, ensemble, network.last_scale)
    return nn.ModuleList([Linear(**first), *map(Block, blocks), Norm(**norm), Linear(**last)])


def _between(network: declared.Network) -> Callable[[Tensor], Tensor]:
    """What stands between the layers; a SimBa's blocks have it inside."""
    return activation(network.activation) if network.body == "mlp" else lambda hidden: hidden


def _first(layers: nn.ModuleList) -> Linear:
    return layers[0]  # type: ignore[return-value]


def _after_first(
    layers: Iterable[Callable[[Tensor], Tensor]], hidden: Tensor, activate: Callable[[Tensor], Tensor]
) -> Tensor:
    """The rest of a network, from the first layer's output before its activation."""
    for layer in itertools.islice(layers, 1, None):
        hidden = layer(activate(hidden))
    return hidden


class Condition(NamedTuple):
    """What is added to the share of the noisy action in a first layer; takes the place of obs."""

    obs_share: Float[Tensor, "*#batch hidden"]
    """Share of the observation, with the bias."""
    time_share: Float[Tensor, "T hidden"]
    """Share of each time."""


def _condition(actor: Any, obs: Tensor, num_steps: int) -> Any:
    """`actor.condition(obs, num_steps)` for a denoiser that offers it (`ConditionalDenoiser`), else obs itself."""
    return actor.condition(obs, num_steps) if hasattr(actor, "condition") else obs


def _reduced(values: Tensor, ensemble: TargetEnsemble, pair: Tensor | None = None) -> Tensor:
    """One value [*batch] of those of an ensemble [ensemble *batch]; pair: the noise of `pair_spec`."""
    if ensemble == "mean":
        return values.mean(0)
    return _smallest(_counted(values, ensemble, pair))


def _counted(values: Tensor, ensemble: TargetEnsemble, pair: Tensor | None = None) -> Tensor:
    """What is given of an ensemble [ensemble ...], of the members of which the smallest is taken."""
    if ensemble == "first":
        return values[:1]
    return values if pair is None else values[_pair(pair, len(values))]


def _pair(noise: Tensor, size: int) -> Tensor:
    """Two different members [2] of an ensemble, as `pair_spec` says."""
    check_pair(size)
    left = torch.arange(size, size - 2, -1, device=noise.device)
    first, second = (noise * left).long().minimum(left - 1)  # float32 rounds a product up to n
    return torch.stack([first, second + (second >= first)])


def _smallest(values: Tensor) -> Tensor:
    """min over the ensemble [ensemble *batch], NaN where one is; of equally small ones the first gets the gradient.

    `amin` would divide it among them. Where nothing is differentiated `amin` gives the same numbers.
    """
    return values.min(0).values


class _OfNoisy:
    """Networks of (obs, noisy action, integer time)."""

    obs_dim: int
    action_dim: int
    time_dim: int
    activation: str
    layers: nn.ModuleList
    time_layers: nn.ModuleList

    __call__ = nn.Module.__call__

    def build(self, initialiser: Initialiser) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self.time_layers = _layers(initialiser, (self.time_dim, 2 * self.time_dim, self.time_dim))
        inputs = self.obs_dim + self.action_dim + self.time_dim
        self.layers = _body(self, initialiser, inputs, self.action_dim)  # type: ignore[arg-type]

    def condition(self, obs: Float[Tensor, "*#batch obs"], num_steps: int) -> Condition:
        """The shares of obs and of all times t < num_steps, to be passed to the network in place of obs."""
        check_width("obs", obs, self.obs_dim)
        obs_weight, _, time_weight = self._first_weights()
        times = torch.arange(num_steps, device=obs.device)
        return Condition(
            affine(obs, obs_weight, _first(self.layers).bias), F.linear(self._time_features(times), time_weight)
        )

    def forward(
        self, obs: Float[Tensor, "*#batch obs"] | Condition, noisy: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        """The output [*batch act]; obs may be a `Condition`, t an integer or [*batch] of integers."""
        check_width("noisy action", noisy, self.action_dim)
        if isinstance(obs, Condition):
            share = obs.obs_share + obs.time_share[t]
            action_weight = _first(self.layers).weight.narrow(1, self.obs_dim, self.action_dim)
        else:
            check_width("obs", obs, self.obs_dim)
            obs_weight, action_weight, time_weight = self._first_weights()
            times = torch.as_tensor(t, device=obs.device)
            share = affine(obs, obs_weight, _first(self.layers).bias) + F.linear(
                self._time_features(times), time_weight
            )
        # equal in every step of a chain; an exported program must not depend on a shape
        if torch.compiler.is_exporting() or noisy.shape[:-1] != share.shape[:-1]:
            batch = torch.broadcast_shapes(noisy.shape[:-1], share.shape[:-1])
            noisy, share = noisy.expand(*batch, -1), share.expand(*batch, -1)
        return _after_first(self.layers, affine(noisy, action_weight).add_(share), _between(self))  # type: ignore[arg-type]

    def _first_weights(self) -> tuple[Tensor, ...]:
        return _first(self.layers).weight.split([self.obs_dim, self.action_dim, self.time_dim], dim=1)

    def _time_features(self, t: Tensor) -> Tensor:
        first = _first(self.time_layers)
        embedding = time_embedding(t.to(first.weight.dtype), self.time_dim)
        return _after_first(self.time_layers, first(embedding), activation(self.activation))


class MLPDenoiser(_OfNoisy, declared.MLPDenoiser, nn.Module):
    pass


class LangevinActor(_OfNoisy, declared.LangevinActor, nn.Module):
    def build(self, initialiser: Initialiser) -> None:
        super().build(initialiser)
        delta, precision = self.initial_raw
        self.raw_delta = nn.Parameter(torch.as_tensor(delta, dtype=torch.get_default_dtype()))
        self.raw_precision = nn.Parameter(torch.as_tensor(precision, dtype=torch.get_default_dtype()))

    def step_size(self) -> Float[Tensor, " act"]:
        """delta / precision, [act]."""
        return F.softplus(self.raw_delta, threshold=40) / F.softplus(self.raw_precision, threshold=40)


RealTime: TypeAlias = float | Float[Tensor, "*#batch"]


class MeanFlowActor(declared.MeanFlowActor, nn.Module):
    __call__ = nn.Module.__call__

    def build(self, initialiser: Initialiser) -> None:
        nn.Module.__init__(self)
        self.time_layers = _layers(initialiser, (2 * self.time_dim, 2 * self.time_dim, self.time_dim))
        inputs = self.obs_dim + self.action_dim + self.time_dim
        self.layers = _body(self, initialiser, inputs, self.action_dim)

    def forward(
        self, obs: Float[Tensor, "*#batch obs"], noisy: Float[Tensor, "*#batch act"], t: RealTime, r: RealTime
    ) -> Float[Tensor, "*#batch act"]:
        """The mean velocity [*batch act] from t down to r; both are numbers in [0, 1], or [*batch]."""
        check_width("obs", obs, self.obs_dim)
        check_width("noisy action", noisy, self.action_dim)
        first = _first(self.layers)
        sizes = [self.obs_dim, self.action_dim, self.time_dim]
        obs_weight, action_weight, time_weight = first.weight.split(sizes, dim=1)
        share = affine(obs, obs_weight, first.bias) + F.linear(self._time_features(t, r), time_weight)
        return _after_first(self.layers, affine(noisy, action_weight) + share, _between(self))

    def _time_features(self, t: RealTime, r: RealTime) -> Tensor:
        first = _first(self.time_layers)
        like = {"dtype": first.weight.dtype, "device": first.weight.device}
        t, r = torch.as_tensor(t, **like), torch.as_tensor(r, **like)
        waves = [time_embedding(time, self.time_dim) for time in torch.broadcast_tensors(t, t - r)]
        return _after_first(self.time_layers, first(torch.cat(waves, dim=-1)), activation(self.activation))


class DeterministicActor(declared.DeterministicActor, nn.Module):
    __call__ = nn.Module.__call__

    def build(self, initialiser: Initialiser) -> None:
        nn.Module.__init__(self)
        self.layers = _body(self, initialiser, self.obs_dim, self.action_dim)

    def forward(self, obs: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        """The action [*batch act] in [-1, 1] for obs [*batch obs]."""
        check_width("obs", obs, self.obs_dim)
        return _after_first(self.layers, _first(self.layers)(obs), _between(self)).tanh()


class GaussianActor(declared.GaussianActor, nn.Module):
    __call__ = nn.Module.__call__

    def build(self, initialiser: Initialiser) -> None:
        nn.Module.__init__(self)
        self.layers = _body(self, initialiser, self.obs_dim, 2 * self.action_dim)

    def forward(
        self, obs: Float[Tensor, "*batch obs"]
    ) -> tuple[Float[Tensor, "*batch act"], Float[Tensor, "*batch act"]]:
        """(mean, log_std), each [*batch act], for obs [*batch obs]."""
        check_width("obs", obs, self.obs_dim)
        mean, log_std = _after_first(self.layers, _first(self.layers)(obs), _between(self)).chunk(2, dim=-1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)


class _Ensemble:
    """Networks of (obs, action) with stacked parameters."""

    outputs = 1
    obs_dim: int
    action_dim: int
    size: int
    hidden_sizes: tuple[int, ...]
    activation: str

    layers: nn.ModuleList

    def build(self, initialiser: Initialiser) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self.layers = _body(self, initialiser, self.obs_dim + self.action_dim, self.outputs, self.size)  # type: ignore[arg-type]

    def _outputs(self, obs: Tensor, action: Tensor) -> Tensor:
        """[size *batch outputs]"""
        check_width("obs", obs, self.obs_dim)
        check_width("action", action, self.action_dim)
        return ensemble_outputs(self.layers, _between(self), obs, action)  # type: ignore[arg-type]


class _Values(_Ensemble):
    __call__ = nn.Module.__call__

    def forward(
        self, obs: Float[Tensor, "*#batch obs"], action: Float[Tensor, "*#batch act"]
    ) -> Float[Tensor, "size *#batch"]:
        """Values [size *batch] of obs [*batch obs] and action [*batch act]."""
        return self._outputs(obs, action)[..., 0]


class TwinCritic(_Values, declared.TwinCritic, nn.Module):
    pass


class EnsembleCritic(_Values, declared.EnsembleCritic, nn.Module):
    pass


class GaussianCritic(_Values, declared.GaussianCritic, nn.Module):
    outputs = 2

    def distribution(
        self, obs: Float[Tensor, "*#batch obs"], action: Float[Tensor, "*#batch act"]
    ) -> tuple[Float[Tensor, "size *#batch"], Float[Tensor, "size *#batch"]]:
        """Mean and standard deviation of the return, each [size *batch]; the standard deviation is positive."""
        mean, raw_std = self._outputs(obs, action).unbind(-1)
        return mean, F.softplus(raw_std, threshold=40)  # the default, 20, costs 2e-9 in float64


class CategoricalCritic(_Values, declared.CategoricalCritic, nn.Module):
    @property
    def outputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the last layer."""
        return self.num_atoms

    def forward(
        self, obs: Float[Tensor, "*#batch obs"], action: Float[Tensor, "*#batch act"]
    ) -> Float[Tensor, "size *#batch"]:
        """Means [size *batch] of obs [*batch obs] and action [*batch act]."""
        logits = self._outputs(obs, action)
        return logits.softmax(-1) @ _atoms(self, logits)

    def logits(
        self, obs: Float[Tensor, "*#batch obs"], action: Float[Tensor, "*#batch act"]
    ) -> Float[Tensor, "size *#batch atoms"]:
        """Unnormalised log-probabilities [size *batch atoms]."""
        return self._outputs(obs, action)


def _atoms(critic: HistogramCritic, logits: Tensor) -> Tensor:
    """The returns [atoms] of which a critic has given logits [... atoms]."""
    return torch.linspace(critic.v_min, critic.v_max, logits.shape[-1], dtype=logits.dtype, device=logits.device)
