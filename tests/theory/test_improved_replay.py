"""ImprovedReplayProposal: its steps on a known Q, and what its table keeps, for whom, and for how long."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.parts.inputs import entry
from diffac.parts.schedules import cosine_schedule
from diffac.protocols import Batch
from diffac.testing import parts
from diffac.testing.parts import DIMS, make_batch
from diffac.training.config import ActorCriticConfig
from diffac.training.loop import Loop

pytestmark = pytest.mark.theory

TABLE = cosine_schedule(10)
OBS = np.array([[-0.5], [0.5], [1.5], [0.1]])
ACTIONS = np.array([[-0.9, 0.2], [0.1, -0.4], [0.97, 0.3], [0.6, 0.6]])
CAPACITY = 7


def critic(backend: ModuleType) -> Any:
    """s a_1 - (a_1^4 + a_2^2) / 2 and more than that: the first is the smaller one everywhere."""
    stack = importlib.import_module({"torch": "torch", "equinox": "jax.numpy"}[backend.name]).stack

    def values(obs: Any, action: Any) -> Any:
        x, y = action[..., 0], action[..., 1]
        q = obs[..., 0] * x - 0.5 * (x**4 + y**2)
        return stack([q, q + 1 + x**2])

    return values


def value(action: np.ndarray) -> np.ndarray:
    return OBS[:, 0] * action[:, 0] - 0.5 * (action[:, 0] ** 4 + action[:, 1] ** 2)


def slope(action: np.ndarray) -> np.ndarray:
    return np.stack([OBS[:, 0] - 2 * action[:, 0] ** 3, -action[:, 1]], axis=-1)


def steps(action: np.ndarray, count: int, rate: float, eps: float, bound: float = np.inf) -> np.ndarray:
    """Adam's steps with its moments as the weighted means of all gradients so far that they are."""
    seen: list[np.ndarray] = []
    for _ in range(count):
        gradient = slope(action)
        seen.append(gradient * min(1.0, bound / np.sqrt((gradient**2).sum())))
        ages = np.arange(len(seen))[::-1]
        mean = np.average(seen, axis=0, weights=0.9**ages)
        square = np.average(np.square(seen), axis=0, weights=0.999**ages)
        action = np.clip(action + rate * mean / (np.sqrt(square) + eps), -1, 1)
    return action


def a_batch(numbers: Any = (0, 1, 2, 3), action: np.ndarray = ACTIONS) -> Batch:
    zeros = np.zeros(len(OBS))
    return Batch(OBS, action, zeros, OBS, zeros, number=np.asarray(numbers, np.int32))


def proposed(backend: ModuleType, proposal: Any, batch: Batch, state: Any) -> tuple[Any, Any]:
    """The data of a batch, and the state after it, as NumPy arrays."""
    noise = draw(np.random.default_rng(0), proposal.noise_spec(ACTIONS.shape, TABLE.num_steps), np.float64)
    given = backend.testing.to_backend((batch, noise, np.float64(1.0), {n: np.copy(a) for n, a in state.items()}))
    data = proposal(None, critic(backend), *given, TABLE)
    written = importlib.import_module(f"{backend.__name__}.state").written
    return backend.testing.to_numpy((data, written(given[-1], data.state)))


def empty(proposal: Any) -> Any:
    return proposal.init_state(TABLE.num_steps)


@pytest.mark.parametrize("bound", [None, 0.3])
def test_steps_on_a_known_value(backend: ModuleType, bound: float | None) -> None:
    """As the equation says, from the actions that were taken; the data are noised as any others are."""
    proposal = backend.ImprovedReplayProposal(
        CAPACITY, 2, num_steps=9, learning_rate=0.05, eps=0.01, max_grad_norm=bound
    )
    data, _ = proposed(backend, proposal, a_batch(), empty(proposal))
    expected = steps(ACTIONS, 9, 0.05, 0.01, bound or np.inf)
    np.testing.assert_allclose(data.action, expected, rtol=1e-12)
    noise = draw(np.random.default_rng(0), proposal.noise_spec(ACTIONS.shape, TABLE.num_steps), np.float64)
    alpha, sigma = (array[noise["t"]][:, None] for array in (TABLE.alphas, TABLE.sigmas))
    np.testing.assert_allclose(data.noisy, alpha * expected + sigma * noise["eps"], rtol=1e-12)
    np.testing.assert_array_equal(data.target, noise["eps"])
    np.testing.assert_array_equal(data.weight, 1)
    np.testing.assert_allclose(data.metrics["improvement"], (value(expected) - value(ACTIONS)).mean(), rtol=1e-12)
    np.testing.assert_allclose(data.metrics["action_shift"], np.abs(expected - ACTIONS).mean(), rtol=1e-12)


def test_small_steps_raise_q(backend: ModuleType) -> None:
    """In every row, and farther in the second batch, which goes on from where the first arrived."""
    proposal = backend.ImprovedReplayProposal(CAPACITY, 2, num_steps=20, learning_rate=1e-3)
    first, state = proposed(backend, proposal, a_batch(), empty(proposal))
    second, _ = proposed(backend, proposal, a_batch(), state)
    assert (value(first.action) > value(ACTIONS)).all()
    assert (value(second.action) > value(first.action)).all()


def test_what_was_improved_is_kept(backend: ModuleType) -> None:
    """The table's rows change, and the next batch with these transitions begins there, whatever was taken."""
    proposal = backend.ImprovedReplayProposal(CAPACITY, 2, num_steps=3)
    numbers = [12, 8, 3, 20]
    first, state = proposed(backend, proposal, a_batch(numbers), empty(proposal))
    np.testing.assert_array_equal(state["action"][[5, 1, 3, 6]], first.action)
    np.testing.assert_array_equal(state["replay_number"], [-1, 8, -1, 3, -1, 12, 20])
    assert first.metrics["kept_fraction"] == 0
    second, _ = proposed(backend, proposal, a_batch(numbers, 0 * ACTIONS), state)
    np.testing.assert_allclose(second.action, steps(first.action, 3, 0.03, 1e-5), rtol=1e-12)
    assert second.metrics["kept_fraction"] == 1


def test_another_transition_in_the_same_row_begins_with_its_own_action(backend: ModuleType) -> None:
    """After the ring has wrapped: the numbers are larger by the capacity, but for one."""
    proposal = backend.ImprovedReplayProposal(CAPACITY, 2, num_steps=3)
    _, state = proposed(backend, proposal, a_batch(), empty(proposal))
    later = a_batch([7, 8, 2, 10], -ACTIONS)
    data, after = proposed(backend, proposal, later, state)
    start = -ACTIONS
    start[2] = state["action"][2]
    np.testing.assert_allclose(data.action, steps(start, 3, 0.03, 1e-5), rtol=1e-12)
    assert data.metrics["kept_fraction"] == 0.25
    np.testing.assert_array_equal(after["replay_number"], [7, 8, 2, 10, -1, -1, -1])


def test_which_of_several_rows_is_kept(backend: ModuleType) -> None:
    """The first of the same transition, and the newer of two that share a row: 9 and 2."""
    proposal = backend.ImprovedReplayProposal(CAPACITY, 2, num_steps=3)
    data, state = proposed(backend, proposal, a_batch([2, 4, 4, 9]), empty(proposal))
    np.testing.assert_array_equal(state["replay_number"], [-1, -1, 9, -1, 4, -1, -1])
    np.testing.assert_array_equal(state["action"][[2, 4]], data.action[[3, 1]])
    np.testing.assert_allclose(data.action, steps(ACTIONS, 3, 0.03, 1e-5), rtol=1e-12)


def test_a_batch_that_does_not_fit_is_refused(backend: ModuleType) -> None:
    proposal = backend.ImprovedReplayProposal(CAPACITY, 2)
    with pytest.raises(UsageError, match=r"needs batch\.number, got None; the replay memory must say"):
        proposed(backend, proposal, a_batch()._replace(number=None), empty(proposal))
    proposal = backend.ImprovedReplayProposal(CAPACITY, 3)
    with pytest.raises(UsageError, match="has action_dim=3, and the batch has actions of 2 entries"):
        proposed(backend, proposal, a_batch(), empty(proposal))


# in a learner


def test_a_batch_sees_what_those_before_it_in_the_same_call_have_written(backend: ModuleType) -> None:
    """The same transitions three times in one call: the second and third batch go on where the one before arrived."""
    engine, state = parts.make_engine(backend, "dipo")
    engine = parts.changed(backend, engine, actor_delay=1)
    _, single = parts.make_engine(backend, "dipo")
    batch = make_batch(np.random.default_rng(0), leading=(1,), filled=False)
    batch = batch._replace(number=np.arange(DIMS.batch, dtype=np.int32)[None])
    batches = Batch(*(None if field is None else np.repeat(field, 3, axis=0) for field in batch))
    state, metrics = engine.update(state, batches, 5)
    assert engine.fetch([metrics])["actor_kept_fraction"][0] == pytest.approx(2 / 3)
    for i in range(3):
        single, _ = engine.step(single, entry(batches, i), engine.draw_noise(5, i, DIMS.shape))
    one, other = backend.to_arrays(state), backend.to_arrays(single)
    assert (one["actor_objective.replay_number"] == [0, 1, 2, 3, 4, -1, -1]).all()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-9, atol=1e-12, err_msg=name)


def large_engine(B: Any, delay: int) -> tuple[Any, Any]:
    """One whose table, of 3 MB, is larger than everything else together."""
    proposal = B.ImprovedReplayProposal(100_000, DIMS.action, num_steps=2)
    objective = B.ReweightedScoreMatching(parts.schedule(), proposal)
    engine = parts.changed(
        B, parts.make_engine(B, "dipo")[0], actor_objective=B.Sum((0.5, objective)), actor_delay=delay
    )
    part = parts.LEARNERS["dipo"]
    return engine, engine.init(parts.make_actor(B, part), parts.make_critic(B, part))


@pytest.mark.parametrize("delay", [1, 2])
def test_torch_writes_in_place(delay: int) -> None:
    B = load_backend("torch")
    engine, state = large_engine(B, delay)
    tables = dict(state.actor_objective)
    before = {name: table.data_ptr() for name, table in tables.items()}
    state, _ = engine.update(state, make_batch(np.random.default_rng(0), leading=(3,), filled=False), 1)
    assert {name: table.data_ptr() for name, table in state.actor_objective.items()} == before
    assert (state.actor_objective["term0.replay_number"] >= 0).any()


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("delay", [1, 2])
def test_equinox_writes_in_place(delay: int, updates: int) -> None:
    """The compiled update keeps no second table, nor one for each of its updates."""
    B = load_backend("equinox")
    programs, random = (importlib.import_module(f"diffac_equinox.engine.{name}") for name in ("programs", "random"))
    engine, state = large_engine(B, delay)
    arrays, structure, others = programs._take_apart(state)
    batches = make_batch(np.random.default_rng(0), leading=(updates,), filled=False)
    program = engine._make_update_program(structure, others).lower(arrays, batches, random.key_data(1)).compile()
    memory = program.memory_analysis()
    smallest = min(table.nbytes for table in state.actor_objective.values())
    assert smallest == 400_000
    assert memory.temp_size_in_bytes < smallest
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < smallest


def test_a_training_with_another_memory_forgets(backend: ModuleType) -> None:
    """Its numbers begin anew; what networks have learned stays."""
    dims = DIMS._replace(action=1)
    engine, state = parts.make_engine(backend, "dipo", dims)
    batches = make_batch(np.random.default_rng(0), dims, leading=(2,), filled=False)
    state, _ = engine.update(state, batches, 1)
    before = backend.to_arrays(state)
    assert (before["actor_objective.replay_number"] >= 0).any()
    config = ActorCriticConfig(
        env_id="fakes:Random-v0", backend=backend.name, total_timesteps=100, learning_starts=10, batch_size=8
    )
    with Loop(engine, state, config) as training:
        after = backend.to_arrays(training.state)
    assert (after["actor_objective.replay_number"] == -1).all()
    for name in before:
        if not name.endswith("replay_number"):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
