"""Coefficients that are schedules: found, replaced, and in a learner the same as numbers that are given by hand."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.parts.coefficients import schedules_of, with_values
from diffac.parts.schedules import LinearSchedule, vp_schedule
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import DIMS, make_actor, make_batch, make_critic, make_noise
from diffac.testing.parts import Part as Row

FALLING = LinearSchedule(1.0, 0.0, 0, 4)
ROW = Row(lambda B, d: None, critic="gaussian")


def a_learner(B: Any, weight: Any, slope: Any, scale: Any, clip: Any, tau: Any, reward_scale: Any) -> Any:
    """One with schedules, or numbers, wherever there may be some; the actor moves in every second update."""
    schedule = vp_schedule(DIMS.steps)
    sampler = B.AdditiveNoise(B.DDPMSampler(schedule))
    proposal = B.ReverseProposal(sampler, 2, scale, truncated=False, gradient_weight=slope)
    matching = B.ReweightedScoreMatching(schedule, proposal)
    pull = B.TimeWeightedQGradient(sampler, schedule, slope=slope, contractive_step=scale)
    return B.Learner(
        sampler=sampler,
        actor_objective=B.Sum(
            (weight, B.ValueThroughSampler(sampler)), (0.5, pull), (0.5, matching), rollout_of=sampler
        ),
        critic_objective=B.GaussianTD(clip=clip),
        temperature=B.FixedTemperature(),
        actor_optimiser=B.Adam(1e-3),
        critic_optimiser=B.Adam(LinearSchedule(1e-3, 1e-4, 1, 3)),
        tau=tau,
        reward_scale=reward_scale,
    )


SCHEDULES: dict[str, LinearSchedule] = {
    "weight": LinearSchedule(1.0, 0.2, 1, 3),
    "slope": LinearSchedule(0.4, -0.4, 0, 4),
    "scale": LinearSchedule(0.2, 2.0, 2, 3),
    "clip": LinearSchedule(0.5, 3.0, 0, 3),
    "tau": LinearSchedule(0.5, 0.1, 0, 4),
    "reward_scale": LinearSchedule(0.1, 1.0, 0, 4),
}


def numbers(update: int) -> dict[str, float]:
    """What the schedules say."""
    return {name: float(np.interp(update, [s.begin, s.end], [s.initial, s.final])) for name, s in SCHEDULES.items()}


def test_a_learner_has_the_values_of_its_updates(backend_also_compiled: ModuleType) -> None:
    """Its steps are those of learners with these numbers, one for each update; and nothing is compiled anew."""
    B = backend_also_compiled

    def begin(**given: Any) -> tuple[Any, Any]:
        engine = B.Engine(a_learner(B, **given))
        return engine, engine.init(make_actor(B, ROW), make_critic(B, ROW))

    engine, state = begin(**SCHEDULES)
    others, other = [begin(**numbers(update))[0] for update in range(6)], begin(**numbers(0))[1]
    for update in range(6):
        rng = np.random.default_rng(update)
        batch, noise = make_batch(rng, filled=False, dtype=np.float32), make_noise(rng, engine, dtype=np.float32)
        state, _ = engine.step(state, batch, noise)
        other, _ = others[update].step(other, batch, noise)
        if B.name == "torch":
            compiled = list(engine._programs._compiled)
            assert len(compiled) <= 2  # the critic's and the actor's
    one, two = B.to_arrays(state), B.to_arrays(other)
    assert one.keys() == two.keys()
    for name, array in two.items():
        np.testing.assert_allclose(one[name], array, rtol=1e-6, atol=1e-9, err_msg=name)


def test_where_schedules_are_found(backend: ModuleType) -> None:
    """In parts within parts, by their path; optimisers count their own steps."""
    learner = a_learner(backend, **SCHEDULES)
    proposal = "actor_objective.terms.2.1.proposal"
    found = schedules_of(learner)
    assert found == {
        "actor_objective.terms.0.0": SCHEDULES["weight"],
        "actor_objective.terms.1.1.slope": SCHEDULES["slope"],
        "actor_objective.terms.1.1.contractive_step": SCHEDULES["scale"],
        f"{proposal}.value_scale": SCHEDULES["scale"],
        f"{proposal}.gradient_weight": SCHEDULES["slope"],
        "critic_objective.clip": SCHEDULES["clip"],
        "tau": SCHEDULES["tau"],
        "reward_scale": SCHEDULES["reward_scale"],
    }
    new: Any = with_values(learner, {"tau": 0.25, f"{proposal}.value_scale": 7.0})
    assert new.tau == 0.25
    assert new.actor_objective.terms[2][1].proposal.value_scale == 7.0
    assert new.actor_objective.terms[1][1] is learner.actor_objective.terms[1][1]
    assert schedules_of(learner) == found
    assert with_values(learner, {}) is learner


def test_a_users_part_has_schedules_too(backend: ModuleType) -> None:
    class Mine:
        def __init__(self, strength: Any) -> None:
            self.strength = strength

        def noise_spec(self, shape: Any) -> Any:
            return {}

    assert schedules_of(backend.AdditiveNoise(backend.DDPMSampler(vp_schedule(3)))) == {}
    assert schedules_of(Mine(FALLING)) == {"strength": FALLING}


def test_odd_parts_of_users(backend: ModuleType) -> None:
    """Without a dictionary, in lists, in circles, or in a class of a learner that compares by value."""

    class Slots:
        __slots__ = ("strength",)

        def noise_spec(self, shape: Any) -> Any:
            return {}

    class Pair:
        other: Any = None
        strength = 1.0

        def noise_spec(self, shape: Any) -> Any:
            return {}

    assert schedules_of(Slots()) == {}
    one, two = Pair(), Pair()
    one.other, two.other, two.strength = two, one, FALLING
    assert schedules_of(one) == {"other.strength": FALLING}
    assert with_values(one, {"other.strength": 0.5}).other.strength == 0.5
    sampler = backend.DDPMSampler(vp_schedule(3))
    with unchecked_shapes():  # a list is none of the annotated types
        total = backend.Sum([FALLING, backend.ValueThroughSampler(sampler)])
    assert schedules_of(total) == {"terms.0.0": FALLING}


def test_a_learner_that_compares_by_value() -> None:
    B = load_backend("torch")
    kind: Any = dataclasses.dataclass(kw_only=True)(type("Mine", (B.Learner,), {}))
    learner = a_learner(B, **SCHEDULES)
    engine = B.Engine(kind(**{name: getattr(learner, name) for name in learner.arguments}))
    rng = np.random.default_rng(0)
    batch = make_batch(rng, filled=False, dtype=np.float32)
    engine.step(engine.init(make_actor(B, ROW), make_critic(B, ROW)), batch, make_noise(rng, engine, dtype=np.float32))


def test_ends_of_a_schedule_are_checked(backend: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"clip\.final must be .*got 0\.0"):
        backend.GaussianTD(clip=FALLING)
    with pytest.raises(UsageError, match=r"contractive_step\.final must be .*got 0\.0"):
        backend.TimeWeightedQGradient(backend.DDPMSampler(vp_schedule(3)), vp_schedule(3), contractive_step=FALLING)
