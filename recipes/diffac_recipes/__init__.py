"""Published algorithms as rows of parts: each module is one paper, meant to be read and copied."""

RECIPES = {name: f"diffac_recipes.{name}" for name in ("dacer2", "sdac", "dpmd", "dacer", "sac", "td3")}
"""Name of a recipe -> module that holds it."""
