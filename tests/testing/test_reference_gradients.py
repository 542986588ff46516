"""The NumPy reference against itself and against SciPy and scikit-learn: needs neither torch nor JAX.

Each gradient derived by hand is compared with central differences of the value it belongs to. Where a loss holds
quantities fixed (states, targets, weights), they are computed once and differences are taken of the rest.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from diffac.parts.critics import next_rollout
from diffac.parts.schedules import LinearSchedule, flow_schedule
from diffac.protocols import Policy
from diffac.testing import reference as ref
from diffac.testing.parts import (
    ACTIVATIONS,
    CRITIC_OBJECTIVES,
    DIMS,
    LEARNERS,
    OBJECTIVES,
    SAMPLERS,
    SHAPES,
    TEMPERATURES,
    Part,
    make_batch,
    make_noise,
    random_parameters,
)
from diffac.testing.problems import BOUND

TEMPERATURE = 0.7
MANY = DIMS._replace(batch=24)
"""Enough actions for some to be inside the box and some to be clipped, with every sampler."""
Parameters = Mapping[str, np.ndarray]
Function = Callable[[Any], Any]
"""Parameters -> a scalar."""


def network(rng: np.random.Generator, name: str, act: str = "mish", magnitude: float = 1.0) -> Any:
    return BOUND[name](random_parameters(rng, SHAPES[name](DIMS), magnitude), activation=act)


class Case:
    """A part with networks, a batch and noise."""

    def __init__(self, part: Part, seed: int, magnitude: float = 0.4) -> None:
        rng = np.random.default_rng(seed)
        self.part = part.make(ref, DIMS)
        self.actor = network(rng, f"actor {part.actor}", magnitude=magnitude)
        self.critic, self.target = (network(rng, f"critic {part.critic}") for _ in range(2))
        self.batch, self.noise = make_batch(rng, MANY), make_noise(rng, self.part, MANY)


def check_gradient(function: Function, point: Parameters, gradient: Parameters, rng: np.random.Generator) -> None:
    """Slopes along one random direction in each array, and at the largest entry of each."""
    assert gradient.keys() == point.keys()
    assert all(gradient[name].shape == array.shape for name, array in point.items())
    scale = max(np.abs(g).max() for g in gradient.values())
    assert scale > 0
    for name, array in point.items():
        largest = np.zeros(array.shape)
        largest.flat[np.abs(gradient[name]).argmax()] = 1
        for direction in (rng.standard_normal(array.shape), largest):
            step = 1e-6 * direction
            difference = function({**point, name: array + step}) - function({**point, name: array - step})
            expected = float((gradient[name] * direction).sum())
            np.testing.assert_allclose(
                difference / 2e-6, expected, rtol=1e-6, atol=1e-7 * max(scale, 0.1), err_msg=name
            )


# Networks: every output entry is weighted, which gives the slope of a scalar


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", [name for name in BOUND if name not in ("actor velocity", "actor clean")])
def test_networks(name: str, act: str) -> None:
    rng = np.random.default_rng(1)
    net = network(rng, name, act)
    obs, action = rng.standard_normal((DIMS.batch, DIMS.obs)), rng.standard_normal((3, DIMS.batch, DIMS.action))
    t = rng.integers(0, DIMS.steps, (3, DIMS.batch))
    s = t / DIMS.steps
    calls: dict[str, Callable[[Any, np.ndarray], Any]] = {
        "actor denoiser": lambda n, a: n(obs, a, t),
        "actor mean_velocity": lambda n, a: n(obs, a, s, 0.3 * s),
        "actor langevin": lambda n, a: n(obs, a, t),
        "actor gaussian": lambda n, a: n(obs),
        "actor deterministic": lambda n, a: n(obs),
    }
    call = calls.get(name.replace("simba_", ""), lambda n, a: n(obs, a))
    check_network(call, net, action, rng)
    if name == "critic gaussian":
        check_network(lambda n, a: n.distribution(obs, a), net, action, rng)
    if name == "critic categorical":
        check_network(lambda n, a: n.logits(obs, a), net, action, rng)
    if name == "actor langevin":
        check_network(lambda n, a: n.step_size(), net, action, rng)
    if name == "actor denoiser":  # one state and time for many actions, and many states for one action
        check_network(lambda n, a: n(obs[0], a, 2), net, action, rng)
        check_network(lambda n, a: n(obs, a, t), net, action[0, :1], rng)


def check_network(call: Callable[[Any, np.ndarray], Any], net: Any, action: np.ndarray, rng: Any) -> None:
    outputs, pull = call(net, action)
    weights = [rng.standard_normal(o.shape) for o in (outputs if isinstance(outputs, tuple) else (outputs,))]

    def scalar(point: Parameters) -> float:
        parameters = {name: array for name, array in point.items() if name != "action"}
        outputs, _ = call(dataclasses.replace(net, parameters=parameters), point["action"])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return float(sum((w * o).sum() for w, o in zip(weights, outputs, strict=True)))

    pulled = pull(*weights)
    gradient, daction = pulled if isinstance(pulled, tuple) else (pulled, np.zeros(action.shape))
    check_gradient(scalar, {**net.parameters, "action": action}, {**gradient, "action": daction}, rng)


def test_clipped_log_std_has_no_gradient() -> None:
    rng = np.random.default_rng(2)
    net = dataclasses.replace(network(rng, "actor gaussian"), log_std_min=-0.1, log_std_max=0.1)
    (_, log_std), _ = net(rng.standard_normal((DIMS.batch, DIMS.obs)))
    assert set(np.sign(log_std[np.abs(log_std) == 0.1])) == {-1, 1}
    assert (np.abs(log_std) < 0.1).any()
    obs = rng.standard_normal((DIMS.batch, DIMS.obs))
    check_network(lambda n, a: n(obs), net, np.zeros(1), rng)


# Samplers


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str) -> None:
    c, rng = Case(SAMPLERS[name], 3), np.random.default_rng(3)

    def run(actor: Any) -> Any:
        return c.part.rollout(Policy(actor, c.critic, TEMPERATURE), c.batch.obs, c.noise)

    rollout, pull = run(c.actor)
    assert rollout.action.shape == MANY.shape
    weight, log_weight = rng.standard_normal(MANY.shape), rng.standard_normal(MANY.batch)
    log_prob = rollout.log_prob is not None
    fixed = "log_probability" in name  # which has no gradient

    def scalar(parameters: Parameters) -> float:
        action, _, log_probs, _ = run(dataclasses.replace(c.actor, parameters=parameters))[0]
        return float((weight * action).sum() + ((log_weight * log_probs).sum() if log_prob and not fixed else 0.0))

    check_gradient(scalar, c.actor.parameters, pull(weight, log_weight) if log_prob else pull(weight), rng)


def test_some_actions_are_clipped_and_some_are_not() -> None:
    """Else the gradients above would be those of half a chain."""
    c = Case(OBJECTIVES["value_additive"], 4)
    loss, _ = c.part(c.actor, c.critic, c.batch, c.noise, TEMPERATURE, {})
    assert 0 < loss.metrics["clipped_fraction"] < 1


# Objectives


def with_fixed(objective: Any, name: str) -> Any:
    """The objective with a method that returns what it did in its first call."""
    calls: list[Any] = []

    def first(self: Any, *args: Any) -> Any:
        calls[:] = calls or [getattr(objective, name)(*args)]
        return calls[0]

    kind = type(objective.__class__.__name__, (objective.__class__,), {name: first})
    return kind(**{field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)})


def frozen_value(c: Case, objective: Any, noise: Any, common: Any = None) -> Callable[[Any], float]:
    """The loss as a function of the actor, with everything that is held fixed computed from the case's actor."""
    arguments = (c.batch, noise, TEMPERATURE, objective.init_state())
    if isinstance(objective, ref.Sum):
        shared = None
        if objective.shared is not None:
            shared = noise["rollout"]
        terms = [
            (weight, frozen_value(c, term, noise[f"term{i}"], shared if objective.shares(term) else None))
            for i, (weight, term) in enumerate(objective.terms)
        ]
        return lambda actor: sum(weight * value(actor) for weight, value in terms)
    if isinstance(objective, ref.ReweightedScoreMatching):
        data = objective.proposal(c.actor, c.critic, *arguments, objective.schedule)
        regression = ref.noise_regression if objective.space == "eps" else ref.output_regression
        return lambda actor: regression(objective.schedule, actor, data)[0]
    if isinstance(objective, ref.MeanFlowMatching):
        data = objective.proposal(c.actor, c.critic, c.batch, noise["proposal"], *arguments[2:], flow_schedule(1))
        objective = dataclasses.replace(objective, proposal=lambda *arguments: data)
    if isinstance(objective, ref.TimeWeightedQGradient | ref.MeanFlowMatching):
        objective = with_fixed(objective, "aimed_at")
    if isinstance(objective, ref.ValueThroughSampler):
        objective = with_fixed(objective, "unit")
    if isinstance(getattr(objective, "sampler", None), ref.LogProbability):
        objective = dataclasses.replace(objective, sampler=with_fixed(objective.sampler, "estimate"))
    if getattr(objective, "rollout_sampler", None) is None:
        objective(c.actor, c.critic, *arguments)
        return lambda actor: objective(actor, c.critic, *arguments)[0].value

    def roll_out(actor: Any) -> Any:
        noise_of_rollout = noise["rollout"] if common is None else common
        return objective.rollout_sampler.rollout(Policy(actor, c.critic, TEMPERATURE), c.batch.obs, noise_of_rollout)

    if isinstance(objective, ref.TimeWeightedQGradient):
        states = roll_out(c.actor)
        objective(c.actor, c.critic, *arguments, states)
        return lambda actor: objective(actor, c.critic, *arguments, states)[0].value
    objective(c.actor, c.critic, *arguments, roll_out(c.actor))
    return lambda actor: objective(actor, c.critic, *arguments, roll_out(actor))[0].value


@pytest.mark.parametrize("name", OBJECTIVES)
def test_actor_objectives(name: str) -> None:
    c = Case(OBJECTIVES[name], 5)
    loss, gradient = c.part(c.actor, c.critic, c.batch, c.noise, TEMPERATURE, c.part.init_state())
    value = frozen_value(c, c.part, c.noise)
    np.testing.assert_allclose(loss.value, value(c.actor), rtol=1e-12)

    def scalar(parameters: Parameters) -> float:
        return float(value(dataclasses.replace(c.actor, parameters=parameters)))

    check_gradient(scalar, c.actor.parameters, gradient, np.random.default_rng(5))


def test_q_gradient_is_the_slope_of_q() -> None:
    """With a schedule of one time and a denoiser that says 0, the loss is the squared target."""
    c = Case(OBJECTIVES["time_weighted_score_replay_1"], 6)
    objective = dataclasses.replace(c.part, slope=0.0, intercept=math.log(3.0))
    silent = dataclasses.replace(c.actor, parameters=ref.zeros(c.actor.parameters))
    loss, _ = objective(silent, c.critic, c.batch, c.noise, TEMPERATURE, {})
    np.testing.assert_allclose(loss.value, 9, rtol=1e-6)
    norms = []
    for t in range(DIMS.steps):
        states = ref.add_noise(objective.schedule, c.batch.action, c.noise["eps"][t], t)
        slopes = []
        for entry in np.eye(DIMS.action):
            up, down = (c.critic(c.batch.obs, states + sign * 1e-6 * entry)[0].min(0) for sign in (1, -1))
            slopes.append((up - down) / 2e-6)
        norms.append(np.linalg.norm(slopes, axis=0))
    np.testing.assert_allclose(loss.metrics["q_gradient_norm"], np.mean(norms), rtol=1e-7)


def frozen_gaussian_td(part: Any, *numbers: Any) -> Callable[..., Any]:
    """The loss of each transition as a function of mean and std alone, what is held fixed being computed beforehand."""
    if part.huber_delta is None:
        a, b = ref.gaussian_td_slopes(*numbers, part.clip)
        return lambda mean, std: a * mean + b * std
    _, std, y, _, omega = numbers
    _, _, b = ref.gaussian_td_huber(*numbers, part.clip, part.huber_delta)
    ratio = np.clip(omega[:, None] ** 2 / (std**2 + 0.1), 0.1, 10)
    return lambda mean, std: ratio * ref.huber(mean - y, part.huber_delta) + b * std


@pytest.mark.parametrize("name", CRITIC_OBJECTIVES)
def test_critic_objectives(name: str) -> None:
    c, rng = Case(CRITIC_OBJECTIVES[name], 7), np.random.default_rng(7)
    state = c.part.init_state(c.critic)
    for _ in range(2):  # the second time with a running omega
        arguments = (c.batch, c.noise, TEMPERATURE, state)
        loss, gradient = c.part(c.critic, c.target, *arguments)
        if isinstance(c.part, ref.GaussianTD):
            y, y_z = c.part.targets(c.target, c.batch, c.noise, TEMPERATURE)
            (mean, std), _ = c.critic.distribution(c.batch.obs, c.batch.action)
            value = frozen_gaussian_td(c.part, mean, std, y, y_z, loss.state["omega"])

            def scalar(parameters: Parameters, value: Any = value) -> float:
                net = dataclasses.replace(c.critic, parameters=parameters)
                (mean, std), _ = net.distribution(c.batch.obs, c.batch.action)
                return float((ref.weights(c.batch) * value(mean, std)).mean(-1).sum())
        else:

            def scalar(parameters: Parameters, arguments: Any = arguments) -> float:
                return c.part(dataclasses.replace(c.critic, parameters=parameters), c.target, *arguments)[0].value

        np.testing.assert_allclose(scalar(c.critic.parameters), loss.value, rtol=1e-12)
        check_gradient(scalar, c.critic.parameters, gradient, rng)
        state, c.batch = loss.state, make_batch(rng, MANY, magnitude=2.0)


def test_gaussian_td_slopes_are_the_gradient_of_the_log_likelihood() -> None:
    """Without clip and smoothing constants DSAC-T's slopes are omega^2 times those of -log N(y; mean, std)."""
    rng = np.random.default_rng(8)
    y, mean, std = rng.standard_normal(6), rng.standard_normal((2, 6)), rng.uniform(20, 30, (2, 6))
    omega = np.array([25.0, 30.0])
    slopes = ref.gaussian_td_slopes(mean, std, y, y, omega, 1e9)
    expected = -(y - mean) / std**2, 1 / std - (y - mean) ** 2 / std**3
    for actual, wanted in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(actual, omega[:, None] ** 2 * wanted, rtol=1e-3)


def test_huber_form_of_gaussian_td() -> None:
    """By hand: the mean is drawn by its error, at most delta; std rests where its square is half that of the error."""
    mean, std, omega = np.array([[0.0, 0.0, 0.0]]), np.array([[1.0, 2.0, 1.0]]), np.array([1.0])
    y_z = np.array([math.sqrt(2), math.sqrt(8), 5.0])
    _, mean_slope, std_slope = ref.gaussian_td_huber(mean, std, np.array([-0.5, -7, 2.0]), y_z, omega, 4.0, 3.0)
    ratio = np.array([1 / 1.1, 1 / 4.1, 1 / 1.1])
    np.testing.assert_allclose(mean_slope[0], ratio * [0.5, 3, -2], rtol=1e-12)
    np.testing.assert_allclose(std_slope[0], [0, 0, ratio[2] * (1 - (3 * 4 - 4.5)) / 1.1], rtol=1e-12, atol=1e-12)
    for scale, bound in ((10.0, 10), (0.01, 0.1)):
        _, slope, _ = ref.gaussian_td_huber(mean, std, np.ones(3), y_z, scale * omega, 4.0, 3.0)
        assert -slope[0, 0] == bound


# Numbers that other packages know


def test_truncated_normal_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(9)
    for scale in (0.01, 0.3, 1.0, 12.0):
        mean = np.clip(rng.standard_normal(40), -1, 1) + 3 * scale * rng.standard_normal(40)
        u, low, high = rng.random(40), (-1 - mean) / scale, (1 - mean) / scale
        z = np.vectorize(ref.truncated_normal)(u, low, high)
        assert np.all((low <= z) & (z <= high))
        np.testing.assert_allclose(z, stats.truncnorm.ppf(u, low, high), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(stats.truncnorm.cdf(z, low, high), u, rtol=1e-9)


def test_mixture_entropy_is_scikit_learns() -> None:
    mixture = pytest.importorskip("sklearn.mixture")
    rng = np.random.default_rng(10)
    centres = np.array([[-0.7, 0.1], [0.0, -0.1], [0.7, 0.2]])
    x = centres[rng.choice(3, 300, p=[0.5, 0.3, 0.2])] + 0.1 * rng.standard_normal((300, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = mixture.GaussianMixture(3, means_init=centres).fit(x)
    w, log_det = fit.weights_, np.linalg.slogdet(fit.covariances_)[1]
    expected = -(w * np.log(w)).sum() + (w * (math.log(2 * math.pi * math.e) + log_det / 2)).sum()
    np.testing.assert_allclose(ref.mixture_entropy(x), expected, atol=2e-3)
    batch = np.stack([x, 2 * x], axis=1)
    np.testing.assert_allclose(ref.mixture_entropy(batch), [expected, expected + 2 * math.log(2)], atol=5e-3)


# Temperatures, optimiser, learner


@pytest.mark.parametrize("name", TEMPERATURES)
def test_temperatures_go_down_where_there_is_too_much_entropy(name: str) -> None:
    c = Case(TEMPERATURES[name], 11)
    state = c.part.init_state()
    new, metrics = c.part.update(
        state, Policy(c.actor, c.critic, TEMPERATURE), c.batch.obs, c.noise, next_rollout(c.part, c.batch).log_prob
    )
    if name == "fixed":
        assert (new, metrics) == (state, {})
        return
    steered = metrics["noise_entropy" if name == "noise_entropy" else "policy_entropy"]
    target = DIMS.action * c.part.target_entropy_per_dim
    step = float(new["log_temperature"] - state["log_temperature"])
    np.testing.assert_allclose(step, -c.part.learning_rate * np.sign(steered - target), rtol=1e-6)
    np.testing.assert_allclose(c.part.value(new), np.exp(new["log_temperature"]))
    assert new["count"] == 1


def test_adam_with_a_clip_and_a_schedule() -> None:
    """With equal gradients every step has the size of the rate, whatever the clip."""
    adam = ref.Adam(LinearSchedule(0.1, 0.0, 1, 3), max_grad_norm=0.5)
    parameters, gradient = {"a": np.zeros(2), "b": np.zeros(())}, {"a": np.array([3.0, -4.0]), "b": np.array(12.0)}
    state = adam.init(parameters)
    for rate in (0.1, 0.1, 0.05, 0.0, 0.0):
        before = parameters
        parameters, state, metrics = adam.step(state, parameters, gradient)
        np.testing.assert_allclose(metrics["grad_norm"], 13)
        np.testing.assert_allclose(parameters["a"] - before["a"], [-rate, rate], rtol=1e-6)
    np.testing.assert_allclose(state.m["a"], (1 - 0.9**5) * 0.5 / 13 * gradient["a"])


@pytest.mark.parametrize("name", LEARNERS)
def test_learners(name: str) -> None:
    """Names and shapes of the state, what is due when, and that nothing passed in is changed."""
    part, rng = LEARNERS[name], np.random.default_rng(12)
    learner = part.make(ref, DIMS)
    state = learner.init(network(rng, f"actor {part.actor}"), network(rng, f"critic {part.critic}"))
    start, first = state, ref.to_arrays(state)
    assert {"actor.layers.0.weight", "critic_optimiser.m.layers.0.bias", "updates"} <= first.keys()
    assert ("temperature.count" in first) == (learner.temperature.interval > 0)
    for i in range(6):
        before = ref.to_arrays(state)
        new, metrics = learner.step(state, make_batch(rng, filled=False), make_noise(rng, learner))
        after = ref.to_arrays(new)
        assert {n: (a.shape, a.dtype) for n, a in after.items()} == {n: (a.shape, a.dtype) for n, a in first.items()}
        assert all(np.array_equal(a, before[n]) for n, a in ref.to_arrays(state).items())
        moved = {n.split(".")[0] for n in after if not np.array_equal(after[n], before[n])}
        due, interval = i % learner.actor_delay == learner.first_actor_update, learner.temperature.interval
        assert (("actor" in moved), ("target_critic" in moved), ("actor_loss" in metrics)) == (due, due, due)
        assert ("temperature" in moved) == (interval > 0 and i % interval == 0)
        assert {"critic", "critic_optimiser", "updates"} <= moved
        assert all(np.isfinite(number) for number in metrics.values())
        state = new
    restored = ref.to_arrays(ref.from_arrays(start, ref.to_arrays(state)))
    assert all(np.array_equal(restored[n], a) for n, a in ref.to_arrays(state).items())
