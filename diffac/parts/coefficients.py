"""Coefficients that are schedules over the learner's updates: found in a part, and replaced by their present values.

A coefficient of an objective, a weight of a `Sum`, and the learner's own `tau` and `reward_scale` may be a
`LinearSchedule` in place of a number. It counts updates of the learner, from 0 over the whole training; an optimiser's
learning rate counts that optimiser's steps and is its own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from diffac.parts.schedules import LinearSchedule

Tree = TypeVar("Tree")


def schedules_of(part: Any) -> dict[str, LinearSchedule]:
    """Every coefficient of a part, and of parts inside it, that is a schedule, by its path: "terms.1.0"."""
    return dict(_found(part, "", ()))


def _found(value: Any, path: str, above: tuple[Any, ...]) -> Iterator[tuple[str, LinearSchedule]]:
    if isinstance(value, LinearSchedule):
        yield path, value
    elif not any(value is other for other in above):  # a user's parts may know one another
        for name, inner in _children(value):
            yield from _found(inner, f"{path}.{name}" if path else name, (*above, value))


def _children(value: Any) -> list[tuple[str, Any]]:
    if type(value) is tuple:
        return [(str(i), inner) for i, inner in enumerate(value)]
    if hasattr(value, "noise_spec") and not isinstance(value, type):
        return list(getattr(value, "__dict__", {}).items())  # without one, as with __slots__, it has no schedules
    return []


def with_values(part: Tree, values: Mapping[str, Any]) -> Tree:
    """The part with values in the places of its schedules.

    Args:
        part: stays as it is.
        values: path, as `schedules_of` says it -> number or array.

    Returns:
        A copy, and copies of the parts on the way; each knows the part that it stands for and its values as
        `stands_for`. The part itself where there are no values.
    """
    if not values:
        return part
    if "" in values:
        return values[""]
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        below.setdefault(name, {})[rest] = value
    if type(part) is tuple:
        return tuple(with_values(inner, below.get(str(i), {})) for i, inner in enumerate(part))  # type: ignore[return-value]
    new = object.__new__(type(part))  # copy.copy would ask a user's __getattr__ on the way
    vars(new).update(vars(part))
    for name, inner in below.items():
        vars(new)[name] = with_values(vars(part)[name], inner)
    vars(new)["stands_for"] = part, tuple(values.values())
    return new
