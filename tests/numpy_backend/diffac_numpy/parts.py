"""Samplers, objectives and temperatures: the reference's, with checked arguments and without pullbacks.

There is a function for each declared part. It checks the arguments and wraps the reference's part of the same name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffac.errors import check_present
from diffac.parts import PARTS, critics, normalisers, objectives, samplers, temperatures
from diffac.parts.critics import LOG_PROB, next_rollout
from diffac.parts.schedules import KEEP_SIGNAL, check_signal, prediction_of
from diffac.protocols import Loss, Policy, Rollout
from diffac.testing import reference
from diffac_numpy.networks import lifted


class Part:
    """A part of the reference; its fields, `noise_spec` and `init_state` are the reference's own."""

    def __init__(self, bare: Any, sampler: Any = None) -> None:
        self.bare = bare
        self.sampler_given = sampler

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "bare":  # an unfinished copy has no fields
            raise AttributeError(name)
        return getattr(self.bare, name)


def bare(part: Any) -> Any:
    """The reference's part, also in a pair of a sum; a proposal stays, which the reference calls as it is."""
    if type(part) is tuple:
        return tuple(map(bare, part))
    return part if isinstance(part, Proposal) else getattr(part, "bare", part)


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


class ActorObjective(Part):
    """Returns the loss alone; `testing.value_and_grad` takes the gradient too."""

    @property
    def rollout_sampler(self) -> Any:
        return None if self.bare.rollout_sampler is None else self.sampler_given

    def __call__(self, actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        return self.bare(lifted(actor), lifted(critic), batch, noise, temperature, state)[0]


class Proposal(Part):
    """Refuses what it cannot work with."""

    def __call__(self, *arguments: Any) -> Any:
        _, _, batch, *_, schedule = arguments
        if isinstance(self.bare, reference.ReverseProposal):
            check_signal(schedule, KEEP_SIGNAL)
        elif isinstance(self.bare, reference.ImprovedReplayProposal):
            PARTS["ImprovedReplayProposal"](self.bare.capacity, self.bare.action_dim).numbers(batch)
        else:
            next_rollout(self.bare, batch)
        return self.bare(*arguments)


class CriticObjective(Part):
    """Returns the loss alone."""

    def init_state(self, critic: Any) -> Any:
        if isinstance(self.bare, reference.GaussianTD | reference.CategoricalTD):
            PARTS[type(self.bare).__name__]().init_state(critic)  # refuses other critics
        return self.bare.init_state(lifted(critic))

    def __call__(self, critic: Any, target_critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        policy = next_rollout(self.bare, batch)
        if getattr(self.bare, "soft", False):
            part, what = f"{type(self.bare).__name__}(soft=True)", "batch.next_rollout.log_prob"
            check_present(part, what, policy.log_prob, LOG_PROB)
        return self.bare(lifted(critic), lifted(target_critic), batch, noise, temperature, state)[0]


class Normaliser(Part):
    """The reference's."""

    def __call__(self, obs: Any, moments: Any) -> Any:
        return self.bare(obs, moments)


class Temperature(Part):
    """Takes this backend's networks."""

    def update(self, state: Any, policy: Policy, obs: Any, noise: Any, log_prob: Any = None) -> Any:
        actor, critic, temperature = policy
        return self.bare.update(state, Policy(lifted(actor), lifted(critic), temperature), obs, noise, log_prob)


def maker(name: str, kind: type[Part]) -> Callable[..., Part]:
    """The constructor of a declared part."""
    declared = PARTS[name]
    arguments = declared.arguments.items()
    signature = inspect.Signature([inspect.Parameter(n, a.kind, default=a.default) for n, a in arguments])

    def make(*args: Any, **kw: Any) -> Part:
        given = signature.bind(*args, **kw)
        given.apply_defaults()
        declared(*given.args, **given.kwargs)  # which checks them
        named = {key: bare(value) for key, value in given.kwargs.items()}
        return kind(getattr(reference, name)(*map(bare, given.args), **named), given.arguments.get("sampler"))

    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


KINDS = {
    samplers: {samplers.Part: Sampler},
    objectives: {objectives.ProposalPart: Proposal, objectives.Part: ActorObjective},
    critics: {critics.Part: CriticObjective},
    normalisers: {normalisers.Part: Normaliser},
    temperatures: {temperatures.Part: Temperature},
}
"""What is declared in a file as a subclass of it, the first that fits -> what it becomes."""

MAKERS = {
    name: maker(name, next(kind for base, kind in kinds.items() if issubclass(PARTS[name], base)))
    for module, kinds in KINDS.items()
    for name in module.__all__
    if name in PARTS
}
globals().update(MAKERS)


def mixture_entropy(
    samples: Any, num_components: int = 3, num_iterations: int = 100, covariance_floor: float = 1e-6
) -> Any:
    temperatures.check_mixture(num_components, num_iterations, covariance_floor)
    return reference.mixture_entropy(samples, num_components, num_iterations, covariance_floor)


__all__ = [*MAKERS, "mixture_entropy"]  # pyright: ignore[reportUnsupportedDunderAll]
