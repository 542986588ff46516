"""The two backends agree: same parameters, same noise, same numbers, and the reference's.

Float64. Two arrays agree if every entry differs by less than 1e-9 of itself, or of a thousandth of the largest entry of
its array (an entry that is small because large terms cancel cannot be better); values that may cancel, such as a loss,
use at least 1 in place of the largest. Hypothesis varies the numbers; `nox -s agreement` varies the sizes too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffac.noise import draw
from diffac.testing import strategies
from diffac.testing.conformance import ROWS, assert_close
from diffac.testing.parts import ACTIVATIONS, ACTORS, CRITICS, DIMS, LEARNERS, make_batch, make_engine, make_noise
from diffac.testing.problems import (
    Answer,
    computed,
    difference,
    flatten,
    make_problem,
    solve,
    solve_by_reference,
    well_posed,
)
from diffac.testing.strategies import seeds

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") in ("agreement", "explore")
SIZES = strategies.dims() if THOROUGH else st.just(DIMS)
LEARNER_STEPS = 100


@pytest.mark.parametrize(("kind", "name"), ROWS)
@given(data=st.data())
def test_rows(both: SimpleNamespace, kind: str, name: str, data: st.DataObject) -> None:
    """Values, metrics, states and gradients of every row."""
    # whole learners in one size: larger ones agree to 2e-9 only, as Adam divides by the roots of tiny numbers
    problem = data.draw(strategies.problems(kind, name, st.just(DIMS) if kind == "learner" else SIZES))
    assume(well_posed(problem))
    expected = solve_by_reference(problem)
    answers = [solve(B, problem) for B in (both.torch, both.equinox)]
    for answer in (expected, *answers):  # whether the tanh of a large number is 1 is rounding
        for metric in [m for m in answer.values if m.endswith("clipped_fraction")]:
            del answer.values[metric]
    for answer in answers:
        assert_close(answer, expected)
    assert_close(*answers)


@pytest.mark.parametrize(("kind", "name"), [row for row in ROWS if "objective" in row.values[0]])
@given(data=st.data())
def test_objectives_at_extremes(both: SimpleNamespace, kind: str, name: str, data: st.DataObject) -> None:
    """Huge and tiny observations, rewards and temperatures: both are finite, and both are right or wrong together.

    Where a tanh saturates, rounding decides whether it is 1, and what is left of a gradient that has vanished: the
    former is not counted, the latter compared absolutely. Where a critic saturates, its values are equal but for
    rounding; what is decided by that is no question to both.
    """
    problem = data.draw(strategies.extreme_problems(kind, name, SIZES))
    answers = [solve(B, problem) for B in (both.torch, both.equinox)]
    for answer in answers:
        for metric in [m for m in answer.values if m.endswith("clipped_fraction")]:
            del answer.values[metric]
    for answer in answers:
        assert all(np.isfinite(a).all() for arrays in answer for a in arrays.values())
    worst = max(difference(one, other, floor=1.0) for one, other in zip(*answers, strict=True))
    assert worst < 1e-6 or not well_posed(problem), worst


@pytest.mark.parametrize("name", ["q_weighted", "q_weighted_best", "mean_flow_q_weighted"])
def test_candidates_that_are_alike_ask_for_nothing(both: SimpleNamespace, name: str) -> None:
    """Where no action is better than another, the weights are 0, not rounding errors, and no law is learned."""
    problem = make_problem("actor objective", name, np.random.default_rng(0))
    flat = {
        n: a if n == "actor" else {key: 0 * array + 0.1 * key.endswith("bias") for key, array in a.items()}
        for n, a in problem.networks.items()
    }
    problem = dataclasses.replace(problem, networks=flat)
    assert not well_posed(problem)
    for values, gradients in (solve_by_reference(problem), *(solve(B, problem) for B in (both.torch, both.equinox))):
        assert values["0.metrics.q_mean"] != 0
        assert [values[f"0.{key}"] for key in ("value", "metrics.advantage", "metrics.effective_samples")] == [0, 0, 0]
        assert not any(gradient.any() for gradient in gradients.values())


@contextlib.contextmanager
def float32_world() -> Iterator[None]:
    """Both frameworks as a user has them: single precision unless told otherwise."""
    import jax
    import torch

    torch.set_default_dtype(torch.float32)
    jax.config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)
        jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize(
    ("kind", "name"),
    # compiling is what costs; time_offset changes one number
    [r for r in ROWS if "objective" in r.values[0] and not (r.values[1].startswith("time") and r.values[1][-1] == "0")],
)
def test_objectives_in_single_precision(both: SimpleNamespace, kind: str, name: str) -> None:
    problem = make_problem(kind, name, np.random.default_rng(3)).cast(np.float32)
    with float32_world():
        answers = [solve(B, problem) for B in (both.torch, both.equinox)]
    for answer in answers:
        dtypes = {a.dtype for arrays in answer for a in arrays.values() if a.dtype.kind != "i"}
        assert dtypes == {np.dtype(np.float32)}
    for one, other in zip(*answers, strict=True):
        assert difference(one, other, small=0.1, floor=1.0) < 1e-4


# What is not in the tables


def agree(both: SimpleNamespace, compute: Callable[[ModuleType], Any], what: str) -> None:
    """`compute(backend)`, a tree of arrays, is the same in both."""
    one, other = (flatten(B.testing.to_numpy(compute(B))) for B in (both.torch, both.equinox))
    assert all(np.isfinite(array).all() for array in one.values())
    assert difference(one, other, floor=1.0) < 1e-9, what


@pytest.mark.parametrize("act", ACTIVATIONS)
@given(seed=seeds(), magnitude=st.sampled_from([1e-6, 1.0, 30.0, 1e4]))
def test_activations(both: SimpleNamespace, act: str, seed: int, magnitude: float) -> None:
    x = magnitude * np.random.default_rng(seed).standard_normal(50)
    agree(both, lambda B: B.activation(act)(B.testing.to_backend(x)) / magnitude, act)


@pytest.mark.parametrize(
    "make", [*ACTORS.values(), *CRITICS.values()], ids=[*ACTORS, *(f"{n}_critic" for n in CRITICS)]
)
@pytest.mark.parametrize("key", [0, 12345])
def test_the_same_key_gives_the_same_parameters(both: SimpleNamespace, make: Callable[..., Any], key: int) -> None:
    first, second = (B.to_arrays(make(B, DIMS, key)) for B in (both.torch, both.equinox))
    assert list(first) == list(second)
    for parameter in first:
        np.testing.assert_array_equal(first[parameter], second[parameter], err_msg=parameter)


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
    agree(both, lambda B: B.testing.compiled(B.mixture_entropy)(B.testing.to_backend(samples), 3), law)


# Learners


def learner_data(rng: np.random.Generator, engine: Any) -> tuple[Any, Any]:
    """A batch as the learner gets it, and the noise of one step."""
    return make_batch(rng, filled=False), make_noise(rng, engine)


def assert_states_agree(both: SimpleNamespace, states: list[Any]) -> None:
    arrays = [B.to_arrays(state) for B, state in zip((both.torch, both.equinox), states, strict=True)]
    assert_close(*(Answer(a, {}) for a in arrays))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_hundred_learner_steps(both: SimpleNamespace, name: str) -> None:
    rng = np.random.default_rng(7)
    (engine, state), (other, other_state) = (make_engine(B, name) for B in (both.torch, both.equinox))
    for _ in range(LEARNER_STEPS):
        batch, noise = learner_data(rng, engine)
        state, metrics = engine.step(state, batch, noise)
        other_state, other_metrics = other.step(other_state, batch, noise)
        both_metrics = both.torch.testing.to_numpy(metrics), both.equinox.testing.to_numpy(other_metrics)
        assert_close(*(Answer(computed(m), {}) for m in both_metrics))
    assert_states_agree(both, [state, other_state])
    assert both.torch.to_arrays(state)["updates"] == LEARNER_STEPS


@pytest.mark.parametrize("name", LEARNERS)
def test_acting(both: SimpleNamespace, name: str) -> None:
    rng = np.random.default_rng(8)
    engine, state = make_engine(both.torch, name)
    other, other_state = make_engine(both.equinox, name)
    obs = rng.standard_normal((4, DIMS.obs)).astype(np.float32)
    for deterministic in (False, True):
        spec = engine.act_noise_spec((4, DIMS.action), deterministic=deterministic)
        assert spec == other.act_noise_spec((4, DIMS.action), deterministic=deterministic)
        noise = draw(rng, spec)
        first = engine.act(state, obs, noise, deterministic=deterministic)
        second = other.act(other_state, obs, noise, deterministic=deterministic)
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dacer2", "sdac"])
def test_one_backend_continues_what_the_other_began(both: SimpleNamespace, name: str) -> None:
    rng = np.random.default_rng(9)
    engine, state = make_engine(both.torch, name)
    other, other_state = make_engine(both.equinox, name, key=77)
    for _ in range(11):
        state, _ = engine.step(state, *learner_data(rng, engine))
    other_state = both.equinox.from_arrays(other_state, both.torch.to_arrays(state))
    for _ in range(5):
        batch, noise = learner_data(rng, engine)
        state, _ = engine.step(state, batch, noise)
        other_state, _ = other.step(other_state, batch, noise)
    assert_states_agree(both, [state, other_state])
    third, third_state = make_engine(both.torch, name, key=78)
    third_state = both.torch.from_arrays(third_state, both.equinox.to_arrays(other_state))
    batch, noise = learner_data(rng, engine)
    state, _ = engine.step(state, batch, noise)
    third_state, _ = third.step(third_state, batch, noise)
    assert_close(*(Answer(both.torch.to_arrays(s), {}) for s in (state, third_state)))
