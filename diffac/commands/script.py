"""The program of a recipe that is run as a script: `python my_recipe.py [resume|evaluate|export] ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from diffac.commands import evaluate, export, resume, train
from diffac.commands.exit_codes import exit_code, leave
from diffac.system.early_signals import leave_at_once


def recipe_main(name: str) -> None:
    """The program of a recipe that is run as a script, or of a copy of one.

    Trains the module that is `__main__`, not the built-in recipe of that name. Call it where `__name__ == "__main__"`.
    """
    leave_at_once()
    with exit_code() as code:
        run_recipe(sys.modules["__main__"], name=name)
    sys.exit(leave(code.value))


def run_recipe(module: ModuleType, argv: Sequence[str] | None = None, name: str | None = None) -> Any:
    """Trains a recipe with the given flags (None: those of this process); raises what goes wrong.

    "resume RUN" in their place goes on with a run of this recipe, "evaluate RUN" and "export RUN" do as the commands.

    Returns:
        What the command does: of `train` the result of a single seed.
    """
    argv = sys.argv[1:] if argv is None else argv
    others = {"resume": resume.main, "evaluate": evaluate.main, "export": export.main}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:], module)
    return train.main(argv, module, name or module.__name__.rpartition(".")[2])
