"""The two backends agree: same parameters, same noise, same numbers.

Float64. Two arrays agree if every entry differs by less than 1e-9 of itself plus 1e-12 of the largest entry of its
array (an entry that is small because large terms cancel cannot be better); scalars that may cancel, such as a loss, use
at least 1 in place of the largest. After 50 learner steps: 1e-9 and 1e-11. Hypothesis varies the numbers and never the
shapes, so that everything is compiled once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import (
    ACTIVATIONS,
    ACTORS,
    CRITIC_OBJECTIVES,
    CRITICS,
    DIMS,
    LEARNERS,
    OBJECTIVES,
    SAMPLERS,
    TEMPERATURES,
    Part,
    compiled,
    make_actor,
    make_batch,
    make_critic,
    make_learner,
    make_noise,
    randomise,
)

from diffac.noise import draw
from diffac.testing.strategies import Situation, seeds, situations

LEARNER_STEPS = 50


def flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Leaves of nested mappings and tuples by path; None is left out."""
    if tree is None:
        return {}
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif hasattr(tree, "_asdict"):
        items = list(tree._asdict().items())
    elif isinstance(tree, tuple | list):
        items = list(enumerate(tree))
    else:
        return {prefix.rstrip("."): np.asarray(tree)}
    return {name: leaf for key, value in items for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def assert_agree(
    first: Any, second: Any, what: str, *, rtol: float = 1e-9, atol: float = 1e-12, floor: float = 0
) -> None:
    """Both trees have the same leaves, shapes and numbers; atol is relative to the largest entry (at least `floor`)."""
    first, second = flatten(first), flatten(second)
    assert first.keys() == second.keys(), what
    for name, a in first.items():
        assert a.shape == second[name].shape, f"{what}: {name}"
        scale = max(floor, np.abs(a).max(initial=0))
        np.testing.assert_allclose(second[name], a, rtol=rtol, atol=atol * scale, err_msg=f"{what}: {name}")


def agree(both: SimpleNamespace, compute: Callable[[ModuleType], Any], what: str, **tolerance: Any) -> None:
    """`compute(backend)`, a tree of arrays, is the same in both."""
    results = [B.testing.to_numpy(compute(B)) for B in (both.torch, both.equinox)]
    for result in results:
        for name, leaf in flatten(result).items():
            assert np.all(np.isfinite(leaf)), f"{what}: {name} is not finite"
    assert_agree(*results, what, **tolerance)


def networks(B: ModuleType, part: Part, s: Situation, dtype: Any = np.float64) -> tuple[Any, Any, Any]:
    """Actor, critic and target critic with random parameters."""
    rng = s.rng
    actor = randomise(B, make_actor(B, part), rng, s.spread, dtype)
    return actor, *(randomise(B, make_critic(B, part), rng, s.spread, dtype) for _ in range(2))


# Networks


@pytest.mark.parametrize("act", ACTIVATIONS)
@given(seed=seeds(), magnitude=st.sampled_from([1e-6, 1.0, 30.0, 1e4]))
def test_activations(both: SimpleNamespace, act: str, seed: int, magnitude: float) -> None:
    x = magnitude * np.random.default_rng(seed).standard_normal(50)
    agree(both, lambda B: B.activation(act)(B.testing.to_backend(x)), act, atol=1e-15)


@pytest.mark.parametrize(
    "make", [*ACTORS.values(), *CRITICS.values()], ids=[*ACTORS, *(f"{n}_critic" for n in CRITICS)]
)
@pytest.mark.parametrize("key", [0, 12345])
def test_the_same_key_gives_the_same_parameters(both: SimpleNamespace, make: Callable[..., Any], key: int) -> None:
    first, second = (B.to_arrays(make(B, DIMS, key)) for B in (both.torch, both.equinox))
    assert list(first) == list(second)
    for parameter in first:
        np.testing.assert_array_equal(first[parameter], second[parameter], err_msg=parameter)


def forward(actors: Any, critics: Any, obs: Any, action: Any, particles: Any, t: Any) -> Any:
    """Everything that networks compute."""
    denoise = actors["denoiser"]
    return {
        "integer time": denoise(obs, action, 2),
        "times and particles": denoise(obs, particles, t),
        "conditioned": denoise(denoise.condition(obs, DIMS.steps), particles, t),
        "gaussian actor": actors["gaussian"](obs),
        "critics": {n: q(obs, action) for n, q in critics.items()},
        "particles": {n: q(obs, particles) for n, q in critics.items()},
        "distribution": critics["gaussian"].distribution(obs, particles),
    }


@pytest.mark.parametrize("act", ACTIVATIONS)
@given(s=situations())
def test_networks(both: SimpleNamespace, act: str, s: Situation) -> None:
    batch, noisy = make_batch(s.rng, magnitude=s.magnitude), s.rng.standard_normal((7, *DIMS.shape))
    times = s.rng.integers(0, DIMS.steps, (7, DIMS.batch))

    def compute(B: ModuleType) -> Any:
        rng = s.rng
        nets = [
            {n: randomise(B, make(B, DIMS, 0, activation=act), rng, s.spread) for n, make in table.items()}
            for table in (ACTORS, CRITICS)
        ]
        return compiled(B, forward)(*nets, *map(B.testing.to_backend, (batch.obs, batch.action, noisy, times)))

    agree(both, compute, act)


# Samplers


@pytest.mark.parametrize("name", SAMPLERS)
@given(s=situations())
def test_samplers(both: SimpleNamespace, name: str, s: Situation) -> None:
    part = SAMPLERS[name]
    obs = make_batch(s.rng, magnitude=s.magnitude).obs

    def compute(B: ModuleType) -> Any:
        sampler = part.make(B, DIMS)
        actor, critic, _ = networks(B, part, s)
        noise = B.testing.to_backend(draw(s.rng, sampler.noise_spec((3, *DIMS.shape)), np.float64))
        context = {"critic": critic, "temperature": B.testing.to_backend(np.array(s.temperature))}
        rollout = compiled(B, sampler.rollout)(actor, B.testing.to_backend(obs), noise, **context)
        action = compiled(B, sampler)(actor, B.testing.to_backend(obs), noise, **context)
        return {"rollout": rollout, "call": action}

    agree(both, compute, name)


# Objectives


def objective_runs(
    B: ModuleType, part: Part, s: Situation, *, of_critic: bool, dtype: Any = np.float64
) -> Iterator[tuple[Any, Any]]:
    """(Loss, gradient) of two batches in a row, the second with the state after the first."""
    objective = part.make(B, DIMS)
    actor, critic, target = networks(B, part, s, dtype)
    rng = s.rng
    state = objective.init_state(critic) if of_critic else objective.init_state()
    for _ in range(2 if state else 1):
        batch = make_batch(rng, magnitude=s.magnitude, termination=s.termination, dtype=dtype)
        noise = make_noise(rng, objective, dtype=dtype)
        subjects = (critic, target) if of_critic else (actor, critic)
        loss, gradient = B.testing.value_and_grad(objective, *subjects, batch, noise, dtype(s.temperature), state)
        assert set(loss.state) == set(state)
        yield loss, gradient
        state = loss.state


OBJECTIVE_ROWS = [(name, part, False) for name, part in OBJECTIVES.items()]
OBJECTIVE_ROWS += [(name, part, True) for name, part in CRITIC_OBJECTIVES.items()]
every_objective = pytest.mark.parametrize(
    ("part", "of_critic"),
    [pytest.param(part, c, id=f"{'critic' if c else 'actor'}-{name}") for name, part, c in OBJECTIVE_ROWS],
)


@every_objective
@given(s=situations())
def test_objectives(both: SimpleNamespace, part: Part, of_critic: bool, s: Situation) -> None:
    runs = zip(*(objective_runs(B, part, s, of_critic=of_critic) for B in (both.torch, both.equinox)), strict=True)
    for (loss, gradient), (other_loss, other_gradient) in runs:
        assert np.isfinite(loss.value)
        assert all(np.isfinite(g).all() for g in gradient.values())
        assert_agree(loss, other_loss, "loss", floor=1.0)
        assert_agree(gradient, other_gradient, "gradient")


@contextlib.contextmanager
def float32_world() -> Iterator[None]:
    """Both frameworks as a user has them: single precision unless told otherwise."""
    import jax
    import torch

    torch.set_default_dtype(torch.float32)
    try:
        with jax.enable_x64(False):
            yield
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize(
    ("part", "of_critic"),
    # compiling is what costs; time_offset changes one number
    [pytest.param(p, c, id=name) for name, p, c in OBJECTIVE_ROWS if not (name.startswith("time") and name[-1] == "0")],
)
def test_objectives_in_single_precision(both: SimpleNamespace, part: Part, of_critic: bool) -> None:
    s = Situation(seed=3, magnitude=1.0, spread=1.0, temperature=1.0, termination=0.3)
    with float32_world():
        single = [list(objective_runs(B, part, s, of_critic=of_critic, dtype=np.float32)) for B in vars(both).values()]
    for (loss, gradient), (other_loss, other_gradient) in zip(*single, strict=True):
        assert {a.dtype for a in (*gradient.values(), *other_gradient.values())} == {np.dtype(np.float32)}
        assert_agree(loss, other_loss, "loss", rtol=1e-4, atol=1e-5, floor=1.0)
        assert_agree(gradient, other_gradient, "gradient", rtol=1e-4, atol=1e-5)


@every_objective
def test_noise_specifications_and_initial_states(both: SimpleNamespace, part: Part, of_critic: bool) -> None:
    specs, states = [], []
    for B in (both.torch, both.equinox):
        objective = part.make(B, DIMS)
        specs.append(objective.noise_spec(DIMS.shape))
        states.append(objective.init_state(make_critic(B, part)) if of_critic else objective.init_state())
    assert specs[0] == specs[1]
    assert_agree(*states, "initial state", rtol=0, atol=0)


# Temperatures


@pytest.mark.parametrize("name", TEMPERATURES)
@given(s=situations())
def test_temperatures(both: SimpleNamespace, name: str, s: Situation) -> None:
    part = TEMPERATURES[name]

    def compute(B: ModuleType) -> Any:
        temperature = part.make(B, DIMS)
        actor, critic, _ = networks(B, part, s)
        rng, state, seen = s.rng, B.testing.to_backend(temperature.init_state()), []
        for _ in range(3):
            obs = B.testing.to_backend(make_batch(rng, magnitude=s.magnitude).obs)
            noise = B.testing.to_backend(make_noise(rng, temperature))
            state, metrics = compiled(B, temperature.update)(state, actor, critic, obs, noise)
            seen.append({"state": dict(state), "metrics": dict(metrics), "value": temperature.value(state)})
        return {"seen": seen, "initial": temperature.init_state(), "interval": temperature.interval}

    agree(both, compute, name, floor=1.0)


@pytest.mark.parametrize("law", ["one mode", "three modes", "clipped", "collapsed"])
@given(seed=seeds())
def test_mixture_entropy(both: SimpleNamespace, law: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((60, 4, 2))
    if law == "three modes":
        samples = 0.1 * samples + np.array([[-0.8, 0.0], [0.8, 0.1], [0.0, 0.9]])[rng.integers(0, 3, (60, 4))]
    elif law == "clipped":
        samples = np.clip(2 * samples, -1, 1)
    elif law == "collapsed":
        samples = np.broadcast_to(samples[:1], samples.shape).copy()
    agree(both, lambda B: compiled(B, B.mixture_entropy)(B.testing.to_backend(samples), 3), law, floor=1.0)


# Learners


def learner_data(rng: np.random.Generator, learner: Any) -> tuple[Any, Any]:
    """A batch as the learner gets it, and the noise of one step."""
    return make_batch(rng, filled=False), make_noise(rng, learner)


def assert_metrics_agree(B_metrics: list[Mapping[str, Any]], what: str) -> None:
    """A metric that was not computed is NaN in Equinox and absent in torch."""
    torch_metrics, equinox_metrics = ({n: np.asarray(v) for n, v in m.items()} for m in B_metrics)
    computed = {name: value for name, value in equinox_metrics.items() if not np.isnan(value)}
    assert not any(np.isnan(v) for v in torch_metrics.values()), what
    assert_agree(torch_metrics, computed, what, rtol=1e-9, atol=1e-11, floor=1.0)


def assert_states_agree(both: SimpleNamespace, states: list[Any], what: str) -> None:
    arrays = [B.to_arrays(state) for B, state in zip((both.torch, both.equinox), states, strict=True)]
    assert_agree(*arrays, what, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LEARNERS)
def test_fifty_learner_steps(both: SimpleNamespace, name: str) -> None:
    rng = np.random.default_rng(7)
    (learner, state), (other, other_state) = (make_learner(B, name) for B in (both.torch, both.equinox))
    assert learner.noise_spec(DIMS.shape) == other.noise_spec(DIMS.shape)
    assert_states_agree(both, [state, other_state], "before the first step")
    for i in range(LEARNER_STEPS):
        batch, noise = learner_data(rng, learner)
        state, metrics = learner.step(state, batch, noise)
        other_state, other_metrics = other.step(other_state, batch, noise)
        both_metrics = [B.testing.to_numpy(m) for B, m in ((both.torch, metrics), (both.equinox, other_metrics))]
        assert_metrics_agree(both_metrics, f"metrics of step {i}")
        if i < 2 or i % 10 == 9:
            assert_states_agree(both, [state, other_state], f"after step {i}")
    assert both.torch.to_arrays(state)["updates"] == LEARNER_STEPS


@pytest.mark.parametrize("name", LEARNERS)
def test_acting(both: SimpleNamespace, name: str) -> None:
    rng = np.random.default_rng(8)
    learner, state = make_learner(both.torch, name)
    other, other_state = make_learner(both.equinox, name)
    obs = rng.standard_normal((4, DIMS.obs)).astype(np.float32)
    for deterministic in (False, True):
        spec = learner.act_noise_spec((4, DIMS.action), deterministic=deterministic)
        assert spec == other.act_noise_spec((4, DIMS.action), deterministic=deterministic)
        noise = draw(rng, spec)
        first, second = learner.act(state, obs, noise), other.act(other_state, obs, noise)
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dacer2", "sdac"])
def test_one_backend_continues_what_the_other_began(both: SimpleNamespace, name: str) -> None:
    rng = np.random.default_rng(9)
    learner, state = make_learner(both.torch, name)
    other, other_state = make_learner(both.equinox, name, key=77)
    for _ in range(11):
        state, _ = learner.step(state, *learner_data(rng, learner))
    other_state = both.equinox.from_arrays(other_state, both.torch.to_arrays(state))
    for _ in range(5):
        batch, noise = learner_data(rng, learner)
        state, _ = learner.step(state, batch, noise)
        other_state, _ = other.step(other_state, batch, noise)
    assert_states_agree(both, [state, other_state], "after torch, then Equinox")
    third, third_state = make_learner(both.torch, name, key=78)
    third_state = both.torch.from_arrays(third_state, both.equinox.to_arrays(other_state))
    batch, noise = learner_data(rng, learner)
    state, _ = learner.step(state, batch, noise)
    third_state, _ = third.step(third_state, batch, noise)
    first, second = both.torch.to_arrays(state), both.torch.to_arrays(third_state)
    assert_agree(first, second, "after Equinox, then torch", rtol=1e-9, atol=1e-11)
