"""Samplers, objectives and temperatures: the reference's, with checked arguments and without pullbacks.

Each function below checks the arguments of a part and wraps the reference's part of the same name.
"""

from __future__ import annotations

from typing import Any

from diffac.errors import UsageError, check_positive, unknown
from diffac.protocols import Loss, Rollout
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

    def rollout(self, actor: Any, obs: Any, noise: Any, *, critic: Any = None, temperature: Any = None) -> Rollout:
        for part in self.layers():
            if isinstance(part, reference.BestOf) and critic is None:
                raise UsageError("BestOf ranks its candidates with a critic: pass critic=")
            if isinstance(part, reference.AdditiveNoise) and temperature is None:
                raise UsageError("AdditiveNoise scales its noise with the temperature: pass temperature=")
        return self.bare.rollout(lifted(actor), obs, noise, critic=lifted(critic), temperature=temperature)[0]

    def __call__(self, actor: Any, obs: Any, noise: Any, *, critic: Any = None, temperature: Any = None) -> Any:
        return self.rollout(actor, obs, noise, critic=critic, temperature=temperature).action

    def layers(self) -> list[Any]:
        """The reference's samplers from the outermost to the innermost."""
        parts = [self.bare]
        while hasattr(parts[-1], "sampler"):
            parts.append(parts[-1].sampler)
        return parts


def DDPMSampler(schedule: Any, start_scale: float = 1.0) -> Sampler:
    check_positive("start_scale", start_scale, zero_allowed=True)
    return Sampler(reference.DDPMSampler(schedule, start_scale))


def DDIMSampler(schedule: Any, start_scale: float = 1.0, num_steps: int | None = None) -> Sampler:
    check_positive("start_scale", start_scale, zero_allowed=True)
    if num_steps is not None and not 1 <= num_steps <= schedule.num_steps:
        raise UsageError(f"num_steps must be in 1..{schedule.num_steps}, got {num_steps}")
    return Sampler(reference.DDIMSampler(schedule, start_scale=start_scale, num_steps=num_steps))


def TanhGaussianSampler(epsilon: float = 0.0) -> Sampler:
    check_positive("epsilon", epsilon, zero_allowed=True)
    return Sampler(reference.TanhGaussianSampler(epsilon))


def BestOf(sampler: Any, num_candidates: int = 32) -> Sampler:
    check_positive("num_candidates", num_candidates)
    return Sampler(reference.BestOf(bare(sampler), num_candidates))


def AdditiveNoise(sampler: Any, noise_scale: float = 0.1, clip: bool = True) -> Sampler:
    check_positive("noise_scale", noise_scale, zero_allowed=True)
    return Sampler(reference.AdditiveNoise(bare(sampler), noise_scale, clip))


class ActorObjective(Part):
    """Returns the loss alone; `testing.value_and_grad` takes the gradient too."""

    def __call__(self, actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        return self.bare(lifted(actor), lifted(critic), batch, noise, temperature, state)[0]


def ValueThroughSampler(sampler: Any, relative: bool = False) -> ActorObjective:
    return ActorObjective(reference.ValueThroughSampler(bare(sampler), relative))


def TimeWeightedQGradient(sampler: Any, schedule: Any, **options: Any) -> ActorObjective:
    for name, allowed in (("space", ("score", "eps")), ("source", ("chain", "forward", "replay"))):
        if options.get(name, allowed[0]) not in allowed:
            raise unknown(name, options[name], allowed)
    if options.get("contractive_step") is not None:
        check_positive("contractive_step", options["contractive_step"])
    return ActorObjective(reference.TimeWeightedQGradient(bare(sampler), schedule, **options))


def ReweightedScoreMatching(schedule: Any, proposal: Any) -> ActorObjective:
    return ActorObjective(reference.ReweightedScoreMatching(schedule, bare(proposal)))


def ReverseProposal(sampler: Any, num_particles: int = 64, value_scale: float = 5.0, truncated: bool = True) -> Part:
    check_positive("num_particles", num_particles)
    check_positive("value_scale", value_scale)
    return Part(reference.ReverseProposal(bare(sampler), num_particles, value_scale, truncated))


def PolicyProposal(rate: float = 0.001, faithful_normalisation: bool = False) -> Part:
    if not 0 < rate < 1:
        raise UsageError(f"rate must be strictly between 0 and 1, got {rate!r}")
    return Part(reference.PolicyProposal(rate, faithful_normalisation))


def EntropyRegularisedValue(sampler: Any) -> ActorObjective:
    return ActorObjective(reference.EntropyRegularisedValue(bare(sampler)))


def Sum(*terms: tuple[float, Any]) -> ActorObjective:
    if not terms:
        raise UsageError("Sum needs at least one term, for example Sum((1.0, ValueThroughSampler(sampler)))")
    return ActorObjective(reference.Sum(*((weight, bare(term)) for weight, term in terms)))


class CriticObjective(Part):
    """Returns the loss alone."""

    def init_state(self, critic: Any) -> Any:
        return self.bare.init_state(lifted(critic))

    def __call__(self, critic: Any, target_critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        return self.bare(lifted(critic), lifted(target_critic), batch, noise, temperature, state)[0]


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise UsageError(f"gamma must be in [0, 1], got {gamma!r}")


def MeanSquaredTD(gamma: float = 0.99, soft: bool = False, factor: float = 1.0) -> CriticObjective:
    _check_gamma(gamma)
    check_positive("factor", factor)
    return CriticObjective(reference.MeanSquaredTD(gamma, soft, factor))


def GaussianTD(gamma: float = 0.99, tau: float = 0.005, clip: float = 3.0) -> CriticObjective:
    _check_gamma(gamma)
    check_positive("clip", clip)
    if not 0 < tau <= 1:
        raise UsageError(f"tau must be in (0, 1], got {tau!r}")
    return CriticObjective(reference.GaussianTD(gamma, tau, clip))


class Temperature(Part):
    """Takes this backend's networks."""

    def update(self, state: Any, actor: Any, critic: Any, obs: Any, noise: Any, log_prob: Any = None) -> Any:
        return self.bare.update(state, lifted(actor), lifted(critic), obs, noise, log_prob)


def FixedTemperature(temperature: float = 1.0) -> Temperature:
    check_positive("temperature", temperature)
    return Temperature(reference.FixedTemperature(temperature))


def NoiseEntropyTemperature(action_dim: int, sampler: Any, *numbers: Any, **options: Any) -> Temperature:
    check_positive("action_dim", action_dim)
    return Temperature(reference.NoiseEntropyTemperature(action_dim, bare(sampler), *numbers, **options))


def MixtureEntropyTemperature(sampler: Any, *numbers: Any, **options: Any) -> Temperature:
    return Temperature(reference.MixtureEntropyTemperature(bare(sampler), *numbers, **options))


def TargetEntropyTemperature(action_dim: int, *numbers: Any, **options: Any) -> Temperature:
    check_positive("action_dim", action_dim)
    return Temperature(reference.TargetEntropyTemperature(action_dim, *numbers, **options))
