"""Replay: where transitions wait to be learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from diffac.errors import UsageError, check_count, check_number
from diffac.parts.storage import Column, Storage
from diffac.protocols import Batch, Transition


class Replay(Protocol):
    """What the training loop needs of a replay memory."""

    def __len__(self) -> int:
        """Transitions stored."""
        ...

    def add(self, transitions: Transition) -> None:
        """Stores a step of all environments: transitions with one leading axis, always in the same order."""
        ...

    def sample(self, rng: np.random.Generator, updates: int, batch_size: int) -> Batch:
        """Batches with leading axes [updates, batch_size]; the same for the same contents and generator.

        Their `number` may be None; some objectives need it.
        """
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


_STORED = ("obs", "action", "next_obs")
"""Fields of a transition that may lie on a device."""
_ON_HOST = ("reward", "terminated", "first")
"""Fields that say which steps make a sample; small."""
_NUMBERS = 2**31
"""How many different numbers transitions have, from 0 on: devices count in 32 bits."""


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

    A sample starts at a transition and takes the m <= n_step steps that its environment made from there on, up to the
    end of the episode and no further than what is stored: reward is the sum of gamma^k r_k over k < m, next_obs the
    observation after the last, discount gamma^m, or 0 where it terminated. Its number is that of its first transition,
    modulo 2^31.

    Args:
        capacity: transitions kept; older ones are overwritten.
        obs_dim: entries of an observation.
        action_dim: entries of an action.
        gamma: discount factor, in [0, 1].
        n_step: steps in a row, at most, that a sample sums up.
        num_envs: environments, whose steps are added in turns: rows i and i + num_envs are of the same one. It matters
            for n_step above 1 alone.
        storage: makes what holds observations and actions: NumPy arrays, or a backend's `DeviceStorage`. What is
            sampled is the same.

    Raises:
        UsageError: a number outside its range, or more memory than there is.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        *,
        gamma: float = 0.99,
        n_step: int = 1,
        num_envs: int = 1,
        storage: Callable[[Sequence[Column]], Storage] = HostStorage,
    ) -> None:
        sizes = {"capacity": capacity, "obs_dim": obs_dim, "action_dim": action_dim}
        for name, value in {**sizes, "n_step": n_step, "num_envs": num_envs}.items():
            check_count(name, value)
        check_number("gamma", gamma, "[0, 1]")
        self.capacity, self.gamma, self.n_step, self.num_envs = capacity, gamma, n_step, num_envs
        self._columns = {
            "obs": Column((capacity, obs_dim), np.float32),
            "action": Column((capacity, action_dim), np.float32),
            "reward": Column((capacity,), np.float32),
            "next_obs": Column((capacity, obs_dim), np.float32),
            "terminated": Column((capacity,), bool),
            "first": Column((capacity,), bool),
        }
        try:
            self._storage = storage([self._columns[name] for name in _STORED])
            self._host = {name: np.empty(*self._columns[name]) for name in _ON_HOST}
        except MemoryError as error:
            gib = capacity * (8 * obs_dim + 4 * action_dim + 6) / 2**30
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
        before_end = min(count, self.capacity - position)
        self._write(position, {name: values[:before_end] for name, values in rows.items()})
        if before_end < count:
            self._write(0, {name: values[before_end:] for name, values in rows.items()})
        self.added += count

    def sample(self, rng: np.random.Generator, updates: int, batch_size: int) -> Batch:
        """Batches drawn independently, with leading axes [updates, batch_size].

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
        age = (self.added - 1 - index) % self.capacity
        number = ((self.added - 1 - age) % _NUMBERS).astype(np.int32)
        self.sampled_age = float(age.mean())
        last, reward, discount = self._sum_up(index, age)
        if last is index:
            obs, action, next_obs = self._storage.take(index)
        else:
            (obs, action, _), (_, _, next_obs) = self._storage.take(index), self._storage.take(last)
        return Batch(obs, action, reward, next_obs, discount, number=number)

    def _sum_up(self, index: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The last row of each sample, its discounted reward and its discount, for samples that start at these rows."""
        ends = self._host["terminated"]
        if self.n_step == 1:
            factor = np.where(ends[index], np.float32(0), np.float32(self.gamma))
            return index, np.take(self._host["reward"], index), factor
        last, power = index.copy(), np.ones(index.shape)
        reward, going = self._host["reward"][index].astype(np.float64), ~ends[index]
        for k in range(1, self.n_step):
            row = (index + k * self.num_envs) % self.capacity
            going &= (age >= k * self.num_envs) & ~self._host["first"][row]
            power[going] *= self.gamma
            reward[going] += (power * self._host["reward"][row])[going]
            last[going] = row[going]
            going &= ~ends[row]
        discount = np.where(ends[last], 0, self.gamma * power)
        return last, reward.astype(np.float32), discount.astype(np.float32)

    def contents(self) -> Transition:
        """A copy of all transitions, oldest first, with one leading axis."""
        index = np.arange(self.added - len(self), self.added) % self.capacity
        stored = zip(_STORED, map(np.asarray, self._storage.take(index)), strict=True)
        return Transition(**dict(stored), **{name: array[index] for name, array in self._host.items()})

    def chunk(self, first: int, end: int) -> Transition:
        """Transitions number first, first + 1, ... up to end - 1 or the last row of the ring."""
        start = first % self.capacity
        rows = slice(start, min(start + end - first, self.capacity))
        stored = zip(_STORED, self._storage.read(rows), strict=True)
        return Transition(**dict(stored), **{name: array[rows] for name, array in self._host.items()})

    def restore(self, first: int, chunks: Iterable[Transition]) -> None:
        """Takes transitions number first, first + 1, ..., in pieces, in place of what it holds.

        Args:
            first: number of the oldest transition.
            chunks: pieces with one leading axis, each no longer than the capacity.
        """
        self.added = first
        for transitions in chunks:
            self.add(transitions)

    def _write(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Overwrites the rows from `start` on."""
        self._storage.write(start, [rows[name] for name in _STORED])
        for name, array in self._host.items():
            array[start : start + len(rows[name])] = rows[name]

    def _checked(self, transitions: Transition, count: int) -> dict[str, np.ndarray]:
        """The fields, as the types they are stored in; nothing is stored before all of them are good."""
        rows = {}
        for name, given in transitions._asdict().items():
            column = self._columns[name]
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
            rows[name] = values
        return rows
