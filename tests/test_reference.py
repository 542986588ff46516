"""Each backend against the NumPy reference: values to 1e-9, gradients by central differences, whole learner steps.

Two backends with the same bug agree with each other. Here both are compared with a third, independent implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
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
    compiled,
    make_actor,
    make_batch,
    make_critic,
    make_learner,
    make_noise,
    randomise,
)

from diffac.schedules import LinearSchedule
from diffac.testing import reference as ref

TEMPERATURE = 0.7
BETAS = {"vp": ref.vp_betas, "linear": ref.linear_betas, "cosine": ref.cosine_betas}
SCHEDULE = {name: ref.schedule(betas(DIMS.steps)) for name, betas in BETAS.items()}
VP, LINEAR = SCHEDULE["vp"], SCHEDULE["linear"]
Parameters = Mapping[str, np.ndarray]


# A critic whose gradient is known


def _values(obs: Any, action: Any) -> list[Any]:
    return [
        -((action - 0.5 * obs[..., :2]) ** 2).sum(-1),
        0.3 * action[..., 0] * obs[..., 2] - action[..., 1] ** 2 + 0.1 * obs[..., 0],
    ]


def numpy_critic(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Two quadratic functions of the action."""
    return np.stack(_values(obs, action))


def numpy_critic_gradient(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The gradient of the smaller of the two with respect to the action."""
    obs = np.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    first = -2 * (action - 0.5 * obs[..., :2])
    second = np.stack([0.3 * obs[..., 2], -2 * action[..., 1]], axis=-1)
    a, b = numpy_critic(obs, action)
    return np.where((a < b)[..., None], first, second)


def torch_critic(obs: Any, action: Any) -> Any:
    """The same in torch."""
    import torch

    return torch.stack(_values(obs, action))


def jax_critic(obs: Any, action: Any) -> Any:
    """The same in JAX."""
    import jax.numpy as jnp

    return jnp.stack(_values(obs, action))


# Networks and samplers


class Case:
    """Networks with random parameters, a batch and noise, in one backend, and their arrays in NumPy."""

    def __init__(self, B: ModuleType, part: Any, seed: int = 0, *, analytic: bool = False, spread: float = 1) -> None:
        rng = np.random.default_rng(seed)
        self.B, self.thing = B, part.make(B, DIMS)
        self.actor = randomise(B, make_actor(B, part), rng, spread)
        self.critic = randomise(B, make_critic(B, part), rng)
        self.target = randomise(B, make_critic(B, part), rng)
        self.p, self.q_parameters, self.target_parameters = map(B.to_arrays, (self.actor, self.critic, self.target))
        self.q: Callable[..., np.ndarray] = partial(ref.critic, self.q_parameters)
        if analytic:
            self.critic, self.q = {"torch": torch_critic, "equinox": jax_critic}[B.name], numpy_critic
        self.batch = make_batch(rng)
        self.noise = make_noise(rng, self.thing)

    def denoise(self, p: Parameters) -> ref.Denoise:
        return partial(ref.denoiser, p)

    def chain(self, p: Parameters, noise: Any, s: ref.Schedule = VP, obs: Any = None) -> tuple[np.ndarray, np.ndarray]:
        obs = self.batch.obs if obs is None else obs
        return ref.ddpm(s, self.denoise(p), obs, noise["start"], noise["steps"])

    def best(self, p: Parameters, noise: Any, s: ref.Schedule = VP) -> np.ndarray:
        actions, _ = self.chain(p, noise["candidates"], s)
        obs = np.broadcast_to(self.batch.obs, (*actions.shape[:-1], DIMS.obs))
        return ref.best_of(actions, self.q(obs, actions).min(0))

    def gaussian(self, p: Parameters, noise: Any) -> tuple[np.ndarray, np.ndarray]:
        return ref.tanh_gaussian(*ref.gaussian_actor(p, self.batch.obs), noise["exploration"])

    def q_at_particles(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return self.q(np.broadcast_to(obs, (*actions.shape[:-1], DIMS.obs)), actions).min(0)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_networks(backend: ModuleType, act: str) -> None:
    rng = np.random.default_rng(0)
    obs, noisy = rng.standard_normal((5, 3)), rng.standard_normal((7, 5, 2))
    t = rng.integers(0, DIMS.steps, (7, 5))
    tables = {**ACTORS, **{f"{name}_critic": make for name, make in CRITICS.items()}}
    nets = {name: randomise(backend, make(backend, DIMS, 0, activation=act), rng) for name, make in tables.items()}
    p = {name: backend.to_arrays(net) for name, net in nets.items()}
    o, x, times = map(backend.testing.to_backend, (obs, noisy, t))
    distribution = compiled(backend, nets["gaussian_critic"].distribution)
    nets = {name: compiled(backend, net) for name, net in nets.items()}
    expected_actual = [
        (ref.denoiser(p["denoiser"], obs, noisy, t, act), nets["denoiser"](o, x, times)),
        (ref.denoiser(p["denoiser"], obs, noisy, 3, act), nets["denoiser"](o, x, 3)),
        (ref.gaussian_actor(p["gaussian"], obs, act), nets["gaussian"](o)),
        (ref.critic(p["twin_critic"], obs, noisy, act), nets["twin_critic"](o, x)),
        (ref.critic(p["three_critic"], obs, noisy, act), nets["three_critic"](o, x)),
        (ref.critic(p["gaussian_critic"], obs, noisy, act), nets["gaussian_critic"](o, x)),
        (ref.gaussian_critic(p["gaussian_critic"], obs, noisy, act), distribution(o, x)),
    ]
    for i, (expected, actual) in enumerate(expected_actual):
        actual = backend.testing.to_numpy(actual)
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-9, atol=1e-12, err_msg=str(i))


def test_time_embedding(backend: ModuleType) -> None:
    t = np.array([[0, 1, 2], [7, 19, 99]])
    actual = backend.testing.to_numpy(backend.time_embedding(backend.testing.to_backend(t), 16))
    np.testing.assert_allclose(actual, ref.time_embedding(t, 16), rtol=1e-12, atol=1e-15)


SAMPLER_REFERENCES: dict[str, Callable[[Case], Any]] = {
    "ddpm": lambda c: (*c.chain(c.p, c.noise), None),
    "ddpm_cosine": lambda c: (
        *c.chain(c.p, {"start": 0.5 * c.noise["start"], "steps": c.noise["steps"]}, SCHEDULE["cosine"]),
        None,
    ),
    "ddpm_long": lambda c: (*c.chain(c.p, c.noise, ref.schedule(ref.linear_betas(12))), None),
    "ddim": lambda c: (ref.ddim(VP, c.denoise(c.p), c.batch.obs, c.noise["start"], [3, 2, 1, 0]), ..., None),
    "ddim_two": lambda c: (ref.ddim(LINEAR, c.denoise(c.p), c.batch.obs, 0.5 * c.noise["start"], [3, 0]), ..., None),
    "ddim_one": lambda c: (
        ref.ddim(VP, c.denoise(c.p), c.batch.obs, c.noise["start"], [3]),
        c.noise["start"][None],
        None,
    ),
    "tanh_gaussian": lambda c: _with_log_prob(c.gaussian(c.p, c.noise)),
    "best_of": lambda c: (c.best(c.p, c.noise), ..., None),
    "best_of_one": lambda c: (c.best(c.p, c.noise), ..., None),
    "additive": lambda c: (
        ref.with_exploration(c.chain(c.p, c.noise["inner"])[0], c.noise["exploration"], 0.3 * TEMPERATURE),
        c.chain(c.p, c.noise["inner"])[1],
        None,
    ),
}


def _with_log_prob(action_log_prob: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, None, np.ndarray]:
    return action_log_prob[0], None, action_log_prob[1]


@pytest.mark.parametrize("name", SAMPLER_REFERENCES)
def test_samplers(backend: ModuleType, name: str) -> None:
    c = Case(backend, SAMPLERS[name])
    obs, noise, temperature = map(backend.testing.to_backend, (c.batch.obs, c.noise, np.array(TEMPERATURE)))
    rollout = compiled(backend, c.thing.rollout)(c.actor, obs, noise, critic=c.critic, temperature=temperature)
    for field, expected in zip(("action", "noisy", "log_prob"), SAMPLER_REFERENCES[name](c), strict=True):
        actual = getattr(rollout, field)
        if expected is None:
            assert actual is None
        elif expected is not ...:
            np.testing.assert_allclose(backend.testing.to_numpy(actual), expected, rtol=1e-9, atol=1e-12, err_msg=field)


# Objectives: each reference returns the loss as a function of the parameters that are differentiated

Loss = Callable[[Parameters], float]


def _value(actions: Callable[[Case, Parameters], np.ndarray]) -> Callable[[Case], Loss]:
    return lambda c: lambda p: ref.value_loss(c.q(c.batch.obs, actions(c, p)))


def _ddim_actions(c: Case, p: Parameters) -> np.ndarray:
    return ref.ddim(VP, c.denoise(p), c.batch.obs, c.noise["rollout"]["start"], [3, 2, 1, 0])


def _additive(c: Case, p: Parameters, scale: float, noise: Any) -> np.ndarray:
    return ref.with_exploration(c.chain(p, noise["inner"])[0], noise["exploration"], scale * TEMPERATURE)


def _time_weighted_states(c: Case, source: str, noise: Any) -> np.ndarray:
    if source == "chain":
        return c.chain(c.p, noise["rollout"])[1]
    action = c.chain(c.p, noise["rollout"])[0] if source == "forward" else c.batch.action
    return np.stack([ref.add_noise(VP, action, noise["eps"][t], t) for t in range(DIMS.steps)])


def _time_weighted(space: str, source: str, offset: int) -> Callable[[Case], Loss]:
    def make(c: Case) -> Loss:
        states = _time_weighted_states(c, source, c.noise)
        return _time_weighted_loss(c, states, space=space, time_offset=offset)

    return make


def _time_weighted_loss(c: Case, states: np.ndarray, **kw: Any) -> Loss:
    gradient = numpy_critic_gradient(c.batch.obs, states)

    def loss(p: Parameters) -> float:
        eps = np.stack([ref.denoiser(p, c.batch.obs, states[t], t) for t in range(DIMS.steps)])
        return ref.time_weighted_q_gradient_loss(VP, eps, gradient, **kw)

    return loss


def _reverse(table: str, truncated: bool) -> Callable[[Case], Loss]:
    def make(c: Case) -> Loss:
        s, noise, obs = SCHEDULE[table], c.noise, c.batch.obs
        action = c.best(c.p, noise["rollout"], LINEAR)
        noisy = np.stack([ref.add_noise(s, a, e, t) for a, e, t in zip(action, noise["eps"], noise["t"], strict=True)])
        actions, noises = ref.reverse_samples(s, noisy, noise["t"], noise["particles"], truncated=truncated)
        q = c.q_at_particles(obs, actions)
        return lambda p: ref.reverse_score_matching_loss(
            ref.denoiser(p, obs, noisy, noise["t"]), noises, q, TEMPERATURE
        )[0]

    return make


def _policy(c: Case, s: ref.Schedule = LINEAR, noise: Any = None, faithful: bool = False) -> Loss:
    noise, batch = noise or c.noise, c.batch
    start = {"q_mean_ema": 0.0, "q_std_ema": float(faithful), "count": 0}
    q = c.q(batch.next_obs, batch.next_action).min(0)
    weight, _ = ref.policy_weights(q, TEMPERATURE, start, rate=0.1, faithful=faithful)
    rows = zip(batch.next_action, noise["eps"], noise["t"], strict=True)
    noisy = np.stack([ref.add_noise(s, a, e, t) for a, e, t in rows])
    return lambda p: ref.weighted_score_matching_loss(
        ref.denoiser(p, batch.next_obs, noisy, noise["t"]), noise["eps"], weight
    )


def _sum_shared(c: Case) -> Loss:
    rollout = c.noise["rollout"]
    states = c.chain(c.p, rollout["inner"])[1]
    pull = _time_weighted_loss(c, states)
    return lambda p: ref.value_loss(c.q(c.batch.obs, _additive(c, p, 0.1, rollout))) + 0.5 * pull(p)


def _sum_separate(c: Case) -> Loss:
    terms = [c.noise[f"term{i}"] for i in range(3)]
    pull = _time_weighted_loss(c, _time_weighted_states(c, "forward", terms[1]))
    match = _policy(c, VP, terms[2])

    def loss(p: Parameters) -> float:
        value = ref.value_loss(c.q(c.batch.obs, c.chain(p, terms[0]["rollout"])[0]))
        return 0.7 * value + 2 * pull(p) + 0.1 * match(p)

    return loss


def _entropy_value(c: Case) -> Loss:
    def loss(p: Parameters) -> float:
        action, log_prob = c.gaussian(p, c.noise["rollout"])
        return ref.entropy_value_loss(c.q(c.batch.obs, action), log_prob, TEMPERATURE)

    return loss


REFERENCES: dict[str, Callable[[Case], Loss]] = {
    "value_ddpm": _value(lambda c, p: c.chain(p, c.noise["rollout"])[0]),
    "value_ddim": _value(_ddim_actions),
    "value_additive": _value(lambda c, p: _additive(c, p, 0.3, c.noise["rollout"])),
    "value_best_of": _value(lambda c, p: c.best(p, c.noise["rollout"])),
    "value_tanh_gaussian": _value(lambda c, p: c.gaussian(p, c.noise["rollout"])[0]),
    **{
        f"time_weighted_{space}_{source}_{offset}": _time_weighted(space, source, offset)
        for space in ("score", "eps")
        for source in ("chain", "forward", "replay")
        for offset in (0, 1)
    },
    "reverse": _reverse("linear", truncated=False),
    "reverse_truncated": _reverse("linear", truncated=True),
    "reverse_truncated_vp": _reverse("vp", truncated=True),
    "policy": _policy,
    "policy_faithful": partial(_policy, faithful=True),
    "entropy_value": _entropy_value,
    "sum_shared": _sum_shared,
    "sum_separate": _sum_separate,
}


def check_gradient(loss: Loss, p: Parameters, gradient: Parameters, rng: np.random.Generator, entries: int = 8) -> None:
    """Central differences at the entry with the largest gradient and at random others."""
    assert gradient.keys() == p.keys()
    name = max(gradient, key=lambda n: np.abs(gradient[n]).max())
    places = [(name, np.unravel_index(np.argmax(np.abs(gradient[name])), gradient[name].shape))]
    scale = abs(gradient[name][places[0][1]])
    assert scale > 0
    for name in rng.choice(sorted(p), entries):
        places.append((name, tuple(rng.integers(0, n) for n in p[name].shape)))
    for name, place in places:
        step = np.zeros_like(p[name])
        step[place] = 1e-5
        difference = loss({**p, name: p[name] + step}) - loss({**p, name: p[name] - step})
        np.testing.assert_allclose(
            gradient[name][place], difference / 2e-5, rtol=1e-5, atol=1e-7 * max(scale, 1e-2), err_msg=f"{name}{place}"
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_actor_objectives(backend: ModuleType, name: str) -> None:
    # a small actor, so that some predicted actions are inside the box and some are clipped
    c = Case(backend, OBJECTIVES[name], seed=2, analytic=name.startswith(("time", "sum")), spread=0.4)
    arguments = (c.batch, c.noise, np.float64(TEMPERATURE), c.thing.init_state())
    loss, gradient = backend.testing.value_and_grad(c.thing, c.actor, c.critic, *arguments)
    expected = REFERENCES[name](c)
    np.testing.assert_allclose(loss.value, expected(c.p), rtol=1e-9, atol=1e-12)
    check_gradient(expected, c.p, gradient, np.random.default_rng(2))


@pytest.mark.parametrize("faithful", [False, True])
def test_running_moments_of_policy_proposal(backend: ModuleType, faithful: bool) -> None:
    c = Case(backend, OBJECTIVES["policy_faithful" if faithful else "policy"])
    rng = np.random.default_rng(3)
    state = c.thing.init_state()
    expected = {"q_mean_ema": 0.0, "q_std_ema": float(faithful), "count": 0}
    for magnitude in (3, 1, 30, 300, 300):  # growing values reach both ends of the clip
        batch, noise = make_batch(rng, magnitude=magnitude), make_noise(rng, c.thing)
        loss, _ = backend.testing.value_and_grad(
            c.thing, c.actor, c.critic, batch, noise, np.float64(TEMPERATURE), state
        )
        q = c.q(batch.next_obs, batch.next_action).min(0)
        weight, expected = ref.policy_weights(q, TEMPERATURE, expected, rate=0.1, faithful=faithful)
        state = loss.state
        assert state.keys() == expected.keys()
        for key, number in expected.items():
            np.testing.assert_allclose(state[key], number, rtol=1e-9)
        np.testing.assert_allclose(loss.metrics["q_mean"], q.mean(), rtol=1e-9)
        np.testing.assert_allclose(loss.metrics["effective_samples"], weight.sum() ** 2 / (weight**2).sum(), rtol=1e-9)


def _critic_reference(c: Case, name: str, omega: np.ndarray) -> Callable[[Parameters], tuple[float, np.ndarray]]:
    """The loss as a function of the online critic's parameters, and the omega after the batch."""
    b, gamma = c.batch, {"mean_squared": 0.97, "gaussian_tight": 0.9}.get(name, 0.99)
    if name.startswith("mean_squared"):
        entropy = -TEMPERATURE * b.next_log_prob if name == "mean_squared_soft" else 0.0
        following = ref.critic(c.target_parameters, b.next_obs, b.next_action).min(0)
        y = ref.td_target(b.reward, b.terminated, following, gamma, entropy)
        return lambda p: (ref.mean_squared_td_loss(ref.critic(p, b.obs, b.action), y), omega)
    frozen = ref.gaussian_critic(c.q_parameters, b.obs, b.action)
    following = ref.gaussian_critic(c.target_parameters, b.next_obs, b.next_action)
    tau, clip = (0.3, 3.0) if name == "gaussian" else (0.005, 0.5)
    _, frozen_omega = ref.gaussian_td_loss(
        *frozen, *frozen, *following, b.reward, b.terminated, c.noise["target"], omega, tau=tau
    )

    def loss(p: Parameters) -> tuple[float, np.ndarray]:
        value, _ = ref.gaussian_td_loss(
            *ref.gaussian_critic(p, b.obs, b.action),
            *(*frozen, *following, b.reward, b.terminated, c.noise["target"]),
            frozen_omega,
            gamma=gamma,
            tau=0.0,  # omega is a constant here
            clip=clip,
        )
        return value, frozen_omega

    return loss


@pytest.mark.parametrize("name", CRITIC_OBJECTIVES)
def test_critic_objectives(backend: ModuleType, name: str) -> None:
    c = Case(backend, CRITIC_OBJECTIVES[name], seed=4)
    state = c.thing.init_state(c.critic)
    omega = np.zeros(len(c.q_parameters["layers.0.weight"]))
    for _ in range(2):
        loss, gradient = backend.testing.value_and_grad(
            c.thing, c.critic, c.target, c.batch, c.noise, np.float64(TEMPERATURE), state
        )
        expected = _critic_reference(c, name, omega)
        value, omega = expected(c.q_parameters)
        np.testing.assert_allclose(loss.value, value, rtol=1e-9)
        check_gradient(lambda p, f=expected: f(p)[0], c.q_parameters, gradient, np.random.default_rng(5))
        state = loss.state
        if state:
            np.testing.assert_allclose(state["omega"], omega, rtol=1e-9)
        c.batch = make_batch(np.random.default_rng(6), magnitude=2.0)


def test_the_return_is_drawn_from_the_smaller_critic_of_each_sample(backend: ModuleType) -> None:
    """Our test case must tell the per-sample minimum from a minimum over the batch."""
    c = Case(backend, CRITIC_OBJECTIVES["gaussian"], seed=4)
    mean, _ = ref.gaussian_critic(c.target_parameters, c.batch.next_obs, c.batch.next_action)
    assert len(set(np.argmin(mean, axis=0))) == 2


# Temperatures and whole learners


@pytest.mark.parametrize("name", TEMPERATURES)
def test_temperatures(backend: ModuleType, name: str) -> None:
    c = Case(backend, TEMPERATURES[name])
    state = c.thing.init_state()
    expected = {key: float(value) for key, value in state.items()}
    rate = {"noise_entropy": 7e-3, "target_entropy": 0.01}.get(name, 0.03)
    obs, noise = backend.testing.to_backend(c.batch.obs), backend.testing.to_backend(c.noise)
    state = backend.testing.to_backend(state)
    for _ in range(3):
        state, metrics = compiled(backend, c.thing.update)(state, c.actor, c.critic, obs, noise)
        metrics = backend.testing.to_numpy(metrics)
        if name == "fixed":
            assert not metrics
        elif name == "noise_entropy":
            entropy = ref.noise_entropy(DIMS.action, 0.1 * math.exp(expected["log_temperature"]))
        elif name == "target_entropy":
            entropy = -float(c.gaussian(c.p, c.noise["samples"])[1].mean())
        else:  # the mixture entropy has its own oracle, scikit-learn
            entropy = float(metrics["policy_entropy"])
        if name != "fixed":
            steered = "noise_entropy" if name == "noise_entropy" else "policy_entropy"
            np.testing.assert_allclose(metrics[steered], entropy, rtol=1e-9)
            target = DIMS.action * (-1.0 if name == "target_entropy" else -0.9)
            expected = ref.temperature_step(expected, entropy, target, rate)
        numbers = backend.testing.to_numpy(state)
        assert numbers.keys() == expected.keys()
        for key, number in expected.items():
            np.testing.assert_allclose(numbers[key], number, rtol=1e-9, err_msg=key)
        value = backend.testing.to_numpy(c.thing.value(state))
        np.testing.assert_allclose(value, math.exp(expected["log_temperature"]), rtol=1e-9)


class NumpyLearner:
    """One learner step in the order of the protocol, with the arithmetic of the reference.

    Losses, gradients and actions come from the backend's own parts, which the tests above have checked; what is tested
    here is which parameters they see, and what happens to their results.
    """

    def __init__(self, B: ModuleType, name: str, learner: Any) -> None:
        part = LEARNERS[name]
        self.B, self.name, self.learner, self.updates = B, name, learner, 0
        self.networks = {
            "actor": make_actor(B, part, 1),
            "critic": make_critic(B, part, 2),
            "target_critic": make_critic(B, part, 2),
        }
        if learner.ema_actor:
            self.networks["ema_actor"] = make_actor(B, part, 1)
        self.moments: dict[str, Any] = {}
        self.counts = {"actor": 0, "critic": 0}
        self.states = {
            "temperature": learner.temperature.init_state(),
            "actor_objective": learner.actor_objective.init_state(),
            "critic_objective": learner.critic_objective.init_state(self.networks["critic"]),
        }

    def optimise(self, network: str, gradient: Parameters) -> None:
        optimiser = getattr(self.learner, f"{network}_optimiser")
        rate = optimiser.learning_rate
        if isinstance(rate, LinearSchedule):
            rate = float(np.interp(self.counts[network], [rate.begin, rate.end], [rate.initial, rate.final]))
        if optimiser.max_grad_norm is not None:
            gradient, _ = ref.clipped(gradient, optimiser.max_grad_norm)
        arrays = self.B.to_arrays(self.networks[network])
        for name, g in gradient.items():
            m, v = self.moments.get((network, name), (0.0, 0.0))
            arrays[name], m, v, _ = ref.adam(arrays[name], g, m, v, self.counts[network], rate)
            self.moments[network, name] = m, v
        self.counts[network] += 1
        self.networks[network] = self.B.from_arrays(self.networks[network], arrays)

    def follow(self, slow: str, fast: str) -> None:
        arrays = (self.B.to_arrays(self.networks[n]) for n in (slow, fast))
        self.networks[slow] = self.B.from_arrays(self.networks[slow], ref.polyak(*arrays, self.learner.tau))

    def step(self, batch: Any, noise: Any) -> None:
        B, learner, nets = self.B, self.learner, self.networks
        to_backend, gradient_of = B.testing.to_backend, B.testing.value_and_grad
        temperature = np.exp(np.asarray(self.states["temperature"]["log_temperature"], np.float64))
        rollout = compiled(B, learner.sampler.rollout)(
            nets["actor"],
            *(to_backend(batch.next_obs), to_backend(noise["next_action"])),
            critic=nets["critic"],
            temperature=to_backend(temperature),
        )
        batch = batch._replace(
            reward=learner.reward_scale * batch.reward,
            next_action=B.testing.to_numpy(rollout.action),
            next_log_prob=None if rollout.log_prob is None else B.testing.to_numpy(rollout.log_prob),
        )
        gradients = {}
        loss, gradients["critic"] = gradient_of(
            *(learner.critic_objective, nets["critic"], nets["target_critic"]),
            *(batch, noise["critic"], temperature, self.states["critic_objective"]),
        )
        self.states["critic_objective"] = loss.state
        if due := self.updates % learner.actor_delay == 0:
            loss, gradients["actor"] = gradient_of(
                *(learner.actor_objective, nets["actor"], nets["critic"]),
                *(batch, noise["actor"], temperature, self.states["actor_objective"]),
            )
            self.states["actor_objective"] = loss.state
        for _ in range(learner.critic_steps):
            self.optimise("critic", gradients["critic"])
        if due:
            self.optimise("actor", gradients["actor"])
        interval = learner.temperature.interval
        if interval and (self.updates + 1) % interval == 0:
            state, _ = compiled(B, learner.temperature.update)(
                *(to_backend(self.states["temperature"]), self.networks["actor"], self.networks["critic"]),
                *(to_backend(batch.obs), to_backend(noise["temperature"])),
            )
            self.states["temperature"] = B.testing.to_numpy(state)
        if due:
            self.follow("target_critic", "critic")
            if learner.ema_actor:
                self.follow("ema_actor", "actor")
        self.updates += 1

    def arrays(self) -> dict[str, np.ndarray]:
        result = {f"{n}.{k}": v for n, net in self.networks.items() for k, v in self.B.to_arrays(net).items()}
        for (network, name), (m, v) in self.moments.items():
            result |= {f"{network}_optimiser.m.{name}": m, f"{network}_optimiser.v.{name}": v}
        result |= {f"{network}_optimiser.count": np.asarray(count) for network, count in self.counts.items()}
        result |= {f"{part}.{k}": np.asarray(v) for part, state in self.states.items() for k, v in state.items()}
        return result | {"updates": np.asarray(self.updates)}


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_do_the_steps_in_order(backend: ModuleType, name: str) -> None:
    rng = np.random.default_rng(11)
    learner, state = make_learner(backend, name)
    expected = NumpyLearner(backend, name, learner)
    for i in range(11):
        batch, noise = make_batch(rng, filled=False), make_noise(rng, learner)
        expected.step(batch, noise)
        state, _ = learner.step(state, batch, noise)
        actual, wanted = backend.to_arrays(state), expected.arrays()
        assert actual.keys() == wanted.keys()
        for key, array in wanted.items():
            np.testing.assert_allclose(
                actual[key], array, rtol=1e-7, atol=1e-10 * np.abs(array).max(), err_msg=f"{key} after step {i}"
            )
