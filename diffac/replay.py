"""Replay: where transitions wait to be learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from diffac.errors import UsageError
from diffac.protocols import Array, Transition


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


class Column(NamedTuple):
    """A field of the transitions that a storage holds."""

    shape: tuple[int, ...]
    """[capacity ...]"""
    dtype: type
    """float32 or bool."""


class Storage(Protocol):
    """Where the columns of a `ReplayBuffer` lie, with equally many rows each."""

    def write(self, start: int, rows: Sequence[np.ndarray]) -> None:
        """Overwrites the rows from `start` on in every column."""
        ...

    def read(self, rows: slice) -> Sequence[np.ndarray]:
        """These rows of every column on the host, perhaps views."""
        ...

    def take(self, index: np.ndarray) -> Sequence[Array]:
        """Copies [*index ...] of the rows with these numbers, on the device of the storage."""
        ...


class HostStorage:
    """NumPy arrays, whose memory is reserved at once but taken from the machine only as it is filled."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._arrays = [np.empty(column.shape, column.dtype) for column in columns]

    def write(self, start: int, rows: Sequence[np.ndarray]) -> None:
        for array, values in zip(self._arrays, rows, strict=True):
            array[start : start + len(values)] = values

    def read(self, rows: slice) -> list[np.ndarray]:
        return [array[rows] for array in self._arrays]

    def take(self, index: np.ndarray) -> list[np.ndarray]:
        return [np.take(array, index, axis=0) for array in self._arrays]


class ReplayBuffer:
    """The last `capacity` transitions, sampled uniformly with replacement: a ring in float32.

    Args:
        capacity: transitions kept; older ones are overwritten.
        obs_dim: entries of an observation.
        action_dim: entries of an action.
        storage: makes what holds the rows: NumPy arrays, or a backend's `DeviceStorage`. What is sampled is the same.

    Raises:
        UsageError: a number below 1, or more memory than there is.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        storage: Callable[[Sequence[Column]], Storage] = HostStorage,
    ) -> None:
        for name, value in (("capacity", capacity), ("obs_dim", obs_dim), ("action_dim", action_dim)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.capacity = capacity
        self._columns = [
            Column((capacity, *shape), dtype)
            for shape, dtype in (
                ((obs_dim,), np.float32),
                ((action_dim,), np.float32),
                ((), np.float32),
                ((obs_dim,), np.float32),
                ((), bool),
            )
        ]
        try:
            self._storage = storage(self._columns)
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
        self._storage.write(position, [values[:first] for values in rows])
        if first < count:
            self._storage.write(0, [values[first:] for values in rows])
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
        return Transition(*self._storage.take(index))

    def contents(self) -> Transition:
        """A copy of all transitions, oldest first, with one leading axis."""
        index = np.arange(self.added - len(self), self.added) % self.capacity
        return Transition(*(np.asarray(column) for column in self._storage.take(index)))

    def chunk(self, first: int, end: int) -> Transition:
        """Transitions number first, first + 1, ... up to end - 1 or the last row of the ring."""
        start = first % self.capacity
        rows = slice(start, min(start + end - first, self.capacity))
        return Transition(*self._storage.read(rows))

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
        for name, column, given in zip(Transition._fields, self._columns, transitions, strict=False):
            values, shape = np.asarray(given), (count, *column.shape[1:])
            if values.shape != shape:
                raise UsageError(f"{name} must have shape {shape}, got {values.shape}")
            if column.dtype is bool:
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
