"""Configurations as YAML: what a run writes down, read back and checked before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from diffac.errors import UsageError, unknown
from diffac.files.paths import absolute
from diffac.files.untrusted import read_yaml
from diffac.values import converted, hints_of, plain, vars_of

Config = TypeVar("Config")
RECIPE = "recipe"
"""The key that names the recipe; all others are fields of its configuration."""


def config_yaml(config: Any, recipe_name: str) -> bytes:
    """The content of `config.yaml`: the recipe and all fields."""
    return yaml.safe_dump(plain({RECIPE: recipe_name, **vars_of(config)}), sort_keys=False).encode()


def read_config(path: Path | str) -> tuple[str, dict[str, Any]]:
    """The recipe that a file names, and its other entries, not yet checked.

    Raises:
        UsageError: the file cannot be read, is no YAML, or names no recipe.
    """
    values = read_yaml(absolute(path))
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"{path} must hold lines like `seed: 0`, got {type(values).__name__}")
    recipe = values.pop(RECIPE, None)
    if not isinstance(recipe, str):
        raise UsageError(f"{path} must name its recipe, as in `{RECIPE}: sac`")
    return recipe, values


def make_config(config_class: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """A configuration from the entries of a file; fields that are missing keep their defaults.

    Args:
        config_class: a dataclass.
        values: name -> value, as YAML gives them.
        where: the file, for messages.

    Raises:
        UsageError: a name that is no field (says the nearest), a value of another type, or values that do not go
            together.
    """
    hints = hints_of(config_class)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown(f"key in {where}:", name, fields)
    checked = {name: converted(value, fields[name], f"{where}: {name}") for name, value in values.items()}
    try:
        return config_class(**checked)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
