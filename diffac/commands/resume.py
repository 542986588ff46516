"""`diffac resume`: goes on with a run that was stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType

from diffac.files.paths import absolute
from diffac.runs.find import refuse_script
from diffac.runs.recipes import load_recipe
from diffac.runs.resume import resume
from diffac.training.loop import TrainResult


def main(argv: Sequence[str], recipe: ModuleType | None = None) -> TrainResult | None:
    """Trains the rest of a run.

    Args:
        argv: arguments of the command.
        recipe: the module of a recipe that is run as a script; None: the registered one.

    Returns:
        The result; None where the run was complete.
    """
    parser = argparse.ArgumentParser(
        "diffac resume",
        allow_abbrev=False,
        description="Goes on with a run that was stopped, from its last checkpoint.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run: runs/.../seed0__...")
    parser.add_argument("--backend", help="go on in this backend, from the same weights and optimiser states")
    chosen = parser.parse_args(argv)
    folder = absolute(chosen.run)
    if recipe is None:
        refuse_script(folder, "resume", chosen.run)
    return resume(folder, load_recipe if recipe is None else lambda _: recipe, backend=chosen.backend)
