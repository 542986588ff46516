"""Values as a configuration holds them: Python's own numbers and texts, of the types that its annotations ask for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

import msgspec
import numpy as np

from diffac.errors import UsageError

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
    hints = hints_of(type(config))
    for name, value in vars_of(config).items():
        object.__setattr__(config, name, converted(value, hints[name], name))


@functools.cache
def hints_of(config_class: type) -> dict[str, Any]:
    """The types that the annotations of a configuration ask for, field by field."""
    return typing.get_type_hints(config_class)


def converted(value: Any, hint: Any, name: str) -> Any:
    """The value as the type that a field's annotation asks for.

    Args:
        value: as somebody gave it, or as YAML holds it.
        hint: the type.
        name: of the field, for messages.

    Raises:
        UsageError: it is of another type.
    """
    try:
        found = msgspec.convert(natural(value), hint)
        return _plain_data(found) if isinstance(found, dict) else found
    except msgspec.ValidationError:
        given = "null" if value is None else repr(value)
        raise UsageError(f"{name} must be {_words(hint)}, got {given}{_advice(value, hint)}") from None


def _advice(value: Any, hint: Any) -> str:
    """How to write a number that was meant."""
    if isinstance(value, str | float):
        with contextlib.suppress(ValueError):
            number = float(value)
            if hint is float:
                return f" (write {number!r}: without a point, YAML reads this as a text)"
            if hint in (int, int | None) and number.is_integer():
                return f" (write {int(number)})"
    return ""


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
