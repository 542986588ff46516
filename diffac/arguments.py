"""The arguments of every part, declared once: names, order, defaults, and which values make sense.

A backend checks what it is given with `check_arguments`, so that all backends refuse the same things with the same
words; the conformance kit compares the constructors of a backend with `CONSTRUCTORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffac.errors import UsageError, check_choice, check_count, check_flag, check_number
from diffac.schedules import LinearSchedule, ScheduleTable

ACTIVATIONS = ("gelu", "mish", "relu", "silu", "tanh")
REQUIRED = inspect.Parameter.empty


class Argument(NamedTuple):
    """One argument of a constructor."""

    check: Callable[[str, Any], None]
    """Takes its name and its value."""
    default: Any = REQUIRED
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    wrong: tuple[Any, ...] = ()
    """Values that are refused, for tests."""

    def by_keyword(self) -> Argument:
        """The same, which must be named in a call."""
        return self._replace(kind=inspect.Parameter.KEYWORD_ONLY)


_NO_NUMBERS = (float("nan"), float("inf"), "1", None, True, [1.0])


def _number(allowed: str = "(-inf, inf)", default: Any = REQUIRED) -> Argument:
    low, high = (float(end) for end in allowed[1:-1].split(","))
    beyond = [low - 1, high + 1] + [low] * (allowed[0] == "(") + [high] * (allowed[-1] == ")")
    return Argument(lambda name, value: check_number(name, value, allowed), default, wrong=(*beyond, *_NO_NUMBERS))


def _count(default: Any = REQUIRED, least: int = 1) -> Argument:
    wrong = (least - 1, -3, 2.5, 3.0, *_NO_NUMBERS)
    return Argument(lambda name, value: check_count(name, value, least), default, wrong=wrong)


def _flag(default: bool) -> Argument:
    return Argument(check_flag, default, wrong=("False", 1, 0.0, None))


def _choice(default: str, *allowed: str) -> Argument:
    wrong = (f"{default}s", None, 1, ["a"])
    return Argument(lambda name, value: check_choice(name, value, allowed), default, wrong=wrong)


def _or_none(argument: Argument) -> Argument:
    """Also None, which is the default."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            argument.check(name, value)

    return Argument(check, None, wrong=tuple(value for value in argument.wrong if value is not None))


def _part(example: str) -> Argument:
    def check(name: str, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | str | type):
            raise UsageError(f"{name} must be an object such as {example}, got {value!r}")

    return Argument(check, wrong=(None, 1.0, "part", int))


def _check_table(name: str, value: Any) -> None:
    if not isinstance(value, ScheduleTable):
        raise UsageError(f"{name} must be a ScheduleTable, such as vp_table(5), got {value!r}")


def _check_sizes(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list):
        raise UsageError(f"{name} must be widths of layers, such as (256, 256), got {value!r}")
    for i, size in enumerate(value):
        check_count(f"{name}[{i}]", size)


def _check_rate(name: str, value: Any) -> None:
    if not isinstance(value, LinearSchedule):
        return check_number(name, value, "(0, inf)")
    check_number(f"{name}.initial", value.initial, "[0, inf)")
    check_number(f"{name}.final", value.final, "[0, inf)")
    return None


def _check_terms(name: str, terms: Any) -> None:
    """Of a `Sum`."""
    if not terms:
        raise UsageError("Sum needs at least one term, for example Sum((1.0, ValueThroughSampler(sampler)))")
    for i, term in enumerate(terms):
        if not isinstance(term, tuple | list) or len(term) != 2:
            raise UsageError(f"term {i} of Sum must be a pair (weight, objective), got {term!r}")
        check_number(f"the weight of term {i} of Sum", term[0])
        _OBJECTIVE.check(f"the objective of term {i} of Sum", term[1])


_SAMPLER = _part("DDPMSampler(schedule)")
_SCHEDULE = _part("TabularSchedule(vp_table(5))")
_OBJECTIVE = _part("ValueThroughSampler(sampler)")
_WIDTHS = Argument(_check_sizes, (256, 256, 256), wrong=((8, 0), (8, -1), (2.5,), (None,), 256, "256", None))
_NETWORK = {
    "obs_dim": _count(),
    "action_dim": _count(),
    "key": _count(least=0).by_keyword(),
}
_LAYERS = {
    "hidden_sizes": _WIDTHS.by_keyword(),
    "activation": _choice("mish", *ACTIVATIONS).by_keyword(),
}
_ENSEMBLE = {**_NETWORK, "size": _count(2).by_keyword(), **_LAYERS}


CONSTRUCTORS: dict[str, dict[str, Argument]] = {
    "TabularSchedule": {"table": Argument(_check_table, wrong=(None, 5, "vp"))},
    # networks
    "MLPDenoiser": {**_NETWORK, **_LAYERS, "time_dim": _count(16).by_keyword()},
    "GaussianActor": {
        **_NETWORK,
        **_LAYERS,
        "log_std_min": _number(default=-20.0).by_keyword(),
        "log_std_max": _number(default=2.0).by_keyword(),
    },
    "EnsembleCritic": _ENSEMBLE,
    "TwinCritic": {**_NETWORK, **_LAYERS},
    "GaussianCritic": _ENSEMBLE,
    # samplers
    "DDPMSampler": {"schedule": _SCHEDULE, "start_scale": _number("[0, inf)", 1.0)},
    "DDIMSampler": {
        "schedule": _SCHEDULE,
        "start_scale": _number("[0, inf)", 1.0),
        "num_steps": _or_none(_count()),
    },
    "TanhGaussianSampler": {"epsilon": _number("[0, inf)", 0.0)},
    "BestOf": {"sampler": _SAMPLER, "num_candidates": _count(32)},
    "AdditiveNoise": {"sampler": _SAMPLER, "noise_scale": _number("[0, inf)", 0.1), "clip": _flag(True)},
    # actor objectives
    "ValueThroughSampler": {"sampler": _SAMPLER, "relative": _flag(False)},
    "TimeWeightedQGradient": {
        "sampler": _SAMPLER,
        "schedule": _SCHEDULE,
        "slope": _number(default=0.4),
        "intercept": _number(default=-1.8),
        "space": _choice("score", "score", "eps"),
        "source": _choice("chain", "chain", "forward", "replay"),
        "time_offset": _count(1, least=0),
        "contractive_step": _or_none(_number("(0, inf)")),
    },
    "ReweightedScoreMatching": {"schedule": _SCHEDULE, "proposal": _part("PolicyProposal()")},
    "ReverseProposal": {
        "sampler": _SAMPLER,
        "num_particles": _count(64),
        "value_scale": _number("(0, inf)", 5.0),
        "truncated": _flag(True),
    },
    "PolicyProposal": {"rate": _number("(0, 1)", 0.001), "faithful_normalisation": _flag(False)},
    "EntropyRegularisedValue": {"sampler": _SAMPLER},
    "Sum": {"terms": Argument(_check_terms, kind=inspect.Parameter.VAR_POSITIONAL)},
    # critic objectives
    "MeanSquaredTD": {
        "gamma": _number("[0, 1]", 0.99),
        "soft": _flag(False),
        "factor": _number("(0, inf)", 1.0),
    },
    "GaussianTD": {
        "gamma": _number("[0, 1]", 0.99),
        "tau": _number("(0, 1]", 0.005),
        "clip": _number("(0, inf)", 3.0),
    },
    # temperatures
    "FixedTemperature": {"temperature": _number("(0, inf)", 1.0)},
    "NoiseEntropyTemperature": {
        "action_dim": _count(),
        "sampler": _part("AdditiveNoise(sampler)"),
        "initial": _number("(0, inf)", 5.0),
        "target_entropy_per_dim": _number(default=-0.9),
        "interval": _count(250, least=0),
        "learning_rate": _number("(0, inf)", 7e-3),
        "num_states": _count(16),
        "num_samples": _count(128),
    },
    "MixtureEntropyTemperature": {
        "sampler": _SAMPLER,
        "initial": _number("(0, inf)", 3.0),
        "target_entropy_per_dim": _number(default=-0.9),
        "interval": _count(10_000, least=0),
        "learning_rate": _number("(0, inf)", 0.03),
        "num_states": _count(64),
        "num_samples": _count(200),
        "num_components": _count(3),
        "num_iterations": _count(100),
    },
    "TargetEntropyTemperature": {
        "action_dim": _count(),
        "initial": _number("(0, inf)", 1.0),
        "target_entropy_per_dim": _number(default=-1.0),
        "interval": _count(1, least=0),
        "learning_rate": _number("(0, inf)", 3e-4),
    },
    "mixture_entropy": {
        "samples": Argument(lambda name, value: None),
        "num_components": _count(3),
        "num_iterations": _count(100),
        "covariance_floor": _number("[0, inf)", 1e-6),
    },
    # learning
    "Adam": {
        "learning_rate": Argument(_check_rate, 3e-4, wrong=(0.0, -1.0, LinearSchedule(-1.0, 1.0, 0, 1), *_NO_NUMBERS)),
        "max_grad_norm": _or_none(_number("(0, inf)")),
        "b1": _number("[0, 1)", 0.9),
        "b2": _number("[0, 1)", 0.999),
        "eps": _number("(0, inf)", 1e-8),
    },
    "Learner": {
        name: argument.by_keyword()
        for name, argument in {
            "sampler": _SAMPLER,
            "actor_objective": _OBJECTIVE,
            "critic_objective": _part("MeanSquaredTD()"),
            "temperature": _part("FixedTemperature()"),
            "actor_optimiser": _part("Adam()"),
            "critic_optimiser": _part("Adam()"),
            "tau": _number("(0, 1]", 0.005),
            "actor_delay": _count(2),
            "reward_scale": _number("(0, inf)", 1.0),
            "ema_actor": _flag(False),
            "critic_steps": _count(1),
            "critic_steps_before_actor": _count(0, least=0),
        }.items()
    },
}
"""Name in `diffac.protocols.Backend` -> its arguments, in their order."""


def signature(name: str) -> inspect.Signature:
    """What the constructor of a part must look like, without annotations."""
    parameters = CONSTRUCTORS[name].items()
    return inspect.Signature([inspect.Parameter(n, a.kind, default=a.default) for n, a in parameters])


def check_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Refuses arguments of a part that make no sense.

    Args:
        name: of the part, a key of `CONSTRUCTORS`.
        given: argument -> value; other entries are ignored.

    Raises:
        UsageError: says which argument, what is allowed and what was given.
    """
    for argument, declared in CONSTRUCTORS[name].items():
        if argument in given:
            declared.check(argument, given[argument])
    if name in _RELATIONS and (problem := _RELATIONS[name](given)):
        raise UsageError(problem)


def _even_time(given: Mapping[str, Any]) -> str | None:
    odd = given["time_dim"] % 2
    return f"time_dim must be even (half sines, half cosines), got {given['time_dim']!r}" if odd else None


def _ordered_bounds(given: Mapping[str, Any]) -> str | None:
    low, high = given["log_std_min"], given["log_std_max"]
    return None if low < high else f"log_std_min must be below log_std_max, got {low!r} and {high!r}"


def _steps_of_schedule(given: Mapping[str, Any]) -> str | None:
    steps, most = given["num_steps"], given["schedule"].num_steps
    if steps is None or steps <= most:
        return None
    return f"num_steps must be at most {most}, the steps of the schedule, got {steps!r}"


def _steps_before_actor(given: Mapping[str, Any]) -> str | None:
    before, steps = given["critic_steps_before_actor"], given["critic_steps"]
    if before <= steps:
        return None
    return f"critic_steps_before_actor must be at most {steps}, the critic_steps, got {before!r}"


def _noise_added(given: Mapping[str, Any]) -> str | None:
    scale = getattr(given["sampler"], "noise_scale", 0)
    if scale > 0:
        return None
    return f"NoiseEntropyTemperature needs an AdditiveNoise with noise_scale above 0, got {given['sampler']!r}"


_RELATIONS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "MLPDenoiser": _even_time,
    "GaussianActor": _ordered_bounds,
    "DDIMSampler": _steps_of_schedule,
    "NoiseEntropyTemperature": _noise_added,
    "Learner": _steps_before_actor,
}
"""What must hold between arguments; each returns a sentence where it does not."""


NEXT_ACTION = "it is the policy's action at next_obs, which the learner fills in"
LOG_PROB = "use a sampler that knows the log-probability of its actions, such as TanhGaussianSampler"


def check_chain(noisy: Any, num_steps: int) -> Any:
    """The states of a rollout; refuses those that are not one for each time, for `TimeWeightedQGradient`."""
    if noisy is None or len(noisy) != num_steps:
        given = "no states" if noisy is None else f"{len(noisy)} states"
        raise UsageError(
            f"TimeWeightedQGradient with source='chain' needs a rollout with the states at all {num_steps} times of "
            f"its schedule, and the sampler gave {given}; use a DDPMSampler with that schedule, or source='forward'"
        )
    return noisy


def check_distributional(critic: Any) -> None:
    """Refuses a critic that `GaussianTD` cannot train."""
    if not hasattr(critic, "distribution") or not hasattr(critic, "size"):
        raise UsageError(
            "GaussianTD needs a critic with a method `distribution` and the number `size` of its members, such as "
            f"GaussianCritic, got {type(critic).__name__}"
        )
