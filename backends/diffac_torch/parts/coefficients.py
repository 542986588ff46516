"""Numbers that may be schedules."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from diffac.parts.coefficients import schedules_of, with_values
from diffac.parts.schedules import LinearSchedule

Part = TypeVar("Part")


def value_at(number: float | LinearSchedule, count: int) -> float:
    """The number after that many steps."""
    if not isinstance(number, LinearSchedule):
        return number
    progress = min(max((count - number.begin) / (number.end - number.begin), 0.0), 1.0)
    return number.initial + progress * (number.final - number.initial)


def at_update(learner: Part, update: int, like: Tensor) -> Part:
    """The learner with the present values of its schedules: numbers for its own, and tensors like `like` inside parts,
    whose programs then stay the same."""
    values: dict[str, Any] = {path: value_at(number, update) for path, number in schedules_of(learner).items()}
    for path in values:
        if "." in path:
            values[path] = torch.tensor(values[path], dtype=like.dtype, device=like.device)
    return with_values(learner, values)
