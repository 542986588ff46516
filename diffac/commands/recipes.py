"""`diffac recipes`: which recipes there are."""

from __future__ import annotations

import dataclasses
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
    """One line for each recipe: its name and the first line of its module's docstring."""
    lines = []
    for name in (modules := recipe_modules()):
        try:
            summary = summary_of(load_recipe(name))
        except UsageError as error:
            summary = str(error)
        lines.append(f"  {name:<{max(map(len, modules))}}  {summary}")
    return "\n".join(lines)


def summary_of(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]
