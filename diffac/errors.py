"""Errors that say what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from diffac.messages import printable


class UsageError(ValueError):
    """The caller asked for something impossible; the command line prints the message alone and exits with code 2.

    Its message is one line of text, whatever it quotes out of a file.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


def check_positive(name: str, value: Any, *, zero_allowed: bool = False) -> None:
    """Refuses a count or factor that is not positive (or negative, where zero is allowed)."""
    if not (value >= 0 if zero_allowed else value > 0):
        raise UsageError(f"{name} must be {'at least 0' if zero_allowed else 'greater than 0'}, got {value!r}")


def unknown(kind: str, given: str, allowed: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name that is not among the allowed ones; names the nearest."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    parts = [f"unknown {kind} {given!r}"]
    if near:
        parts.append(f"did you mean {near[0]!r}?")
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


class DamagedError(RunError, UsageError):
    """A file or folder that was given is not what it must be; it may come from a stranger.

    The command line prints the message alone and exits with code 2.
    """


def check_critic_steps(before_actor: int, critic_steps: int) -> None:
    """Raises `UsageError` unless the critic's steps before the actor's loss are among all of its steps."""
    if isinstance(before_actor, bool) or before_actor not in range(critic_steps + 1):
        raise UsageError(
            f"critic_steps_before_actor must be an integer in 0..critic_steps = {critic_steps}, got {before_actor!r}"
        )
