"""The traps others fell into (ALGORITHMS 6), one section each.

Those of the host side are tested where the host side is: steps across an auto-reset and truncation stored as
termination (2), evaluation on scaled reward (4) and evaluation drawing from the training stream (5) in
`test_environments.py`, `test_evaluation.py` and `test_training.py`. Here is what the backends have to do with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import INSTALLED, load_backend

from diffac.noise import draw
from diffac.parts.critics import next_rollout
from diffac.parts.inputs import entry
from diffac.parts.schedules import LinearSchedule, flow_schedule, vp_schedule
from diffac.protocols import Batch, Loss, Policy, Rollout
from diffac.testing.parts import (
    ACTORS,
    CRITICS,
    DIMS,
    LEARNERS,
    chain,
    make_actor,
    make_batch,
    make_critic,
    make_engine,
    make_noise,
    randomise,
    schedule,
)

TEMPERATURE = np.float64(0.3)


def arrays_of(backend: ModuleType, tree: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in backend.to_arrays(tree).items()}


def number(backend: ModuleType, value: Any) -> float:
    return float(backend.testing.to_numpy(value))


def networks(backend: ModuleType, actor: str = "denoiser", critic: str = "twin", seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    made = ACTORS[actor](backend, DIMS, 1), CRITICS[critic](backend, DIMS, 2)
    return randomise(backend, made[0], rng), randomise(backend, made[1], rng)


# 1. the critic with the smaller mean is chosen per sample


def gaussian_td(backend: ModuleType) -> tuple[Any, ...]:
    """Everything in one call of GaussianTD, in NumPy; of many draws one in which the choice of the critic matters."""
    objective = backend.GaussianTD(clip=3.0)
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    for seed in range(50):
        rng = np.random.default_rng(seed)
        batch = make_batch(rng, magnitude=0.3)._replace(discount=np.full(DIMS.batch, 0.9), weight=None)
        critic, target = (randomise(backend, CRITICS["gaussian"](backend, DIMS, 1), rng, 1.5) for _ in range(2))
        noise = make_noise(rng, objective)
        mean, std = to_numpy(critic.distribution(to_backend(batch.obs), to_backend(batch.action)))
        next_mean, next_std = to_numpy(
            target.distribution(to_backend(batch.next_obs), to_backend(next_rollout(objective, batch).action))
        )
        numbers = mean, std, next_mean, next_std
        right = gaussian_loss(batch, *numbers, right_choice(*numbers[2:], noise))
        wrong = [gaussian_loss(batch, *numbers, z) for z in wrong_choices(*numbers[2:], noise)]
        if min(abs(right - loss) for loss in wrong) > 1e-3:
            return objective, critic, target, batch, noise, *numbers
    raise AssertionError("no informative draw")


def right_choice(next_mean: Any, next_std: Any, noise: Any) -> Any:
    """z of the critic with the smaller mean, per sample."""
    rows, chosen = np.arange(DIMS.batch), next_mean.argmin(0)
    return next_mean[chosen, rows] + next_std[chosen, rows] * np.clip(noise["target"], -3, 3)


def wrong_choices(next_mean: Any, next_std: Any, noise: Any) -> tuple[Any, Any]:
    """The two known mistakes: one critic for the whole batch, and the minimum of the samples."""
    z = next_mean + next_std * np.clip(noise["target"], -3, 3)
    return z[next_mean.mean(1).argmin()], z.min(0)


def gaussian_loss(batch: Batch, mean: Any, std: Any, next_mean: Any, next_std: Any, z: Any) -> float:
    """ALGORITHMS 1 at the first batch, with the target's z given."""
    y, y_z = batch.reward + 0.9 * next_mean.min(0), batch.reward + 0.9 * z
    omega = std.mean(1, keepdims=True)
    bounded = mean + np.clip(y_z - mean, -3 * omega, 3 * omega)
    inner = mean * (y - mean) / (std**2 + 0.1) + std * ((mean - bounded) ** 2 - std**2) / (std**3 + 0.1)
    return float((-(omega[:, 0] ** 2 + 0.1) * inner.mean(1)).sum())


def test_gaussian_td_chooses_the_critic_of_each_sample(backend: ModuleType) -> None:
    objective, critic, target, batch, noise, *numbers = gaussian_td(backend)
    loss, _ = backend.testing.value_and_grad(
        objective, critic, target, batch, noise, TEMPERATURE, objective.init_state(critic)
    )
    expected = gaussian_loss(batch, *numbers, right_choice(*numbers[2:], noise))
    assert float(loss.value) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(loss.state["omega"], numbers[1].mean(1), rtol=1e-9)


def test_gaussian_td_of_a_permuted_batch(backend: ModuleType) -> None:
    """Each row by itself: the loss of the batch is the mean of the losses of its rows, in any order."""
    objective, critic, target, batch, noise, _, std, _, _ = gaussian_td(backend)
    state = {"omega": std.mean(1)}  # fixed from here on, so that rows are independent

    def value(rows: Any) -> float:
        policy = next_rollout(objective, batch)
        part = entry(batch, rows)._replace(next_rollout=Rollout(policy.action[rows]))
        fixed = dataclasses.replace(objective, tau=1e-300)
        loss, _ = backend.testing.value_and_grad(
            fixed, critic, target, part, {"target": noise["target"][rows]}, TEMPERATURE, state
        )
        return float(loss.value)

    whole = value(np.arange(DIMS.batch))
    assert value(np.array([4, 2, 0, 3, 1])) == pytest.approx(whole, rel=1e-9)
    assert np.mean([value(np.array([row])) for row in range(DIMS.batch)]) == pytest.approx(whole, rel=1e-9)


# 2. (host) and: what a time limit ended still has a future, see test_learner.test_only_termination_ends_the_bootstrap


# 3. exploration noise that leaves the action box


def hot(backend: ModuleType, name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """A learner whose temperature is so high that unclipped exploration noise would leave the box by far."""
    engine, state = make_engine(backend, name)
    arrays = arrays_of(backend, state)
    arrays["temperature.log_temperature"] = np.array(np.log(200.0))
    return engine, backend.from_arrays(state, arrays), arrays


@pytest.mark.parametrize("name", ["dacer2", "dacer", "sdac", "dpmd"])
def test_actions_of_the_hottest_policy_stay_in_the_box(backend: ModuleType, name: str) -> None:
    rng = np.random.default_rng(0)
    engine, state, _ = hot(backend, name)
    noise = draw(rng, engine.act_noise_spec((16, DIMS.action)), np.float32)
    action = engine.act(state, rng.standard_normal((16, DIMS.obs)).astype(np.float32), noise)
    assert np.abs(action).max() == 1
    assert (np.abs(action) == 1).mean() > 0.8, "the noise was not that large: the test would be empty"


@pytest.mark.parametrize("name", ["dacer2", "sdac"])
def test_targets_are_computed_at_clipped_actions(backend: ModuleType, name: str) -> None:
    rng = np.random.default_rng(0)
    engine, state, arrays = hot(backend, name)
    assert engine.learner.sampler.clip
    batch = make_batch(rng, filled=False)._replace(discount=np.full(DIMS.batch, 0.99))
    noise = make_noise(rng, engine)
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    actor, critic = make_actor(backend, LEARNERS[name]), make_critic(backend, LEARNERS[name])

    def target(sampler: Any) -> float:
        action = sampler(
            Policy(actor, critic, to_backend(np.float64(200.0))),
            to_backend(batch.next_obs),
            to_backend(noise["next_action"]),
        )
        future = to_numpy(critic(to_backend(batch.next_obs), action)).min(0)
        return float((engine.learner.reward_scale * batch.reward + 0.99 * future).mean())

    actor, critic = (
        backend.from_arrays(net, {n.removeprefix(part): a for n, a in arrays.items() if n.startswith(part)})
        for net, part in ((actor, "actor."), (critic, "critic."))
    )
    clipped, unclipped = target(engine.learner.sampler), target(dataclasses.replace(engine.learner.sampler, clip=False))
    _, metrics = engine.step(state, batch, noise)
    assert number(backend, metrics["critic_target_mean"]) == pytest.approx(clipped, rel=1e-9)
    assert abs(clipped - unclipped) > 1e-2


# 4. reward scaled twice


@pytest.mark.parametrize("name", ["dacer2", "sdac"])
def test_reward_of_a_finished_episode_is_scaled_once(backend: ModuleType, name: str) -> None:
    """In `step` and in `update`: the target of a terminated transition is reward_scale times its reward."""
    rng = np.random.default_rng(0)
    engine, state = make_engine(backend, name)
    assert engine.learner.reward_scale == 0.2
    batches = make_batch(rng, leading=(2,), filled=False)
    batches = batches._replace(discount=np.zeros((2, DIMS.batch)))
    first = entry(batches, 0)
    state, metrics = engine.step(state, first, make_noise(rng, engine))
    assert number(backend, metrics["critic_target_mean"]) == pytest.approx(0.2 * first.reward.mean(), rel=1e-9)
    state, metrics = engine.update(state, batches, 3)
    assert number(backend, metrics["critic_target_mean"]) == pytest.approx(0.2 * batches.reward.mean(), rel=1e-9)


# 5. acting and evaluating must not change training


def global_streams() -> list[np.ndarray]:
    """States of the global generators of NumPy and, where it is installed, of torch."""
    streams = [np.random.get_state()[1].copy()]  # noqa: NPY002
    if INSTALLED["torch"]:
        import torch

        streams.append(torch.get_rng_state().numpy().copy())
    return streams


def test_acting_changes_no_random_stream(backend: ModuleType) -> None:
    """The result of training is the same however often somebody acts in between; global generators stay untouched."""
    results = []
    for acts in (0, 3):
        engine, state = make_engine(backend, "dacer2")
        rng, other = np.random.default_rng(0), np.random.default_rng(1)
        streams = global_streams()
        for key in range(2):
            for _ in range(acts):
                noise = draw(other, engine.act_noise_spec((3, DIMS.action)), np.float32)
                engine.act(state, other.standard_normal((3, DIMS.obs)).astype(np.float32), noise)
            state, _ = engine.update(state, make_batch(rng, leading=(3,), filled=False), key)
        np.testing.assert_equal(global_streams(), streams)
        results.append(arrays_of(backend, state))
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


# 6. two optimiser steps with one gradient; weights not detached; Q-gradient flowing into the critic


def test_one_optimiser_step_per_gradient(backend: ModuleType) -> None:
    for name in ("dacer2", "sdac", "sac"):
        engine, state = make_engine(backend, name)
        assert engine.learner.critic_steps == 1
        rng = np.random.default_rng(0)
        state, _ = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
        arrays = arrays_of(backend, state)
        assert int(arrays["critic_optimiser.count"]) == int(arrays["actor_optimiser.count"]) == 1


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("kind", ["reverse", "policy"])
def test_regression_data_and_weights_are_detached(backend: ModuleType, kind: str, truncated: bool) -> None:
    """The gradient is that of a regression on data made by another object with the same parameters."""
    schedules = schedule()
    proposal = (
        backend.ReverseProposal(chain(backend), num_particles=4, truncated=truncated)
        if kind == "reverse"
        else backend.PolicyProposal(rate=0.1, faithful_normalisation=truncated)
    )
    objective = backend.ReweightedScoreMatching(schedules, proposal)
    actor, critic = networks(backend)
    frozen, _ = networks(backend)
    assert frozen is not actor

    def regression(actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        data = proposal(frozen, critic, batch, noise, temperature, state, schedules)
        error = ((actor(data.obs, data.noisy, data.t) - data.target) ** 2).sum(-1)
        return Loss((data.weight * error + data.spread).mean(), {}, data.state)

    rng = np.random.default_rng(3)
    rest = (critic, make_batch(rng), make_noise(rng, objective), TEMPERATURE, objective.init_state())
    loss, gradient = backend.testing.value_and_grad(objective, actor, *rest)
    expected_loss, expected = backend.testing.value_and_grad(regression, actor, *rest)
    assert float(loss.value) == pytest.approx(float(expected_loss.value), rel=1e-9)
    for name in expected:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("source", ["chain", "forward"])
def test_states_of_the_q_gradient_term_are_detached(backend: ModuleType, source: str) -> None:
    sampler = chain(backend)
    objective = backend.TimeWeightedQGradient(sampler, schedule(), source=source)
    actor, critic = networks(backend)
    frozen, _ = networks(backend)

    def constant_rollout(actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        rollout = sampler.rollout(Policy(frozen), batch.obs, noise["rollout"])
        return objective(actor, critic, batch, noise, temperature, state, rollout=rollout)

    rng = np.random.default_rng(3)
    rest = (critic, make_batch(rng), make_noise(rng, objective), TEMPERATURE, {})
    _, gradient = backend.testing.value_and_grad(objective, actor, *rest)
    _, expected = backend.testing.value_and_grad(constant_rollout, actor, *rest)
    for name in expected:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_value_gradient_flows_through_the_critic_to_the_actor(backend: ModuleType) -> None:
    """The other half of "the critic is a constant": its derivative in the action is not zero."""
    objective = backend.ValueThroughSampler(chain(backend))
    actor, critic = networks(backend)
    rng = np.random.default_rng(3)
    _, gradient = backend.testing.value_and_grad(
        objective, actor, critic, make_batch(rng), make_noise(rng, objective), TEMPERATURE, {}
    )
    assert all(np.abs(value).max() > 0 for value in gradient.values())


# 7. special cases that return another type; fields that are read and never used


@pytest.mark.parametrize("truncated", [True, False])
def test_one_particle_returns_what_many_return(backend: ModuleType, truncated: bool) -> None:
    actor, critic = networks(backend)
    results = []
    for particles in (1, 3):
        proposal = backend.ReverseProposal(chain(backend), num_particles=particles, truncated=truncated)
        objective = backend.ReweightedScoreMatching(schedule(), proposal)
        rng = np.random.default_rng(3)
        loss, gradient = backend.testing.value_and_grad(
            objective, actor, critic, make_batch(rng), make_noise(rng, objective), TEMPERATURE, {}
        )
        results.append((loss, gradient))
    (one, one_gradient), (many, many_gradient) = results
    assert type(one) is type(many)
    assert np.shape(one.value) == np.shape(many.value) == ()
    assert {name: np.shape(value) for name, value in one.metrics.items()} == dict.fromkeys(many.metrics, ())
    assert float(one.metrics["effective_particles"]) == pytest.approx(1)
    assert 1 <= float(many.metrics["effective_particles"]) <= 3
    assert {n: g.shape for n, g in one_gradient.items()} == {n: g.shape for n, g in many_gradient.items()}


def test_one_critic_and_one_state(backend: ModuleType) -> None:
    """An ensemble of one and a batch of one go through everything that takes a minimum or a mean."""
    dims = DIMS._replace(batch=1)
    rng = np.random.default_rng(0)
    sampler = backend.AdditiveNoise(backend.BestOf(chain(backend), num_candidates=1))
    learner = backend.Learner(
        sampler=sampler,
        actor_objective=backend.ReweightedScoreMatching(schedule(), backend.ReverseProposal(sampler, num_particles=1)),
        critic_objective=backend.GaussianTD(),
        temperature=backend.MixtureEntropyTemperature(sampler, interval=1, num_samples=1, num_components=1),
        actor_optimiser=backend.Adam(),
        critic_optimiser=backend.Adam(),
        actor_delay=1,
    )
    engine = backend.Engine(learner)
    critic = backend.GaussianCritic(DIMS.obs, DIMS.action, key=1, size=1, hidden_sizes=DIMS.hidden)
    state = engine.init(ACTORS["denoiser"](backend, DIMS, 1), critic)
    state, metrics = engine.step(state, make_batch(rng, dims, filled=False), make_noise(rng, engine, dims))
    state, _ = engine.update(state, make_batch(rng, dims, leading=(1,), filled=False), 0)
    assert all(np.isfinite(number(backend, value)) for value in metrics.values())
    assert all(np.isfinite(value).all() for value in arrays_of(backend, state).values())


def outcome_of_sampler(backend: ModuleType, sampler: Any, actor: str = "denoiser") -> Any:
    dims = DIMS._replace(batch=64)  # many, because a short random chain is clipped in most entries
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    rng = np.random.default_rng(0)
    network, critic = networks(backend, actor)
    obs, noise = make_batch(rng, dims).obs, make_noise(rng, sampler, dims)
    rollout = sampler.rollout(Policy(network, critic, to_backend(np.float64(3.0))), to_backend(obs), to_backend(noise))
    known = () if rollout.log_prob is None else (to_numpy(rollout.log_prob)[:, None],)
    return np.concatenate((to_numpy(rollout.action), *known), axis=-1)


def outcome_of_objective(backend: ModuleType, objective: Any, actor: str = "denoiser") -> Any:
    rng = np.random.default_rng(0)
    network, critic = networks(backend, actor)
    loss, _ = backend.testing.value_and_grad(
        objective, network, critic, make_batch(rng), make_noise(rng, objective), TEMPERATURE, objective.init_state()
    )
    return [float(loss.value), *[np.asarray(value).sum() for _, value in sorted(loss.state.items())]]


def outcome_of_critic_objective(backend: ModuleType, objective: Any, critic_name: str = "gaussian") -> Any:
    rng = np.random.default_rng(0)
    critic, target = (
        randomise(backend, CRITICS[critic_name](backend, DIMS, 1), np.random.default_rng(seed), 3.0) for seed in (1, 5)
    )
    noise = {name: 4 * value for name, value in make_noise(rng, objective).items()}
    state = {name: value + 0.05 for name, value in objective.init_state(critic).items()}
    batch = make_batch(rng, magnitude=0.05)
    loss, _ = backend.testing.value_and_grad(objective, critic, target, batch, noise, TEMPERATURE, state)
    return float(loss.value)


def outcome_of_temperature(backend: ModuleType, temperature: Any, actor: str = "denoiser") -> Any:
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    rng = np.random.default_rng(0)
    network, critic = networks(backend, actor)
    state = to_backend(dict(temperature.init_state()))
    batch = to_backend(make_batch(rng))
    metrics = {}
    for _ in range(2):
        noise = to_backend(make_noise(rng, temperature))
        state, metrics = temperature.update(
            state,
            Policy(network, critic, temperature.value(state)),
            batch.obs,
            noise,
            next_rollout(temperature, batch).log_prob,
        )
    return [
        temperature.interval,
        *[float(to_numpy(value)) for _, value in sorted(state.items())],
        *[float(to_numpy(value)) for value in metrics.values()],
    ]


def outcome_of_learner(backend: ModuleType, learner: Any) -> Any:
    rng = np.random.default_rng(0)
    actor, critic = networks(backend)
    engine = backend.Engine(learner)
    arrays = arrays_of(backend, engine.init(actor, critic))
    for name, array in arrays.items():
        if name.startswith("target_critic.layers.2."):
            array *= -1  # it likes what the other one does not
    state = backend.from_arrays(engine.init(*networks(backend)), arrays)
    for _ in range(2):
        batch = make_batch(rng, filled=False)
        state, _ = engine.step(state, batch, make_noise(np.random.default_rng(1), engine))
    obs = rng.standard_normal((16, DIMS.obs)).astype(np.float32)
    noise = draw(np.random.default_rng(2), engine.act_noise_spec((16, DIMS.action), deterministic=True))
    action = engine.act(state, obs, noise, deterministic=True)
    arrays = arrays_of(backend, state)
    return sorted(arrays), [action.sum(), *(value.sum() for _, value in sorted(arrays.items()))]


def small_learner(backend: ModuleType, **change: Any) -> Any:
    sampler = backend.AdditiveNoise(backend.BestOf(chain(backend), num_candidates=2))
    optimiser = change.pop("optimiser", {})
    parts = {
        "sampler": sampler,
        "actor_objective": backend.ReweightedScoreMatching(schedule(), backend.PolicyProposal(rate=0.1)),
        "critic_objective": backend.MeanSquaredTD(),
        "temperature": backend.NoiseEntropyTemperature(DIMS.action, sampler, interval=1),
        "actor_optimiser": backend.Adam(**{"learning_rate": 1e-3, **optimiser}),
        "critic_optimiser": backend.Adam(1e-3),
        "actor_delay": 2,
    }
    return backend.Learner(**{**parts, **change})


def test_weights_without_a_centre_are_not_clipped(backend: ModuleType) -> None:
    """One action of 64 is better than the others, by eight standard deviations of the batch: FPMD's weight says so."""
    rows = 64
    action = np.zeros((rows, DIMS.action))
    action[0, 0] = 1.0
    zeros, obs = np.zeros(rows), np.zeros((rows, DIMS.obs))
    batch = Batch(obs, action, zeros, obs, zeros, next_rollout=Rollout(action))
    noise = {"t": np.zeros(rows, np.int32), "eps": np.ones_like(action)}
    proposal = backend.PolicyProposal(centred=False, tempered=False, value_scale=0.5)
    given = backend.testing.to_backend((batch, noise, np.float64(7.0), dict(proposal.init_state(4))))
    found = proposal(None, lambda obs, action: action[..., 0][None], *given, schedule())
    weight = backend.testing.to_numpy(found.weight)
    np.testing.assert_allclose(weight[0], 1)
    np.testing.assert_allclose(weight[1:], np.exp(-0.5 / np.std(action[:, 0])), rtol=1e-6)


def variants(B: ModuleType) -> dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]]:
    """Class name -> (outcome, maker, base arguments, other value of every argument)."""
    s, long = schedule(), vp_schedule(6)
    ddpm, start = B.DDPMSampler(s), B.DDPMSampler(s, start_scale=0.5)
    noisy, loud = B.AdditiveNoise(ddpm), B.AdditiveNoise(ddpm, noise_scale=0.3)
    d = DIMS.action
    temperature = {"initial": 2.0, "target_entropy_per_dim": -0.2, "interval": 7, "learning_rate": 0.02}
    return {
        "DDPMSampler": (
            outcome_of_sampler,
            B.DDPMSampler,
            {"schedule": s},
            {"schedule": long, "start_scale": 0.5, "clip": "state", "variance": "forward"},
        ),
        "DDIMSampler": (
            outcome_of_sampler,
            B.DDIMSampler,
            {"schedule": s},
            {"schedule": long, "start_scale": 0.5, "num_steps": 2},
        ),
        "HeunSampler": (
            outcome_of_sampler,
            B.HeunSampler,
            {"schedule": schedule(name="flow_with_signal")},
            {"schedule": flow_schedule(6, 0.9), "start_scale": 0.5, "num_steps": 2},
        ),
        "MeanFlowSampler": (
            lambda backend, sampler: outcome_of_sampler(backend, sampler, "mean_velocity"),
            B.MeanFlowSampler,
            {},
            {"num_steps": 2, "start_scale": 0.5},
        ),
        "LangevinSampler": (
            lambda backend, sampler: outcome_of_sampler(backend, sampler, "langevin"),
            B.LangevinSampler,
            {"num_steps": 3},
            {"num_steps": 4, "prior_std": 1.5},
        ),
        "BestOf": (
            outcome_of_sampler,
            B.BestOf,
            {"sampler": ddpm},
            {"sampler": start, "num_candidates": 3, "ensemble": "first"},
        ),
        "AdditiveNoise": (
            outcome_of_sampler,
            B.AdditiveNoise,
            {"sampler": ddpm, "noise_scale": 0.5},
            {"sampler": start, "noise_scale": 0.1, "clip": False, "noise_clip": 0.01},
        ),
        "LogProbability": (
            outcome_of_sampler,
            B.LogProbability,
            {"sampler": ddpm, "schedule": s},
            {"sampler": start, "schedule": schedule(name="linear"), "num_noises": 3},
        ),
        "ValueThroughSampler": (
            outcome_of_objective,
            B.ValueThroughSampler,
            {"sampler": ddpm},
            {"sampler": start, "relative": True, "ensemble": "mean"},
        ),
        "TimeWeightedQGradient": (
            outcome_of_objective,
            B.TimeWeightedQGradient,
            {"sampler": ddpm, "schedule": s},
            {
                "sampler": start,
                "schedule": schedule(name="linear"),
                "slope": 0.1,
                "intercept": -1.0,
                "space": "eps",
                "source": "replay",
                "time_offset": 0,
                "contractive_step": 0.2,
                "ensemble": "first",
                "normalised": False,
                "target": "eps",
            },
        ),
        "ReweightedScoreMatching": (
            outcome_of_objective,
            B.ReweightedScoreMatching,
            {"schedule": s, "proposal": B.ReverseProposal(ddpm, num_particles=3)},
            {"schedule": schedule(name="linear"), "proposal": B.PolicyProposal(), "space": "output"},
        ),
        "MeanFlowMatching": (
            lambda backend, objective: outcome_of_objective(backend, objective, "mean_velocity"),
            B.MeanFlowMatching,
            {"proposal": B.PolicyProposal()},
            {"proposal": B.PolicyProposal(centred=False), "equal_fraction": 1.0},
        ),
        "ReverseProposal": (
            lambda backend, proposal: outcome_of_objective(backend, backend.ReweightedScoreMatching(s, proposal)),
            lambda **given: B.ReverseProposal(**given | ({"gradient_weight": 0.0} if given["truncated"] else {})),
            {"sampler": ddpm, "num_particles": 4, "truncated": False, "gradient_weight": "minimum_variance"},
            {
                "sampler": start,
                "num_particles": 5,
                "value_scale": 1.0,
                "truncated": True,
                "ensemble": "mean",
                "gradient_weight": 0.5,
                "tempered": False,
                "rate": 0.5,
                "outside_std": 0.1,
                "source": "replay",
            },
        ),
        "PolicyProposal": (
            lambda backend, proposal: outcome_of_objective(backend, backend.ReweightedScoreMatching(s, proposal)),
            B.PolicyProposal,
            {},
            {
                "rate": 0.5,
                "faithful_normalisation": True,
                "ensemble": "mean",
                "centred": False,
                "value_scale": 2.0,
                "tempered": False,
            },
        ),
        "QWeightedProposal": (
            lambda backend, proposal: outcome_of_objective(backend, backend.ReweightedScoreMatching(s, proposal)),
            B.QWeightedProposal,
            {"sampler": ddpm, "num_candidates": 3, "num_uniform": 2},
            {
                "sampler": loud,
                "num_candidates": 4,
                "num_uniform": 1,
                "uniform_weight": 0.5,
                "ensemble": "mean",
            },
        ),
        "ImprovedReplayProposal": (
            lambda backend, proposal: [
                proposal.init_state(1)["action"].shape[1],  # with another one than the batch it refuses the call
                *(
                    outcome_of_objective(backend, backend.ReweightedScoreMatching(s, proposal))
                    if proposal.action_dim == d
                    else [0.0] * 3
                ),
            ],
            B.ImprovedReplayProposal,
            {"capacity": 40, "action_dim": d},
            {
                "capacity": 1,
                "action_dim": 5,
                "num_steps": 3,
                "learning_rate": 0.1,
                "eps": 0.5,
                "max_grad_norm": 1e-6,
                "ensemble": "mean",
            },
        ),
        "EntropyRegularisedValue": (
            lambda backend, objective: outcome_of_objective(backend, objective, "gaussian"),
            B.EntropyRegularisedValue,
            {"sampler": B.TanhGaussianSampler()},
            {"sampler": B.BestOf(B.TanhGaussianSampler(), num_candidates=6), "ensemble": "mean"},
        ),
        "MeanSquaredTD": (
            outcome_of_critic_objective,
            B.MeanSquaredTD,
            {},
            {"soft": True, "factor": 0.5, "ensemble": "mean"},
        ),
        "CategoricalTD": (
            lambda backend, objective: outcome_of_critic_objective(backend, objective, "categorical"),
            B.CategoricalTD,
            {},
            {"projection": "c51", "soft": True, "ensemble": "mean", "sigma": 1.5},
        ),
        "GaussianTD": (
            outcome_of_critic_objective,
            B.GaussianTD,
            {},
            {"tau": 0.5, "clip": 0.3, "soft": True, "huber_delta": 0.1},
        ),
        "FixedTemperature": (outcome_of_temperature, B.FixedTemperature, {}, {"temperature": 0.5}),
        "NoiseEntropyTemperature": (
            outcome_of_temperature,
            B.NoiseEntropyTemperature,
            {"action_dim": d, "sampler": noisy, "num_states": 2, "num_samples": 10},
            {"action_dim": 5, "sampler": loud, "num_states": 3, "num_samples": 20, **temperature},
        ),
        "MixtureEntropyTemperature": (
            outcome_of_temperature,
            B.MixtureEntropyTemperature,
            {"sampler": noisy, "num_samples": 30},
            {
                "sampler": loud,
                "num_states": 2,
                "num_samples": 20,
                "num_components": 2,
                "num_iterations": 1,
                **temperature,
            },
        ),
        "TargetEntropyTemperature": (
            lambda backend, temperature: outcome_of_temperature(backend, temperature, "gaussian"),
            B.TargetEntropyTemperature,
            {"action_dim": d},
            {"action_dim": 5, **temperature},
        ),
        "Adam": (
            lambda backend, optimiser: outcome_of_learner(backend, small_learner(backend, actor_optimiser=optimiser)),
            B.Adam,
            {},
            {
                "learning_rate": LinearSchedule(1e-3, 1e-4, 0, 2),
                "max_grad_norm": 1e-3,
                "b1": 0.5,
                "b2": 0.9,
                "eps": 1e-2,
            },
        ),
        "Learner": (
            outcome_of_learner,
            lambda **change: small_learner(B, **change),
            {},
            {
                "sampler": loud,
                "actor_objective": B.ValueThroughSampler(ddpm),
                "critic_objective": B.MeanSquaredTD(factor=0.5),
                "temperature": B.NoiseEntropyTemperature(d, noisy, interval=1, initial=2.0),
                "actor_optimiser": B.Adam(1e-2),
                "critic_optimiser": B.Adam(1e-2),
                "tau": 0.5,
                "actor_delay": 1,
                "reward_scale": 0.2,
                "acting_actor": "ema",
                "target_sampler": ddpm,
                "target_actor": "ema",
                "target_ranking": "target",
                "evaluation_sampler": ddpm,
                "evaluation_ranking": "target",
                "first_actor_update": 1,
                "critic_steps": 2,
                "critic_steps_before_actor": 1,
                "obs_normaliser": B.Standardiser(DIMS.obs),
            },
        ),
    }


VARIED = (  # noqa: SIM905
    "DDPMSampler DDIMSampler HeunSampler MeanFlowSampler LangevinSampler BestOf AdditiveNoise LogProbability "
    "ValueThroughSampler TimeWeightedQGradient ReweightedScoreMatching MeanFlowMatching ReverseProposal PolicyProposal "
    "QWeightedProposal ImprovedReplayProposal EntropyRegularisedValue MeanSquaredTD GaussianTD CategoricalTD "
    "FixedTemperature NoiseEntropyTemperature MixtureEntropyTemperature TargetEntropyTemperature Adam Learner"
).split()


IN_BOTH = [name for name in VARIED if name not in ("Adam", "Learner")]
"""In Equinox each learner costs a compilation of seconds; test_learner has a test for each of its arguments there."""


def eager(backend: ModuleType, name: str) -> Any:
    """Without compilation, which would take most of the time; fits of mixtures are loops that need it."""
    if backend.name == "torch" or name.endswith("Temperature"):
        return contextlib.nullcontext()
    import jax

    return jax.disable_jit()


@pytest.mark.parametrize(
    ("backend_name", "name"), [("torch", name) for name in VARIED] + [("equinox", name) for name in IN_BOTH]
)
def test_every_field_changes_something(backend_name: str, name: str) -> None:
    """No constructor argument is accepted and then ignored."""
    backend = load_backend(backend_name)
    outcome, make, base, others = variants(backend)[name]
    fields = {field.name for field in dataclasses.fields(getattr(backend, name)) if field.init}
    assert set(base) | set(others) == fields, "a field without a test, or a test without a field"
    assert set(others) == fields
    with eager(backend, name):
        plain = outcome(backend, make(**base))
    for field, value in others.items():
        with eager(backend, name):
            changed = outcome(backend, make(**{**base, field: value}))
        equal = (
            np.shape(changed) == np.shape(plain) and np.allclose(changed, plain, rtol=1e-12, atol=0)
            if not isinstance(plain, tuple)
            else changed[0] == plain[0] and np.allclose(changed[1], plain[1], rtol=1e-12, atol=0)
        )
        assert not equal, field


# 8. an entropy that counts only the injected noise


def test_policy_entropy_shows_a_collapse_that_the_noise_entropy_hides(backend: ModuleType) -> None:
    """Two policies with the same exploration noise, one of them a point: only the policy's entropy tells them apart.

    Every rule that looks at a noisy policy reports both, whichever of them it steers.
    """
    to_backend, to_numpy = backend.testing.to_backend, backend.testing.to_numpy
    rng = np.random.default_rng(0)
    sampler = backend.AdditiveNoise(chain(backend), noise_scale=0.1)
    s = schedule()
    obs = to_backend(make_batch(rng).obs)

    def collapsed(obs: Any, noisy: Any, t: Any) -> Any:
        return backend.noise_between(s, 0 * noisy, noisy, t)  # the exact denoiser of the point 0

    def spread(obs: Any, noisy: Any, t: Any) -> Any:
        return 0 * noisy

    critic = CRITICS["twin"](backend, DIMS, 2)
    for temperature in (
        backend.MixtureEntropyTemperature(sampler, initial=0.5),
        backend.NoiseEntropyTemperature(DIMS.action, sampler, initial=0.5),
    ):
        policy, injected = [], []
        for actor in (collapsed, spread):
            noise = to_backend(draw(np.random.default_rng(1), temperature.noise_spec(DIMS.shape), np.float64))
            state = to_backend(dict(temperature.init_state()))
            _, metrics = temperature.update(state, Policy(actor, critic, temperature.value(state)), obs, noise)
            policy.append(float(to_numpy(metrics["policy_entropy"])))
            injected.append(float(to_numpy(metrics["noise_entropy"])))
        assert injected[0] == injected[1]
        assert policy[1] > policy[0] + 1
        # of a collapsed policy the noise is all there is; overlapping components overestimate its entropy
        assert policy[0] == pytest.approx(injected[0], abs=0.8)
