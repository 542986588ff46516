"""Wrong arguments: a UsageError that names what was given and what is allowed, before anything is computed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.parts.inputs import entry
from diffac.parts.schedules import LinearSchedule, TabularSchedule, flow_schedule
from diffac.protocols import Batch, Policy, Rollout
from diffac.testing.parts import (
    ACTORS,
    CRITICS,
    DIMS,
    NOISE_SCHEDULES,
    chain,
    make_batch,
    make_engine,
    make_noise,
    schedule,
)
from diffac_recipes import RECIPES

TEMPERATURE = np.float64(0.3)
RNG_SEED = 0


def refuses(call: Any, *mentions: Any) -> None:
    """The call raises a UsageError whose message mentions each of these."""
    with pytest.raises(UsageError) as caught:
        call()
    for mention in mentions:
        assert str(mention) in str(caught.value), f"{mention!r} is not mentioned in: {caught.value}"


# names


def test_unknown_space_and_source(backend: ModuleType) -> None:
    """In a fresh interpreter: here the checker of annotations would be the first to complain."""
    code = f"""
import {backend.__name__} as B
from diffac.errors import UsageError
from diffac.parts.schedules import vp_schedule
schedule = vp_schedule(4)
for wrong in ({{"space": "scores"}}, {{"source": "chains"}}):
    try:
        B.TimeWeightedQGradient(B.DDPMSampler(schedule), schedule, **wrong)
    except UsageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment())
    assert done.returncode == 0, done.stderr
    space, source = done.stdout.splitlines()
    assert all(word in space for word in ("'scores'", "did you mean 'score'?", "eps, score"))
    assert all(word in source for word in ("'chains'", "did you mean 'chain'?", "chain, forward, replay"))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# counts and ranges


@pytest.mark.parametrize("bad", [0, -2])
def test_counts_must_be_positive(backend: ModuleType, bad: int) -> None:
    sampler = chain(backend)
    refuses(lambda: backend.BestOf(sampler, num_candidates=bad), "num_candidates", bad)
    refuses(lambda: backend.ReverseProposal(sampler, num_particles=bad), "num_particles", bad)
    refuses(lambda: backend.DDIMSampler(schedule(), num_steps=bad), "num_steps", bad)
    refuses(lambda: backend.MeanFlowSampler(bad), "num_steps", bad)
    refuses(lambda: backend.LangevinSampler(bad), "num_steps", bad)
    refuses(lambda: backend.MixtureEntropyTemperature(sampler, num_samples=bad), "num_samples", bad)
    refuses(lambda: backend.MixtureEntropyTemperature(sampler, num_components=bad), "num_components", bad)
    refuses(lambda: backend.MixtureEntropyTemperature(sampler, num_iterations=-1), "num_iterations", -1)
    refuses(lambda: backend.Adam(float(bad)), "learning_rate", bad)
    refuses(lambda: backend.Adam(max_grad_norm=float(bad)), "max_grad_norm", bad)
    noisy = backend.AdditiveNoise(sampler)
    refuses(lambda: backend.NoiseEntropyTemperature(bad, noisy), "action_dim", bad)
    refuses(lambda: backend.NoiseEntropyTemperature(2, noisy, num_states=bad), "num_states", bad)
    refuses(lambda: backend.MixtureEntropyTemperature(sampler, num_states=bad), "num_states", bad)


def test_ddim_steps_are_at_most_those_of_the_schedule(backend: ModuleType) -> None:
    refuses(lambda: backend.DDIMSampler(schedule(), num_steps=5), "num_steps", 5, 4)
    refuses(lambda: backend.HeunSampler(flow_schedule(4), num_steps=5), "num_steps", 5, 4)


def test_heun_is_for_flows(backend: ModuleType) -> None:
    """Any that is one, also without the last times; every other schedule is refused, those without noise too."""
    table = flow_schedule(5)
    backend.HeunSampler(table)
    backend.HeunSampler(TabularSchedule(table.alphas[:3], table.sigmas[:3]))
    refuses(lambda: backend.HeunSampler(TabularSchedule([1.0, 1.0], [0.5, 1.0])), "HeunSampler needs a flow", "time 1")
    for name, make in NOISE_SCHEDULES.items():
        if not name.startswith("flow"):
            refuses(lambda make=make: backend.HeunSampler(make(4)), "HeunSampler needs a flow", "use DDIMSampler")


def test_a_mean_flow_needs_pairs(backend: ModuleType) -> None:
    proposal = backend.ReverseProposal(chain(backend))
    refuses(lambda: backend.MeanFlowMatching(proposal), "pairs of an action and its noise", "use PolicyProposal")


@pytest.mark.parametrize("weight", [1.0, (1.0, 0.0, 0.0, 0.5), LinearSchedule(0.0, 1.0, 0, 9), "minimum_variance"])
def test_gradients_of_q_need_guesses_from_all_of_space(backend: ModuleType, weight: Any) -> None:
    sampler = chain(backend)
    refuses(lambda: backend.ReverseProposal(sampler, gradient_weight=weight), "gradient_weight", "truncated=False")
    proposal = backend.ReverseProposal(sampler, truncated=False, gradient_weight=weight)
    assert proposal.uses_gradient
    assert not backend.ReverseProposal(sampler, gradient_weight=0).uses_gradient
    refuses(lambda: backend.ReverseProposal(sampler, outside_std=0.1), "outside_std=0.1", "truncated=False")


def test_gradient_weights_are_as_many_as_times(backend: ModuleType) -> None:
    proposal = backend.ReverseProposal(chain(backend), truncated=False, gradient_weight=(1.0, 0.5, 0.0))
    objective = backend.ReweightedScoreMatching(schedule(), proposal)
    refuses(lambda: objective.noise_spec((5, 2)), "gradient_weight", 4, 3)


@pytest.mark.parametrize(
    ("field", "bad"),
    [("actor_delay", 0), ("actor_delay", -1), ("critic_steps", 0), ("tau", 0.0), ("tau", -0.1), ("tau", 1.5)],
)
def test_numbers_of_the_learner(backend: ModuleType, field: str, bad: float) -> None:
    sampler = chain(backend)
    refuses(
        lambda: backend.Learner(
            sampler=sampler,
            actor_objective=backend.ValueThroughSampler(sampler),
            critic_objective=backend.MeanSquaredTD(),
            temperature=backend.FixedTemperature(),
            actor_optimiser=backend.Adam(),
            critic_optimiser=backend.Adam(),
            **{field: bad},
        ),
        field,
        bad,
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_of_a_recipe_are_refused_in_a_sentence_or_work(backend: ModuleType, recipe: str) -> None:
    """Every number of its configuration as 0, -1, NaN and infinity, which reach other parts in formulas of its own."""
    module = importlib.import_module(RECIPES[recipe])
    for field in dataclasses.fields(module.Config):
        if type(field.default) not in (int, float):
            continue
        for wrong in (0, -1) if isinstance(field.default, int) else (0.0, -1.0, math.nan, math.inf):
            with contextlib.suppress(UsageError):
                module.build(module.Config(backend=backend.name, hidden_sizes=(4,), **{field.name: wrong}), 3, 2)


# parts that need something the caller did not give


def evaluate(backend: ModuleType, objective: Any, actor: str = "denoiser", **change: Any) -> Any:
    rng = np.random.default_rng(RNG_SEED)
    to_backend = backend.testing.to_backend
    batch, noise = to_backend(make_batch(rng)._replace(**change)), to_backend(make_noise(rng, objective))
    networks = ACTORS[actor](backend, DIMS, 1), CRITICS["twin"](backend, DIMS, 2)
    return objective(*networks, batch, noise, to_backend(TEMPERATURE), to_backend(dict(objective.init_state())))


def sample(backend: ModuleType, sampler: Any, **given: Any) -> Any:
    rng = np.random.default_rng(RNG_SEED)
    to_backend = backend.testing.to_backend
    actor = ACTORS["denoiser"](backend, DIMS, 1)
    obs, noise = to_backend(make_batch(rng).obs), to_backend(make_noise(rng, sampler))
    for method in (sampler.rollout, sampler.__call__):
        yield lambda method=method: method(Policy(actor, **given), obs, noise)


def test_best_of_needs_a_critic(backend: ModuleType) -> None:
    for call in sample(backend, backend.BestOf(chain(backend), num_candidates=2)):
        refuses(call, "critic", "BestOf")


def test_additive_noise_needs_a_temperature(backend: ModuleType) -> None:
    for call in sample(backend, backend.AdditiveNoise(chain(backend))):
        refuses(call, "temperature", "AdditiveNoise")


def test_log_probability_must_be_known(backend: ModuleType) -> None:
    refuses(lambda: evaluate(backend, backend.EntropyRegularisedValue(chain(backend))), "log", "TanhGaussianSampler")
    objective = backend.MeanSquaredTD(soft=True)
    rng = np.random.default_rng(RNG_SEED)
    to_backend = backend.testing.to_backend
    critic = CRITICS["twin"](backend, DIMS, 2)
    batch = to_backend(make_batch(rng)._replace(next_rollout=Rollout(np.zeros(DIMS.shape))))
    refuses(lambda: objective(critic, critic, batch, {}, to_backend(TEMPERATURE), {}), "log", "soft")
    temperature = backend.TargetEntropyTemperature(DIMS.action)
    noise = to_backend(make_noise(rng, temperature))
    state = to_backend(dict(temperature.init_state()))
    actor = ACTORS["denoiser"](backend, DIMS, 1)
    refuses(lambda: temperature.update(state, Policy(actor, critic), batch.obs, noise), "log", "actor_delay")


def test_chain_states_must_belong_to_the_schedule(backend: ModuleType) -> None:
    steps = schedule()
    other = backend.DDIMSampler(steps, num_steps=2)
    refuses(lambda: evaluate(backend, backend.TimeWeightedQGradient(other, steps)), 2, DIMS.steps)
    gaussian = backend.TimeWeightedQGradient(backend.TanhGaussianSampler(), steps)
    refuses(lambda: evaluate(backend, gaussian, "gaussian"), "chain")


def test_sum_needs_terms(backend: ModuleType) -> None:
    refuses(lambda: backend.Sum(), "Sum")


# the boundary of the learner


def step(backend: ModuleType, **change: Any) -> Any:
    """A step of SDAC with some entries of the batch replaced."""
    engine, state = make_engine(backend, "sdac")
    rng = np.random.default_rng(RNG_SEED)
    batch = make_batch(rng, filled=False)._replace(**change)
    return engine.step(state, batch, make_noise(rng, engine))


def update(backend: ModuleType, change: Any) -> Any:
    engine, state = make_engine(backend, "sdac")
    batches = make_batch(np.random.default_rng(RNG_SEED), leading=(2,), filled=False)
    return engine.update(state, change(batches), 0)


B, OBS, A = DIMS.batch, DIMS.obs, DIMS.action

WRONG_BATCHES = {
    "integer obs": {"obs": np.zeros((B, OBS), np.int64)},
    "byte obs": {"obs": np.zeros((B, OBS), np.uint8)},
    "obs without batch axis": {"obs": np.zeros(OBS)},
    "obs with too many axes": {"obs": np.zeros((1, B, OBS))},
    "obs of another size": {"obs": np.zeros((B, OBS + 1))},
    "next obs of another size": {"next_obs": np.zeros((B, OBS + 1))},
    "next obs of another batch": {"next_obs": np.zeros((B + 1, OBS))},
    "action of another batch": {"action": np.zeros((B + 1, A))},
    "action of another size": {"action": np.zeros((B, A + 1))},
    "action without its axis": {"action": np.zeros(B)},
    "column of rewards": {"reward": np.zeros((B, 1))},
    "reward of another batch": {"reward": np.zeros(B - 1)},
    "column of discounts": {"discount": np.zeros((B, 1))},
    "one discount": {"discount": np.zeros(())},
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_step_refuses(backend: ModuleType, case: str) -> None:
    """A column of rewards is the classical one: it broadcasts [B, 1] against [B] to [B, B] without a word."""
    change = WRONG_BATCHES[case]
    (name, value), *_ = change.items()
    given = value.dtype if value.dtype.kind in "iu" else value.shape
    mention = given if value.dtype.kind in "iu" else str(tuple(given)).strip("()").rstrip(",")
    refuses(lambda: step(backend, **change), name, mention)


WRONG_UPDATES = {
    "no leading axis": lambda b: entry(b, 0),
    "another K of reward": lambda b: b._replace(reward=b.reward[:1]),
    "another K of discounts": lambda b: b._replace(discount=np.concatenate([b.discount] * 2)),
    "one weight": lambda b: b._replace(weight=np.ones(())),
    "K is zero": lambda b: Batch(*[None if field is None else field[:0] for field in b]),
    "integer obs": lambda b: b._replace(obs=b.obs.astype(np.int32)),
    "column of rewards": lambda b: b._replace(reward=b.reward[..., None]),
}


@pytest.mark.parametrize("case", WRONG_UPDATES)
def test_update_refuses(backend: ModuleType, case: str) -> None:
    with pytest.raises(UsageError) as caught:
        update(backend, WRONG_UPDATES[case])
    assert any(word in str(caught.value) for word in ("obs", "reward", "discount", "weight")), caught.value


WRONG_OBS = {
    "integers": np.zeros((3, OBS), np.int64),
    "one observation": np.zeros(OBS),
    "another size": np.zeros((3, OBS + 1)),
    "three axes": np.zeros((2, 3, OBS)),
}


@pytest.mark.parametrize("case", WRONG_OBS)
def test_act_refuses(backend: ModuleType, case: str) -> None:
    engine, state = make_engine(backend, "sdac")
    noise = draw(np.random.default_rng(RNG_SEED), engine.act_noise_spec((3, A)), np.float32)
    obs = WRONG_OBS[case]
    mention = obs.dtype if obs.dtype.kind == "i" else str(obs.shape).strip("()").rstrip(",")
    refuses(lambda: engine.act(state, obs, noise), "obs", mention)


def test_numbers_that_are_none_are_refused(backend: ModuleType) -> None:
    refuses(lambda: step(backend, number=np.zeros(B)), "number must be an array of integers", "float64")
    refuses(lambda: step(backend, number=np.zeros((B, 1), np.int32)), "number has shape", f"{B}, 1")


def test_refused_input_leaves_the_state_usable(backend: ModuleType) -> None:
    """The check comes before anything is donated or changed in place."""
    engine, state = make_engine(backend, "sdac")
    before = {name: np.array(value) for name, value in backend.to_arrays(state).items()}
    rng = np.random.default_rng(RNG_SEED)
    good = make_batch(rng, filled=False)
    with pytest.raises(UsageError):
        engine.step(state, good._replace(reward=good.reward[:, None]), make_noise(rng, engine))
    after = backend.to_arrays(state)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    engine.step(state, good, make_noise(rng, engine))


# conversion of names and arrays is refused in test_learner, sizes and activations in test_networks
