"""Tells mkdocstrings that a subclass of `eqx.Module` is a dataclass, so that its fields are shown as its arguments."""

from typing import Any

import griffe

DATACLASS = griffe.ExprName("dataclass", parent=griffe.ExprName("dataclasses"))


class EquinoxModules(griffe.Extension):
    """Runs before griffe's own handling of dataclasses."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called when all members of a class are known."""
        if "eqx.Module" in map(str, cls.bases) and "__init__" not in cls.members:
            for member in cls.members.values():
                value = str(member.value) if member.is_attribute else ""
                if value.startswith("eqx.field(") and "default" not in value:
                    member.value = None  # says how the field is treated, not what it defaults to
            cls.decorators.append(griffe.Decorator(DATACLASS, lineno=cls.lineno, endlineno=cls.lineno))
