"""`diffac resume`: goes on with a run that was stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import tyro

from diffac.commands.parsing import parse
from diffac.files.paths import absolute
from diffac.runs.find import refuse_script
from diffac.runs.recipes import load_recipe
from diffac.runs.resume import resume
from diffac.training.loop import TrainResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeArguments:
    """Goes on with a run that was stopped, from its last checkpoint."""

    run: tyro.conf.Positional[Path]
    """Folder of the run: runs/.../seed0__..."""
    backend: str | None = None
    """Go on in this backend, from the same weights and optimiser states; None: that of the run."""


def main(argv: Sequence[str], recipe: ModuleType | None = None) -> TrainResult | None:
    """Trains the rest of a run.

    Args:
        argv: arguments of the command.
        recipe: the module of a recipe that is run as a script; None: the registered one.

    Returns:
        The result; None where the run was complete.
    """
    chosen = parse(ResumeArguments, argv, "diffac resume")
    folder = absolute(chosen.run)
    if recipe is None:
        refuse_script(folder, "resume", str(chosen.run))
    return resume(folder, load_recipe if recipe is None else lambda _: recipe, backend=chosen.backend)
