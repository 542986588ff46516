"""Configurations as YAML: what a run writes down, read back and checked before anything is made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import yaml

from diffac.errors import UsageError, unknown
from diffac.files.paths import absolute
from diffac.files.untrusted import read_yaml

Config = TypeVar("Config")
RECIPE = "recipe"
"""The key that names the recipe; all others are fields of its configuration."""
WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", None: "null"}


def vars_of(config: Any) -> dict[str, Any]:
    """All fields of a configuration, in their order."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def plain(value: Any) -> Any:
    """Tuples to lists, as YAML and JSON know them."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def natural(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, paths as texts, in lists and dictionaries too; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray):  # of long doubles, which Python does not have, doubles
        return (value.astype(np.float64) if value.dtype.char == "g" else value).tolist()
    if isinstance(value, PurePath):
        return str(value)
    if type(value) in (list, tuple):
        return type(value)(map(natural, value))
    if isinstance(value, Mapping):
        return {natural(name): natural(entry) for name, entry in value.items()}
    return value


def check_fields(config: Any) -> None:
    """Gives every field of a frozen configuration the type that its annotation asks for.

    NumPy's numbers become Python's, paths texts and lists tuples, so that whatever is accepted can be written down.

    Raises:
        UsageError: a value of another type.
    """
    hints = _hints(type(config))
    for name, value in vars_of(config).items():
        object.__setattr__(config, name, _checked(value, hints[name], name))


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


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
    hints = _hints(config_class)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown(f"key in {where}:", name, fields)
    checked = {name: _checked(value, fields[name], f"{where}: {name}") for name, value in values.items()}
    try:
        return config_class(**checked)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _checked(value: Any, hint: Any, name: str) -> Any:
    """The value as the type that a field's annotation asks for."""
    try:
        found = msgspec.convert(natural(value), hint)
        return _plain_data(found) if isinstance(found, dict) else found
    except msgspec.ValidationError:
        given = "null" if value is None else repr(value)
        advice = ""
        if isinstance(value, str) and hint is float:
            with contextlib.suppress(ValueError):
                advice = f" (write {float(value)!r}: without a point, YAML reads this as a text)"
        raise UsageError(f"{name} must be {_words(hint)}, got {given}{advice}") from None


def _plain_data(value: Any) -> Any:
    """Nested dictionaries, lists, numbers and texts; tuples become lists, which YAML would make of them anyway."""
    if isinstance(value, dict) and all(type(name) is str for name in value):
        return {name: _plain_data(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(entry) for entry in value]
    if value is not None and type(value) not in (bool, int, float, str):
        raise msgspec.ValidationError
    return value


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(option) for option in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is dict:
        return "names with plain data: numbers, texts, true, false, null, and lists and dictionaries of them"
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list, each entry {_words(arguments[0])}"
        return f"a list of {len(arguments)}"
    return WORDS.get(None if hint is types.NoneType else hint, str(hint))
