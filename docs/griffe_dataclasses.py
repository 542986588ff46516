"""Tells mkdocstrings which classes are dataclasses, so that their fields are shown as their arguments.

Declarations of parts (`declared` and `network` of `diffac.parts`), and subclasses of `eqx.Module`.
"""

from typing import Any

import griffe

DATACLASS = griffe.ExprName("dataclass", parent=griffe.ExprName("dataclasses"))


class Dataclasses(griffe.Extension):
    """Runs before griffe's own handling of dataclasses."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called when all members of a class are known."""
        decorators = {str(decorator.value).partition("(")[0] for decorator in cls.decorators}
        is_declared = bool(decorators & {"declared", "network"})
        is_module = "eqx.Module" in map(str, cls.bases) and "__init__" not in cls.members
        for member in cls.members.values() if is_module else ():
            value = str(member.value) if member.is_attribute else ""
            if value.startswith("eqx.field(") and "default" not in value:
                member.value = None  # says how the field is treated, not what it defaults to
        if is_declared or is_module:
            cls.decorators.append(griffe.Decorator(DATACLASS, lineno=cls.lineno, endlineno=cls.lineno))
