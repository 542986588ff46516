"""Published algorithms as rows of parts: each module is one paper, meant to be read and copied."""

_NAMES = (
    "dacer2",
    "sdac",
    "dpmd",
    "dacer",
    "idem",
    "rfm",
    "qsm",
    "dipo",
    "qvpo",
    "fpmd",
    "meanflow",
    "maxentdp",
    "dime",
    "sac",
    "dsact",
    "td3",
)
RECIPES = {name: f"diffac_recipes.{name}" for name in _NAMES}
"""Name of a recipe -> module that holds it."""
