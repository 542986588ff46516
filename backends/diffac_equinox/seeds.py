"""Several seeds of one learner in one compiled call: their states are stacked, and an update is mapped over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.batches import check_batch, check_obs
from diffac.errors import UsageError
from diffac.noise import Noise
from diffac.protocols import Array, Critic, State, Transition
from diffac_equinox.learner import (
    Learner,
    LearnerState,
    PackedMetrics,
    _acting,
    _fused_updates,
    _policy,
)
from diffac_equinox.programs import _at_hand
from diffac_equinox.random import key_data

Entry = TypeVar("Entry")


class StackedSeeds:
    """A `diffac.protocols.SeedGroup`: every array of the states has a leading axis [seeds], but the number of updates.

    That number is the same for all, and it stays one number, because what depends on it (whether actor and temperature
    are due) would otherwise be computed at every update, and mostly thrown away.

    A seed that has ended is trained on with what belongs to another one, as fewer seeds would mean another program.

    Args:
        learner: of all seeds.
        states: one for each seed, with equally many updates.
        vectorised: each operation is done for all seeds at once (`jax.vmap`), or else the whole update for one after
            the other within the call (`jax.lax.map`). None: vectorised but on a CPU, where the loop is the faster one.

    Raises:
        UsageError: the states do not fit together.
    """

    def __init__(self, learner: Learner, states: Sequence[LearnerState], *, vectorised: bool | None = None) -> None:
        dynamic, static = zip(*(eqx.partition(state, eqx.is_array) for state in states), strict=True)
        if any(not eqx.tree_equal(one, static[0]) for one in static) or len({int(s.updates) for s in dynamic}) > 1:
            raise UsageError("seeds that train together need equal networks and equally many updates")
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *dynamic)
        stacked = dataclasses.replace(stacked, updates=jnp.array(states[0].updates, copy=True))
        (device,) = stacked.updates.devices()
        self._vectorised = device.platform != "cpu" if vectorised is None else vectorised
        self._learner = learner
        self._state: LearnerState = eqx.combine(stacked, static[0])

    def update(self, batches: Sequence[Transition | None], keys: Sequence[int | None]) -> Sequence[PackedMetrics]:
        """`Learner.update` for every seed, in one call."""
        together = _stack([None if batch is None else batch[:5] for batch in batches])
        stacked = Transition(*together)
        check_batch(stacked, ("seeds", "updates", "batch"))
        numbers = np.stack(_filled([None if key is None else key_data(key) for key in keys]))
        inputs = (self._learner, _at_hand(stacked), numbers, self._vectorised)
        self._state, metrics = _update_all(inputs, self._state)
        return metrics

    def act(self, obs: Sequence[np.ndarray | None], noise: Sequence[Noise | None]) -> Sequence[np.ndarray]:
        """`Learner.act` for every seed, in one call."""
        together = _stack(obs)
        check_obs(together, ("seeds", "num_envs"))
        action = _act_all(self._learner, self._vectorised, _acting(self._state), together, _stack(noise))
        return list(np.asarray(action, np.float32))

    def state(self, index: int) -> LearnerState:
        """A copy of the state of one seed."""
        return _row(self._state, np.int32(index))


def _filled(entries: Sequence[Entry | None]) -> list[Entry]:
    """The entries, with the first one that is not None in place of those that are."""
    first = next(entry for entry in entries if entry is not None)
    return [first if entry is None else entry for entry in entries]


def _stack(entries: Sequence[Any]) -> Any:
    """Trees of arrays as one, with a leading axis; NumPy's stay such."""

    def stack(*arrays: Any) -> Any:
        return (jnp if isinstance(arrays[0], jax.Array) else np).stack(arrays)

    return jax.tree.map(stack, *_filled(entries))


def _over_seeds(function: Callable[..., Any], vectorised: bool, *stacked: Any) -> Any:
    """The function for every entry of the leading axis of its arguments."""
    if vectorised:
        return jax.vmap(function)(*stacked)
    return jax.lax.map(lambda own: function(*own), stacked)


# What is not donated travels in the first argument.


@eqx.filter_jit(donate="all-except-first")
def _update_all(
    inputs: tuple[Learner, Transition, Array, bool], state: LearnerState
) -> tuple[LearnerState, list[PackedMetrics]]:
    learner, batches, keys, vectorised = inputs
    stacked, static = eqx.partition(dataclasses.replace(state, updates=None), eqx.is_array)

    def update(own: Any, batches: Transition, key: Array) -> tuple[Any, Array, PackedMetrics]:
        before = dataclasses.replace(eqx.combine(own, static), updates=state.updates)
        after, metrics = _fused_updates(learner, before, batches, key)
        own = eqx.filter(dataclasses.replace(after, updates=None), eqx.is_array)  # type: ignore[arg-type]
        return own, after.updates, metrics

    stacked, updates, metrics = _over_seeds(update, vectorised, stacked, batches, keys)
    rows = [PackedMetrics(metrics.names, numbers) for numbers in metrics.numbers]
    return dataclasses.replace(eqx.combine(stacked, static), updates=updates[0]), rows


@eqx.filter_jit
def _act_all(
    learner: Learner, vectorised: bool, networks: tuple[Any, Critic, State], obs: Array, noise: Noise
) -> Array:
    stacked, static = eqx.partition(networks, eqx.is_array)

    def act(own: Any, obs: Array, noise: Noise) -> Array:
        actor, critic, temperature = eqx.combine(own, static)
        return _policy(learner, actor, critic, temperature, obs, noise)

    return _over_seeds(act, vectorised, stacked, obs, noise)


@eqx.filter_jit
def _row(state: LearnerState, index: Array) -> LearnerState:
    own = jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, dataclasses.replace(state, updates=None))
    return dataclasses.replace(own, updates=state.updates)
