"""What the contracts do not allow: each rule with its reason and the sentence by which the library refuses."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .axes import AXES, Choice, choices

DENOISERS = tuple(actor for actor in AXES["actor"] if actor.startswith("denoiser"))
CHAINS = tuple(name for name in AXES["sampler"] if any(method in name for method in ("DDPM", "DDIM", "Heun")))
GAUSSIANS = ("tanh-Gaussian", "best of tanh-Gaussian")
WITH_STATES = tuple(sampler for sampler in CHAINS if sampler != "DDIM, two steps")
OF_CHAIN = ("Q-gradient, chain", "value and Q-gradient")
OF_ANY = ("value through the sampler", "entropy and value")
OF_DENOISER = tuple(objective for objective in AXES["objective"] if objective not in (*OF_ANY, "mean flow"))

NO_DENOISER = (
    r"(calls the actor as actor\(obs, noisy, t\)|needs an actor that predicts 'eps' or 'velocity' or 'action')"
)


class Rule(NamedTuple):
    """A reason to refuse a combination."""

    reason: str
    """For the page."""
    forbids: Callable[[Choice], bool]
    says: str
    """A part of the sentence, as a regular expression."""


def _log_prob_known(choice: Choice) -> bool:
    return choice.sampler in (*GAUSSIANS, "DDPM, log-probability", "Langevin") and choice.exploration == "none"


RULES: tuple[Rule, ...] = (
    Rule(
        "DDPM, DDIM and Heun run a denoiser of one time backwards; other actors have no time, or two, or say a drift.",
        lambda c: c.sampler in CHAINS and c.actor not in DENOISERS,
        NO_DENOISER,
    ),
    Rule(
        "Heun's method here is for a flow, alpha = 1 - s and sigma = s.",
        lambda c: c.sampler == "Heun" and c.schedule != "flow",
        r"HeunSampler needs a flow",
    ),
    Rule(
        "A mean flow's sampler steps from one time to another, by a network that is told both.",
        lambda c: c.sampler == "mean flow" and c.actor != "mean velocity",
        r"MeanFlowSampler calls the actor as actor\(obs, noisy, t, r\)",
    ),
    Rule(
        "A mean flow's loss is that of a network of two times.",
        lambda c: c.objective == "mean flow" and c.actor != "mean velocity",
        r"MeanFlowMatching calls the actor as actor\(obs, noisy, t, r\)",
    ),
    Rule(
        "Langevin steps follow a drift, by steps whose size the network knows too.",
        lambda c: c.sampler == "Langevin" and c.actor != "Langevin drift",
        r"LangevinSampler (calls the actor as actor\(obs, noisy, t\)|needs an actor that predicts 'drift')",
    ),
    Rule(
        "A deterministic sampler takes the actor's action as it is, so the actor must give one action.",
        lambda c: c.sampler == "deterministic" and c.actor != "deterministic",
        r"DeterministicSampler (calls the actor as actor\(obs\)|needs an actor that returns one action)",
    ),
    Rule(
        "A tanh-Gaussian sampler needs the mean and the standard deviation that a Gaussian actor gives.",
        lambda c: c.sampler in GAUSSIANS and c.actor != "Gaussian",
        r"TanhGaussianSampler (calls the actor as actor\(obs\)|needs an actor that returns \(mean, log_std\))",
    ),
    Rule(
        "Q-gradient and score matching are losses of a denoiser at noisy actions.",
        lambda c: c.objective in OF_DENOISER and c.actor not in DENOISERS,
        NO_DENOISER,
    ),
    Rule(
        "A flow leaves no signal at its last time, where a predicted noise says nothing about the action.",
        lambda c: c.schedule == "flow" and c.actor == "denoiser of noise" and c.sampler in CHAINS,
        r"alpha\(3\) of the schedule is 0",
    ),
    Rule(
        "Reverse samples are guesses of the action behind a noisy one; where no signal is left there is none.",
        lambda c: c.schedule == "flow" and c.objective.startswith("reverse samples"),
        r"alpha\(3\) of the schedule is 0",
    ),
    Rule(
        "The log-probability of a chain is a sum over times, in which the last one leaves some signal.",
        lambda c: c.schedule == "flow" and c.sampler == "DDPM, log-probability",
        r"alpha\(3\) of the schedule is 0",
    ),
    Rule(
        "The Q-gradient at the states of the chain needs one state for each time of the schedule.",
        lambda c: c.objective in OF_CHAIN and c.sampler not in WITH_STATES,
        r"needs a rollout with the states at all 4 times",
    ),
    Rule(
        "The entropy in the actor's loss needs log-probabilities, which are known without noise on top.",
        lambda c: c.objective == "entropy and value" and not _log_prob_known(c),
        r"EntropyRegularisedValue needs rollout\.log_prob",
    ),
    Rule(
        "The entropy in the critic's target needs them, too.",
        lambda c: c.critic.endswith("soft") and not _log_prob_known(c),
        r"soft=True\) needs batch\.next_rollout\.log_prob",
    ),
    Rule(
        "The Gaussian critic loss needs a critic that knows a standard deviation.",
        lambda c: c.critic == "twin, Gaussian loss",
        r"GaussianTD needs a critic with a method `distribution`",
    ),
    Rule(
        "The categorical critic loss needs a critic that knows probabilities of returns.",
        lambda c: c.critic == "twin, categorical loss",
        r"CategoricalTD needs a critic with a method `logits`",
    ),
    Rule(
        "A temperature that steers the entropy of the exploration noise needs exploration noise.",
        lambda c: c.temperature == "noise entropy" and c.exploration == "none",
        r"NoiseEntropyTemperature needs an AdditiveNoise",
    ),
    Rule(
        "A temperature that steers the policy's entropy needs a policy that is random.",
        lambda c: c.temperature == "mixture entropy" and c.sampler == "deterministic" and c.exploration == "none",
        r"needs a sampler whose actions are random",
    ),
    Rule(
        "A temperature that steps on the log-probabilities of the actor's loss needs a loss that knows them.",
        lambda c: c.temperature == "target entropy" and c.objective != "entropy and value",
        r"TargetEntropyTemperature steps on the log-probabilities",
    ),
)


def broken(choice: Choice) -> tuple[int, ...]:
    """Numbers, from 0 on, of the rules that a combination breaks; none: it is allowed."""
    return tuple(i for i, rule in enumerate(RULES) if rule.forbids(choice))


@functools.cache
def by_rules() -> Mapping[tuple[int, ...], Sequence[Choice]]:
    """The numbers of the rules that combinations break -> these combinations."""
    found: dict[tuple[int, ...], list[Choice]] = {}
    for choice in choices():
        found.setdefault(broken(choice), []).append(choice)
    return found


def allowed() -> Sequence[Choice]:
    """The combinations that no rule forbids."""
    return by_rules()[()]


def refused(rule: int) -> Sequence[Choice]:
    """The combinations that this rule alone forbids."""
    return by_rules()[rule,]


def refused_by_several() -> Iterator[Choice]:
    """Those that more than one forbids, a hundred of each set of rules at most."""
    return (choice for rules, all_of_it in by_rules().items() if len(rules) > 1 for choice in all_of_it[:100])


def covering(combinations: Iterable[Choice], strength: int) -> list[Choice]:
    """Some of them, in which every `strength` values that occur together in one of them do so at least once."""
    shuffled = list(combinations)
    random.Random(0).shuffle(shuffled)
    covered: set[Any] = set()
    chosen = []
    fields = list(itertools.combinations(range(len(Choice._fields)), strength))
    for least in range(len(fields), 0, -1):  # first those that bring most
        for choice in shuffled:
            new = {(at, tuple(choice[i] for i in at)) for at in fields} - covered
            if len(new) >= least:
                covered |= new
                chosen.append(choice)
    return chosen
