"""The command line: `diffac train`, `resume`, `evaluate`...; and `recipe_main` for a recipe that is run as a script."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from diffac.data.code_by_name import came_from, typed
from diffac.errors import RunError, UsageError, unknown
from diffac.files.paths import absolute
from diffac.messages import printable
from diffac.runs.configs import make_config, read_config
from diffac.runs.recipes import load_recipe, preset_values, recipe_modules
from diffac.runs.run import refuse_script, resume, run, script_of
from diffac.scale.seeds import run_seeds
from diffac.system.early_signals import leave_at_once
from diffac.system.signals import StopRequest
from diffac.system.terminal import tolerant_terminal
from diffac.system.versions import diffac_version
from diffac.training.config import TrainConfig
from diffac.training.loop import TrainResult

USAGE = """\
usage: diffac COMMAND ...

Diffusion policies for online reinforcement learning.

commands:
  train RECIPE [--preset NAME] [options]   train an agent; results go to runs/
  train --config FILE [options]            train with the config.yaml of a run
  train RECIPE --num-seeds N [options]     train several seeds, each as a run of its own
  resume RUN [--backend NAME]              go on with a run that was stopped, from its last checkpoint
  evaluate RUN [--episodes N] [--video]    play episodes with the best policy of a run
  export RUN --format F [--out FILE]       write the policy of a run for use without diffac: onnx, torch or jax
  report PATH... [--out FOLDER]            curves and tables of runs on one page
  validate [options]                       compare the backends on this machine, number by number
  recipes                                  list the recipes

`diffac train --help` lists recipes, `diffac train RECIPE --help` the options of one.

try it:
  diffac train sac --preset quick --env-id Pendulum-v1
"""


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
    description = f"{_summary(module)}\n\nShown are {shown}."
    return tyro.cli(arguments, args=list(argv), prog=f"diffac train {name}", description=description, registry=KEYED)


def run_recipe(module: ModuleType, argv: Sequence[str] | None = None, name: str | None = None) -> TrainResult | None:
    """Trains a recipe with the given flags (None: those of this process); raises what goes wrong.

    Returns the result of a single seed.

    "resume RUN" in their place goes on with a run of this recipe, "evaluate RUN" and "export RUN" do as the commands.
    """
    name = name or module.__name__.rpartition(".")[2]
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "resume":
        return _resume(argv[1:], lambda _: module)
    if argv and argv[0] == "evaluate":
        from diffac.commands.evaluate import main

        main(argv[1:], module)
        return None
    if argv and argv[0] == "export":
        from diffac.commands.export import main

        main(argv[1:], module)
        return None
    config, num_seeds = parse(module, argv, name)
    if num_seeds == 1:
        return run(module, config, name)
    run_seeds([*_program(module, name), *argv], config, num_seeds)
    return None


def _program(module: ModuleType, name: str) -> list[str]:
    """The command line that trains a recipe with the options that follow it."""
    if module is sys.modules["__main__"]:
        by_name = ["-m", module.__spec__.name] if module.__spec__ is not None else [str(script_of(module))]
        return [sys.executable, *by_name]
    if load_recipe(name) is not module:
        raise UsageError(f"several seeds need a recipe that has a name or is run as a script; {name!r} is another one")
    return [sys.executable, "-P", "-m", "diffac", "train", name]


def recipe_main(name: str) -> None:
    """The program of a recipe that is run as a script, or of a copy of one.

    Trains the module that is `__main__`, not the built-in recipe of that name. Call it where `__name__ == "__main__"`.
    """
    leave_at_once()
    sys.exit(_end(exit_code(lambda: run_recipe(sys.modules["__main__"], name=name))))


def _train(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        text = f"usage: diffac train RECIPE [--preset NAME] [options]\n\nrecipes:\n{recipe_table()}\n"
        print(text, file=sys.stdout if argv else sys.stderr)
        if not argv:
            raise UsageError("a recipe is missing")
        return
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config")
    with contextlib.suppress(argparse.ArgumentError):
        if path := early.parse_known_args(argv)[0].config:
            recipe, _ = read_config(path)
            refuse_script(absolute(path).parent, "--config", path)
            argv = [recipe, *argv] if argv[0].startswith("-") else argv
    if argv[0].startswith("-"):
        raise UsageError(f"the recipe comes before its options: diffac train RECIPE {' '.join(argv)}")
    run_recipe(load_recipe(argv[0]), argv[1:], argv[0])


def _resume(argv: Sequence[str], find_recipe: Callable[[str], ModuleType] | None = None) -> TrainResult | None:
    parser = argparse.ArgumentParser(
        "diffac resume",
        allow_abbrev=False,
        description="Goes on with a run that was stopped, from its last checkpoint.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run: runs/.../seed0__...")
    parser.add_argument("--backend", help="go on in this backend, from the same weights and optimiser states")
    chosen = parser.parse_args(argv)
    folder = absolute(chosen.run)
    if find_recipe is None:
        refuse_script(folder, "resume", chosen.run)
    return resume(folder, find_recipe or load_recipe, backend=chosen.backend)


def _recipes(argv: Sequence[str]) -> None:
    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError(f"diffac recipes takes no arguments, got {' '.join(argv)}")
    print(recipe_table())


def _evaluate(argv: Sequence[str]) -> None:
    from diffac.commands.evaluate import main

    main(argv)


def _export(argv: Sequence[str]) -> None:
    from diffac.commands.export import main

    main(argv)


def _validate(argv: Sequence[str]) -> None:
    from diffac.commands.validate import main

    if not main(argv):
        raise SystemExit(1)


def _report_runs(argv: Sequence[str]) -> None:
    from diffac import reports

    reports.main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report_runs,
    "validate": _validate,
    "recipes": _recipes,
}


def _dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif argv[0] == "--version":
        print(diffac_version())
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        raise unknown("command", argv[0], COMMANDS)


def exit_code(action: Callable[[], Any]) -> int:
    """Runs an action; what a user can do wrong becomes one line on standard error and an exit code.

    0: done, 1: the run broke off, 2: impossible arguments, 130: Ctrl-C, 143: SIGTERM, 129: SIGHUP. A terminal, pipe or
    file that takes no more output changes nothing about it.
    """
    with StopRequest(patient=False, owns_process=True) as stop:
        try:
            with tolerant_terminal():
                return _exit_code(action)
        except KeyboardInterrupt:  # a terminal that takes nothing has kept the last lines
            return 128 + (stop.signum or signal.SIGINT)


def _exit_code(action: Callable[[], Any]) -> int:
    try:
        action()
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except KeyboardInterrupt as error:
        print("", *map(printable, str(error).split("\n") if str(error) else ["interrupted"]), sep="\n", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {printable(error)}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The program `diffac`; returns its exit code.

    Args:
        argv: arguments; None: those of this process, which is then ours to end.
    """
    code = exit_code(lambda: _dispatch(sys.argv[1:] if argv is None else argv))
    return code if argv is not None else _end(code)


def _end(code: int) -> int:
    """The exit code; after a signal the process ends with it here, and waits for no thread, compiler or library."""
    if code <= 128:
        return code
    os._exit(code)
