"""The replay ring against a list."""

from __future__ import annotations

import functools
import pathlib
import re
import resource
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diffac.data.replay import ReplayBuffer
from diffac.errors import UsageError
from diffac.protocols import Batch, Transition

OBS, ACTION = 3, 2


def rows(first: int, count: int) -> Transition:
    """Transitions whose every entry says which one it is."""
    i = np.arange(first, first + count, dtype=np.float64)
    return Transition(
        obs=i[:, None] + [0.0, 0.1, 0.2],
        action=-i[:, None] - [0.0, 0.1],
        reward=i * 2,
        next_obs=i[:, None] + [0.5, 0.6, 0.7],
        terminated=i % 3 == 0,
        first=i % 4 == 1,
    )


def check(transitions: Transition, numbers: np.ndarray) -> None:
    """The fields belong together and are those of the transitions with these numbers."""
    expected = rows(0, int(numbers.max(initial=0)) + 1)
    for name, field, values in zip(Transition._fields, transitions, expected, strict=True):
        assert field.dtype == (bool if name in ("terminated", "first") else np.float32)
        assert field.shape == (*numbers.shape, *values.shape[1:])
        np.testing.assert_array_equal(field, values[numbers].astype(field.dtype))


def check_batch(batch: Batch, numbers: np.ndarray, gamma: float = 0.99) -> None:
    """The same of samples of one step."""
    expected = rows(0, int(numbers.max(initial=0)) + 1)
    for name in ("obs", "action", "reward", "next_obs"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name)[numbers].astype(np.float32))
    np.testing.assert_array_equal(batch.discount, np.where(expected.terminated[numbers], 0, np.float32(gamma)))
    assert batch.discount.dtype == np.float32
    np.testing.assert_array_equal(batch.number, numbers)
    assert batch.number.dtype == np.int32
    assert batch.weight is None
    assert batch.next_rollout is None


class RingMachine(RuleBasedStateMachine):
    """Adds and samples at random; the list holds the numbers of the transitions that must be there."""

    @initialize(capacity=st.integers(1, 12))
    def begin(self, capacity: int) -> None:
        self.buffer = ReplayBuffer(capacity, OBS, ACTION)
        self.capacity, self.added = capacity, 0
        self.model: list[int] = []

    @rule(count=st.integers(0, 12))
    def add(self, count: int) -> None:
        if count > self.capacity:
            with pytest.raises(UsageError, match="at once"):
                self.buffer.add(rows(self.added, count))
            return
        self.buffer.add(rows(self.added, count))
        self.model = [*self.model, *range(self.added, self.added + count)][-self.capacity :]
        self.added += count

    @precondition(lambda self: self.model)
    @rule(seed=st.integers(0, 100), updates=st.integers(1, 3), data=st.data())
    def sample(self, seed: int, updates: int, data: Any) -> None:
        batch_size = data.draw(st.integers(1, len(self.model)))
        batch = self.buffer.sample(np.random.default_rng(seed), updates, batch_size)
        numbers = np.round(batch.reward / 2).astype(int)
        assert numbers.shape == (updates, batch_size)
        assert set(numbers.flat) <= set(self.model)
        check_batch(batch, numbers)

    @invariant()
    def same_contents(self) -> None:
        if hasattr(self, "buffer"):
            assert len(self.buffer) == len(self.model)
            check(self.buffer.contents(), np.array(self.model, int))


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRing = RingMachine.TestCase


def test_numbers_of_a_very_long_training(backend: Any) -> None:
    """They stay in 32 bits and are never negative, and those of a batch differ where transitions do."""
    buffer = ReplayBuffer(7, OBS, ACTION)
    buffer.restore(2**31 - 4, [rows(0, 7)])
    batch = buffer.sample(np.random.default_rng(0), 20, 5)
    came = np.round(batch.reward / 2).astype(np.int64)
    np.testing.assert_array_equal(batch.number, (came + 2**31 - 4) % 2**31)
    assert batch.number.dtype == np.int32
    assert set(batch.number.flat) == {2**31 - 4, 2**31 - 3, 2**31 - 2, 2**31 - 1, 0, 1, 2}


def test_on_the_device_of_a_backend(backend: Any) -> None:
    """The same batches, contents and pieces as from NumPy arrays; batches of the framework's own arrays."""
    place = functools.partial(backend.DeviceStorage, "cpu")
    one, other = ReplayBuffer(7, OBS, ACTION), ReplayBuffer(7, OBS, ACTION, storage=place)
    rng = np.random.default_rng(0)
    for count in (3, 2, 4, 7, 0, 1, 5):
        one.add(rows(one.added, count))
        other.add(rows(other.added, count))
        assert len(one) == len(other)
        seed = int(rng.integers(1000))
        expected, batch = (buffer.sample(np.random.default_rng(seed), 2, 3) for buffer in (one, other))
        of_backend = type(backend.testing.to_backend(np.ones(1)))
        assert all(isinstance(field, of_backend) for field in (batch.obs, batch.action, batch.next_obs))
        assert one.sampled_age == other.sampled_age
        first = max(0, one.added - 7)
        pieces = tuple(buffer.chunk(first, first + 2) for buffer in (one, other))
        for left, right in ((expected[:5], batch[:5]), (one.contents(), other.contents()), pieces):
            for mine, theirs in zip(left, right, strict=True):
                assert np.asarray(theirs).dtype == mine.dtype
                np.testing.assert_array_equal(np.asarray(theirs), mine)
    again = ReplayBuffer(7, OBS, ACTION, storage=place)
    again.restore(other.added - 7, [other.contents()])
    np.testing.assert_array_equal(again.contents().obs, one.contents().obs)


def test_a_device_with_too_little_memory(backend: Any) -> None:
    with pytest.raises(UsageError, match=r"needs \d.*GiB of memory, more than this machine gives; lower buffer_size"):
        ReplayBuffer(10**13, OBS, ACTION, storage=functools.partial(backend.DeviceStorage, "cpu"))


def filled(count: int = 10, capacity: int = 10) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, OBS, ACTION)
    buffer.add(rows(0, count))
    return buffer


def test_sampling_is_uniform_and_only_over_what_is_stored() -> None:
    counts = np.bincount(
        np.round(filled(7, 100).sample(np.random.default_rng(0), 100, 7 * 1).reward / 2).astype(int).ravel(),
        minlength=7,
    )
    assert len(counts) == 7
    assert (abs(counts - 100) < 45).all()


def test_sampling_is_decided_by_the_generator() -> None:
    buffer = filled()
    a, b, c = (buffer.sample(np.random.default_rng(seed), 2, 5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.obs, b.obs)
    assert (a.obs != c.obs).any()


def test_samples_and_stored_rows_are_copies() -> None:
    buffer, given = ReplayBuffer(4, OBS, ACTION), rows(0, 4)
    buffer.add(given)
    given.obs[:] = -1
    buffer.sample(np.random.default_rng(0), 1, 4).obs[:] = -2
    check(buffer.contents(), np.arange(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((2, OBS + 1))}, "obs must have shape (2, 3), got (2, 4)"),
        ({"next_obs": np.zeros((1, OBS))}, "next_obs must have shape (2, 3), got (1, 3)"),
        ({"action": np.zeros(2)}, "action must have shape (2, 2), got (2,)"),
        ({"reward": np.float32(1)}, "reward must have one axis, got shape ()"),
        ({"terminated": np.zeros((2, 1), bool)}, "terminated must have shape (2,)"),
        ({"terminated": np.zeros(2)}, "terminated must be of dtype bool, got float64"),
        ({"obs": np.zeros((2, OBS), np.uint8)}, "obs must be of a floating dtype, got uint8"),
        ({"reward": np.array([0, 1])}, "reward must be of a floating dtype"),
        ({"reward": np.array([0, np.nan])}, "reward of transition 1 is not finite"),
        ({"obs": np.full((2, OBS), np.inf)}, "obs of transition 0 is not finite"),
        ({"action": np.full((2, ACTION), np.nan)}, "action of transition 0 is not finite"),
        ({"next_obs": np.full((2, OBS), 1e300)}, "next_obs of transition 0 is not finite in float32"),
    ],
)
def test_bad_transitions_are_refused_and_nothing_is_stored(change: dict[str, np.ndarray], message: str) -> None:
    buffer = filled(3)
    with pytest.raises(UsageError, match=re.escape(message)):
        buffer.add(rows(3, 2)._replace(**change))
    check(buffer.contents(), np.arange(3))


@pytest.mark.parametrize(("updates", "batch_size"), [(1, 4), (0, 1), (-1, 1), (1, 0), (1, -3)])
def test_bad_counts_are_refused(updates: int, batch_size: int) -> None:
    with pytest.raises(UsageError):
        filled(3).sample(np.random.default_rng(0), updates, batch_size)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_bad_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="must be a whole number, greater than 0"):
        ReplayBuffer(*sizes)


def test_memory_is_not_touched_before_it_is_filled() -> None:
    """Almost 4 GiB of addresses, a few pages of memory."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc")
    before = int(statm.read_text().split()[1])
    buffer = ReplayBuffer(1_000_000, 500, ACTION)
    buffer.add(rows(0, 2)._replace(obs=np.zeros((2, 500)), next_obs=np.zeros((2, 500))))
    assert (int(statm.read_text().split()[1]) - before) * resource.getpagesize() < 100 * 2**20


def test_a_buffer_beyond_the_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs 3757.0 GiB of memory.*lower buffer_size"):
        ReplayBuffer(10**9, 500, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma": 1.1}, r"gamma must be a number in \[0, 1\], got 1.1"),
        ({"gamma": np.nan}, "gamma"),
        ({"n_step": 0}, "n_step must be a whole number, greater than 0, got 0"),
        ({"n_step": 2.0}, "n_step must be a whole number"),
        ({"num_envs": 0}, "num_envs must be a whole number, greater than 0, got 0"),
    ],
)
def test_bad_numbers_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReplayBuffer(5, OBS, ACTION, **given)


# n steps in a row


class Step(NamedTuple):
    """One step of one environment, for the brute force."""

    number: int
    reward: float
    terminated: bool
    first: bool


def brute_force(history: list[Step], place: int, n_step: int, gamma: float) -> tuple[float, float, int]:
    """Reward, discount and the number of the last step of a sample that starts at a place of a history."""
    reward, power, last = 0.0, 1.0, history[place]
    for k in range(n_step):
        if place + k == len(history) or (k > 0 and history[place + k].first):
            break
        last = history[place + k]
        reward, power = reward + power * last.reward, power * gamma
        if last.terminated:
            break
    return reward, 0.0 if last.terminated else power, last.number


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_n_steps_in_a_row_against_brute_force(data: Any) -> None:
    """Ends, time limits, resets without an end, several environments, a ring that has turned, the newest steps."""
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    capacity, gamma = data.draw(st.integers(num_envs, 20)), data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    buffer = ReplayBuffer(capacity, 1, 1, gamma=gamma, n_step=n_step, num_envs=num_envs)
    histories: list[list[Step]] = [[] for _ in range(num_envs)]
    first = [True] * num_envs
    for step in range(data.draw(st.integers(1, 15))):
        reward = np.array(data.draw(st.lists(st.integers(-4, 4), min_size=num_envs, max_size=num_envs)), float)
        kinds = data.draw(st.lists(st.sampled_from("gte"), min_size=num_envs, max_size=num_envs))
        terminated, starts = np.array([kind == "e" for kind in kinds]), np.array(first)
        numbers = np.arange(num_envs) + step * num_envs
        buffer.add(Transition(numbers[:, None] * 1.0, np.zeros((num_envs, 1)), reward, numbers[:, None] + 0.5,
                              terminated, starts))  # fmt: skip
        for env in range(num_envs):
            histories[env].append(Step(int(numbers[env]), reward[env], bool(terminated[env]), first[env]))
        first = [kind != "g" for kind in kinds]
    batch = buffer.sample(np.random.default_rng(0), 3, min(4, len(buffer)))
    for i in np.ndindex(batch.reward.shape):
        number = int(batch.obs[i][0])
        expected = brute_force(histories[number % num_envs], number // num_envs, n_step, gamma)
        actual = batch.reward[i], batch.discount[i], batch.next_obs[i][0] - 0.5
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
