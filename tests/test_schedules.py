"""Schedules: the tables against theory and against the reference; the backends' schedules against the tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.schedules import LinearSchedule, cosine_table, linear_table, table_from_betas, vp_table
from diffac.testing import reference
from diffac.testing.parts import DIMS, SCHEDULES, TABLES

LENGTHS = (1, 2, 5, 20, 100)
BETAS = {"vp": reference.vp_betas, "cosine": reference.cosine_betas, "linear": reference.linear_betas}


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", TABLES)
def test_variance_is_preserved_and_noise_grows(name: str, steps: int) -> None:
    table = TABLES[name](steps)
    assert table.num_steps == steps
    np.testing.assert_allclose(table.alpha**2 + table.sigma**2, 1, rtol=1e-14)
    assert np.all(np.diff(table.alpha) < 0)
    assert np.all(np.diff(table.sigma) >= 0)  # equal where both are 1 to rounding
    assert np.all(np.diff(table.beta) >= 0)
    assert all(field.dtype == np.float64 and field.shape == (steps,) for field in vars(table).values())


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", TABLES)
def test_tables_match_the_reference(name: str, steps: int) -> None:
    table, expected = TABLES[name](steps), reference.schedule(BETAS[name](steps))
    np.testing.assert_allclose(table.beta, BETAS[name](steps), rtol=1e-10)
    for field in expected._fields:
        np.testing.assert_allclose(
            getattr(table, field), getattr(expected, field), rtol=1e-9, atol=1e-15, err_msg=field
        )


@pytest.mark.parametrize("name", TABLES)
def test_one_reverse_step_undoes_one_forward_step(name: str) -> None:
    """If a_t is a_0 noised to time t, the posterior must give a_{t-1} the law of a_0 noised to time t-1."""
    table = TABLES[name](20)
    a, b = table.posterior_action[1:], table.posterior_noisy[1:]
    np.testing.assert_allclose(a + b * table.alpha[1:], table.alpha[:-1], rtol=1e-10)
    np.testing.assert_allclose(
        (b * table.sigma[1:]) ** 2 + table.posterior_std[1:] ** 2, table.sigma[:-1] ** 2, rtol=1e-9
    )
    first = table.posterior_action[0], table.posterior_noisy[0], table.posterior_std[0]
    np.testing.assert_allclose(first, (1, 0, 0), rtol=1e-11)


def test_published_numbers_of_vp() -> None:
    table = vp_table(5)
    np.testing.assert_allclose(table.beta, [0.1959, 0.4588, 0.6358, 0.7549, 0.8350], atol=5e-5)
    np.testing.assert_allclose(table.sigma, [0.443, 0.752, 0.917, 0.980, 0.997], atol=5e-4)
    for steps in LENGTHS:
        np.testing.assert_allclose(vp_table(steps).alpha[-1] ** 2, 6.41e-3, rtol=1e-3)
        np.testing.assert_allclose(vp_table(steps).alpha[-1] ** 2, np.exp(-10.1 / 2), rtol=1e-12)


def test_published_numbers_of_the_others() -> None:
    assert cosine_table(20).beta[-1] == 0.999
    np.testing.assert_allclose(linear_table(20).beta[[0, -1]], [0.8e-4, 0.7992])
    np.testing.assert_allclose(linear_table(3, scale=0.5).beta, [0.5e-4, 0.249775, 0.4995])


@pytest.mark.parametrize("beta", [[], [0.0, 0.5], [0.5, 1.0], [-0.1], [np.nan], [[0.1, 0.2]], 0.5])
def test_impossible_betas_are_refused(beta: Any) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        table_from_betas(np.array(beta))


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("name", TABLES)
def test_impossible_lengths_are_refused(name: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"num_steps must be a whole number, greater than 0, got {steps}"):
        TABLES[name](steps)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((1.0, 0.1, 5, 5), "begin=5 and end=5"),
        ((1.0, 0.1, 5, 4), "begin=5 and end=4"),
        ((1.0, 0.1, -1, 4), "begin must be a whole number, at least 0, got -1"),
        ((1.0, 0.1, 0.5, 4), "begin must be a whole number, at least 0, got 0.5"),
        ((1.0, 0.1, 0, math.nan), "end must be a whole number, greater than 0, got nan"),
        ((math.nan, 0.1, 0, 4), "initial must be a finite number, got nan"),
        ((1.0, math.inf, 0, 4), "final must be a finite number, got inf"),
        (("1", 0.1, 0, 4), "initial must be a finite number, got '1'"),
    ],
)
def test_impossible_linear_schedules_are_refused(given: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        LinearSchedule(*given)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: vp_table(2.0), "num_steps must be a whole number, greater than 0, got 2.0"),  # type: ignore[arg-type]
        (lambda: vp_table([5]), "num_steps must be a whole number, greater than 0, got [5]"),  # type: ignore[arg-type]
        (lambda: vp_table(5, beta_min=-1.0), "beta_min must be a finite number, at least 0, got -1.0"),
        (lambda: vp_table(5, beta_max=math.inf), "beta_max must be a finite number greater than 0, got inf"),
        (lambda: cosine_table(5, offset=math.nan), "offset must be a finite number, at least 0, got nan"),
        (lambda: cosine_table(5, max_beta=1.0), "max_beta must be a number in (0, 1), got 1.0"),
        (lambda: linear_table(5, scale=2.0), "scale must be a number in (0, 1], got 2.0"),
    ],
)
def test_impossible_numbers_of_tables_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert sentence in str(caught.value)


def test_numbers_of_numpy_make_the_same_table() -> None:
    assert vp_table(np.int64(5)) is vp_table(5)  # type: ignore[arg-type]
    assert linear_table(5, np.float64(0.5)) is linear_table(5, 0.5)


# The backends


@pytest.fixture(params=list(SCHEDULES))
def schedule(backend: Any, request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """(backend, its schedule, the table behind it)"""
    return backend, SCHEDULES[request.param].make(backend, DIMS), TABLES[request.param](DIMS.steps)


def _times() -> list[Any]:
    """Every time as a number, and all of them as arrays against a batch of 4."""
    return [*range(DIMS.steps), np.arange(4) % DIMS.steps, np.arange(DIMS.steps)[:, None]]


@pytest.mark.parametrize("t", _times(), ids=str)
def test_backends_match_the_table(schedule: tuple[Any, Any, Any], t: Any) -> None:
    B, s, table = schedule
    rng = np.random.default_rng(0)
    action, eps = rng.uniform(-1, 1, (4, 2)), rng.standard_normal((4, 2))
    alpha, sigma, c1, c2, std = (
        np.asarray(field)[t][..., None]
        for field in (table.alpha, table.sigma, table.posterior_action, table.posterior_noisy, table.posterior_std)
    )
    a, e = B.testing.to_backend(action), B.testing.to_backend(eps)
    time = B.testing.to_backend(t) if isinstance(t, np.ndarray) else t
    noisy = alpha * action + sigma * eps
    n = B.testing.to_backend(noisy)
    expected_actual = {
        "add_noise": (noisy, s.add_noise(a, e, time)),
        "predict_action": (np.broadcast_to(action, noisy.shape), s.predict_action(n, e, time)),
        "score": (-eps / sigma, s.score(e, time)),
        "posterior_mean": (c1 * action + c2 * noisy, s.posterior_mean(a, n, time)),
    }
    assert s.num_steps == DIMS.steps
    for name, (expected, actual) in expected_actual.items():
        np.testing.assert_allclose(B.testing.to_numpy(actual), expected, rtol=1e-9, atol=1e-12, err_msg=name)
    for name, expected in {"alpha": alpha, "sigma": sigma, "posterior_std": std}.items():
        actual = np.asarray(B.testing.to_numpy(getattr(s, name)(time)))
        assert actual.shape in ((), expected.shape), name
        np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape) if actual.shape else expected[0],
                                   rtol=1e-12, err_msg=name)  # fmt: skip


def test_predict_action_inverts_add_noise(schedule: tuple[Any, Any, Any]) -> None:
    B, s, _ = schedule
    rng = np.random.default_rng(1)
    action, eps = rng.uniform(-1, 1, (7, 4, 2)), rng.standard_normal((7, 4, 2))
    a, e = B.testing.to_backend(action), B.testing.to_backend(eps)
    t = B.testing.to_backend(rng.integers(0, DIMS.steps, (7, 4)))
    np.testing.assert_allclose(B.testing.to_numpy(s.predict_action(s.add_noise(a, e, t), e, t)), action, atol=1e-12)
