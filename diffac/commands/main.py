"""The program `diffac`: which command was asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from diffac.commands.exit_codes import exit_code, leave
from diffac.errors import UsageError, unknown
from diffac.messages import command as words
from diffac.system.versions import diffac_version

USAGE = """\
usage: diffac COMMAND ...

Diffusion policies for online reinforcement learning.

commands:
  train RECIPE [--preset NAME] [options]   train an agent; results go to runs/
  train --config FILE [options]            train with the config.yaml of a run
  train RECIPE --num-seeds N [options]     train several seeds, a run for each
  sweep FILE [--dry-run] [options]         train all runs that a file asks for
  resume RUN [--backend NAME]              go on with a run that was stopped
  evaluate RUN [--episodes N] [--video]    play episodes with its best policy
  export RUN --format F [--out FILE]       write its policy: onnx, torch or jax
  report PATH... [--out FOLDER]            curves and tables of runs on one page
  validate [options]                       compare the backends on this machine
  recipes                                  list the recipes

`diffac COMMAND --help` shows the options of a command,
`diffac train RECIPE --help` those of a recipe.

try it:
  diffac train sac --preset quick --env-id Pendulum-v1
"""

COMMANDS = ("train", "sweep", "resume", "evaluate", "export", "report", "validate", "recipes")
"""Each has a file of its name here, whose `main` takes the arguments; only the one that is asked for is loaded."""
OTHER_NAMES = {
    "run": "train",
    "learn": "train",
    "fit": "train",
    "grid": "sweep",
    "tune": "sweep",
    "continue": "resume",
    "test": "evaluate",
    "play": "evaluate",
    "enjoy": "evaluate",
    "save": "export",
    "plot": "report",
    "compare": "report",
    "check": "validate",
    "list": "recipes",
}
"""What they are called elsewhere."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    Args:
        argv: arguments; None: those of this process, which is then ours to end.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    command = None
    if given and given[0] in COMMANDS:  # before signals raise anything, which some libraries take for something else
        command = importlib.import_module(f"diffac.commands.{given[0]}")
    with exit_code() as code:
        if not given or given[0] in ("-h", "--help"):
            print(USAGE, end="")
        elif given[0] == "--version":
            print(diffac_version())
        elif command is not None:
            command.main(given[1:])
        else:
            raise _unknown(given)
    return leave(code.value) if argv is None else code.value


def _unknown(given: Sequence[str]) -> UsageError:
    """What to say where no command comes first."""
    from diffac.runs.recipes import recipe_modules  # only here, as it takes its time

    name, *rest = given
    if name.casefold() in recipe_modules():
        return UsageError(f"{name} is a recipe; train it with: {words('diffac', 'train', name.casefold(), *rest)}")
    return unknown("command", name, COMMANDS, other_names=OTHER_NAMES)
