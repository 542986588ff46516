"""`diffac train`: what flags, presets and files ask for, and the run or the runs that come of it."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from diffac.commands.recipes import recipe_table, summary_of
from diffac.data.code_by_name import came_from, typed
from diffac.errors import UsageError
from diffac.files.paths import absolute
from diffac.runs.configs import make_config, read_config
from diffac.runs.find import refuse_script
from diffac.runs.recipes import load_recipe, preset_values, script_of
from diffac.runs.run import run
from diffac.scale.seeds import run_seeds
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult


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
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config")
    with contextlib.suppress(argparse.ArgumentError):
        if path := early.parse_known_args(argv)[0].config:
            recipe, _ = read_config(path)
            refuse_script(absolute(path).parent, "--config", path)
            argv = [recipe, *argv] if argv[0].startswith("-") else argv
    if argv[0].startswith("-"):
        raise UsageError(f"the recipe comes before its options: diffac train RECIPE {' '.join(argv)}")
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
        UsageError: a preset that does not exist, a file that does not fit, or values that do not go together.
        SystemExit: after `--help` (code 0), or for a flag that does not exist or cannot be read (code 2).
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flags in (["--preset"], ["--env-id", "--env_id"], ["--config"], ["--run-root", "--run_root"]):
        early.add_argument(*flags)
    early.add_argument("--wrappers", nargs="*", default=[])
    try:
        chosen, _ = early.parse_known_args(argv)
    except argparse.ArgumentError:  # a flag without its value: tyro says so below
        chosen = argparse.Namespace(preset=None, env_id=None, config=None, run_root=None, wrappers=[])
    if chosen.config is not None:
        if chosen.preset is not None:
            raise UsageError("--config holds all values, so --preset has no meaning beside it; leave one of them out")
        default, source = _from_file(module, chosen.config, name), chosen.config
        if chosen.run_root is None:
            _check_run_root(default, source)
    else:
        preset = chosen.preset or "default"
        default, source = module.Config(**preset_values(module, name, preset, chosen.env_id)), None
    typed([*filter(None, [chosen.env_id]), *chosen.wrappers])
    return _parse_over(module, argv, name, default, chosen.preset or "default", source)


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


KEYED = ConstructorRegistry()
"""How tyro reads `--env-kwargs name=value ...`."""


@KEYED.primitive_rule
def _keyed(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if typing.get_origin(info.type) is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE [NAME=VALUE ...]]",
        instance_from_str=_read_keyed,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={entry!r}" for name, entry in value.items()],
    )


def _read_keyed(texts: Sequence[str]) -> dict[str, Any]:
    """Values as Python writes them, or as YAML does; anything else is a text."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"must be given as name=value, got {text!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                found[name] = value
    return found


def _parse_over(
    module: ModuleType, argv: Sequence[str], name: str, default: TrainConfig, preset: str, source: str | None
) -> tuple[TrainConfig, int]:
    """What the flags make of a configuration, and the number of seeds."""

    def arguments(preset: Any, config_file: Any, num_seeds: Any, config: Any) -> Any:
        return config, num_seeds

    arguments.__annotations__ = {
        "preset": Annotated[str, tyro.conf.arg(help=f"Values to start from: {', '.join(module.PRESETS)}.")],
        "config_file": Annotated[
            str | None, tyro.conf.arg(name="config", help="A config.yaml to start from instead of a preset.")
        ],
        "num_seeds": Annotated[int, tyro.conf.arg(help="Seeds to train, from --seed on; each is a run of its own.")],
        "config": Annotated[module.Config, tyro.conf.arg(name="", prefix_name=False)],
    }
    arguments.__defaults__ = (preset, source, 1, default)
    shown = f"those of {source}" if source else f"the defaults of preset {preset!r} on {default.env_id}"
    description = f"{summary_of(module)}\n\nShown are {shown}."
    return tyro.cli(arguments, args=list(argv), prog=f"diffac train {name}", description=description, registry=KEYED)
