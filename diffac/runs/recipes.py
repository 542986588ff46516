"""Finds recipes by name, built in or of a third party, and makes their configurations."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from diffac.errors import UsageError, unknown
from diffac.messages import command

GROUP = "diffac.recipes"
"""Entry points under which third parties register recipes: name -> module."""
BUILT_IN = "diffac_recipes"


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
        hint = f"a recipe of your own is run by itself: {command('python', name)}" if name.endswith(".py") else ""
        raise unknown("recipe", name, modules, hint)
    try:
        return importlib.import_module(modules[name])
    except ImportError as error:
        raise UsageError(f"recipe {name!r} cannot be imported: {error}") from error


def preset_values(module: ModuleType, name: str, preset: str = "default", env_id: str | None = None) -> dict[str, Any]:
    """What a recipe's configuration holds before flags: constants of the environment, and over them the preset.

    Args:
        module: the recipe.
        name: what it is called, for messages.
        preset: one of its `PRESETS`.
        env_id: the environment; None: the preset's, or else the recipe's.

    Returns:
        Name -> value of the fields of `Config` that differ from its defaults, `env_id` among them.

    Raises:
        UsageError: a preset that does not exist.
    """
    if preset not in module.PRESETS:
        raise unknown(f"preset of {name}", preset, module.PRESETS)
    if env_id is not None and not isinstance(env_id, str):
        raise UsageError(
            f"env_id must be the name of an environment, as a text, got {env_id!r:.200}; gymnasium.register gives "
            f"yours a name"
        )
    chosen = module.PRESETS[preset]
    env_id = env_id or str(chosen.get("env_id") or module.Config.env_id)
    constants: dict[str, Any] = {}
    for prefix in sorted((prefix for prefix in module.ENV_CONSTANTS if env_id.startswith(prefix)), key=len):
        constants |= module.ENV_CONSTANTS[prefix]
    return {**constants, **chosen, "env_id": env_id}


def name_of(module: ModuleType) -> str:
    """The name by which other processes import a module.

    Raises:
        UsageError: they could not.
    """
    if sys.modules.get(module.__name__) is not module:
        raise UsageError(
            f"an agent is pickled with the name of its recipe's module, but {module.__name__!r} imports another one or "
            f"none; write the recipe into a file that can be imported, or copy the agent by Agent.save and Agent.load"
        )
    return module.__name__


def module_of(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        UsageError: it cannot be imported here, or is no recipe.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"the agent's recipe {name!r} cannot be imported here: {error}") from error
    if not hasattr(module, "Config") or not hasattr(module, "build"):
        raise UsageError(f"the agent's recipe {name!r} is another module here: it has no Config or no build")
    return module


def script_of(module: ModuleType) -> str | None:
    """The file of a recipe that is run as a script."""
    return str(Path(str(module.__file__)).resolve()) if module.__name__ == "__main__" else None
