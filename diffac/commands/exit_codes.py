"""How a command ends: what a user can do wrong is one line on standard error and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator

from diffac.errors import RunError, UsageError
from diffac.messages import printable
from diffac.system.signals import StopRequest
from diffac.system.terminal import tolerant_terminal


@dataclasses.dataclass
class ExitCode:
    """0: done, 1: the run broke off, 2: impossible arguments, 130: Ctrl-C, 143: SIGTERM, 129: SIGHUP."""

    value: int = 0


@contextlib.contextmanager
def exit_code() -> Iterator[ExitCode]:
    """A context in which a command runs; afterwards the code is known, and its error, if any, was said.

    A terminal, pipe or file that takes no more output changes nothing about it.
    """
    code = ExitCode()
    with StopRequest(patient=False, owns_process=True) as stop:
        try:
            with tolerant_terminal():
                try:
                    yield code
                except UsageError as error:
                    code.value = _say(error, 2)
                except RunError as error:
                    code.value = _say(error, 1)
                except KeyboardInterrupt as error:
                    lines = str(error).split("\n") if str(error) else ["interrupted"]
                    print("", *map(printable, lines), sep="\n", file=sys.stderr)
                    code.value = 128 + getattr(error, "signum", signal.SIGINT)
                except SystemExit as error:
                    code.value = error.code if isinstance(error.code, int) else int(error.code is not None)
        except KeyboardInterrupt:  # a terminal that takes nothing has kept the last lines
            code.value = 128 + (stop.signum or signal.SIGINT)


def _say(error: Exception, code: int) -> int:
    print(f"error: {printable(error)}", file=sys.stderr)
    return code


def leave(code: int) -> int:
    """The exit code; after a signal the process ends with it here, and waits for no thread, compiler or library."""
    if code <= 128:
        return code
    os._exit(code)
