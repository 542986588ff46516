"""The options of a command: the fields of its dataclass, and what the words mean that are typed for them."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import docstring_parser
import tyro
import yaml
from tyro.constructors import PrimitiveConstructorSpec

from diffac.errors import UsageError
from diffac.training.config import Heading
from diffac.values import converted

NAMES = {int: "INT", float: "FLOAT", str: "STR", bool: "BOOL", Path: "PATH", types.NoneType: "None"}
"""What stands for a value in `--help`."""
CONSTANTS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}


class Words(tuple[str, ...]):
    """What was typed for a field."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of one of the dataclasses."""

    name: str
    hint: Any
    default: Any
    """`dataclasses.MISSING`: none."""
    help: str
    heading: str
    extras: tuple[Any, ...]
    """What the annotation says beside the type."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def flags(self) -> tuple[str, ...]:
        return (self.flag, self.flag.replace("--", "--no-", 1)) if self.is_switch else (self.flag,)

    @property
    def is_positional(self) -> bool:
        return tyro.conf.Positional in self.extras

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value: --progress, --no-progress."""
        return self.hint is bool

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def several(self) -> Any:
        """The list, tuple or dictionary among its types; None: it takes one word."""
        return next((o for o in _union(self.hint) if typing.get_origin(o) in (dict, list, tuple)), None)

    @property
    def metavar(self) -> str:
        own = [extra.metavar for extra in self.extras if getattr(extra, "metavar", None)]
        return own[0] if own else self.name.upper() if self.is_positional else _metavar(self.hint)

    @property
    def label(self) -> str:
        return self.metavar if self.is_positional else f"{self.flag} {self.metavar}"

    def value_of(self, words: Sequence[str]) -> Any:
        """What the words mean, of the type that the annotation asks for."""
        name = self.metavar if self.is_positional else self.flag
        if self.several is None or (len(words) == 1 and _meaning(words[0], self.hint) is None):
            value = _meaning(words[0], self.hint)
            return value if isinstance(value, Path) else converted(value, self.hint, name)
        if typing.get_origin(self.several) is dict:
            return _keyed(words, name)
        hints = itertools.cycle(hint for hint in typing.get_args(self.several) if hint is not Ellipsis)
        try:
            return converted([_meaning(word, hint) for word, hint in zip(words, hints, strict=False)], self.hint, name)
        except UsageError as error:
            raise UsageError(f"{error}; entries are separated by spaces") from None

    def for_tyro(self) -> tuple[str, Any, Any]:
        """Name, type and default of a field that collects words, as `dataclasses.make_dataclass` takes them."""
        default = None if self.is_required else self.default
        field = dataclasses.field(default_factory=lambda: default, metadata={"help": self.help})
        if self.is_switch:
            return self.name, Annotated[(bool, self.heading, *self.extras)], field
        collect = PrimitiveConstructorSpec(
            nargs=1 if self.several is None else "*",
            metavar=self.metavar,
            instance_from_str=Words,
            is_instance=lambda value: True,
            str_from_instance=_shown,
        )
        shown = tyro.conf.arg(metavar=self.metavar, help_behavior_hint="(required)" if self.is_required else None)
        return self.name, Annotated[(object, collect, shown, *self.extras)], field


def options_of(section: Any, heading: str) -> list[Option]:
    """Those of a dataclass, or of an instance whose values are the defaults.

    They come under the headings of `Heading`, in their order, and before those the ones that name none.

    Args:
        section: the dataclass or instance.
        heading: of fields that name none.
    """
    cls = section if isinstance(section, type) else type(section)
    helps, headings = {}, {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        for text in docstring_parser.parse_from_object(base).params:
            helps[text.arg_name] = " ".join((text.description or "").split())
        hints = typing.get_type_hints(base, include_extras=True)
        for name in inspect.get_annotations(base):  # what the first says stays, whoever gives it another default
            own = [extra for extra in _unwrapped(hints[name]) if isinstance(extra, Heading)]
            headings.setdefault(name, own[0] if own else vars(base).get("HEADING"))
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        default = getattr(section, field.name, field.default)
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hint, *extras = _unwrapped(hints[field.name])
        under = headings[field.name]
        shown = under.value if under else heading
        found.append(Option(field.name, hint, default, helps.get(field.name, ""), shown, tuple(extras)))
    order = [heading, *(other.value for other in Heading)]
    return sorted(found, key=lambda option: order.index(option.heading))


def _unwrapped(hint: Any) -> tuple[Any, ...]:
    """A type, and what `Annotated` says beside it."""
    return typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)


def _union(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _metavar(hint: Any) -> str:
    """What stands for a value in `--help`."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if len(options := _union(hint)) > 1:
        return "|".join(map(_metavar, options))
    if kind is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if kind is dict:
        return "[NAME=VALUE ...]"
    if kind is list or (kind is tuple and arguments[-1] is Ellipsis):
        return f"[{_metavar(arguments[0])} ...]"
    return " ".join(map(_metavar, arguments)) if kind is tuple else NAMES.get(hint, "VALUE")


def _shown(value: Any) -> list[str]:
    """A default in `--help`."""
    if isinstance(value, dict):
        value = [f"{name}={entry!r}" for name, entry in value.items()]
    if isinstance(value, list | tuple):
        return [str(entry) for entry in value] or ["none"]
    return [str(value)]


def _meaning(word: str, hint: Any) -> Any:
    """What a word means where a value of that type is wanted; the word itself where it means none."""
    if Path in _union(hint) and word not in CONSTANTS:
        return Path(word)
    meanings = [CONSTANTS[word]] if word in CONSTANTS else []
    for number in (int, float):
        with contextlib.suppress(ValueError):
            meanings.append(number(word))
    for meaning in meanings:
        with contextlib.suppress(UsageError):
            return converted(meaning, hint, "")
    return word


def _keyed(words: Sequence[str], flag: str) -> dict[str, Any]:
    """Values as Python writes them, or as YAML does; anything else is a text."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{flag} must be given as name=value, got {word!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                found[name] = value
    return found
