"""`diffac train`: what flags, presets and files ask for, and the run or the runs that come of it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from diffac.commands.parsing import read
from diffac.commands.recipes import recipe_table, summary_of
from diffac.data.code_by_name import came_from, typed
from diffac.errors import UsageError
from diffac.files.paths import absolute
from diffac.messages import command
from diffac.runs.configs import OTHER_NAMES, RECIPE, make_config, read_config
from diffac.runs.find import refuse_script
from diffac.runs.recipes import load_recipe, preset_values, script_of
from diffac.runs.run import run
from diffac.scale.seeds import run_seeds
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult
from diffac.values import vars_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Those beside the fields of the recipe's `Config`."""

    preset: str = "default"
    """Values to start from."""
    config: str | None = None
    """A config.yaml to start from instead of a preset."""
    num_seeds: int = 1
    """Seeds to train, from --seed on; each is a run of its own."""


def main(argv: Sequence[str], recipe: ModuleType | None = None, name: str = "") -> TrainResult | None:
    """Trains.

    Args:
        argv: arguments of the command.
        recipe: the module of a recipe that is run as a script; None: the first argument names a registered one.
        name: of that recipe.

    Returns:
        The result of a single seed.
    """
    if recipe is None:
        if not argv or argv[0] in ("-h", "--help"):
            text = f"usage: diffac train RECIPE [--preset NAME] [options]\n\nrecipes:\n{recipe_table()}\n"
            print(text, file=sys.stdout if argv else sys.stderr)
            if not argv:
                raise UsageError("a recipe is missing")
            return None
        name, *argv = _with_recipe(argv)
        recipe = load_recipe(name)
    config, num_seeds = parse(recipe, argv, name)
    if num_seeds == 1:
        return run(recipe, config, name)
    run_seeds([*_program(recipe, name), *argv], config, num_seeds)
    return None


def _with_recipe(argv: Sequence[str]) -> Sequence[str]:
    """The arguments with the recipe at their beginning; that of `--config FILE` where they name none."""
    if path := read({"": TrainArguments}, argv, "diffac train", early=True).get("config"):
        recipe, _ = read_config(path)
        refuse_script(absolute(path).parent, "--config", path)
        argv = [recipe, *argv] if argv[0].startswith("-") else argv
    if argv[0].startswith("-"):
        named = OTHER_NAMES.get(argv[0].lstrip("-")) == RECIPE
        words = argv[1:] if named else ["RECIPE", *argv]
        raise UsageError(f"the recipe comes before its options: {command('diffac', 'train', *words)}")
    return argv


def _program(module: ModuleType, name: str) -> list[str]:
    """The command line that trains a recipe with the options that follow it."""
    if module is sys.modules["__main__"]:
        by_name = ["-m", module.__spec__.name] if module.__spec__ is not None else [str(script_of(module))]
        return [sys.executable, *by_name]
    if load_recipe(name) is not module:
        raise UsageError(f"several seeds need a recipe that has a name or is run as a script; {name!r} is another one")
    return [sys.executable, "-P", "-m", "diffac", "train", name]


def parse(module: ModuleType, argv: Sequence[str], name: str) -> tuple[TrainConfig, int]:
    """The configuration that arguments ask for, and the number of seeds.

    Each of these overrides the ones before: defaults of `Config`, constants of the environment, preset, flags. With
    `--config FILE` the file takes the place of constants and preset.

    Args:
        module: a recipe, with `Config`, `PRESETS`, `ENV_CONSTANTS` and `build`.
        argv: flags, with neither program nor recipe.
        name: the recipe, for messages.

    Raises:
        UsageError: a preset or flag that does not exist, a value of another type, a file that does not fit, or values
            that do not go together.
        SystemExit: after `--help` (code 0).
    """
    program = f"diffac train {name}"
    early = read({"": TrainArguments, name: module.Config}, argv, program, early=True)
    preset, source = early.get("preset", TrainArguments.preset), early.get("config")
    if source is None:
        default = module.Config(**preset_values(module, name, preset, early.get("env_id")))
        shown = f"the defaults of preset {preset!r} on {default.env_id}"
    elif "preset" in early:
        raise UsageError("--config holds all values, so --preset has no meaning beside it; leave one of them out")
    else:
        default, shown = _from_file(module, source, name), f"those of {source}"
        if "run_root" not in early:
            _check_run_root(default, source)
    typed([*filter(None, [early.get("env_id")]), *early.get("wrappers", ())])
    description = f"{summary_of(module)}\nPresets: {', '.join(module.PRESETS)}. Values shown are {shown}."
    chosen = {"": TrainArguments(preset=preset, config=source), name: default}
    found = read(chosen, argv, program, description)
    num_seeds = found.get("num_seeds", TrainArguments.num_seeds)
    fields = vars_of(default)
    return dataclasses.replace(default, **{name: found[name] for name in found if name in fields}), num_seeds


def _from_file(module: ModuleType, path: str, name: str) -> TrainConfig:
    recipe, values = read_config(path)
    if recipe != name:
        raise UsageError(f"{path} is a configuration of {recipe}, not of {name}")
    config = make_config(module.Config, values, path)
    came_from(path, config.names)
    return config


def _check_run_root(config: TrainConfig, path: str) -> None:
    """Refuses to write where only a file says so, unless that is in the current folder."""
    given = config.run_root
    if os.path.isabs(given) or not absolute(given).resolve().is_relative_to(Path.cwd().resolve()):
        raise UsageError(
            f"{path} says run_root: {config.run_root!r}, which is not in the current folder; if runs should be written "
            f"there, add --run-root with that folder"
        )
