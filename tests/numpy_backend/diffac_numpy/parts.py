"""Samplers, objectives and temperatures: the reference's, with checked arguments and without pullbacks.

Each function below checks the arguments of a part and wraps the reference's part of the same name.
"""

from __future__ import annotations

from typing import Any

from diffac.arguments import check_arguments
from diffac.errors import check_present
from diffac.parts import critics
from diffac.parts.critics import LOG_PROB, next_rollout
from diffac.protocols import Loss, Policy, Rollout
from diffac.schedules import check_signal, prediction_of
from diffac.testing import reference
from diffac_numpy.networks import lifted


class Part:
    """A part of the reference; its fields, `noise_spec` and `init_state` are the reference's own."""

    def __init__(self, bare: Any) -> None:
        self.bare = bare

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "bare":  # an unfinished copy has no fields
            raise AttributeError(name)
        return getattr(self.bare, name)


def bare(part: Any) -> Any:
    return part.bare if isinstance(part, Part) else part


class Sampler(Part):
    """Returns rollouts and actions alone."""

    def rollout(self, policy: Policy, obs: Any, noise: Any) -> Rollout:
        actor, critic, temperature = policy
        for part in self.layers():
            if isinstance(part, reference.BestOf):
                check_present("BestOf", "a critic to rank its candidates", critic, "pass Policy(actor, critic)")
            if isinstance(part, reference.AdditiveNoise):
                check_present(
                    "AdditiveNoise",
                    "the temperature to scale its noise",
                    temperature,
                    "pass Policy(actor, critic, temperature)",
                )
            if hasattr(part, "schedule") and prediction_of(actor) == "eps":
                check_signal(part.schedule)
        return self.bare.rollout(Policy(lifted(actor), lifted(critic), temperature), obs, noise)[0]

    def __call__(self, policy: Policy, obs: Any, noise: Any) -> Any:
        return self.rollout(policy, obs, noise).action

    def layers(self) -> list[Any]:
        """The reference's samplers from the outermost to the innermost."""
        parts = [self.bare]
        while hasattr(parts[-1], "sampler"):
            parts.append(parts[-1].sampler)
        return parts


def DDPMSampler(schedule: Any, start_scale: float | None = None) -> Sampler:
    check_arguments("DDPMSampler", locals())
    return Sampler(reference.DDPMSampler(schedule, start_scale))


def DDIMSampler(schedule: Any, start_scale: float | None = None, num_steps: int | None = None) -> Sampler:
    check_arguments("DDIMSampler", locals())
    return Sampler(reference.DDIMSampler(schedule, start_scale, num_steps))


def DeterministicSampler() -> Sampler:
    check_arguments("DeterministicSampler", locals())
    return Sampler(reference.DeterministicSampler())


def TanhGaussianSampler(epsilon: float = 0.0) -> Sampler:
    check_arguments("TanhGaussianSampler", locals())
    return Sampler(reference.TanhGaussianSampler(epsilon))


def BestOf(sampler: Any, num_candidates: int = 32, ensemble: str = "min") -> Sampler:
    check_arguments("BestOf", locals())
    return Sampler(reference.BestOf(bare(sampler), num_candidates, ensemble))


def AdditiveNoise(
    sampler: Any, noise_scale: float = 0.1, clip: bool = True, noise_clip: float | None = None
) -> Sampler:
    check_arguments("AdditiveNoise", locals())
    return Sampler(reference.AdditiveNoise(bare(sampler), noise_scale, clip, noise_clip))


class ActorObjective(Part):
    """Returns the loss alone; `testing.value_and_grad` takes the gradient too."""

    def __call__(self, actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        return self.bare(lifted(actor), lifted(critic), batch, noise, temperature, state)[0]


def ValueThroughSampler(sampler: Any, relative: bool = False, ensemble: str = "min") -> ActorObjective:
    check_arguments("ValueThroughSampler", locals())
    return ActorObjective(reference.ValueThroughSampler(bare(sampler), relative, ensemble))


def TimeWeightedQGradient(
    sampler: Any,
    schedule: Any,
    slope: float = 0.4,
    intercept: float = -1.8,
    space: str = "score",
    source: str = "chain",
    time_offset: int = 1,
    contractive_step: float | None = None,
    ensemble: str = "min",
) -> ActorObjective:
    check_arguments("TimeWeightedQGradient", locals())
    numbers = (slope, intercept, space, source, time_offset, contractive_step, ensemble)
    return ActorObjective(reference.TimeWeightedQGradient(bare(sampler), schedule, *numbers))


def ReweightedScoreMatching(schedule: Any, proposal: Any) -> ActorObjective:
    check_arguments("ReweightedScoreMatching", locals())
    return ActorObjective(reference.ReweightedScoreMatching(schedule, proposal))


class Proposal(Part):
    """Refuses what it cannot work with."""

    def __call__(self, *arguments: Any) -> Any:
        _, _, batch, *_, schedule = arguments
        if isinstance(self.bare, reference.ReverseProposal):
            check_signal(schedule)
        else:
            next_rollout(self.bare, batch)
        return self.bare(*arguments)


def ReverseProposal(
    sampler: Any,
    num_particles: int = 64,
    value_scale: float = 5.0,
    truncated: bool = True,
    ensemble: str = "min",
) -> Proposal:
    check_arguments("ReverseProposal", locals())
    return Proposal(reference.ReverseProposal(bare(sampler), num_particles, value_scale, truncated, ensemble))


def PolicyProposal(rate: float = 0.001, faithful_normalisation: bool = False, ensemble: str = "min") -> Proposal:
    check_arguments("PolicyProposal", locals())
    return Proposal(reference.PolicyProposal(rate, faithful_normalisation, ensemble))


def EntropyRegularisedValue(sampler: Any, ensemble: str = "min") -> ActorObjective:
    check_arguments("EntropyRegularisedValue", locals())
    return ActorObjective(reference.EntropyRegularisedValue(bare(sampler), ensemble))


def Sum(*terms: tuple[float, Any]) -> ActorObjective:
    check_arguments("Sum", locals())
    return ActorObjective(reference.Sum(*((weight, bare(term)) for weight, term in terms)))


class CriticObjective(Part):
    """Returns the loss alone."""

    def init_state(self, critic: Any) -> Any:
        if isinstance(self.bare, reference.GaussianTD):
            critics.GaussianTD().init_state(critic)  # refuses other critics
        return self.bare.init_state(lifted(critic))

    def __call__(self, critic: Any, target_critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        policy = next_rollout(self.bare, batch)
        if getattr(self.bare, "soft", False):
            what = "batch.next_rollout.log_prob"
            check_present("MeanSquaredTD(soft=True)", what, policy.log_prob, LOG_PROB)
        return self.bare(lifted(critic), lifted(target_critic), batch, noise, temperature, state)[0]


def MeanSquaredTD(soft: bool = False, factor: float = 1.0, ensemble: str = "min") -> CriticObjective:
    check_arguments("MeanSquaredTD", locals())
    return CriticObjective(reference.MeanSquaredTD(soft, factor, ensemble))


def GaussianTD(tau: float = 0.005, clip: float = 3.0) -> CriticObjective:
    check_arguments("GaussianTD", locals())
    return CriticObjective(reference.GaussianTD(tau, clip))


class Temperature(Part):
    """Takes this backend's networks."""

    def update(self, state: Any, policy: Policy, obs: Any, noise: Any, log_prob: Any = None) -> Any:
        actor, critic, temperature = policy
        return self.bare.update(state, Policy(lifted(actor), lifted(critic), temperature), obs, noise, log_prob)


def FixedTemperature(temperature: float = 1.0) -> Temperature:
    check_arguments("FixedTemperature", locals())
    return Temperature(reference.FixedTemperature(temperature))


def NoiseEntropyTemperature(
    action_dim: int,
    sampler: Any,
    initial: float = 5.0,
    target_entropy_per_dim: float = -0.9,
    interval: int = 250,
    learning_rate: float = 7e-3,
    num_states: int = 16,
    num_samples: int = 128,
) -> Temperature:
    check_arguments("NoiseEntropyTemperature", locals())
    numbers = (initial, target_entropy_per_dim, interval, learning_rate, num_states, num_samples)
    return Temperature(reference.NoiseEntropyTemperature(action_dim, bare(sampler), *numbers))


def MixtureEntropyTemperature(
    sampler: Any,
    initial: float = 3.0,
    target_entropy_per_dim: float = -0.9,
    interval: int = 10_000,
    learning_rate: float = 0.03,
    num_states: int = 64,
    num_samples: int = 200,
    num_components: int = 3,
    num_iterations: int = 100,
) -> Temperature:
    check_arguments("MixtureEntropyTemperature", locals())
    numbers = (initial, target_entropy_per_dim, interval, learning_rate, num_states, num_samples)
    return Temperature(reference.MixtureEntropyTemperature(bare(sampler), *numbers, num_components, num_iterations))


def TargetEntropyTemperature(
    action_dim: int,
    initial: float = 1.0,
    target_entropy_per_dim: float = -1.0,
    interval: int = 1,
    learning_rate: float = 3e-4,
) -> Temperature:
    check_arguments("TargetEntropyTemperature", locals())
    numbers = (initial, target_entropy_per_dim, interval, learning_rate)
    return Temperature(reference.TargetEntropyTemperature(action_dim, *numbers))


def mixture_entropy(
    samples: Any, num_components: int = 3, num_iterations: int = 100, covariance_floor: float = 1e-6
) -> Any:
    check_arguments("mixture_entropy", locals())
    return reference.mixture_entropy(samples, num_components, num_iterations, covariance_floor)
