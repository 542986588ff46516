"""Replay: where transitions wait to be learned from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from diffac.errors import UsageError
from diffac.protocols import Transition


class Replay(Protocol):
    """What the training loop needs of a replay memory."""

    def __len__(self) -> int:
        """Transitions stored."""
        ...

    def add(self, transitions: Transition) -> None:
        """Stores transitions with one leading axis, `next_action` not filled in."""
        ...

    def sample(self, rng: np.random.Generator, updates: int, batch_size: int) -> Transition:
        """Transitions with leading axes [updates, batch_size]; the same for the same contents and generator."""
        ...

    @property
    def sampled_age(self) -> float:
        """Mean age of what `sample` returned last: transitions added since, the newest having age 0."""
        ...


@runtime_checkable
class NumberedReplay(Replay, Protocol):
    """A replay memory that checkpoints can hold: its transitions are numbered in the order in which they came."""

    capacity: int
    """Transitions kept."""
    added: int
    """Transitions added since the beginning; it holds the last `capacity` of them."""

    def chunk(self, first: int, end: int) -> Transition:
        """Transitions number first, first + 1, ..., at least one of them and at most up to end - 1."""
        ...

    def restore(self, first: int, chunks: Iterable[Transition]) -> None:
        """Takes transitions number first, first + 1, ..., in pieces, in place of what it holds."""
        ...


class ReplayBuffer:
    """The last `capacity` transitions, sampled uniformly with replacement.

    A NumPy ring in float32. Memory is reserved at once but taken from the machine only as it is filled.

    Args:
        capacity: transitions kept; older ones are overwritten.
        obs_dim: entries of an observation.
        action_dim: entries of an action.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int) -> None:
        for name, value in (("capacity", capacity), ("obs_dim", obs_dim), ("action_dim", action_dim)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.capacity = capacity
        try:
            self._data = Transition(
                obs=np.empty((capacity, obs_dim), np.float32),
                action=np.empty((capacity, action_dim), np.float32),
                reward=np.empty(capacity, np.float32),
                next_obs=np.empty((capacity, obs_dim), np.float32),
                terminated=np.empty(capacity, bool),
            )
        except MemoryError as error:
            gib = capacity * (8 * obs_dim + 4 * action_dim + 5) / 2**30
            raise UsageError(
                f"a replay buffer of {capacity:,} transitions with {obs_dim} observation entries needs {gib:.1f} GiB "
                f"of memory, more than this machine gives; lower buffer_size"
            ) from error
        self.added = 0
        """Transitions added since the beginning; transition number i is in row i % capacity."""
        self.sampled_age = float("nan")
        """Mean age of what `sample` returned last: transitions added since, the newest having age 0."""

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, transitions: Transition) -> None:
        """Stores transitions with one leading axis; the oldest make room.

        Raises:
            UsageError: wrong shape or dtype, more rows than the capacity, or a value that is not finite.
        """
        if np.ndim(transitions.reward) != 1:
            raise UsageError(f"reward must have one axis, got shape {np.shape(transitions.reward)}")
        count = len(transitions.reward)
        if count > self.capacity:
            raise UsageError(f"cannot add {count} transitions at once to a buffer of capacity {self.capacity}")
        rows = self._checked(transitions, count)
        position = self.added % self.capacity
        first = min(count, self.capacity - position)
        for store, values in zip(self._data[:5], rows, strict=True):
            store[position : position + first] = values[:first]
            store[: count - first] = values[first:]
        self.added += count

    def sample(self, rng: np.random.Generator, updates: int, batch_size: int) -> Transition:
        """Transitions drawn independently, with leading axes [updates, batch_size].

        Raises:
            UsageError: a count below 1, or a batch larger than what is stored.
        """
        if updates < 1 or batch_size < 1:
            raise UsageError(f"updates and batch_size must be at least 1, got {updates} and {batch_size}")
        if batch_size > len(self):
            raise UsageError(
                f"cannot draw batches of {batch_size} from {len(self)} stored transitions; store more first"
            )
        index = rng.integers(0, len(self), (updates, batch_size))
        self.sampled_age = float(((self.added - 1 - index) % self.capacity).mean())
        return Transition(*(np.take(store, index, axis=0) for store in self._data[:5]))

    def contents(self) -> Transition:
        """A copy of all transitions, oldest first, with one leading axis."""
        index = np.arange(self.added - len(self), self.added) % self.capacity
        return Transition(*(store[index] for store in self._data[:5]))

    def chunk(self, first: int, end: int) -> Transition:
        """Transitions number first, first + 1, ... up to end - 1 or the last row of the ring: views, not copies."""
        start = first % self.capacity
        rows = slice(start, min(start + end - first, self.capacity))
        return Transition(*(store[rows] for store in self._data[:5]))

    def restore(self, first: int, chunks: Iterable[Transition]) -> None:
        """Takes transitions number first, first + 1, ..., in pieces, in place of what it holds.

        Args:
            first: number of the oldest transition.
            chunks: pieces with one leading axis, each no longer than the capacity.
        """
        self.added = first
        for transitions in chunks:
            self.add(transitions)

    def _checked(self, transitions: Transition, count: int) -> list[np.ndarray]:
        """The first five fields, as the types they are stored in; nothing is stored before all of them are good."""
        rows = []
        for name, store, given in zip(Transition._fields, self._data[:5], transitions, strict=False):
            values, shape = np.asarray(given), (count, *store.shape[1:])
            if values.shape != shape:
                raise UsageError(f"{name} must have shape {shape}, got {values.shape}")
            if store.dtype == bool:
                if values.dtype != bool:
                    raise UsageError(f"{name} must be of dtype bool, got {values.dtype}")
            else:
                if not np.issubdtype(values.dtype, np.floating):
                    raise UsageError(f"{name} must be of a floating dtype, got {values.dtype}")
                with np.errstate(over="ignore"):
                    values = values.astype(np.float32, copy=False)
                if not np.isfinite(values).all():
                    row = int(np.argwhere(~np.isfinite(values))[0, 0])
                    raise UsageError(f"{name} of transition {row} is not finite in float32: {np.asarray(given)[row]}")
            rows.append(values)
        return rows
