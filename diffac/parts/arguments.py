"""Which values an argument of a part may have, with the sentence that refuses others."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from math import isfinite
from typing import Any

from diffac.errors import UsageError, check_choice, check_count, check_flag, check_number
from diffac.parts.contracts import check_contract
from diffac.parts.schedules import LinearSchedule

REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True, eq=False)
class Argument:
    """One argument of a constructor."""

    check: Callable[[str, Any], None]
    """Takes its name and its value."""
    default: Any = REQUIRED
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    wrong: tuple[Any, ...] = ()
    """Values that are refused, for tests."""
    convert: Callable[[Any], Any] | None = None
    """Makes what the part holds of what was given."""

    def by_keyword(self) -> Argument:
        """The same, which must be named in a call."""
        return dataclasses.replace(self, kind=inspect.Parameter.KEYWORD_ONLY)


NO_NUMBERS = (float("nan"), float("inf"), "1", None, True, [1.0])


def number(allowed: str = "(-inf, inf)", default: Any = REQUIRED) -> Argument:
    low, high = (float(end) for end in allowed[1:-1].split(","))
    beyond = [low - 1, high + 1] + [low] * (allowed[0] == "(") + [high] * (allowed[-1] == ")")
    return Argument(lambda name, value: check_number(name, value, allowed), default, wrong=(*beyond, *NO_NUMBERS))


def coefficient(allowed: str = "(-inf, inf)", ends: str | None = None) -> Argument:
    """A number, or a schedule of one; `ends` is what its ends may be, by default the same."""
    plain, end_of_schedule = number(allowed), number(ends or allowed)

    def check(name: str, value: Any) -> None:
        if not isinstance(value, LinearSchedule):
            return plain.check(name, value)
        for end in ("initial", "final"):
            end_of_schedule.check(f"{name}.{end}", getattr(value, end))
        return None

    beyond = [value for value in end_of_schedule.wrong if isinstance(value, float) and isfinite(value)]
    return Argument(check, wrong=(*plain.wrong, *(LinearSchedule(value, value, 0, 1) for value in beyond)))


def count(default: Any = REQUIRED, least: int = 1) -> Argument:
    wrong = (least - 1, -3, 2.5, 3.0, *NO_NUMBERS)
    return Argument(lambda name, value: check_count(name, value, least), default, wrong=wrong)


def flag(default: Any = REQUIRED) -> Argument:
    return Argument(check_flag, default, wrong=("False", 1, 0.0, None))


def choice(*allowed: str, default: Any = REQUIRED) -> Argument:
    wrong = (f"{allowed[0]}s", None, 1, ["a"])
    return Argument(lambda name, value: check_choice(name, value, allowed), default, wrong=wrong)


def optional(argument: Argument) -> Argument:
    """Also None, which is the default."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            argument.check(name, value)

    return Argument(check, None, wrong=tuple(value for value in argument.wrong if value is not None))


def part(example: str, protocol: Any = None) -> Argument:
    """An object; with a protocol, one that satisfies it."""

    def check(name: str, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | str | type):
            raise UsageError(f"{name} must be an object such as {example}, got {value!r}")
        if protocol is not None:
            check_contract(name, value, protocol)

    return Argument(check, wrong=(None, 1.0, "part", int))
