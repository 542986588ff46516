"""Whether an object has the methods that a protocol asks for: told when parts are put together."""

from __future__ import annotations

import inspect
from typing import Any

from diffac.errors import UsageError


def check_contract(name: str, value: Any, protocol: type) -> None:
    """Refuses what a protocol's caller could not use.

    Args:
        name: of the argument, for the message.
        value: what was given.
        protocol: one of `diffac.protocols`.

    Raises:
        UsageError: a method or attribute is missing, or a method cannot be called as the protocol says.
    """
    what = type(value).__name__
    for member, wanted in _members(protocol).items():
        if isinstance(wanted, property):
            missing = not hasattr(value, member)
        else:
            missing = not callable(value if member == "__call__" else getattr(value, member, None))
        if missing:
            raise UsageError(
                f"{name} must be {_a(protocol)}: {what} has no {_shown(member, wanted)}; the contract of "
                f"{protocol.__name__} is in diffac.protocols"
            )
        if isinstance(wanted, property):
            continue
        try:
            given = inspect.signature(value if member == "__call__" else getattr(value, member))
        except (TypeError, ValueError):  # a function of C says nothing
            continue
        try:
            given.bind(*_arguments(wanted))
        except TypeError:
            raise UsageError(
                f"{name} must be {_a(protocol)}: {what}.{member} is called as {_shown(member, wanted)}, and takes "
                f"{given}"
            ) from None


def check_actor(part: Any, actor: Any) -> None:
    """Refuses an actor that a sampler or an objective could not call.

    Args:
        part: has `actor_arguments`, the names of what it calls the actor with, and `actor_example`, a network that is
            called so; a part without says nothing of its actor. It may have `actor_predictions`.
        actor: the network.

    Raises:
        UsageError: it takes other arguments, or predicts something else.
    """
    arguments = getattr(part, "actor_arguments", None)
    if arguments is None:
        return
    try:
        takes = inspect.signature(getattr(actor, "forward", actor))  # what torch calls says nothing of its arguments
    except (TypeError, ValueError):
        return
    try:
        takes.bind(*arguments)
    except TypeError:
        raise UsageError(
            f"{type(part).__name__} calls the actor as actor({', '.join(arguments)}), and {type(actor).__name__} takes "
            f"{_names(takes)}; use an actor such as {part.actor_example}, or another {_family(part)}"
        ) from None
    predictions, predicts = getattr(part, "actor_predictions", None), getattr(actor, "prediction", "eps")
    if predictions is not None and predicts not in predictions:
        raise UsageError(
            f"{type(part).__name__} needs an actor that predicts {' or '.join(map(repr, predictions))}, and "
            f"{type(actor).__name__} predicts {predicts!r}; use an actor such as {part.actor_example}, or another "
            f"{_family(part)}"
        )


def _names(signature: inspect.Signature) -> str:
    return f"({', '.join(signature.parameters)})"


def _family(part: Any) -> str:
    return "sampler" if hasattr(part, "rollout") else "objective"


def _arguments(method: Any) -> list[str]:
    """Names of what a method of a protocol is called with, without self."""
    return list(inspect.signature(method).parameters)[1:]


def _members(protocol: type) -> dict[str, Any]:
    """Methods and properties that a protocol and those before it declare."""
    members: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False):
            own = {n: m for n, m in vars(base).items() if n == "__call__" or not n.startswith("_")}
            members |= {n: m for n, m in own.items() if inspect.isfunction(m) or isinstance(m, property)}
    return members


def _shown(member: str, wanted: Any) -> str:
    return member if isinstance(wanted, property) else f"{member}({', '.join(_arguments(wanted))})"


def _a(protocol: type) -> str:
    article = "an" if protocol.__name__[0] in "AEIOU" else "a"
    return f"{article} {protocol.__name__}"
