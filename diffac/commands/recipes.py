"""`diffac recipes`: which recipes there are."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from types import ModuleType

from diffac.commands.parsing import parse
from diffac.errors import UsageError
from diffac.runs.recipes import load_recipe, recipe_modules


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipesArguments:
    """Lists the recipes, with what each is."""


def main(argv: Sequence[str]) -> None:
    """Lists them."""
    parse(RecipesArguments, argv, "diffac recipes")
    print(recipe_table())


def recipe_table() -> str:
    """Each recipe's name and the first line of its module's docstring, as wide as the terminal."""
    width, lines = shutil.get_terminal_size().columns, []
    for name in (modules := recipe_modules()):
        try:
            summary = summary_of(load_recipe(name))
        except UsageError as error:
            summary = str(error)
        indent = " " * (max(map(len, modules)) + 4)
        lines.append(textwrap.fill(f"  {name}".ljust(len(indent)) + summary, width, subsequent_indent=indent))
    return "\n".join(lines)


def summary_of(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]
