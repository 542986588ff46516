"""How every command reads its arguments: a dataclass each, with tyro; whatever is wrong with them is one sentence."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from diffac.commands.options import Option, Words, options_of
from diffac.errors import UsageError, nearest
from diffac.runs.configs import OTHER_NAMES

Arguments = TypeVar("Arguments")

FLAG = re.compile(r"--|(?!-(inf|infinity|nan)$)--?[a-z].*", re.DOTALL | re.IGNORECASE)
"""What is no value, unless it stands behind an equals sign."""


def parse(arguments: type[Arguments], argv: Sequence[str], program: str) -> Arguments:
    """The arguments of a command.

    Args:
        arguments: a dataclass; each field is an option, or with `tyro.conf.Positional` a word without one. The text
            below a field is its help, that of the class says what the command does.
        argv: what was typed behind the command.
        program: the command.

    Raises:
        UsageError: an option that does not exist (says the nearest) or lacks its value, a value of another type, or
            nothing for a field without a default.
        SystemExit: after `--help` (code 0).
    """
    return arguments(**read({"": arguments}, argv, program, " ".join((arguments.__doc__ or "").split())))


def read(
    sections: Mapping[str, Any], argv: Sequence[str], program: str, description: str = "", *, early: bool = False
) -> dict[str, Any]:
    """What was typed for the fields of one or several dataclasses; raises as `parse`.

    Args:
        sections: the heading in `--help` for fields that name none, and a dataclass, or an instance whose values are
            the defaults.
        argv: what was typed behind the command.
        program: the command.
        description: what `--help` says first.
        early: passes over `--help` and what is no field; for a first look.

    Returns:
        Field -> value, without those that keep their defaults.
    """
    options: dict[str, Option] = {}
    for option in (option for heading, section in sections.items() for option in options_of(section, heading)):
        if option.name in options:
            raise UsageError(f"{program}: every recipe has an argument {option.name}; give the field another name")
        options[option.name] = option
    if not early and not {"-h", "--help"}.isdisjoint(itertools.takewhile(lambda word: word != "--", argv)):
        argv = ["--help"]  # which answers mistakes, too
    _check_values(argv, options.values())
    typed, left = tyro.cli(
        _grouped(options.values()),
        args=list(argv), prog=program, description=_wrapped(description), return_unknown_args=True, add_help=not early,
    )  # fmt: skip
    if left and not early:
        raise _left_over(left[0], argv, options, program)
    groups = [typed, *(group for name, group in vars(typed).items() if name not in options)]
    values = {name: value for group in groups for name, value in vars(group).items()}
    found = {
        name: option.value_of(values[name]) if isinstance(values[name], Words) else values[name]
        for name, option in options.items()
        if isinstance(values[name], Words) or (option.is_switch and values[name] != option.default)
    }
    for option in options.values():
        if option.is_required and option.name not in found:
            raise UsageError(f"{program} needs {option.label}: {option.help.partition('. ')[0]}")
    return found


def _grouped(options: Iterable[Option]) -> type:
    """A dataclass for tyro, and in it another one for each heading."""
    groups: dict[str, list[tuple[str, Any, Any]]] = {"": []}
    for option in options:
        groups.setdefault(option.heading, []).append(option.for_tyro())
    fields: list[Any] = groups.pop("")
    for number, (heading, entries) in enumerate(groups.items()):
        named = tyro.conf.arg(name=heading, help="")
        group = Annotated[dataclasses.make_dataclass("Group", entries), named, tyro.conf.OmitArgPrefixes]
        fields.append((f"group_{number}", group))
    return dataclasses.make_dataclass("Command", fields, kw_only=True)


def _check_values(argv: Sequence[str], options: Iterable[Option]) -> None:
    """Refuses an option without its value."""
    wanting = {option.flag: option for option in options if not option.is_switch and option.several is None}
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue="--"):
        if word == "--":
            return
        option = wanting.get(word.replace("_", "-"))
        if option is not None and FLAG.fullmatch(following):
            raise UsageError(f"{option.flag} needs a value, {option.metavar}: {option.help}")


def _left_over(word: str, argv: Sequence[str], options: Mapping[str, Option], program: str) -> UsageError:
    """What is wrong with the first word that belongs to no field."""
    everything = f"{program} --help shows all options"
    if word.startswith("-"):
        flag = word.partition("=")[0]
        near = nearest(flag.lstrip("-"), options, OTHER_NAMES)
        advice = f"did you mean {options[near].flag}? " if near else ""
        return UsageError(f"unknown option {flag}; {advice}{everything}")
    words = [part for given in argv for part in (given.split("=", 1) if given.startswith("-") else [given])]
    before = words[max(0, words.index(word) - 1)].replace("_", "-")
    if any(before in option.flags for option in options.values() if option.is_switch):
        return UsageError(f"{before} takes no value, got {word!r}; {everything}")
    return UsageError(f"unexpected argument {word!r}; {everything}")


def _wrapped(text: str) -> str:
    """As wide as the terminal, and indented, without which tyro joins the lines again."""
    lines = (textwrap.wrap(line, shutil.get_terminal_size().columns - 2) for line in text.splitlines())
    return textwrap.indent("\n".join(itertools.chain.from_iterable(lines)), "  ")
