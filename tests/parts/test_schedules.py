"""Schedules: their tables against theory and against the reference; what backends make of them; schedules of users."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.parts.schedules import (
    LinearSchedule,
    TabularSchedule,
    cosine_schedule,
    flow_schedule,
    linear_beta_schedule,
    schedule_from_betas,
    tabulated,
    vp_schedule,
)
from diffac.protocols import NoiseSchedule, Policy
from diffac.testing import reference
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import DIMS, NOISE_SCHEDULES

LENGTHS = (1, 2, 5, 20, 100)
BETAS = {"vp": reference.vp_betas, "cosine": reference.cosine_betas, "linear": reference.linear_betas}


def betas(schedule: TabularSchedule) -> np.ndarray:
    """Variance added by each step of a variance-preserving schedule."""
    return 1 - (schedule.alphas / np.append(1.0, schedule.alphas[:-1])) ** 2


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", BETAS)
def test_variance_is_preserved_and_noise_grows(name: str, steps: int) -> None:
    schedule = tabulated(NOISE_SCHEDULES[name](steps))
    assert schedule.num_steps == steps
    np.testing.assert_allclose(schedule.alphas**2 + schedule.sigmas**2, 1, rtol=1e-14)
    assert np.all(np.diff(schedule.alphas) < 0)
    assert np.all(np.diff(schedule.sigmas) >= 0)  # equal where both are 1 to rounding


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("name", BETAS)
def test_tables_match_the_reference(name: str, steps: int) -> None:
    """Alpha and sigma from the betas; the reverse kernel too, to the digits that sigma^2 - r^2 sigma'^2 leaves."""
    schedule, expected = tabulated(NOISE_SCHEDULES[name](steps)), reference.schedule(BETAS[name](steps))
    ours = (schedule.alphas, schedule.sigmas, schedule.posterior_action, schedule.posterior_noisy)
    for field, actual in zip(expected._fields, (*ours, schedule.posterior_std), strict=True):
        np.testing.assert_allclose(actual, getattr(expected, field), rtol=1e-9, atol=1e-15, err_msg=field)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_reverse_kernels_match_bayes_rule(name: str) -> None:
    schedule = NOISE_SCHEDULES[name](20)
    table = tabulated(schedule)
    for t in range(20):
        ours = table.posterior_action[t], table.posterior_noisy[t], table.posterior_std[t]
        np.testing.assert_allclose(ours, reference.posterior(schedule, t), rtol=1e-10, atol=1e-15, err_msg=str(t))


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_one_reverse_step_undoes_one_forward_step(name: str) -> None:
    """If a_t is a_0 noised to time t, the posterior must give a_{t-1} the law of a_0 noised to time t-1."""
    table = tabulated(NOISE_SCHEDULES[name](20))
    a, b = table.posterior_action[1:], table.posterior_noisy[1:]
    np.testing.assert_allclose(a + b * table.alphas[1:], table.alphas[:-1], rtol=1e-10)
    np.testing.assert_allclose(
        (b * table.sigmas[1:]) ** 2 + table.posterior_std[1:] ** 2, table.sigmas[:-1] ** 2, rtol=1e-9
    )
    first = table.posterior_action[0], table.posterior_noisy[0], table.posterior_std[0]
    np.testing.assert_allclose(first, (1, 0, 0), rtol=1e-11)


def test_published_numbers_of_vp() -> None:
    schedule = vp_schedule(5)
    np.testing.assert_allclose(betas(schedule), [0.1959, 0.4588, 0.6358, 0.7549, 0.8350], atol=5e-5)
    np.testing.assert_allclose(schedule.sigmas, [0.443, 0.752, 0.917, 0.980, 0.997], atol=5e-4)
    for steps in LENGTHS:
        np.testing.assert_allclose(vp_schedule(steps).alphas[-1] ** 2, 6.41e-3, rtol=1e-3)
        np.testing.assert_allclose(vp_schedule(steps).alphas[-1] ** 2, np.exp(-10.1 / 2), rtol=1e-12)


def test_published_numbers_of_the_others() -> None:
    np.testing.assert_allclose(betas(cosine_schedule(20))[-1], 0.999, rtol=1e-12)
    part = cosine_schedule(20, start=0.001, end=0.9946)  # MaxEntDP's
    np.testing.assert_allclose(part.alphas[[0, -1]] ** 2, [0.99185, 7.083e-5], rtol=1e-4)
    np.testing.assert_allclose(betas(linear_beta_schedule(20))[[0, -1]], [0.8e-4, 0.7992], rtol=1e-10)
    np.testing.assert_allclose(betas(linear_beta_schedule(3, scale=0.5)), [0.5e-4, 0.249775, 0.4995], rtol=1e-10)
    np.testing.assert_array_equal(flow_schedule(4).alphas, [0.75, 0.5, 0.25, 0.0])
    np.testing.assert_array_equal(flow_schedule(4).sigmas, [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("beta", [[], [0.0, 0.5], [0.5, 1.0], [-0.1], [np.nan], [[0.1, 0.2]], 0.5])
def test_impossible_betas_are_refused(beta: Any) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        schedule_from_betas(np.array(beta))


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("name", [*BETAS, "flow"])
def test_impossible_lengths_are_refused(name: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"num_steps must be a whole number, greater than 0, got {steps}"):
        NOISE_SCHEDULES[name](steps)


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
        (lambda: vp_schedule(2.0), "num_steps must be a whole number, greater than 0, got 2.0"),  # type: ignore[arg-type]
        (lambda: vp_schedule([5]), "num_steps must be a whole number, greater than 0, got [5]"),  # type: ignore[arg-type]
        (lambda: vp_schedule(5, beta_min=-1.0), "beta_min must be a finite number, at least 0, got -1.0"),
        (lambda: vp_schedule(5, beta_max=math.inf), "beta_max must be a finite number greater than 0, got inf"),
        (lambda: cosine_schedule(5, offset=math.nan), "offset must be a finite number, at least 0, got nan"),
        (lambda: cosine_schedule(5, max_beta=1.0), "max_beta must be a number in (0, 1), got 1.0"),
        (lambda: cosine_schedule(5, start=-0.1), "start must be a number in [0, 1], got -0.1"),
        (lambda: cosine_schedule(5, end=1.1), "end must be a number in [0, 1], got 1.1"),
        (lambda: cosine_schedule(5, start=0.5, end=0.5), "start must be less than end, got start=0.5 and end=0.5"),
        (lambda: linear_beta_schedule(5, scale=2.0), "scale must be a number in (0, 1], got 2.0"),
    ],
)
def test_impossible_numbers_of_tables_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert sentence in str(caught.value)


def test_schedules_are_equal_by_value() -> None:
    """So that parts with equal schedules share compiled programs."""
    assert vp_schedule(np.int64(5)) == vp_schedule(5)  # type: ignore[arg-type]
    assert hash(linear_beta_schedule(5, np.float64(0.5))) == hash(linear_beta_schedule(5, 0.5))
    assert vp_schedule(5) != vp_schedule(6)
    assert vp_schedule(5) != "vp"


class Custom:
    """A schedule of a user's, which cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, alpha: Any, sigma: Any, num_steps: Any = 2) -> None:
        self.num_steps, self.values = num_steps, {"alpha": alpha, "sigma": sigma}

    def alpha(self, t: int) -> Any:
        return self.values["alpha"][t]

    def sigma(self, t: int) -> Any:
        return self.values["sigma"][t]


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (5, "schedule must be a noise schedule with num_steps, alpha(t) and sigma(t), such as vp_schedule(5), got 5"),
        (TabularSchedule, "schedule must be a noise schedule"),
        (Custom([1, 1], [1, 1], 0), "Custom.num_steps must be a whole number, greater than 0, got 0"),
        (Custom([0.5, "x"], [1, 1]), "Custom.alpha(1) must be a number, got 'x'"),
        (Custom([0.5, None], [1, 1]), "Custom.alpha(1) must be a number, got None"),
        (Custom([-0.1, 0.5], [1, 1]), "alpha(0) of a noise schedule must be a finite number, at least 0, got -0.1"),
        (Custom([0.9, 0.5], [0, 1]), "sigma(0) of a noise schedule must be a finite number, greater than 0, got 0.0"),
        (Custom([0.9, 0.5], [1, math.nan]), "sigma(1) of a noise schedule must be a finite number"),
        (Custom([0.5, 0.9], [1, 1]), "noise must grow with time: sigma/alpha falls from time 0"),
    ],
)
def test_schedules_without_sense_are_refused(backend: Any, schedule: Any, sentence: str) -> None:
    """Also by every part that is given one."""
    for make in (tabulated, backend.DDPMSampler, backend.DDIMSampler):
        with unchecked_shapes(), pytest.raises(UsageError) as caught:
            make(schedule)
        assert sentence in str(caught.value)


def test_tables_need_as_many_alphas_as_sigmas() -> None:
    for alpha, sigma in (([], []), ([1.0], [1.0, 2.0]), (0.5, 0.5), ([[0.5]], [[0.5]])):
        with pytest.raises(UsageError, match="must be equally many numbers, at least one"):
            TabularSchedule(alpha, sigma)


# The backends


def _times() -> list[Any]:
    """Every time as a number, and all of them as arrays against a batch of 4."""
    return [*range(DIMS.steps), np.arange(4) % DIMS.steps, np.arange(DIMS.steps)[:, None]]


@pytest.mark.parametrize("t", _times(), ids=str)
@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_backends_follow_alpha_and_sigma(backend: Any, name: str, t: Any) -> None:
    """Each function that a schedule is passed to, with the schedule as it is and as a table."""
    schedule, table = NOISE_SCHEDULES[name](DIMS.steps), tabulated(NOISE_SCHEDULES[name](DIMS.steps))
    rng = np.random.default_rng(0)
    action, eps = rng.uniform(-1, 1, (4, 2)), rng.standard_normal((4, 2))
    alpha, sigma, c1, c2 = (
        values[t][..., None] for values in (table.alphas, table.sigmas, table.posterior_action, table.posterior_noisy)
    )
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    time = to_backend(t) if isinstance(t, np.ndarray) else t
    noisy = alpha * action + sigma * eps
    a, e, n = map(to_backend, (action, eps, noisy))
    for s in (schedule, table):
        expected_actual = {
            "add_noise": (noisy, backend.add_noise(s, a, e, time)),
            "noise_between": (np.broadcast_to(eps, noisy.shape), backend.noise_between(s, a, n, time)),
            "score": (-eps / sigma, backend.score(s, e, time)),
            "posterior_mean": (c1 * action + c2 * noisy, backend.posterior_mean(s, a, n, time)),
        }
        if np.all(alpha > 0):
            expected_actual["remove_noise"] = (
                np.broadcast_to(action, noisy.shape),
                backend.remove_noise(s, n, e, time),
            )
        for function, (expected, actual) in expected_actual.items():
            np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-9, atol=1e-12, err_msg=function)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_predictions_are_three_ways_to_say_the_same(backend: Any, name: str) -> None:
    """From noisy = alpha a + sigma eps each prediction gives back a and eps."""
    schedule, rng = NOISE_SCHEDULES[name](DIMS.steps), np.random.default_rng(0)
    if name == "flow":  # a noise says nothing about the action at the last time
        schedule = TabularSchedule(schedule.alpha(np.arange(3)), schedule.sigma(np.arange(3)))  # type: ignore[arg-type]
    action, eps = rng.uniform(-1, 1, (2, 5, 2)), rng.standard_normal((2, 5, 2))
    t = np.arange(10).reshape(2, 5) % schedule.num_steps
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    noisy = backend.add_noise(schedule, *map(to_backend, (action, eps, t)))
    for prediction, output in {"eps": eps, "velocity": eps - action, "action": action}.items():
        denoiser = backend.MLPDenoiser(1, 2, key=0, hidden_sizes=(2,), prediction=prediction)
        arguments = (schedule, denoiser, to_backend(output), noisy, to_backend(t))
        np.testing.assert_allclose(to_numpy(backend.predicted_action(*arguments)), action, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(to_numpy(backend.predicted_eps(*arguments)), eps, rtol=1e-9, atol=1e-12)


def test_unknown_predictions_are_refused(backend: Any) -> None:
    class Strange:
        prediction = "score"

        def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
            return noisy

    sampler = backend.DDIMSampler(vp_schedule(2))
    noise = backend.testing.to_backend({"start": np.zeros((1, 2))})
    with pytest.raises(UsageError, match=r"unknown Strange\.prediction 'score'; known: action, eps, velocity"):
        sampler(Policy(Strange()), backend.testing.to_backend(np.zeros((1, 1))), noise)


def test_parts_hold_the_values_of_a_schedule(backend: Any) -> None:
    """They are asked once, so that a schedule of any kind, which need not even be hashable, can be compiled in."""
    schedule: NoiseSchedule = Custom([0.9, 0.5], [0.4, 0.8])
    sampler = backend.DDPMSampler(schedule)
    assert sampler.schedule == TabularSchedule([0.9, 0.5], [0.4, 0.8])
    assert backend.DDPMSampler(schedule, start_scale=1.0).schedule == sampler.schedule
