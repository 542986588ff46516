"""Errors that say what was given, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diffac.messages import printable

LONGEST = 300
"""Characters of somebody else's message that are passed on."""


class UsageError(ValueError):
    """The caller asked for something impossible; the command line prints the message alone and exits with code 2.

    Its message is one line of text, whatever it quotes out of a file.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


_WORDS = {
    "(-inf, inf)": "a finite number",
    "(0, inf)": "a finite number greater than 0",
    "[0, inf)": "a finite number, at least 0",
}


def said(error: BaseException) -> str:
    """The message of somebody else's error in one line, and where it came from: "no such part (file.py, line 3)"."""
    text = " ".join(str(error).split()) or "no message"
    text = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or frames[-1].filename.startswith(os.path.join(os.path.dirname(__file__), "")):
        return text
    return f"{text} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def check_number(name: str, value: Any, allowed: str = "(-inf, inf)") -> None:
    """Refuses what is no finite number in the interval `allowed`, written such as "[0, 1)"."""
    number = _number(value)
    low, high = (float(end) for end in allowed[1:-1].split(","))
    if number is None or not (
        math.isfinite(number)
        and (low < number or (allowed[0] == "[" and low == number))
        and (number < high or (allowed[-1] == "]" and number == high))
    ):
        raise UsageError(f"{name} must be {_WORDS.get(allowed, f'a number in {allowed}')}, got {value!r}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no whole number from `least` on; a float is none."""
    number = _number(value)
    if not isinstance(number, int) or number < least:
        wanted = "greater than 0" if least == 1 else f"at least {least}"
        raise UsageError(f"{name} must be a whole number, {wanted}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Refuses what is neither True nor False."""
    if not isinstance(_scalar(value), bool):
        raise UsageError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuses what is not among the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise unknown(name, value, allowed)


def _scalar(value: Any) -> Any:
    """The object of Python that an array of one number, or one of its scalars, holds; else the value as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def _number(value: Any) -> int | float | None:
    value = _scalar(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def nearest(given: str, allowed: Iterable[str], other_names: Mapping[str, str]) -> str | None:
    """The allowed name that somebody meant, whatever the case of its letters; None: none is near.

    Args:
        given: what they wrote.
        allowed: the names.
        other_names: what else some of them are called -> the name, which need not be allowed here; in small letters,
            with underscores.
    """
    plain = {name.casefold().replace("-", "_"): name for name in allowed}
    given = given.casefold().replace("-", "_")
    if (name := other_names.get(given)) in plain.values():
        return name
    found = [name for name in plain if name.startswith(given)]
    if len(found) != 1:
        found = difflib.get_close_matches(given, plain, n=1)
    return plain[found[0]] if found else None


def unknown(
    kind: str, given: Any, allowed: Iterable[str], hint: str = "", other_names: Mapping[str, str] | None = None
) -> UsageError:
    """The error for a name that is not among the allowed ones; says the `nearest`."""
    allowed = sorted(allowed)
    near = nearest(given, allowed, other_names or {}) if isinstance(given, str) else None
    parts = [f"unknown {kind} {given!r}"]
    if near is not None:
        parts.append(f"did you mean {near!r}?")
    parts.append(f"known: {', '.join(allowed) or 'none'}")
    if hint:
        parts.append(hint)
    return UsageError("; ".join(parts))


class RunError(RuntimeError):
    """A run cannot go on: an environment broke its contract or training diverged.

    The command line prints the message alone and exits with code 1. As for `UsageError`, it is one line of text.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


@contextlib.contextmanager
def told_as(what: str) -> Iterator[None]:
    """A context in which somebody else's code runs: what it raises becomes a RunError that names it."""
    try:
        yield
    except (RunError, UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RunError(f"{what} raised {type(error).__name__}: {said(error)}") from error


class DamagedError(RunError, UsageError):
    """A file or folder that was given is not what it must be; it may come from a stranger.

    The command line prints the message alone and exits with code 2.
    """


def check_present(part: str, what: str, value: Any, advice: str) -> Any:
    """The value; refuses a call of a part without something that it needs."""
    if value is None:
        raise UsageError(f"{part} needs {what}, got None; {advice}")
    return value
