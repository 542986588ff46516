"""The axes of the matrix: what a learner chooses, and how it is put together from one choice of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffac.testing.parts import NOISE_SCHEDULES, Dims, Part

Make = Callable[[Any, Dims, Any], Any]
"""From a backend, sizes and a noise schedule."""

SCHEDULES = ("vp", "flow", "ellipse")
"""Variance-preserving; a flow, which leaves no signal at its last time; neither of the two."""

ACTORS: Mapping[str, str] = {
    "denoiser of noise": "denoiser",
    "denoiser of velocities": "velocity",
    "denoiser of actions": "clean",
    "mean velocity": "mean_velocity",
    "Langevin drift": "langevin",
    "deterministic": "deterministic",
    "Gaussian": "gaussian",
}
"""Name on the page -> row of `diffac.testing.parts.ACTORS`."""

SAMPLERS: Mapping[str, Make] = {
    "DDPM": lambda B, d, schedule: B.DDPMSampler(schedule),
    "DDPM, states clipped": lambda B, d, schedule: B.DDPMSampler(schedule, 1.0, "state", "forward"),
    "DDIM": lambda B, d, schedule: B.DDIMSampler(schedule),
    "DDIM, two steps": lambda B, d, schedule: B.DDIMSampler(schedule, num_steps=2),
    "Heun": lambda B, d, schedule: B.HeunSampler(schedule),
    "mean flow": lambda B, d, schedule: B.MeanFlowSampler(2),
    "Langevin": lambda B, d, schedule: B.LangevinSampler(3),
    "DDPM, log-probability": lambda B, d, schedule: B.LogProbability(B.DDPMSampler(schedule), schedule, 2),
    "best of DDPM": lambda B, d, schedule: B.BestOf(B.DDPMSampler(schedule), 2),
    "deterministic": lambda B, d, schedule: B.DeterministicSampler(),
    "tanh-Gaussian": lambda B, d, schedule: B.TanhGaussianSampler(),
    "best of tanh-Gaussian": lambda B, d, schedule: B.BestOf(B.TanhGaussianSampler(), 2),
}
"""What acts, and what an objective looks at, but for the exploration noise that the temperature may want."""


MakeObjective = Callable[[Any, Dims, Any, Any], Any]
"""From a backend, sizes, the sampler and the schedule."""


def _q_gradient(**fields: Any) -> MakeObjective:
    return lambda B, d, sampler, schedule: B.TimeWeightedQGradient(sampler, schedule, **fields)


def _matching(proposal: Callable[[Any, Dims, Any], Any], space: str = "eps") -> MakeObjective:
    return lambda B, d, sampler, schedule: B.ReweightedScoreMatching(schedule, proposal(B, d, sampler), space)


def _reverse(**fields: Any) -> Callable[[Any, Dims, Any], Any]:
    return lambda B, d, sampler: B.ReverseProposal(sampler, d.particles, **fields)


OBJECTIVES: Mapping[str, MakeObjective] = {
    "value through the sampler": lambda B, d, sampler, schedule: B.ValueThroughSampler(sampler),
    "Q-gradient, chain": _q_gradient(source="chain"),
    "Q-gradient, forward": _q_gradient(source="forward", space="eps"),
    "Q-gradient, replay": _q_gradient(source="replay", normalised=False, target="eps", space="eps"),
    "reverse samples": _matching(_reverse()),
    "reverse samples, gradient": _matching(_reverse(truncated=False, gradient_weight=1.0)),
    "reverse samples, least variance": _matching(_reverse(truncated=False, gradient_weight="minimum_variance")),
    "reverse samples, replay": _matching(_reverse(source="replay")),
    "best own actions": _matching(lambda B, d, sampler: B.QWeightedProposal(sampler, 2, 1, 0.1)),
    "improved replay": _matching(lambda B, d, sampler: B.ImprovedReplayProposal(7, d.action, 2)),
    "policy's actions": _matching(lambda B, d, sampler: B.PolicyProposal(rate=0.1)),
    "policy's actions, outputs": _matching(lambda B, d, sampler: B.PolicyProposal(rate=0.1), "output"),
    "mean flow": lambda B, d, sampler, schedule: B.MeanFlowMatching(B.PolicyProposal(rate=0.1)),
    "entropy and value": lambda B, d, sampler, schedule: B.EntropyRegularisedValue(sampler),
    "value and Q-gradient": lambda B, d, sampler, schedule: B.Sum(
        (1.0, B.ValueThroughSampler(sampler)),
        (0.1, B.TimeWeightedQGradient(sampler, schedule)),
        rollout_of=sampler,
    ),
}

CRITICS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "twin, squared": ("twin", lambda B: B.MeanSquaredTD()),
    "three, squared, mean": ("three", lambda B: B.MeanSquaredTD(ensemble="mean")),
    "twin, soft": ("twin", lambda B: B.MeanSquaredTD(soft=True)),
    "three, squared, random pair": ("three", lambda B: B.MeanSquaredTD(ensemble="random_pair")),
    "Gaussian": ("gaussian", lambda B: B.GaussianTD()),
    "Gaussian, soft": ("gaussian", lambda B: B.GaussianTD(soft=True)),
    "categorical": ("categorical", lambda B: B.CategoricalTD()),
    "categorical, C51": ("categorical", lambda B: B.CategoricalTD("c51")),
    "categorical, soft": ("categorical", lambda B: B.CategoricalTD(soft=True)),
    "twin, Gaussian loss": ("twin", lambda B: B.GaussianTD()),
    "twin, categorical loss": ("twin", lambda B: B.CategoricalTD()),
}
"""Row of `diffac.testing.parts.CRITICS`, and the critic's objective."""

TEMPERATURES: Mapping[str, Callable[[Any, Dims, Any], Any]] = {
    "fixed": lambda B, d, sampler: B.FixedTemperature(0.3),
    "noise entropy": lambda B, d, sampler: B.NoiseEntropyTemperature(d.action, sampler, interval=1),
    "mixture entropy": lambda B, d, sampler: B.MixtureEntropyTemperature(
        sampler, interval=1, num_states=2, num_samples=8, num_components=2, num_iterations=3
    ),
    "target entropy": lambda B, d, sampler: B.TargetEntropyTemperature(d.action),
}


class Choice(NamedTuple):
    """One of each."""

    objective: str
    sampler: str
    actor: str
    schedule: str
    critic: str
    temperature: str
    exploration: str


AXES: Mapping[str, Sequence[str]] = {
    "objective": tuple(OBJECTIVES),
    "sampler": tuple(SAMPLERS),
    "actor": tuple(ACTORS),
    "schedule": SCHEDULES,
    "critic": tuple(CRITICS),
    "temperature": tuple(TEMPERATURES),
    "exploration": ("none", "additive"),
}
"""The fields of a `Choice`, and what each may be."""


def choices() -> Iterator[Choice]:
    """All of them."""
    return (Choice(*values) for values in itertools.product(*AXES.values()))


def part(choice: Choice) -> Part:
    """A row of learners, as `diffac.testing.parts.LEARNERS` has them."""
    critic, make_critic_objective = CRITICS[choice.critic]

    def make(B: Any, d: Dims) -> Any:
        schedule = NOISE_SCHEDULES[choice.schedule](d.steps)
        sampler = SAMPLERS[choice.sampler](B, d, schedule)
        if choice.exploration == "additive":
            sampler = B.AdditiveNoise(sampler, 0.2)
        return B.Learner(
            sampler=sampler,
            actor_objective=OBJECTIVES[choice.objective](B, d, sampler, schedule),
            critic_objective=make_critic_objective(B),
            temperature=TEMPERATURES[choice.temperature](B, d, sampler),
            actor_optimiser=B.Adam(1e-3),
            critic_optimiser=B.Adam(1e-3),
            actor_delay=1,
        )

    return Part(make, actor=ACTORS[choice.actor], critic=critic)
