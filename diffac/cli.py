"""The command line: `diffac train RECIPE`, `diffac recipes`; and `recipe_main` for a recipe that is run as a script."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from diffac.environments import close, dims, make_envs
from diffac.errors import RunError, UsageError, unknown
from diffac.logging import ConsoleWriter, CsvWriter, TensorBoardWriter, Writers
from diffac.runs import create_run, save_evaluations
from diffac.training import TrainConfig, TrainResult, train

GROUP = "diffac.recipes"
"""Entry points under which third parties register recipes: name -> module."""
BUILT_IN = "diffac_recipes"

USAGE = """\
usage: diffac COMMAND ...

Diffusion policies for online reinforcement learning.

commands:
  train RECIPE [--preset NAME] [options]   train an agent; results go to runs/
  recipes                                  list the recipes

`diffac train --help` lists recipes, `diffac train RECIPE --help` the options of one.

try it:
  diffac train sac --preset quick --env-id Pendulum-v1
"""


def recipe_modules() -> dict[str, str]:
    """Name of every recipe, built in or of a third party -> module that holds it. Imports none of them."""
    third_party = {entry.name: entry.module for entry in entry_points(group=GROUP)}
    return {**third_party, **importlib.import_module(BUILT_IN).RECIPES}


def load_recipe(name: str) -> ModuleType:
    """The module of a recipe.

    Raises:
        UsageError: no recipe has this name, or its module cannot be imported.
    """
    modules = recipe_modules()
    if name not in modules:
        raise unknown("recipe", name, modules)
    try:
        return importlib.import_module(modules[name])
    except ImportError as error:
        raise UsageError(f"recipe {name!r} cannot be imported: {error}") from error


def recipe_table() -> str:
    """One line for each recipe: its name and the first line of its module's docstring."""
    lines = []
    for name in (modules := recipe_modules()):
        try:
            summary = _summary(load_recipe(name))
        except UsageError as error:
            summary = str(error)
        lines.append(f"  {name:<{max(map(len, modules))}}  {summary}")
    return "\n".join(lines)


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def parse(module: ModuleType, argv: Sequence[str], name: str) -> TrainConfig:
    """The configuration that arguments ask for.

    Each of these overrides the ones before: defaults of `Config`, constants of the environment, preset, flags.

    Args:
        module: a recipe, with `Config`, `PRESETS`, `ENV_CONSTANTS` and `build`.
        argv: flags, with neither program nor recipe.
        name: the recipe, for messages.

    Raises:
        UsageError: a preset that does not exist, or values that do not go together.
        SystemExit: after `--help` (code 0), or for a flag that does not exist or cannot be read (code 2).
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", default="default")
    early.add_argument("--env-id", "--env_id")
    with contextlib.suppress(argparse.ArgumentError):  # a flag without its value: tyro says so below
        chosen, _ = early.parse_known_args(argv)
        if chosen.preset not in module.PRESETS:
            raise unknown(f"preset of {name}", chosen.preset, module.PRESETS)
        return _parse_with(module, argv, name, chosen.preset, chosen.env_id)
    return _parse_with(module, argv, name, "default", None)


def _parse_with(module: ModuleType, argv: Sequence[str], name: str, preset: str, env_id: str | None) -> TrainConfig:
    chosen = module.PRESETS[preset]
    env_id = str(env_id or chosen.get("env_id") or module.Config.env_id)
    constants: dict[str, Any] = {}
    for prefix in sorted((prefix for prefix in module.ENV_CONSTANTS if env_id.startswith(prefix)), key=len):
        constants |= module.ENV_CONSTANTS[prefix]
    default = module.Config(**{**constants, **chosen, "env_id": env_id})

    def arguments(preset: Any, config: Any) -> Any:
        return config

    arguments.__annotations__ = {
        "preset": Annotated[str, tyro.conf.arg(help=f"Values to start from: {', '.join(module.PRESETS)}.")],
        "config": Annotated[module.Config, tyro.conf.arg(name="", prefix_name=False)],
    }
    arguments.__defaults__ = (preset, default)
    description = f"{_summary(module)}\n\nShown are the defaults of preset {preset!r} on {env_id}."
    return tyro.cli(arguments, args=list(argv), prog=f"diffac train {name}", description=description)


def run(module: ModuleType, config: TrainConfig, name: str) -> TrainResult:
    """Trains what a recipe builds, writes the folder of the run and prints a summary.

    Nothing is written before environment, backend and networks stand.
    """
    tensorboard = importlib.util.find_spec("tensorboardX") is not None
    if tensorboard:
        importlib.import_module("tensorboardX")  # imports torch, which must come before jax
    probe = make_envs(config.env_id, 1)
    try:
        obs_dim, action_dim = dims(probe)
    finally:
        close(probe)
    learner, actor, critic = module.build(config, obs_dim, action_dim)
    state = learner.init(actor, critic)

    folder = create_run(config, name)
    print(f"{name} on {config.env_id}, backend {config.backend}, seed {config.seed}\n{folder}", flush=True)
    begin = time.perf_counter()
    writer = Writers(
        CsvWriter(folder / "metrics.csv"),
        *([TensorBoardWriter(folder)] if tensorboard else []),
        ConsoleWriter(config.total_timesteps, bar=config.progress),
    )
    try:
        result = train(
            learner, state, config,
            writer=writer, on_evaluation=lambda records: save_evaluations(folder / "evaluations.npz", records),
        )  # fmt: skip
    except KeyboardInterrupt:
        writer.close()
        raise KeyboardInterrupt(f"interrupted; what was written until then is in {folder}") from None
    finally:
        writer.close()
    print(_report(result, time.perf_counter() - begin, folder))
    return result


def _report(result: TrainResult, seconds: float, folder: Path) -> str:
    last = result.evaluations[-1]
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"final return {last.returns.mean():.1f} +- {last.returns.std():.1f} over {len(last.returns)} episodes\n"
        f"{last.env_step:,} environment steps, {last.updates:,} updates, {minutes} min {rest} s\n{folder}"
    )


def run_recipe(module: ModuleType, argv: Sequence[str] | None = None, name: str | None = None) -> TrainResult:
    """Trains a recipe with the given flags (None: those of this process); raises what goes wrong."""
    name = name or module.__name__.rpartition(".")[2]
    return run(module, parse(module, sys.argv[1:] if argv is None else argv, name), name)


def recipe_main(name: str) -> None:
    """The program of a recipe that is run as a script, or of a copy of one.

    Trains the module that is `__main__`, not the built-in recipe of that name. Call it where `__name__ == "__main__"`.
    """
    sys.exit(exit_code(lambda: run_recipe(sys.modules["__main__"], name=name)))


def _train(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        text = f"usage: diffac train RECIPE [--preset NAME] [options]\n\nrecipes:\n{recipe_table()}\n"
        print(text, file=sys.stdout if argv else sys.stderr)
        if not argv:
            raise UsageError("a recipe is missing")
        return
    if argv[0].startswith("-"):
        raise UsageError(f"the recipe comes before its options: diffac train RECIPE {' '.join(argv)}")
    run_recipe(load_recipe(argv[0]), argv[1:], argv[0])


def _recipes(argv: Sequence[str]) -> None:
    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError(f"diffac recipes takes no arguments, got {' '.join(argv)}")
    print(recipe_table())


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"train": _train, "recipes": _recipes}


def _dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif argv[0] == "--version":
        from diffac import __version__

        print(__version__)
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        raise unknown("command", argv[0], COMMANDS)


def exit_code(action: Callable[[], Any]) -> int:
    """Runs an action; what a user can do wrong becomes one line on standard error and an exit code.

    0: done, 1: the run broke off, 2: impossible arguments, 130: interrupted.
    """
    try:
        action()
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except KeyboardInterrupt as error:
        print(f"\n{error or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The program `diffac`; returns its exit code."""
    return exit_code(lambda: _dispatch(sys.argv[1:] if argv is None else argv))
