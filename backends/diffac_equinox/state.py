"""What training changes."""

from __future__ import annotations

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from diffac.parts.outputs import initial_state
from diffac.protocols import Array, RowUpdate, State

Tree = TypeVar("Tree")


class LearnerState(eqx.Module):
    """Everything that training changes; `Learner.step` returns the next one."""

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
    updates: Array
    """Number of updates done, int32."""


def first_state(part: Any, dtype: Any, *args: Any) -> State:
    """What a part remembers before the first batch, floats in that type."""
    return initial_state(part, part.init_state(*args), lambda value: cast(jnp.asarray(value), dtype))


def written(before: State, after: State) -> State:
    """A part's new state, its rows written into the arrays of the state before; in a compiled program in place."""
    return {
        name: before[name].at[new.rows].set(new.values) if isinstance(new, RowUpdate) else new
        for name, new in after.items()
    }


def cast(tree: Tree, dtype: Any) -> Tree:
    """Arrays of the device; floating ones get the type."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), tree)
