"""Numbers that may be schedules."""

from __future__ import annotations

from typing import Any, TypeVar

import jax.numpy as jnp

from diffac.parts.coefficients import schedules_of, with_values
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Array

Part = TypeVar("Part")


def value_at(number: float | LinearSchedule, count: Array, dtype: Any) -> Array | float:
    """The number after that many steps."""
    if not isinstance(number, LinearSchedule):
        return number
    progress = jnp.clip((count.astype(dtype) - number.begin) / (number.end - number.begin), 0, 1)
    return number.initial + progress * (number.final - number.initial)


def at_update(learner: Part, update: Array, dtype: Any) -> Part:
    """The learner with the present values of its schedules."""
    return with_values(learner, {path: value_at(s, update, dtype) for path, s in schedules_of(learner).items()})
