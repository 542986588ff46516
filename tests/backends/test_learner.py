"""The learner: one fused update is repeated steps, and what moves when."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import load_backend
from exported import TARGETS, check_exported

from diffac.errors import UsageError
from diffac.noise import Zeros, draw
from diffac.parts.inputs import entry
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Batch, Loss, Policy
from diffac.testing import reference
from diffac.testing.parts import DIMS, LEARNERS, changed, make_actor, make_batch, make_critic, make_noise, randomise

Arrays = dict[str, np.ndarray]


@functools.cache
def engine_of(backend_name: str, name: str) -> Any:
    """One engine for all tests of a row, so that its functions are compiled once."""
    backend = load_backend(backend_name)
    return backend.Engine(LEARNERS[name].make(backend, DIMS))


def fresh(backend: ModuleType, name: str, engine: Any = None, key: int = 1) -> tuple[Any, Any]:
    """(engine, new state): a state must not be used after a step, so every path gets its own."""
    engine = engine_of(backend.name, name) if engine is None else engine
    part = LEARNERS[name]
    return engine, engine.init(make_actor(backend, part, key), make_critic(backend, part, key + 1))


def arrays_of(backend: ModuleType, state: Any) -> Arrays:
    """A copy of everything in a state."""
    return {name: np.array(value) for name, value in backend.to_arrays(state).items()}


def part_of(arrays: Arrays, part: str) -> Arrays:
    """The entries below one name, without it."""
    return {name.removeprefix(f"{part}."): value for name, value in arrays.items() if name.startswith(f"{part}.")}


def moved(one: Arrays, other: Arrays, part: str) -> bool:
    """Whether any bit of a part differs."""
    before, after = part_of(one, part), part_of(other, part)
    assert before
    assert set(before) == set(after)
    return any((before[name] != after[name]).any() for name in before)


def assert_equal(one: Arrays, other: Arrays, rtol: float = 1e-9) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        scale = np.abs(value).max(initial=0.0)
        np.testing.assert_allclose(other[name], value, rtol=rtol, atol=1e-13 + rtol * scale, err_msg=name)


def numbers(backend: ModuleType, metrics: Any) -> dict[str, float]:
    """Metrics that were computed, as floats."""
    values = {name: float(backend.testing.to_numpy(value)) for name, value in metrics.items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def slices(batches: Batch, index: int) -> Batch:
    return entry(batches, index)


def test_a_single_fused_update_is_a_step(backend: ModuleType) -> None:
    """More than one are in the conformance kit. Twice in a row, so that the delay of the actor is crossed."""
    engine, fused = fresh(backend, "sdac")
    _, single = fresh(backend, "sdac")
    rng = np.random.default_rng(0)
    for key in (12, 2**31 + 5):
        batches = make_batch(rng, leading=(1,), filled=False)
        fused, metrics = engine.update(fused, batches, key)
        single, expected = engine.step(single, slices(batches, 0), engine.draw_noise(key, 0, DIMS.shape))
        assert_equal(arrays_of(backend, single), arrays_of(backend, fused))
        assert numbers(backend, metrics) == pytest.approx(numbers(backend, expected), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", LEARNERS)
def test_drawn_noise_has_the_structure_of_the_spec(backend: ModuleType, name: str) -> None:
    engine = engine_of(backend.name, name)
    spec = engine.learner.noise_spec(DIMS.shape)
    assert set(spec) == {"next_action", "critic", "actor", "temperature"}
    flat = flatten(spec)
    draws = [flatten(backend.testing.to_numpy(engine.draw_noise(*pair, DIMS.shape))) for pair in ((3, 0), (3, 0))]
    assert set(draws[0]) == set(flat)
    for path, law in flat.items():
        assert draws[0][path].shape == law.shape, path
        np.testing.assert_array_equal(draws[0][path], draws[1][path])
    others = [flatten(backend.testing.to_numpy(engine.draw_noise(*pair, DIMS.shape))) for pair in ((3, 1), (4, 0))]
    for path, value in draws[0].items():
        if value.dtype.kind == "f" and value.size:
            assert all((value != other[path]).all() for other in others), path
    # no two entries share their numbers: 2^-20 is far below what two independent draws differ by
    seen = np.concatenate([value.ravel() for value in draws[0].values() if value.dtype.kind == "f"])
    assert len(np.unique(seen)) == len(seen)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def test_drawn_noise_follows_its_laws(backend: ModuleType) -> None:
    engine = engine_of(backend.name, "sdac")
    noise = flatten(backend.testing.to_numpy(engine.draw_noise(7, 2, (4000, DIMS.action))))
    laws = flatten(engine.learner.noise_spec((4000, DIMS.action)))
    kinds = set()
    for path, value in noise.items():
        kind = type(laws[path]).__name__
        kinds.add(kind)
        if kind == "Normal":
            assert abs(value.mean()) < 5 / np.sqrt(value.size), path
            assert abs(value.std() - 1) < 5 / np.sqrt(value.size), path
        if kind == "Uniform":
            assert 0 <= value.min() < 0.01
            assert 0.99 < value.max() < 1
        if kind == "Integers":
            np.testing.assert_array_equal(np.unique(value), np.arange(laws[path].low, laws[path].high))
    assert kinds >= {"Normal", "Integers"}


# what moves when


@pytest.mark.parametrize("name", LEARNERS)
def test_actor_targets_and_average_move_only_when_the_actor_is_due(backend: ModuleType, name: str) -> None:
    engine, state = fresh(backend, name)
    rng = np.random.default_rng(0)
    for update in range(4):
        before = arrays_of(backend, state)
        state, metrics = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
        after = arrays_of(backend, state)
        due = update % engine.learner.actor_delay == engine.learner.first_actor_update
        parts = ["actor", "target_critic", "actor_optimiser"] + ["ema_actor"] * engine.learner.has_ema
        assert {part: moved(before, after, part) for part in parts} == dict.fromkeys(parts, due)
        assert moved(before, after, "critic")
        assert moved(before, after, "critic_optimiser")
        computed = numbers(backend, metrics)
        assert ("actor_loss" in computed) == due
        assert ("actor_grad_norm" in computed) == due
        assert {"critic_loss", "critic_grad_norm", "temperature"} <= set(computed)
        assert int(after["updates"]) == update + 1
        if due:
            for copy, source in (("target_critic", "critic"), ("ema_actor", "actor")):
                if copy in parts:
                    old, new = part_of(before, copy), part_of(after, source)
                    expected = {entry: old[entry] + engine.learner.tau * (new[entry] - old[entry]) for entry in old}
                    assert_equal(expected, part_of(after, copy))


def counting_objective(backend: ModuleType, inner: Any, calls: list[int]) -> Any:
    """The objective, which notes every evaluation that is really executed, compiled or not."""
    if backend.name == "torch":

        @dataclasses.dataclass(frozen=True, eq=False)
        class TorchCounting:
            inner: Any

            def noise_spec(self, shape: Any) -> Any:
                return self.inner.noise_spec(shape)

            def init_state(self) -> Any:
                return self.inner.init_state()

            def __call__(self, *arguments: Any) -> Loss:
                calls.append(1)
                return self.inner(*arguments)

        return TorchCounting(inner)
    import equinox as eqx
    import jax

    class EquinoxCounting(eqx.Module):
        inner: Any

        def noise_spec(self, shape: Any) -> Any:
            return self.inner.noise_spec(shape)

        def init_state(self) -> Any:
            return self.inner.init_state()

        def __call__(self, *arguments: Any) -> Loss:
            jax.debug.callback(lambda: calls.append(1))
            return self.inner(*arguments)

    return EquinoxCounting(inner)


@pytest.mark.parametrize("name", ["dacer2", "sdac"])
def test_actor_loss_is_not_computed_when_it_is_not_due(backend: ModuleType, name: str) -> None:
    calls: list[int] = []
    engine = engine_of(backend.name, name)
    counting = counting_objective(backend, engine.learner.actor_objective, calls)
    engine = changed(backend, engine, actor_delay=3, actor_objective=counting)
    engine, state = fresh(backend, name, engine)
    rng = np.random.default_rng(0)

    def executed() -> int:
        if backend.name == "equinox":
            import jax

            jax.effects_barrier()
        return len(calls)

    due = []
    for _ in range(5):
        before = executed()
        state, _ = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
        due.append(executed() - before)
    assert due == [1, 0, 0, 1, 0]
    before = executed()
    state, _ = engine.update(state, make_batch(rng, leading=(4,), filled=False), 3)  # updates 5, 6, 7, 8
    assert executed() - before == 1


@pytest.mark.parametrize("name", ["dacer2", "sdac", "sac"])
def test_no_second_compilation(name: str) -> None:
    """Other keys, counters, values, NumPy objects: after the first calls nothing is compiled any more (Equinox).

    Nor for a number of observations that occurred before.
    """
    backend = load_backend("equinox")
    import jax

    compilations: list[str] = []

    def listener(event: str, duration: float, **_: Any) -> None:
        if "compile" in event:
            compilations.append(event)

    engine, state = fresh(backend, name)
    rng = np.random.default_rng(0)

    def iteration(state: Any, key: int) -> Any:
        for num_envs in (1, 3, 16):
            noise = draw(rng, engine.act_noise_spec((num_envs, DIMS.action)), np.float32)
            engine.act(state, rng.standard_normal((num_envs, DIMS.obs)).astype(np.float32), noise)
        state, metrics = engine.update(state, make_batch(rng, leading=(2,), filled=False), key)
        backend.testing.to_numpy(dict(metrics))
        return state

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        state = iteration(state, 0)
        assert compilations, "the listener hears nothing: the test would be empty"
        state = iteration(state, 1)  # the second call may see other layouts of donated arrays
        compilations.clear()
        for key in (2, 3, 2**31 + 1, 2**32 - 1):
            state = iteration(state, key)
        assert compilations == []
    finally:
        jax.monitoring.clear_event_listeners()


# reward and targets


@pytest.mark.parametrize("name", ["dacer2", "sac"])
def test_reward_is_scaled_exactly_once(backend: ModuleType, name: str) -> None:
    engine, scaled = fresh(backend, name, changed(backend, engine_of(backend.name, name), reward_scale=0.2))
    plain_engine, plain = fresh(backend, name, changed(backend, engine, reward_scale=1.0))
    rng = np.random.default_rng(0)
    batches = make_batch(rng, leading=(2,), filled=False)
    small = batches._replace(reward=0.2 * batches.reward)
    noise = make_noise(rng, engine)
    kept = batches.reward.copy()
    scaled, _ = engine.step(scaled, slices(batches, 0), noise)
    plain, _ = plain_engine.step(plain, slices(small, 0), noise)
    scaled, _ = engine.update(scaled, batches, 5)
    plain, _ = plain_engine.update(plain, small, 5)
    assert_equal(arrays_of(backend, plain), arrays_of(backend, scaled))
    np.testing.assert_array_equal(batches.reward, kept, err_msg="the caller's batch was changed in place")


@pytest.mark.parametrize("name", LEARNERS)
def test_only_termination_ends_the_bootstrap(backend: ModuleType, name: str) -> None:
    """The target of a transition has the future as the discount says, and where it is 0 has none."""
    engine = engine_of(backend.name, name)
    part = LEARNERS[name]
    rng = np.random.default_rng(0)
    batch, noise = make_batch(rng, filled=False), make_noise(rng, engine)
    targets = []
    for terminated in (True, False):
        actor, critic = make_actor(backend, part), make_critic(backend, part)
        critic = randomise(backend, critic, np.random.default_rng(3), 3.0)
        discount = np.full(DIMS.batch, 0.0 if terminated else 0.97)
        _, metrics = engine.step(engine.init(actor, critic), batch._replace(discount=discount), noise)
        targets.append(numbers(backend, metrics)["critic_target_mean"])
    reward = engine.learner.reward_scale * batch.reward.mean()
    assert targets[0] == pytest.approx(reward, rel=1e-9)
    # the future as the parts say, from the networks of before the step
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    actor = make_actor(backend, part)
    critic = randomise(backend, make_critic(backend, part), np.random.default_rng(3), 3.0)
    temperature = engine.learner.temperature.value(to_backend(dict(engine.learner.temperature.init_state())))
    next_obs = engine.learner.seen(to_backend(batch.next_obs), engine.init(actor, critic).obs_moments)
    rollout = engine.learner.of_target.rollout(
        Policy(actor, critic, temperature), next_obs, to_backend(noise["next_action"])
    )
    objective, future = engine.learner.critic_objective, to_numpy(critic(next_obs, rollout.action))
    ensemble = getattr(objective, "ensemble", "min")
    future = future[reference.members(ensemble, len(future), noise["critic"])]
    future = future.mean(0) if ensemble == "mean" else future.min(0)
    if getattr(objective, "soft", False):
        future = future - float(to_numpy(temperature)) * to_numpy(rollout.log_prob)
    assert targets[1] == pytest.approx(reward + 0.97 * future.mean(), rel=1e-9)
    assert abs(targets[1] - targets[0]) > 1e-3


# optimisers


def test_critic_steps_repeats_the_step_with_one_gradient(backend: ModuleType) -> None:
    """The flag that reproduces the official DPMD code; the first Adam steps all have the same length."""
    rng = np.random.default_rng(0)
    base = engine_of(backend.name, "dpmd")
    batch, noise = make_batch(rng, filled=False), make_noise(rng, base)
    steps = {}
    for count in (1, 2):
        engine, state = fresh(backend, "dpmd", changed(backend, base, critic_steps=count))
        before = arrays_of(backend, state)
        state, _ = engine.step(state, batch, noise)
        after = arrays_of(backend, state)
        assert int(after["critic_optimiser.count"]) == count
        assert int(after["actor_optimiser.count"]) == 1
        steps[count] = {entry: after[entry] - before[entry] for entry in after if entry.startswith("critic.")}
    for item, step in steps[1].items():
        np.testing.assert_allclose(steps[2][item], 2 * step, rtol=1e-4, atol=1e-9, err_msg=item)


def sum_of_parameters(backend: ModuleType) -> Any:
    """An actor objective with gradient 1 for every parameter: Adam's step is then the learning rate itself."""
    if backend.name == "torch":

        @dataclasses.dataclass(frozen=True, eq=False)
        class TorchSum:
            def noise_spec(self, shape: Any) -> Any:
                return {}

            def init_state(self) -> Any:
                return {}

            def __call__(self, actor: Any, *_: Any) -> Loss:
                return Loss(sum(entry.sum() for entry in actor.parameters()), {}, {})

        return TorchSum()
    import equinox as eqx
    import jax

    class EquinoxSum(eqx.Module):
        def noise_spec(self, shape: Any) -> Any:
            return {}

        def init_state(self) -> Any:
            return {}

        def __call__(self, actor: Any, *_: Any) -> Loss:
            return Loss(sum(leaf.sum() for leaf in jax.tree.leaves(eqx.filter(actor, eqx.is_inexact_array))), {}, {})

    return EquinoxSum()


def test_learning_rate_schedule_counts_the_steps_of_its_own_network(backend: ModuleType) -> None:
    """The rate of actor step n (from 0) is the schedule's value at n, however many updates the learner has made."""
    schedule = LinearSchedule(1e-2, 1e-3, 1, 4)
    engine = changed(
        backend,
        engine_of(backend.name, "sdac"),
        actor_objective=sum_of_parameters(backend),
        actor_optimiser=backend.Adam(schedule),
        actor_delay=2,
    )
    engine, state = fresh(backend, "sdac", engine)
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(12):
        before = arrays_of(backend, state)["actor.layers.0.weight"]
        state, _ = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
        step = before - arrays_of(backend, state)["actor.layers.0.weight"]
        assert np.ptp(step) < 1e-9
        rates.append(step.mean())
    np.testing.assert_allclose(rates[0::2], [1e-2, 1e-2, 7e-3, 4e-3, 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_array_equal(rates[1::2], 0)


def test_gradient_clipping_is_exact(backend: ModuleType) -> None:
    """The first moment after one step is (1 - b1) times the gradient, whose global norm is cut at the given one."""
    rng = np.random.default_rng(0)
    base = changed(backend, engine_of(backend.name, "dacer"), actor_optimiser=backend.Adam(1e-3))
    batch, noise = make_batch(rng, filled=False), make_noise(rng, base)
    moments, norms = {}, {}
    for limit in (None, 1e6, 1e-3):
        engine, state = fresh(
            backend, "dacer", changed(backend, base, actor_optimiser=backend.Adam(1e-3, max_grad_norm=limit))
        )
        state, metrics = engine.step(state, batch, noise)
        arrays = arrays_of(backend, state)
        moments[limit] = part_of(arrays, "actor_optimiser.m")
        norms[limit] = numbers(backend, metrics)["actor_grad_norm"]
    norm = float(np.sqrt(sum(((value / 0.1) ** 2).sum() for value in moments[None].values())))
    assert norm > 1e-3
    assert list(norms.values()) == [pytest.approx(norm, rel=1e-9)] * 3  # the metric is the norm before clipping
    assert_equal(moments[None], moments[1e6])
    assert_equal({name: value * (1e-3 / norm) for name, value in moments[None].items()}, moments[1e-3])


# conversion


def trained(backend: ModuleType, name: str, steps: int = 3) -> tuple[Any, Any]:
    engine, state = fresh(backend, name)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        state, _ = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
    return engine, state


@pytest.mark.parametrize("name", LEARNERS)
def test_conversion_within_and_across_backends(both: SimpleNamespace, name: str) -> None:
    """A state that goes on in the other backend (or in a new object of the same) takes the same next steps."""
    for source, others in ((both.torch, (both.torch, both.equinox)), (both.equinox, (both.torch, both.equinox))):
        engine, state = trained(source, name)
        saved = arrays_of(source, state)
        rng = np.random.default_rng(1)
        batches = [make_batch(rng, filled=False) for _ in range(3)]
        noises = [make_noise(rng, engine) for _ in range(3)]
        for batch, noise in zip(batches, noises, strict=True):
            state, _ = engine.step(state, batch, noise)
        for target in others:
            other_engine, other = fresh(target, name, key=7)
            other = target.from_arrays(other, saved)
            loaded = arrays_of(target, other)
            assert set(loaded) == set(saved)
            for item in saved:
                np.testing.assert_array_equal(loaded[item], saved[item], err_msg=item)
                assert loaded[item].shape == saved[item].shape
            for batch, noise in zip(batches, noises, strict=True):
                other, _ = other_engine.step(other, batch, noise)
            assert_equal(arrays_of(source, state), arrays_of(target, other))


@pytest.mark.parametrize("name", LEARNERS)
def test_names_of_a_state(backend: ModuleType, name: str) -> None:
    engine, state = fresh(backend, name)
    names = set(backend.to_arrays(state))
    assert {"updates", "temperature.log_temperature", "actor_optimiser.count", "critic_optimiser.count"} <= names
    for network in ("actor", "critic"):
        weights = {entry for entry in names if entry.startswith(f"{network}.")}
        assert f"{network}.layers.0.weight" in weights
        for moment in ("m", "v"):
            assert {entry.replace(f"{network}.", f"{network}_optimiser.{moment}.", 1) for entry in weights} <= names
    assert "target_critic.layers.0.weight" in names
    assert any(entry.startswith("ema_actor.") for entry in names) == engine.learner.has_ema
    assert ("critic_objective.omega" in names) == (type(engine.learner.critic_objective).__name__ == "GaussianTD")
    assert ("actor_objective.q_mean_ema" in names) == (name in ("dpmd", "meanflow"))


def test_arrays_of_any_memory_layout_go_on_alike(backend: ModuleType) -> None:
    """Column by column, as others store their weights: torch's fused Adam stepped such parameters wrongly."""
    rng = np.random.default_rng(0)
    engine, state = fresh(backend, "dacer")
    batch, noise = make_batch(rng, filled=False), make_noise(rng, engine)
    columns = {entry: np.array(array, order="F") for entry, array in arrays_of(backend, state).items()}
    other = backend.from_arrays(fresh(backend, "dacer", key=7)[1], columns)
    other, _ = engine.step(other, batch, noise)
    state, _ = engine.step(state, batch, noise)
    assert_equal(arrays_of(backend, state), arrays_of(backend, other))


def test_conversion_errors_list_the_entries(backend: ModuleType) -> None:
    for build in (
        lambda: fresh(backend, "dacer")[1],
        lambda: make_actor(backend, LEARNERS["dacer"]),
    ):
        tree = build()
        arrays = arrays_of(backend, tree)
        name = next(entry for entry in arrays if entry.endswith("layers.1.weight"))
        missing = {entry: value for entry, value in arrays.items() if entry != name}
        with pytest.raises(UsageError, match=rf"(?is)missing.*{name}"):
            backend.from_arrays(build(), missing)
        with pytest.raises(UsageError, match=r"(?is)unexpected.*layers\.17\.weight"):
            backend.from_arrays(build(), {**arrays, "layers.17.weight": arrays[name]})
        with pytest.raises(UsageError, match=rf"(?is){name}.*3.*3"):
            backend.from_arrays(build(), {**arrays, name: np.zeros((3, 3))})
        with pytest.raises(UsageError, match=rf"(?is){name}"):
            backend.from_arrays(build(), {**missing, "other": arrays[name]})


def test_failed_conversion_leaves_the_network_alone(backend: ModuleType) -> None:
    actor = make_actor(backend, LEARNERS["dacer"])
    arrays = arrays_of(backend, actor)
    wrong = {name: value + 1 for name, value in arrays.items()}
    del wrong[max(wrong)]
    with pytest.raises(UsageError):
        backend.from_arrays(actor, wrong)
    assert_equal(arrays, arrays_of(backend, actor))


def test_dtype_follows_the_arrays(backend: ModuleType) -> None:
    """A float32 state steps in float32, moments and targets included, and gives float32 metrics."""
    engine, state = fresh(backend, "sdac")
    arrays = {
        name: value.astype(np.float32) if value.dtype.kind == "f" else value
        for name, value in arrays_of(backend, state).items()
    }
    state = backend.from_arrays(state, arrays)
    rng = np.random.default_rng(0)
    batch = make_batch(rng, filled=False, dtype=np.float32)
    state, _ = engine.step(state, batch, make_noise(rng, engine, dtype=np.float32))
    batches = make_batch(rng, leading=(2,), filled=False, dtype=np.float32)
    state, _ = engine.update(state, batches, 3)
    kinds = {name: value.dtype for name, value in arrays_of(backend, state).items() if value.dtype.kind == "f"}
    assert set(kinds.values()) == {np.dtype(np.float32)}, {n: k for n, k in kinds.items() if k != np.float32}


def test_init_makes_independent_copies(backend: ModuleType) -> None:
    """The target does not share memory with the critic, nor the average with the actor."""
    _, state = fresh(backend, "sdac")
    before = arrays_of(backend, state)
    assert_equal(part_of(before, "critic"), part_of(before, "target_critic"))
    assert_equal(part_of(before, "actor"), part_of(before, "ema_actor"))
    if backend.name == "torch":
        import torch

        with torch.no_grad():
            for network in (state.critic, state.actor):
                for entry in network.parameters():
                    entry.add_(1)
        after = arrays_of(backend, state)
        assert not moved(before, after, "target_critic")
        assert not moved(before, after, "ema_actor")
    else:
        import jax

        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
        assert len(set(pointers)) == len(pointers), "a donated buffer appears twice"


# acting


@pytest.mark.parametrize("name", LEARNERS)
def test_act_is_the_sampler_of_the_acting_copy(backend: ModuleType, name: str) -> None:
    engine, state = trained(backend, name)
    rng = np.random.default_rng(0)
    shape = (3, DIMS.action)
    obs = rng.standard_normal((3, DIMS.obs)).astype(np.float32)
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    arrays = arrays_of(backend, state)
    copy = part_of(arrays, "ema_actor" if engine.learner.acting_actor == "ema" else "actor")
    actor = backend.from_arrays(make_actor(backend, LEARNERS[name]), copy)
    temperature = to_backend(np.exp(arrays["temperature.log_temperature"]))
    for deterministic in (False, True):
        ranking = "target_critic" if deterministic and engine.learner.evaluation_ranking == "target" else "critic"
        critic = backend.from_arrays(make_critic(backend, LEARNERS[name]), part_of(arrays, ranking))
        noise = draw(rng, engine.act_noise_spec(shape, deterministic=deterministic), np.float64)
        sampler = (deterministic and engine.learner.evaluation_sampler) or engine.learner.sampler
        assert noise.keys() == sampler.noise_spec(shape).keys()
        action = engine.act(state, obs, noise, deterministic=deterministic)
        assert isinstance(action, np.ndarray)
        assert action.dtype == np.float32
        assert action.shape == shape
        assert np.abs(action).max() <= 1
        seen = engine.learner.seen(to_backend(obs.astype(np.float64)), state.obs_moments)
        expected = sampler(Policy(actor, critic, temperature), seen, to_backend(noise))
        np.testing.assert_allclose(action, to_numpy(expected), rtol=1e-5, atol=1e-6)
        explored = [value.any() for path, value in flatten(noise).items() if "exploration" in path]
        assert not any(explored) if deterministic else all(explored)  # none where the chain is all that explores


@pytest.mark.parametrize("name", ["dacer", "sdac", "sac"])
def test_deterministic_switches_the_exploration_off(backend: ModuleType, name: str) -> None:
    engine, state = trained(backend, name)
    rng = np.random.default_rng(0)
    shape = (3, DIMS.action)
    obs = rng.standard_normal((3, DIMS.obs)).astype(np.float32)
    loud, quiet = (flatten(engine.act_noise_spec(shape, deterministic=flag)) for flag in (False, True))
    assert set(loud) == set(quiet)
    off = {path for path, law in quiet.items() if isinstance(law, Zeros)}
    assert off == {path for path in loud if path.endswith("exploration")}
    assert off
    noise = draw(rng, engine.act_noise_spec(shape, deterministic=True), np.float32)
    first = engine.act(state, obs, noise)
    np.testing.assert_array_equal(first, engine.act(state, obs, noise))
    explored = draw(rng, engine.act_noise_spec(shape), np.float32)
    assert (engine.act(state, obs, explored) != first).any()


@pytest.mark.parametrize("name", ["dacer", "sdac"])
def test_act_uses_the_average_if_there_is_one(backend: ModuleType, name: str) -> None:
    engine, state = trained(backend, name)
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((3, DIMS.obs)).astype(np.float32)
    noise = draw(rng, engine.act_noise_spec((3, DIMS.action)), np.float32)
    plain = engine.act(state, obs, noise)
    arrays = arrays_of(backend, state)

    def with_other(part: str) -> np.ndarray:
        changed = {
            entry: value + 0.5 if entry.startswith(f"{part}.") and entry.endswith("bias") else value
            for entry, value in arrays.items()
        }
        return engine.act(backend.from_arrays(fresh(backend, name)[1], changed), obs, noise)

    used, unused = "actor", "ema_actor" if engine.learner.has_ema else None
    if engine.learner.acting_actor == "ema":
        used, unused = "ema_actor", "actor"
    assert np.abs(with_other(used) - plain).max() > 1e-4
    if unused is not None:
        np.testing.assert_array_equal(with_other(unused), plain)


@pytest.mark.parametrize("target", TARGETS)
def test_exported_policies_are_those_of_evaluations(both: SimpleNamespace, target: str, tmp_path: Path) -> None:
    """Their own sampler, and the critic that ranks its candidates."""
    B = both.equinox if target == "jax" else both.torch
    engine, state = trained(B, "qvpo")
    arrays = arrays_of(B, state)
    for name, array in arrays.items():
        if name.startswith("critic.layers.2."):
            array *= -1  # it likes what the slow one does not
    state = B.from_arrays(state, arrays)
    check_exported(B, engine, state, target, tmp_path)
    other = changed(B, engine, evaluation_ranking="online")
    with pytest.raises(AssertionError, match="Not equal"):
        check_exported(B, Mixed(other, engine), state, target, tmp_path)


class Mixed:
    """Exports one engine's policy, and acts by another one."""

    def __init__(self, exported: Any, acting: Any) -> None:
        self.learner, self.act, self.act_noise_spec = exported.learner, acting.act, acting.act_noise_spec


def test_act_leaves_the_state_usable(backend: ModuleType) -> None:
    """Acting changes nothing and gives nothing away: the state can be updated and used to act again."""
    engine, state = trained(backend, "dacer2")
    before = arrays_of(backend, state)
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((3, DIMS.obs)).astype(np.float32)
    noise = draw(rng, engine.act_noise_spec((3, DIMS.action)), np.float32)
    action = engine.act(state, obs, noise)
    np.testing.assert_array_equal(action, engine.act(state, obs, noise))
    assert_equal(before, arrays_of(backend, state), rtol=0)
    action[:] = 0  # the caller owns it
    engine.update(state, make_batch(rng, leading=(2,), filled=False), 0)


def test_what_is_kept_of_a_state_goes_with_it() -> None:
    """Equinox takes a state apart once only; its arrays must not outlive it."""
    engine, state = trained(load_backend("equinox"), "dacer2")
    rng = np.random.default_rng(0)
    noise = draw(rng, engine.act_noise_spec((3, DIMS.action)), np.float32)
    engine.act(state, np.zeros((3, DIMS.obs), np.float32), noise)
    array = weakref.ref(state.actor.layers[0].weight)
    assert array() is not None
    del state
    gc.collect()
    assert array() is None


def test_update_learns(backend: ModuleType) -> None:
    """A check of signs: on one repeated batch of finished episodes the critic's loss falls."""
    engine, state = fresh(
        backend, "sac", changed(backend, engine_of(backend.name, "sac"), critic_optimiser=backend.Adam(1e-2))
    )
    rng = np.random.default_rng(0)
    batch = make_batch(rng, filled=False)._replace(discount=np.zeros(DIMS.batch))
    batches = Batch(*[None if field is None else np.repeat(field[None], 20, 0) for field in batch])
    losses = []
    for key in range(3):
        state, metrics = engine.update(state, batches, key)
        losses.append(numbers(backend, metrics)["critic_loss"])
    assert losses[-1] < 0.5 * losses[0]
