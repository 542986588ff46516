"""The arguments of what is not declared in `diffac.parts` yet: names, order, defaults, and which values make sense.

A backend checks what it is given with `check_arguments`, so that all backends refuse the same things with the same
words; the conformance kit compares the constructors of a backend with `CONSTRUCTORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

from diffac.errors import UsageError, check_count, check_number
from diffac.parts import PARTS
from diffac.parts.arguments import NO_NUMBERS, Argument, choice, count, number, optional
from diffac.parts.arguments import REQUIRED as REQUIRED
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Prediction

ACTIVATIONS = ("gelu", "mish", "relu", "silu", "tanh")


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


_WIDTHS = Argument(_check_sizes, (256, 256, 256), wrong=((8, 0), (8, -1), (2.5,), (None,), 256, "256", None))
_NETWORK = {
    "obs_dim": count(),
    "action_dim": count(),
    "key": count(least=0).by_keyword(),
}
_LAYERS = {
    "hidden_sizes": _WIDTHS.by_keyword(),
    "activation": choice(*ACTIVATIONS, default="mish").by_keyword(),
}
_ENSEMBLE = {**_NETWORK, "size": count(2).by_keyword(), **_LAYERS}


CONSTRUCTORS: dict[str, Mapping[str, Argument]] = {
    **{name: part.arguments for name, part in PARTS.items()},
    # networks
    "MLPDenoiser": {
        **_NETWORK,
        **_LAYERS,
        "time_dim": count(16).by_keyword(),
        "prediction": choice(*get_args(Prediction), default="eps").by_keyword(),
    },
    "DeterministicActor": {**_NETWORK, **_LAYERS},
    "GaussianActor": {
        **_NETWORK,
        **_LAYERS,
        "log_std_min": number(default=-20.0).by_keyword(),
        "log_std_max": number(default=2.0).by_keyword(),
    },
    "EnsembleCritic": _ENSEMBLE,
    "TwinCritic": {**_NETWORK, **_LAYERS},
    "GaussianCritic": _ENSEMBLE,
    "mixture_entropy": {
        "samples": Argument(lambda name, value: None),
        "num_components": count(3),
        "num_iterations": count(100),
        "covariance_floor": number("[0, inf)", 1e-6),
    },
    # learning
    "Adam": {
        "learning_rate": Argument(_check_rate, 3e-4, wrong=(0.0, -1.0, LinearSchedule(-1.0, 1.0, 0, 1), *NO_NUMBERS)),
        "max_grad_norm": optional(number("(0, inf)")),
        "b1": number("[0, 1)", 0.9),
        "b2": number("[0, 1)", 0.999),
        "eps": number("(0, inf)", 1e-8),
    },
}
"""Name in `diffac.backend.Backend` -> its arguments, in their order."""


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
    if name in PARTS:
        PARTS[name](*given.get("terms", ()), **{n: given[n] for n in PARTS[name].arguments if n != "terms"})
        return
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


_RELATIONS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "MLPDenoiser": _even_time,
    "GaussianActor": _ordered_bounds,
}
"""What must hold between arguments; each returns a sentence where it does not."""
