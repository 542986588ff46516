"""What training changes."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from diffac.parts.outputs import initial_state
from diffac.protocols import RowUpdate, State


@dataclasses.dataclass
class LearnerState:
    """Everything that training changes; `Learner.step` changes it in place."""

    actor: Any
    critic: Any
    target_critic: Any
    ema_actor: Any
    """None where no copy of the learner's policies is "ema"."""
    actor_optimiser: Any
    critic_optimiser: Any
    temperature: State
    actor_objective: State
    critic_objective: State
    obs_moments: State
    """Of all observations so far; {} without a normaliser."""
    updates: int
    """Number of updates done."""


def first_state(part: Any, like: Tensor, *args: Any) -> State:
    """What a part remembers before the first batch, floats in the type of a parameter."""

    def convert(value: Any) -> Tensor:
        tensor = torch.as_tensor(value).detach()
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else None)

    return initial_state(part, part.init_state(*args), convert)


@torch.no_grad()
def written(before: State, after: State) -> State:
    """A part's new state, its rows written into the tensors of the state before, in place."""
    return {
        name: before[name].index_copy_(0, new.rows.long(), new.values) if isinstance(new, RowUpdate) else new
        for name, new in after.items()
    }
