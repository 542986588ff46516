"""Parts that break their contract are told when they are put together: which method, what is expected, what came."""

from __future__ import annotations

from typing import Any

import pytest

from diffac.errors import UsageError
from diffac.noise import Noise, NoiseSpec, Shape
from diffac.parts.contracts import check_actor, check_contract
from diffac.protocols import (
    ActorObjective,
    Array,
    Batch,
    Critic,
    CriticObjective,
    Loss,
    Optimiser,
    Policy,
    Rollout,
    Sampler,
    State,
    Temperature,
)


class Whole:
    """An actor objective as the protocol has it."""

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        return {}

    def init_state(self) -> State:
        return {}

    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        return Loss(0.0, {}, state)


class Without(Whole):
    init_state: Any = None


class Short(Whole):
    def __call__(self, actor: Any, critic: Any, batch: Any, noise: Any) -> Any:  # type: ignore[override]
        return Loss(0.0, {}, {})


class Longer(Whole):
    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:  # type: ignore[override]
        return {}


class AnyArguments(Whole):
    def __call__(self, *arguments: Any) -> Loss:
        return Loss(0.0, {}, {})


class OptionalArgument(Whole):
    def noise_spec(self, shape: Shape, num_steps: int = 5) -> NoiseSpec:
        return {}


class OneSampler:
    def noise_spec(self, shape: Shape) -> NoiseSpec:
        return {}

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        return Rollout(obs)


class Unready(OneSampler):
    def __call__(self, obs: Array) -> Array:
        return obs


class OneTemperature:
    def init_state(self) -> State:
        return {}

    def value(self, state: State) -> Array:
        return 1.0

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        return {}

    def update(self, state: State, policy: Policy, obs: Array, noise: Noise) -> Any:
        return state, {}


class Late(OneTemperature):
    interval = 5


@pytest.mark.parametrize("kind", [Whole, AnyArguments, OptionalArgument])
def test_what_can_be_called_satisfies(kind: type) -> None:
    check_contract("actor_objective", kind(), ActorObjective)


BROKEN: dict[str, tuple[Any, Any, str]] = {
    "method": (
        Without(),
        ActorObjective,
        r"part must be an ActorObjective: Without has no init_state\(\); the contract of ActorObjective is in",
    ),
    "call": (
        Short(),
        ActorObjective,
        r"Short\.__call__ is called as __call__\(actor, critic, batch, noise, temperature, state\), and takes "
        r"\(actor: 'Any', critic: 'Any', batch: 'Any', noise: 'Any'\)",
    ),
    "more": (Longer(), ActorObjective, r"Longer\.noise_spec is called as noise_spec\(shape\), and takes \(shape"),
    "other kind": (Whole(), CriticObjective, r"a CriticObjective: Whole\.init_state is called as init_state\(critic\)"),
    "not callable": (OneSampler(), Sampler, r"OneSampler has no __call__\(policy, obs, noise\)"),
    "attribute": (OneTemperature(), Temperature, r"OneTemperature has no interval;"),
    "fewer": (
        Late(),
        Temperature,
        r"Late\.update is called as update\(state, policy, obs, noise, log_prob\), and takes",
    ),
    "optimiser": (Whole(), Optimiser, r"an Optimiser: Whole has no init\(module\)"),
    "function": (lambda: None, ActorObjective, r"function has no noise_spec\(shape\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name: str) -> None:
    part, protocol, sentence = BROKEN[name]
    with pytest.raises(UsageError, match=sentence):
        check_contract("part", part, protocol)


def test_a_learner_and_a_sum_look(backend: Any) -> None:
    sampler = backend.TanhGaussianSampler()
    arguments = {
        "sampler": sampler,
        "actor_objective": backend.EntropyRegularisedValue(sampler),
        "critic_objective": backend.MeanSquaredTD(),
        "temperature": backend.FixedTemperature(),
        "actor_optimiser": backend.Adam(),
        "critic_optimiser": backend.Adam(),
    }
    backend.Learner(**{**arguments, "actor_objective": Whole()})
    for name, wrong in {
        "actor_objective": Short(),
        "critic_objective": Whole(),
        "temperature": Late(),
        "sampler": Unready(),
        "target_sampler": Unready(),
        "critic_optimiser": Whole(),
    }.items():
        with pytest.raises(UsageError, match=f"^{name} must be an? "):
            backend.Learner(**{**arguments, name: wrong})
    with pytest.raises(UsageError, match="the objective of term 1 of Sum must be an ActorObjective: Short"):
        backend.Sum((1.0, Whole()), (0.5, Short()))


class Chain:
    """A user's sampler that says what it calls the actor with."""

    actor_arguments = ("obs", "noisy", "t")
    actor_example = "MLPDenoiser"
    rollout: Any = None


class Module:
    """As torch has them: what is called passes everything on."""

    def __call__(self, *arguments: Any) -> Any:
        return self.forward(*arguments)

    def forward(self, obs: Any) -> Any:
        return obs


def test_an_actor_that_a_part_cannot_call() -> None:
    sentence = r"Chain calls the actor as actor\(obs, noisy, t\), and Module takes \(obs\); use .* MLPDenoiser"
    with pytest.raises(UsageError, match=sentence):
        check_actor(Chain(), Module())
    check_actor(Chain(), lambda obs, noisy, t: noisy)
    check_actor(Chain(), lambda *arguments: arguments)
    check_actor(Whole(), Module())  # says nothing of its actor
