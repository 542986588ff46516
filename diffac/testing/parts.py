"""Tables of parts. Adding a row adds every test of its kind, in every backend, and a line of `diffac validate`.

A row says how to build a part from a backend module `B` and small dimensions, and which networks it belongs with.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.noise import Shape, draw
from diffac.parts.schedules import LinearSchedule, cosine_schedule, flow_schedule, linear_beta_schedule, vp_schedule
from diffac.protocols import Activation, Batch, NoiseSchedule, Rollout


class Dims(NamedTuple):
    """The size of everything in a test, and the activation of its networks."""

    obs: int = 3
    action: int = 2
    batch: int = 5
    hidden: tuple[int, ...] = (8, 8)
    steps: int = 4
    """T of the diffusion."""
    particles: int = 6
    """K of the reverse proposal."""
    activation: Activation = "mish"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a batch of actions, which every `noise_spec` takes."""
        return (self.batch, self.action)


DIMS = Dims()
OTHER_DIMS = (
    Dims(obs=1, action=1, batch=2, hidden=(4,), steps=2, particles=1, activation="tanh"),
    Dims(obs=6, action=3, batch=7, hidden=(16, 8, 16), steps=6, particles=9, activation="gelu"),
)
"""Few, because a backend that compiles does so for each of them."""
LARGE = Dims(obs=17, action=6, batch=256, hidden=(256, 256), steps=3, particles=9)
"""As in a real run: for arrays of that size backends may have other kernels."""


class Ellipse(NamedTuple):
    """A schedule that exists nowhere else: neither variance-preserving nor a flow, nor a `TabularSchedule`."""

    num_steps: int

    def alpha(self, t: int) -> float:
        """From nearly 1 to 0.2."""
        return 1 - 0.8 * ((t + 1) / self.num_steps) ** 2

    def sigma(self, t: int) -> float:
        """Up to 1.5."""
        return 1.5 * (t + 1) / self.num_steps


NOISE_SCHEDULES: dict[str, Callable[[int], NoiseSchedule]] = {
    "vp": vp_schedule,
    "cosine": cosine_schedule,
    "linear": linear_beta_schedule,
    "flow": flow_schedule,
    "flow_with_signal": lambda num_steps: flow_schedule(num_steps, last=0.9),
    "ellipse": Ellipse,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A row: `make(B, dims)`, and its networks: names in `ACTORS` and `CRITICS`, or functions such as are there."""

    make: Callable[[Any, Dims], Any]
    actor: str | Callable[..., Any] = "denoiser"
    critic: str | Callable[..., Any] = "twin"
    boltzmann: bool = False
    """Of an actor objective: Q and the temperature count by their ratio alone."""
    shift_invariant: bool = True
    """Of an actor objective: a constant added to Q changes no gradient."""


# networks


def _simba(name: str) -> Callable[..., Any]:
    """The actor of that name with the body of a SimBa, whose blocks have one width."""
    return lambda B, d, key, **kw: ACTORS[name](B, d._replace(hidden=_blocks(d)), key, body="simba", **kw)


def _blocks(d: Dims) -> tuple[int, ...]:
    return (d.hidden[0],) * len(d.hidden)


ACTORS: dict[str, Callable[..., Any]] = {
    "denoiser": lambda B, d, key, **kw: B.MLPDenoiser(d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw),
    "velocity": lambda B, d, key, **kw: ACTORS["denoiser"](B, d, key, prediction="velocity", **kw),
    "clean": lambda B, d, key, **kw: ACTORS["denoiser"](B, d, key, prediction="action", **kw),
    "mean_velocity": lambda B, d, key, **kw: B.MeanFlowActor(d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw),
    "langevin": lambda B, d, key, **kw: B.LangevinActor(d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw),
    "deterministic": lambda B, d, key, **kw: B.DeterministicActor(
        d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw
    ),
    "gaussian": lambda B, d, key, **kw: B.GaussianActor(d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw),
    **{
        f"simba_{name}": _simba(name) for name in ("denoiser", "mean_velocity", "langevin", "deterministic", "gaussian")
    },
}
ATOMS = {"v_min": -1.0, "v_max": 1.5}
"""Range of the categorical critic; some targets of a test lie outside."""
NUM_ATOMS = 11

CRITICS: dict[str, Callable[..., Any]] = {
    "twin": lambda B, d, key, **kw: B.TwinCritic(d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw),
    "three": lambda B, d, key, **kw: B.EnsembleCritic(d.obs, d.action, key=key, size=3, hidden_sizes=d.hidden, **kw),
    "simba": lambda B, d, key, **kw: B.EnsembleCritic(
        d.obs, d.action, key=key, size=3, hidden_sizes=_blocks(d), body="simba", **kw
    ),
    "gaussian": lambda B, d, key, **kw: B.GaussianCritic(d.obs, d.action, key=key, hidden_sizes=d.hidden, **kw),
    "categorical": lambda B, d, key, **kw: B.CategoricalCritic(
        d.obs, d.action, key=key, size=3, num_atoms=NUM_ATOMS, hidden_sizes=d.hidden, **ATOMS, **kw
    ),
}
ACTIVATIONS = ("mish", "gelu", "relu", "silu", "tanh")


TIME_DIM = 16
"""Time features of a denoiser."""


def _layer_shapes(sizes: Sequence[int], prefix: str = "layers", ensemble: tuple[int, ...] = ()) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"{prefix}.{i}.weight": (*ensemble, n_out, n_in), f"{prefix}.{i}.bias": (*ensemble, n_out)}
    return shapes


def _simba_shapes(d: Dims, n_in: int, n_out: int, ensemble: tuple[int, ...] = ()) -> dict[str, Shape]:
    width, *others = _blocks(d)

    def linear(name: str, n_in: int, n_out: int) -> dict[str, Shape]:
        return {f"layers.{name}.weight": (*ensemble, n_out, n_in), f"layers.{name}.bias": (*ensemble, n_out)}

    def norm(name: str) -> dict[str, Shape]:
        return {f"layers.{name}.{end}": (*ensemble, width) for end in ("weight", "bias")}

    shapes, last = linear("0", n_in, width), len(others) + 1
    for i in range(1, last + 1):
        shapes |= norm(f"{i}.norm") | linear(f"{i}.up", width, 4 * width) | linear(f"{i}.down", 4 * width, width)
    return shapes | norm(f"{last + 1}") | linear(f"{last + 2}", width, n_out)


def _critic_shapes(size: int, outputs: int) -> Callable[[Dims], dict[str, Shape]]:
    return lambda d: _layer_shapes((d.obs + d.action, *d.hidden, outputs), ensemble=(size,))


def _denoiser_shapes(d: Dims) -> dict[str, Shape]:
    return {
        **_layer_shapes((TIME_DIM, 2 * TIME_DIM, TIME_DIM), "time_layers"),
        **_layer_shapes((d.obs + d.action + TIME_DIM, *d.hidden, d.action)),
    }


def _mean_velocity_shapes(d: Dims) -> dict[str, Shape]:
    return {**_denoiser_shapes(d), **_layer_shapes((2 * TIME_DIM, 2 * TIME_DIM, TIME_DIM), "time_layers")}


def _langevin_shapes(d: Dims, *, simba: bool = False) -> dict[str, Shape]:
    network = SHAPES["actor simba_denoiser"](d) if simba else _denoiser_shapes(d)
    return {**network, "raw_delta": (), "raw_precision": (d.action,)}


SHAPES: dict[str, Callable[[Dims], dict[str, Shape]]] = {
    **{f"actor {name}": _denoiser_shapes for name in ("denoiser", "velocity", "clean")},
    "actor mean_velocity": _mean_velocity_shapes,
    "actor langevin": _langevin_shapes,
    "actor deterministic": lambda d: _layer_shapes((d.obs, *d.hidden, d.action)),
    "actor gaussian": lambda d: _layer_shapes((d.obs, *d.hidden, 2 * d.action)),
    "actor simba_denoiser": lambda d: {
        **_layer_shapes((TIME_DIM, 2 * TIME_DIM, TIME_DIM), "time_layers"),
        **_simba_shapes(d, d.obs + d.action + TIME_DIM, d.action),
    },
    "actor simba_mean_velocity": lambda d: {
        **_layer_shapes((2 * TIME_DIM, 2 * TIME_DIM, TIME_DIM), "time_layers"),
        **_simba_shapes(d, d.obs + d.action + TIME_DIM, d.action),
    },
    "actor simba_langevin": lambda d: _langevin_shapes(d, simba=True),
    "actor simba_deterministic": lambda d: _simba_shapes(d, d.obs, d.action),
    "actor simba_gaussian": lambda d: _simba_shapes(d, d.obs, 2 * d.action),
    "critic simba": lambda d: _simba_shapes(d, d.obs + d.action, 1, (3,)),
    "critic twin": _critic_shapes(2, 1),
    "critic three": _critic_shapes(3, 1),
    "critic gaussian": _critic_shapes(2, 2),
    "critic categorical": _critic_shapes(3, NUM_ATOMS),
}
"""Role and name of a network -> names and shapes of its parameters, the same in every backend."""


def random_parameters(
    rng: np.random.Generator, shapes: Mapping[str, Shape], magnitude: float = 1.0
) -> dict[str, np.ndarray]:
    """Float64 parameters, biases too, so that nothing hides behind a zero.

    Weights are normal with standard deviation magnitude / sqrt(fan in), biases with magnitude / 2.
    """
    scales = {
        n: magnitude / np.sqrt(shape[-1]) if n.endswith("weight") else magnitude / 2 for n, shape in shapes.items()
    }
    return {name: np.asarray(scales[name] * rng.standard_normal(shape)) for name, shape in shapes.items()}


def make_actor(B: Any, part: Part, key: int = 1, dims: Dims = DIMS) -> Any:
    """The actor network that goes with a part."""
    make = ACTORS[part.actor] if isinstance(part.actor, str) else part.actor
    return make(B, dims, key, activation=dims.activation)


def make_critic(B: Any, part: Part, key: int = 2, dims: Dims = DIMS) -> Any:
    """The critic network that goes with a part."""
    make = CRITICS[part.critic] if isinstance(part.critic, str) else part.critic
    return make(B, dims, key, activation=dims.activation)


# schedules and samplers


def schedule(dims: Dims = DIMS, name: str = "vp") -> NoiseSchedule:
    """A schedule with T = dims.steps."""
    return NOISE_SCHEDULES[name](dims.steps)


def chain(B: Any, dims: Dims = DIMS, name: str = "vp", **kw: Any) -> Any:
    """The DDPM sampler."""
    return B.DDPMSampler(schedule(dims, name), **kw)


def _log_probability(B: Any, d: Dims, name: str = "vp") -> Any:
    return B.LogProbability(chain(B, d, name), schedule(d, name), num_noises=3)


SCHEDULES: dict[str, Part] = {name: Part(lambda B, d, name=name: schedule(d, name)) for name in NOISE_SCHEDULES}

SAMPLERS: dict[str, Part] = {
    "ddpm": Part(chain),
    "ddpm_cosine": Part(lambda B, d: chain(B, d, "cosine", start_scale=0.5)),
    "ddpm_long": Part(lambda B, d: chain(B, d._replace(steps=12), "linear")),
    "ddpm_velocity_flow": Part(lambda B, d: chain(B, d, "flow"), actor="velocity"),
    "ddpm_clean_ellipse": Part(lambda B, d: chain(B, d, "ellipse"), actor="clean"),
    "ddpm_ellipse": Part(lambda B, d: chain(B, d, "ellipse")),
    "ddpm_state_forward": Part(lambda B, d: chain(B, d, start_scale=1.0, clip="state", variance="forward")),
    "ddpm_state_forward_ellipse": Part(
        lambda B, d: chain(B, d, "ellipse", clip="state", variance="forward"), actor="clean"
    ),
    "ddpm_without_noise": Part(lambda B, d: chain(B, d, "cosine", start_scale=1.0, variance="zero")),
    "ddim": Part(lambda B, d: B.DDIMSampler(schedule(d))),
    "ddim_velocity_flow": Part(lambda B, d: B.DDIMSampler(schedule(d, "flow")), actor="velocity"),
    "ddim_clean_flow": Part(lambda B, d: B.DDIMSampler(schedule(d, "flow"), num_steps=2), actor="clean"),
    "ddim_two": Part(lambda B, d: B.DDIMSampler(schedule(d, "linear"), start_scale=0.5, num_steps=2)),
    "ddim_one": Part(lambda B, d: B.DDIMSampler(schedule(d), num_steps=1)),
    "heun_velocity": Part(lambda B, d: B.HeunSampler(schedule(d, "flow")), actor="velocity"),
    "heun_clean_two": Part(lambda B, d: B.HeunSampler(schedule(d, "flow"), 0.5, 2), actor="clean"),
    "heun_eps": Part(lambda B, d: B.HeunSampler(schedule(d, "flow_with_signal"))),
    "heun_one": Part(lambda B, d: B.HeunSampler(schedule(d, "flow"), num_steps=1), actor="velocity"),
    "heun_long": Part(lambda B, d: B.HeunSampler(flow_schedule(12)), actor="velocity"),
    "mean_flow": Part(lambda B, d: B.MeanFlowSampler(), actor="mean_velocity"),
    "mean_flow_three": Part(lambda B, d: B.MeanFlowSampler(3, start_scale=0.5), actor="mean_velocity"),
    "mean_flow_long": Part(lambda B, d: B.MeanFlowSampler(10), actor="mean_velocity"),
    "best_of_mean_flow": Part(lambda B, d: B.BestOf(B.MeanFlowSampler(), num_candidates=3), actor="mean_velocity"),
    "langevin": Part(lambda B, d: B.LangevinSampler(d.steps), actor="langevin"),
    "langevin_long": Part(lambda B, d: B.LangevinSampler(11, prior_std=1.2), actor="langevin"),
    "best_of_langevin": Part(lambda B, d: B.BestOf(B.LangevinSampler(3), num_candidates=3), actor="langevin"),
    "deterministic": Part(lambda B, d: B.DeterministicSampler(), actor="deterministic"),
    "additive_deterministic": Part(
        lambda B, d: B.AdditiveNoise(B.DeterministicSampler(), 0.6, noise_clip=0.5), actor="deterministic"
    ),
    "best_of_mean": Part(lambda B, d: B.BestOf(chain(B, d), num_candidates=3, ensemble="mean"), critic="three"),
    "tanh_gaussian": Part(lambda B, d: B.TanhGaussianSampler(), actor="gaussian"),
    "tanh_gaussian_epsilon": Part(lambda B, d: B.TanhGaussianSampler(epsilon=0.01), actor="gaussian"),
    "best_of": Part(lambda B, d: B.BestOf(chain(B, d), num_candidates=3)),
    "best_of_one": Part(lambda B, d: B.BestOf(chain(B, d), num_candidates=1)),
    "best_of_gaussian": Part(
        lambda B, d: B.BestOf(B.TanhGaussianSampler(), num_candidates=3), actor="gaussian", critic="gaussian"
    ),
    "additive": Part(lambda B, d: B.AdditiveNoise(chain(B, d), noise_scale=0.3)),
    "additive_unclipped": Part(lambda B, d: B.AdditiveNoise(chain(B, d), noise_scale=0.3, clip=False)),
    "log_probability": Part(_log_probability),
    "log_probability_velocity": Part(lambda B, d: _log_probability(B, d, "ellipse"), actor="velocity"),
    "best_of_log_probability": Part(lambda B, d: B.BestOf(_log_probability(B, d), num_candidates=3)),
    "additive_best_of": Part(lambda B, d: B.AdditiveNoise(B.BestOf(chain(B, d), num_candidates=3))),
}

# actor objectives


def _time_weighted(space: str, source: str, time_offset: int) -> Part:
    return Part(
        lambda B, d: B.TimeWeightedQGradient(
            chain(B, d), schedule(d), space=space, source=source, time_offset=time_offset
        )
    )


def _plain(B: Any, d: Dims, **where: Any) -> Any:
    """As QSM has it, but for where actions come from."""
    return B.TimeWeightedQGradient(
        chain(B, d), schedule(d), slope=0.0, intercept=1.1, ensemble="mean", normalised=False, target="eps", **where
    )


def _score_matching(
    proposal: Callable[[Any, Dims], Any], name: str = "linear", space: str = "eps", **properties: Any
) -> Part:
    return Part(lambda B, d: B.ReweightedScoreMatching(schedule(d, name), proposal(B, d), space), **properties)


def _reverse(B: Any, d: Dims, truncated: bool, **arguments: Any) -> Any:
    return B.ReverseProposal(
        B.BestOf(chain(B, d, "linear"), num_candidates=2), d.particles, truncated=truncated, **arguments
    )


def _by_gradient(weight: Any, **arguments: Any) -> Callable[[Any, Dims], Any]:
    return lambda B, d: _reverse(B, d, False, gradient_weight=weight, **arguments)


def _improved_replay(B: Any, d: Dims, **arguments: Any) -> Any:
    """Its table is shorter than the numbers of `make_batch` go."""
    return B.ImprovedReplayProposal(7, d.action, **{"num_steps": 5, **arguments})


def _shared_sum(B: Any, d: Dims, noisy: bool = True) -> Any:
    sampler = B.AdditiveNoise(chain(B, d), noise_scale=0.1) if noisy else chain(B, d)
    return B.Sum(
        (1.0, B.ValueThroughSampler(sampler)),
        (0.5, B.TimeWeightedQGradient(sampler, schedule(d), source="chain")),
        rollout_of=sampler,
    )


OBJECTIVES: dict[str, Part] = {
    "value_ddpm": Part(lambda B, d: B.ValueThroughSampler(chain(B, d)), critic="gaussian"),
    "value_simba": Part(lambda B, d: B.ValueThroughSampler(chain(B, d)), actor="simba_denoiser", critic="simba"),
    "value_ddim": Part(lambda B, d: B.ValueThroughSampler(B.DDIMSampler(schedule(d)))),
    "value_heun": Part(lambda B, d: B.ValueThroughSampler(B.HeunSampler(schedule(d, "flow"))), actor="velocity"),
    "value_mean_flow": Part(lambda B, d: B.ValueThroughSampler(B.MeanFlowSampler(2)), actor="mean_velocity"),
    "value_langevin": Part(lambda B, d: B.ValueThroughSampler(B.LangevinSampler(d.steps)), actor="langevin"),
    "entropy_value_langevin": Part(
        lambda B, d: B.EntropyRegularisedValue(B.LangevinSampler(d.steps), ensemble="mean"), actor="langevin"
    ),
    "entropy_value_langevin_simba": Part(
        lambda B, d: B.EntropyRegularisedValue(B.LangevinSampler(9, 1.5)), actor="simba_langevin"
    ),
    "mean_flow": Part(
        lambda B, d: B.MeanFlowMatching(
            B.PolicyProposal(rate=0.1, centred=False, value_scale=0.5, tempered=False), equal_fraction=0.4
        ),
        actor="mean_velocity",
    ),
    "mean_flow_never_equal": Part(
        lambda B, d: B.MeanFlowMatching(B.PolicyProposal(rate=0.1), equal_fraction=0.0), actor="mean_velocity"
    ),
    "mean_flow_q_weighted": Part(
        lambda B, d: B.MeanFlowMatching(B.QWeightedProposal(B.MeanFlowSampler(), 3, 2, 0.5)), actor="mean_velocity"
    ),
    "mean_flow_simba": Part(
        lambda B, d: B.MeanFlowMatching(B.PolicyProposal(rate=0.1), equal_fraction=0.2), actor="simba_mean_velocity"
    ),
    "reverse_velocity_flow": _score_matching(
        lambda B, d: B.ReverseProposal(
            B.DDIMSampler(schedule(d, "flow_with_signal")), d.particles, truncated=False, gradient_weight=0.5
        ),
        "flow_with_signal",
        boltzmann=True,
        actor="velocity",
    ),
    "reverse_output_velocity_flow": _score_matching(
        lambda B, d: B.ReverseProposal(B.HeunSampler(schedule(d, "flow_with_signal")), d.particles),
        "flow_with_signal",
        "output",
        boltzmann=True,
        actor="velocity",
    ),
    "time_weighted_velocity_flow_chain": Part(
        lambda B, d: B.TimeWeightedQGradient(chain(B, d, "flow"), schedule(d, "flow")), actor="velocity"
    ),
    "value_first": Part(
        lambda B, d: B.ValueThroughSampler(B.DeterministicSampler(), ensemble="first"), actor="deterministic"
    ),
    "value_ddpm_state": Part(
        lambda B, d: B.ValueThroughSampler(chain(B, d, start_scale=1.0, clip="state", variance="forward"))
    ),
    "time_weighted_plain_eps": Part(lambda B, d: _plain(B, d, space="eps", source="replay"), critic="three"),
    "time_weighted_plain_score": Part(lambda B, d: _plain(B, d, space="score", source="chain"), actor="velocity"),
    "time_weighted_mean": Part(
        lambda B, d: B.TimeWeightedQGradient(chain(B, d), schedule(d), ensemble="mean"), critic="three"
    ),
    "reverse_mean": _score_matching(
        lambda B, d: B.ReverseProposal(chain(B, d, "linear"), d.particles, ensemble="mean"), boltzmann=True
    ),
    "policy_first": _score_matching(lambda B, d: B.PolicyProposal(rate=0.1, ensemble="first")),
    "entropy_value_mean": Part(
        lambda B, d: B.EntropyRegularisedValue(B.TanhGaussianSampler(), ensemble="mean"), actor="gaussian"
    ),
    "value_velocity_flow": Part(
        lambda B, d: B.ValueThroughSampler(B.DDIMSampler(schedule(d, "flow"))), actor="velocity"
    ),
    "value_additive": Part(lambda B, d: B.ValueThroughSampler(B.AdditiveNoise(chain(B, d), noise_scale=0.3))),
    "value_best_of": Part(lambda B, d: B.ValueThroughSampler(B.BestOf(chain(B, d), num_candidates=3)), critic="three"),
    "value_tanh_gaussian": Part(lambda B, d: B.ValueThroughSampler(B.TanhGaussianSampler()), actor="gaussian"),
    **{
        f"time_weighted_{space}_{source}_{offset}": _time_weighted(space, source, offset)
        for space, source, offset in itertools.product(("score", "eps"), ("chain", "forward", "replay"), (1, 0))
    },
    "reverse": _score_matching(lambda B, d: _reverse(B, d, truncated=False), boltzmann=True),
    "reverse_truncated": _score_matching(lambda B, d: _reverse(B, d, truncated=True), boltzmann=True),
    "reverse_truncated_vp": _score_matching(lambda B, d: _reverse(B, d, truncated=True), "vp", boltzmann=True),
    "reverse_replay": _score_matching(
        lambda B, d: B.ReverseProposal(chain(B, d), d.particles, source="replay"), "vp", boltzmann=True
    ),
    "reverse_velocity": _score_matching(
        lambda B, d: _reverse(B, d, truncated=True), "vp", boltzmann=True, actor="velocity"
    ),
    "reverse_ellipse": _score_matching(lambda B, d: _reverse(B, d, truncated=False), "ellipse", boltzmann=True),
    "reverse_gradient": _score_matching(_by_gradient(1.0, tempered=False, value_scale=1.0, ensemble="mean")),
    "reverse_outside": _score_matching(lambda B, d: _reverse(B, d, truncated=False, outside_std=0.3), "ellipse"),
    "reverse_gradient_by_time": Part(
        lambda B, d: B.ReweightedScoreMatching(
            schedule(d, "ellipse"), _by_gradient(tuple(np.linspace(1, -0.5, d.steps)))(B, d)
        ),
        actor="velocity",
        boltzmann=True,
    ),
    "reverse_least_variance": _score_matching(_by_gradient("minimum_variance", rate=0.3, outside_std=0.2)),
    "policy_velocity_flow": _score_matching(lambda B, d: B.PolicyProposal(rate=0.1), "flow", actor="velocity"),
    "policy_clean_ellipse": _score_matching(lambda B, d: B.PolicyProposal(rate=0.1), "ellipse", actor="clean"),
    "policy_output_flow": _score_matching(
        lambda B, d: B.PolicyProposal(rate=0.1, centred=False, value_scale=0.5, tempered=False),
        "flow",
        "output",
        actor="velocity",
    ),
    "reverse_output_clean": _score_matching(
        lambda B, d: _reverse(B, d, truncated=True), "ellipse", "output", boltzmann=True, actor="clean"
    ),
    "reverse_output_eps": _score_matching(_by_gradient(0.5), "vp", "output", boltzmann=True),
    "policy": _score_matching(lambda B, d: B.PolicyProposal(rate=0.1)),
    "policy_faithful": _score_matching(
        lambda B, d: B.PolicyProposal(rate=0.1, faithful_normalisation=True),
        shift_invariant=False,  # q - mean / std, as the official code computes it
    ),
    "q_weighted": _score_matching(
        lambda B, d: B.QWeightedProposal(chain(B, d, "linear"), d.particles + 1, num_uniform=3, uniform_weight=0.3)
    ),
    "q_weighted_best": _score_matching(
        lambda B, d: B.QWeightedProposal(chain(B, d, "flow"), d.particles + 1, 0, ensemble="first"),
        "flow",
        "output",
        actor="velocity",
    ),
    "improved_replay": _score_matching(lambda B, d: _improved_replay(B, d)),
    "improved_replay_clipped": _score_matching(
        lambda B, d: _improved_replay(B, d, learning_rate=0.1, eps=1e-2, max_grad_norm=0.03, ensemble="mean"),
        "flow",
        "output",
        actor="velocity",
        critic="three",
    ),
    "mean_flow_improved_replay": Part(
        lambda B, d: B.MeanFlowMatching(_improved_replay(B, d, num_steps=1)), actor="mean_velocity"
    ),
    "value_relative": Part(
        lambda B, d: B.ValueThroughSampler(chain(B, d), relative=True), critic="gaussian", shift_invariant=False
    ),
    "time_weighted_contractive": Part(
        lambda B, d: B.TimeWeightedQGradient(chain(B, d), schedule(d), contractive_step=0.2)
    ),
    "time_weighted_velocity_flow": Part(
        lambda B, d: B.TimeWeightedQGradient(
            chain(B, d, "flow"), schedule(d, "flow"), space="eps", source="forward", contractive_step=0.2
        ),
        actor="velocity",
    ),
    "time_weighted_clean_ellipse": Part(
        lambda B, d: B.TimeWeightedQGradient(chain(B, d, "ellipse"), schedule(d, "ellipse"), contractive_step=0.2),
        actor="clean",
    ),
    "time_weighted_contractive_eps": Part(
        lambda B, d: B.TimeWeightedQGradient(
            chain(B, d), schedule(d), space="eps", source="replay", contractive_step=0.5
        )
    ),
    "time_weighted_forward_noisy": Part(
        lambda B, d: B.TimeWeightedQGradient(
            B.AdditiveNoise(B.BestOf(chain(B, d), num_candidates=2), 0.3), schedule(d), source="forward"
        )
    ),
    "entropy_value": Part(lambda B, d: B.EntropyRegularisedValue(B.TanhGaussianSampler()), actor="gaussian"),
    "entropy_value_log_probability": Part(lambda B, d: B.EntropyRegularisedValue(_log_probability(B, d))),
    "sum_shared": Part(_shared_sum, critic="gaussian"),
    "sum_separate": Part(
        lambda B, d: B.Sum(
            (0.7, B.ValueThroughSampler(chain(B, d))),
            (2.0, B.TimeWeightedQGradient(chain(B, d), schedule(d), source="forward")),
            (0.1, B.ReweightedScoreMatching(schedule(d), B.PolicyProposal(rate=0.1))),
            (0.3, B.ReweightedScoreMatching(schedule(d), B.PolicyProposal(rate=0.4))),
        )
    ),
}

# critic objectives and temperatures


def _categorical(projection: str, **arguments: Any) -> Part:
    return Part(lambda B, d: B.CategoricalTD(projection, **arguments), critic="categorical")


CRITIC_OBJECTIVES: dict[str, Part] = {
    "mean_squared": Part(lambda B, d: B.MeanSquaredTD()),
    "mean_squared_three": Part(lambda B, d: B.MeanSquaredTD(), critic="three"),
    "mean_squared_soft": Part(lambda B, d: B.MeanSquaredTD(soft=True)),
    "mean_squared_mean": Part(lambda B, d: B.MeanSquaredTD(ensemble="mean"), critic="three"),
    "mean_squared_simba": Part(lambda B, d: B.MeanSquaredTD(), critic="simba"),
    "mean_squared_pair": Part(lambda B, d: B.MeanSquaredTD(ensemble="random_pair"), critic="three"),
    "mean_squared_half": Part(lambda B, d: B.MeanSquaredTD(factor=0.5)),
    **{
        f"categorical_{projection}_{ensemble}": _categorical(projection, ensemble=ensemble)
        for projection, ensemble in itertools.product(("hl_gauss", "c51"), ("min", "mean", "first", "random_pair"))
    },
    "categorical_hl_gauss_soft": _categorical("hl_gauss", soft=True, sigma=1.5),
    "categorical_c51_soft": _categorical("c51", soft=True),
    "gaussian": Part(lambda B, d: B.GaussianTD(tau=0.3), critic="gaussian"),
    "gaussian_loose": Part(lambda B, d: B.GaussianTD(clip=30.0), critic="gaussian"),
    "gaussian_tight": Part(lambda B, d: B.GaussianTD(clip=0.5), critic="gaussian"),
    "gaussian_soft": Part(lambda B, d: B.GaussianTD(soft=True), critic="gaussian"),
    "gaussian_huber": Part(lambda B, d: B.GaussianTD(tau=0.3, huber_delta=0.8), critic="gaussian"),
}


def _noise_entropy(B: Any, d: Dims, sampler: Any) -> Any:
    return B.NoiseEntropyTemperature(d.action, sampler, interval=5, num_states=3, num_samples=10)


TEMPERATURES: dict[str, Part] = {
    "fixed": Part(lambda B, d: B.FixedTemperature(0.3)),
    "noise_entropy": Part(lambda B, d: _noise_entropy(B, d, B.AdditiveNoise(chain(B, d)))),
    "mixture": Part(
        lambda B, d: B.MixtureEntropyTemperature(
            B.AdditiveNoise(chain(B, d)), interval=5, num_samples=30, num_iterations=10
        )
    ),
    "mixture_best_of": Part(
        lambda B, d: B.MixtureEntropyTemperature(
            B.AdditiveNoise(B.BestOf(chain(B, d), num_candidates=2)),
            interval=5,
            num_states=3,
            num_samples=20,
            num_components=2,
        )
    ),
    "target_entropy": Part(lambda B, d: B.TargetEntropyTemperature(d.action, learning_rate=0.01), actor="gaussian"),
}

# learners


SLOPE, VALUE_SCALE = LinearSchedule(0.4, 0.8, 0, 4), LinearSchedule(5.0, 3.0, 0, 6)
"""Coefficients may be schedules over updates."""


def _dacer2(B: Any, d: Dims) -> Any:
    sampler = B.AdditiveNoise(chain(B, d), noise_scale=0.1)
    return B.Learner(
        sampler=sampler,
        actor_objective=B.Sum(
            (1.0, B.ValueThroughSampler(sampler)),
            (LinearSchedule(0.02, 0.01, 1, 5), B.TimeWeightedQGradient(sampler, schedule(d), slope=SLOPE)),
            rollout_of=sampler,
        ),
        critic_objective=B.GaussianTD(clip=LinearSchedule(3.0, 1.0, 0, 3)),
        temperature=B.MixtureEntropyTemperature(sampler, interval=5, num_samples=20, num_iterations=10),
        actor_optimiser=B.Adam(1e-3, max_grad_norm=0.5),
        critic_optimiser=B.Adam(1e-3),
        actor_delay=2,
        reward_scale=0.2,
    )


def _dacer(B: Any, d: Dims) -> Any:
    sampler = B.AdditiveNoise(chain(B, d), noise_scale=0.15)
    return B.Learner(
        sampler=sampler,
        actor_objective=B.ValueThroughSampler(sampler),
        critic_objective=B.GaussianTD(),
        temperature=B.MixtureEntropyTemperature(sampler, interval=10, num_samples=20, num_iterations=10),
        actor_optimiser=B.Adam(1e-3),
        critic_optimiser=B.Adam(1e-3),
        actor_delay=2,
        reward_scale=0.2,
    )


def _reweighted(B: Any, d: Dims, proposal: Callable[[Any], Any], **kw: Any) -> Any:
    sampler = B.AdditiveNoise(B.BestOf(chain(B, d, "linear"), num_candidates=3))
    return B.Learner(
        sampler=sampler,
        actor_objective=B.ReweightedScoreMatching(schedule(d, "linear"), proposal(sampler)),
        critic_objective=B.MeanSquaredTD(),
        temperature=_noise_entropy(B, d, sampler),
        actor_optimiser=B.Adam(LinearSchedule(1e-3, 1e-4, 1, 4)),
        critic_optimiser=B.Adam(1e-3),
        actor_delay=2,
        reward_scale=0.2,
        acting_actor="ema",
        **kw,
    )


def _mean_flow(B: Any, d: Dims) -> Any:
    noisy = B.AdditiveNoise(B.MeanFlowSampler())
    return B.Learner(
        sampler=B.BestOf(noisy, num_candidates=3),
        actor_objective=B.MeanFlowMatching(B.PolicyProposal(rate=0.01, centred=False, tempered=False)),
        critic_objective=B.MeanSquaredTD(),
        temperature=_noise_entropy(B, d, noisy),
        actor_optimiser=B.Adam(LinearSchedule(1e-3, 1e-4, 1, 4)),
        critic_optimiser=B.Adam(1e-3),
        actor_delay=2,
        reward_scale=0.2,
        acting_actor="ema",
        critic_steps_before_actor=1,
    )


def _sac(B: Any, d: Dims) -> Any:
    sampler = B.TanhGaussianSampler()
    return B.Learner(
        sampler=sampler,
        actor_objective=B.EntropyRegularisedValue(sampler),
        critic_objective=B.MeanSquaredTD(soft=True),
        temperature=B.TargetEntropyTemperature(d.action),
        actor_optimiser=B.Adam(1e-3),
        critic_optimiser=B.Adam(1e-3),
        actor_delay=1,
        critic_steps_before_actor=1,
    )


def _redq(B: Any, d: Dims) -> Any:
    sampler = B.TanhGaussianSampler()
    return dataclasses.replace(
        _sac(B, d),
        actor_objective=B.EntropyRegularisedValue(sampler, ensemble="mean"),
        critic_objective=B.MeanSquaredTD(soft=True, ensemble="random_pair"),
        critic_steps_before_actor=0,
    )


def _categorical_sac(B: Any, d: Dims) -> Any:
    objective = B.CategoricalTD("c51", soft=True, ensemble="mean")
    return dataclasses.replace(_sac(B, d), critic_objective=objective, critic_optimiser=B.Adam(1e-2))


def _dime(B: Any, d: Dims) -> Any:
    sampler = B.LangevinSampler(d.steps)
    return B.Learner(
        sampler=sampler,
        actor_objective=B.EntropyRegularisedValue(sampler, ensemble="mean"),
        critic_objective=B.CategoricalTD("c51", soft=True, ensemble="mean"),
        temperature=B.TargetEntropyTemperature(d.action, target_entropy_per_dim=-1.66, interval=3, learning_rate=1e-2),
        actor_optimiser=B.Adam(1e-3, b1=0.5),
        critic_optimiser=B.Adam(1e-2, b1=0.5),
        actor_delay=3,
        critic_steps_before_actor=1,
    )


def _dsact(B: Any, d: Dims) -> Any:
    sampler = B.TanhGaussianSampler()
    return B.Learner(
        sampler=sampler,
        target_actor="ema",
        actor_objective=B.EntropyRegularisedValue(sampler),
        critic_objective=B.GaussianTD(soft=True),
        temperature=B.TargetEntropyTemperature(d.action, interval=2),
        actor_optimiser=B.Adam(1e-3),
        critic_optimiser=B.Adam(1e-3),
        reward_scale=0.2,
    )


def _td3(B: Any, d: Dims) -> Any:
    sampler = B.DeterministicSampler()
    return B.Learner(
        sampler=B.AdditiveNoise(sampler, 0.1),
        target_sampler=B.AdditiveNoise(sampler, 0.6, noise_clip=0.5),
        target_actor="ema",
        actor_objective=B.ValueThroughSampler(sampler, ensemble="first"),
        critic_objective=B.MeanSquaredTD(),
        temperature=B.FixedTemperature(),
        actor_optimiser=B.AdamW(LinearSchedule(1e-3, 1e-4, 1, 4), weight_decay=0.1),  # not TD3's, but some row needs it
        critic_optimiser=B.Adam(1e-3),
        actor_delay=2,
        first_actor_update=1,
        critic_steps_before_actor=1,
    )


def _qvpo(B: Any, d: Dims) -> Any:
    policy = chain(B, d, "cosine")
    proposal = B.QWeightedProposal(policy, 5, num_uniform=2, uniform_weight=LinearSchedule(0.3, 0.1, 0, 4))
    return B.Learner(
        sampler=B.BestOf(policy, num_candidates=2),
        target_sampler=B.BestOf(policy, num_candidates=4),
        target_actor="ema",
        target_ranking="target",
        evaluation_sampler=B.AdditiveNoise(B.BestOf(policy, num_candidates=5)),
        evaluation_ranking="target",  # not QVPO's, nor is the noise, but some row needs them
        actor_objective=B.ReweightedScoreMatching(schedule(d, "cosine"), proposal),
        critic_objective=B.MeanSquaredTD(),
        temperature=B.FixedTemperature(),
        actor_optimiser=B.Adam(1e-3, max_grad_norm=0.5, eps=1e-5),
        critic_optimiser=B.Adam(1e-3, max_grad_norm=0.5, eps=1e-5),
        actor_delay=1,
        critic_steps_before_actor=1,
    )


def _maxentdp(B: Any, d: Dims) -> Any:
    table = NOISE_SCHEDULES["cosine"](d.steps)
    sampler = B.DDPMSampler(table, variance="forward")
    proposal = B.ReverseProposal(sampler, d.particles, 1.0, source="replay")
    return B.Learner(
        sampler=sampler,
        target_sampler=B.LogProbability(sampler, table, num_noises=2),
        evaluation_sampler=B.BestOf(sampler, 3),
        evaluation_ranking="target",
        actor_objective=B.ReweightedScoreMatching(table, proposal),
        critic_objective=B.MeanSquaredTD(soft=True),
        temperature=B.FixedTemperature(0.2),
        actor_optimiser=B.Adam(1e-3),
        critic_optimiser=B.Adam(1e-3),
        actor_delay=1,
        critic_steps_before_actor=1,
    )


def _dipo(B: Any, d: Dims) -> Any:
    policy = chain(B, d, "cosine", start_scale=1.0)
    return B.Learner(
        sampler=policy,
        evaluation_sampler=chain(B, d, "cosine", start_scale=1.0, variance="zero"),
        target_actor="ema",
        actor_objective=B.ReweightedScoreMatching(
            schedule(d, "cosine"), _improved_replay(B, d, learning_rate=0.1, max_grad_norm=0.03)
        ),
        critic_objective=B.MeanSquaredTD(),
        temperature=B.FixedTemperature(),
        actor_optimiser=B.Adam(1e-3, max_grad_norm=0.5, eps=1e-5),
        critic_optimiser=B.Adam(1e-3, max_grad_norm=0.5, eps=1e-5),
        actor_delay=2,  # not DIPO's, but the table must pass updates without the actor
        critic_steps_before_actor=1,
    )


BETWEEN = {"critic_steps": 2, "critic_steps_before_actor": 1}
"""The actor sees the critic between its two steps, as in the official DPMD code."""

LEARNERS: dict[str, Part] = {
    "dacer2": Part(_dacer2, critic="gaussian"),
    "dacer": Part(_dacer, critic="gaussian"),
    "sdac": Part(lambda B, d: _reweighted(B, d, lambda s: B.ReverseProposal(s, 4, VALUE_SCALE))),
    "dpmd": Part(lambda B, d: _reweighted(B, d, lambda s: B.PolicyProposal(rate=0.01), **BETWEEN)),
    "rfm": Part(
        lambda B, d: _reweighted(
            B, d, lambda s: B.ReverseProposal(s, 4, VALUE_SCALE, False, gradient_weight="minimum_variance", rate=0.2)
        )
    ),
    "meanflow": Part(_mean_flow, actor="mean_velocity"),
    "maxentdp": Part(_maxentdp),
    "qvpo": Part(_qvpo),
    "dipo": Part(_dipo),
    "sac": Part(_sac, actor="gaussian"),
    "categorical": Part(_categorical_sac, actor="gaussian", critic="categorical"),
    "dime": Part(_dime, actor="langevin", critic="categorical"),
    "redq": Part(_redq, actor="gaussian", critic="three"),
    "dsact": Part(_dsact, actor="gaussian", critic="gaussian"),
    "td3": Part(_td3, actor="deterministic"),
    "sac_simba": Part(_sac, actor="simba_gaussian", critic="simba"),
    "sac_normalised": Part(
        lambda B, d: dataclasses.replace(_sac(B, d), obs_normaliser=B.Standardiser(d.obs, eps=0.1)), actor="gaussian"
    ),
}


def moments(dims: Dims = DIMS) -> dict[str, np.ndarray]:
    """Of observations, as a run has them: all entries have their own."""
    return {"count": np.asarray(10.0), "mean": np.linspace(-1, 1, dims.obs), "var": np.linspace(0.2, 3, dims.obs)}


def with_moments(engine: Any, state: Any, dims: Dims = DIMS) -> Any:
    """The state with `moments`, where its learner normalises observations."""
    return state if engine.learner.obs_normaliser is None else engine.set_obs_moments(state, moments(dims))


def changed(B: Any, engine: Any, **change: Any) -> Any:
    """An engine whose learner differs in some arguments."""
    return B.Engine(dataclasses.replace(engine.learner, **change))


def make_engine(B: Any, name: str, dims: Dims = DIMS, key: int = 1) -> tuple[Any, Any]:
    """(engine, fresh state) of a row of `LEARNERS`; the same key gives the same state in every backend."""
    part = LEARNERS[name]
    engine = B.Engine(part.make(B, dims))
    state = engine.init(make_actor(B, part, key, dims), make_critic(B, part, key + 1, dims))
    return engine, with_moments(engine, state, dims)


# batches and noise


def make_batch(
    rng: np.random.Generator,
    dims: Dims = DIMS,
    *,
    leading: tuple[int, ...] = (),
    magnitude: float = 1.0,
    termination: float = 0.3,
    filled: bool = True,
    dtype: Any = np.float64,
) -> Batch:
    """A NumPy batch [*leading batch ...].

    Args:
        rng: source of all values.
        dims: sizes.
        leading: axes before the batch axis, such as (K,) for `Engine.update`.
        magnitude: scale of observations and rewards.
        termination: probability of a discount of 0; elsewhere it is 0.99.
        filled: with `next_rollout` and `weight`, as an objective sees it; False: as a learner does.
        dtype: of all floating arrays.
    """
    axes = (*leading, dims.batch)

    def normal(*shape: int) -> np.ndarray:
        return (magnitude * rng.standard_normal((*axes, *shape))).astype(dtype)

    def action() -> np.ndarray:
        return rng.uniform(-1, 1, (*axes, dims.action)).astype(dtype)

    batch = Batch(
        obs=normal(dims.obs),
        action=action(),
        reward=normal(),
        next_obs=normal(dims.obs),
        discount=(0.99 * (rng.random(axes) >= termination)).astype(dtype),
        # from a stream of its own; some come again in the batch, and in the next one
        number=rng.spawn(1)[0].integers(0, 2 * dims.batch, axes, np.int32),
    )
    if filled:
        rollout = Rollout(action(), log_prob=rng.standard_normal(axes).astype(dtype))
        weight = np.broadcast_to(np.linspace(0.5, 1.5, dims.batch, dtype=dtype), axes).copy()
        batch = batch._replace(next_rollout=rollout, weight=weight)
    return batch


def make_noise(rng: np.random.Generator, part: Any, dims: Dims = DIMS, dtype: Any = np.float64) -> dict[str, Any]:
    """NumPy noise for a sampler, objective, temperature, learner or engine, for one batch of actions."""
    return draw(rng, getattr(part, "learner", part).noise_spec(dims.shape), dtype)


def randomise(B: Any, module: Any, rng: np.random.Generator, magnitude: float = 1.0, dtype: Any = np.float64) -> Any:
    """The network with `random_parameters`: the same for all backends with equal generators."""
    shapes = {name: array.shape for name, array in sorted(B.to_arrays(module).items())}
    arrays = random_parameters(rng, shapes, magnitude)
    return B.from_arrays(module, {name: array.astype(dtype) for name, array in arrays.items()})
