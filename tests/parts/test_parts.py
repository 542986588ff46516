"""Declarations: which values they let through, what classes inherit from them, and what they refuse."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal

import pytest

from diffac.errors import UsageError
from diffac.parts import PARTS
from diffac.parts.declaration import Count, Part, Positive, Real, declared
from diffac.parts.schedules import vp_schedule


@declared
class Cooling(Part):
    """Cools."""

    rate: Positive
    steps: Count = 3
    offset: Real | None = None
    law: Literal["linear", "cosine"] = "linear"
    is_on: bool = True


def test_arguments_are_read_off_the_fields() -> None:
    assert {name: argument.default for name, argument in Cooling.arguments.items()} == {
        "rate": inspect.Parameter.empty,
        "steps": 3,
        "offset": None,
        "law": "linear",
        "is_on": True,
    }
    for name, argument in Cooling.arguments.items():
        assert argument.wrong
        for value in argument.wrong:
            with pytest.raises(UsageError, match=rf"^({name} must be|unknown {name}) "):
                Cooling(**{"rate": 0.5, name: value})
    Cooling(0.5, 1, -2.0, "cosine", False)
    Cooling(1)


def test_relations_are_checked_too(backend: Any) -> None:
    schedule = vp_schedule(3)
    with pytest.raises(UsageError, match="num_steps must be at most 3"):
        backend.DDIMSampler(schedule, num_steps=4)
    with pytest.raises(UsageError, match="needs an AdditiveNoise with noise_scale above 0"):
        backend.NoiseEntropyTemperature(2, backend.AdditiveNoise(backend.DDPMSampler(schedule), 0.0))


def test_a_field_that_nothing_is_known_about() -> None:
    with pytest.raises(TypeError, match=r"Odd\.size: nothing says which values of <class 'int'> make sense"):

        @declared
        class Odd(Part):
            size: int = 3


def test_arguments_do_not_change() -> None:
    cooling = Cooling(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"Cooling\.rate cannot be set"):
        cooling.rate = 0.25
    assert cooling.rate == 0.5
    assert dataclasses.replace(cooling, rate=0.25).rate == 0.25
    with pytest.raises(UsageError, match="rate must be"):
        dataclasses.replace(cooling, rate=0.0)


@pytest.mark.parametrize("name", PARTS)
def test_backends_inherit_the_declaration(backend: Any, name: str) -> None:
    """Docstring, arguments, noise and state stand in one place; computation stands in the backend."""
    theirs = getattr(backend, name)
    assert issubclass(theirs, PARTS[name])
    assert inspect.getdoc(theirs) == inspect.getdoc(PARTS[name])
    assert len(theirs.__doc__) > 100
    for shared in ("noise_spec", "init_state", "check"):
        assert getattr(theirs, shared, None) is getattr(PARTS[name], shared, None)


def test_a_users_class_may_have_further_fields(backend: Any) -> None:
    class Shifted(backend.PolicyProposal):
        """Mine."""

        shift: float = 1.0

    kind: Any = dataclasses.dataclass(eq=False)(Shifted) if backend.name == "torch" else Shifted
    assert kind(0.5, shift=2.0).shift == 2.0
    assert kind.__doc__ == "Mine."
    with pytest.raises(UsageError, match="rate must be"):
        kind(rate=1.5)


def test_a_shared_rollout_is_that_of_the_terms(backend: Any) -> None:
    schedule = vp_schedule(3)
    sampler, equal = backend.DDPMSampler(schedule), backend.DDPMSampler(schedule)
    value, gradient = backend.ValueThroughSampler(sampler), backend.TimeWeightedQGradient(sampler, schedule)
    replayed = backend.TimeWeightedQGradient(equal, schedule, source="replay")
    own = backend.Sum((1.0, value), (0.1, gradient)).noise_spec((2, 1))
    assert "rollout" not in own
    assert all("rollout" in own[term] for term in ("term0", "term1"))
    shared = backend.Sum((1.0, value), (0.1, gradient), (0.1, replayed), rollout_of=sampler).noise_spec((2, 1))
    assert list(shared) == ["rollout", "term0", "term1", "term2"]
    assert [set(shared[f"term{i}"]) for i in range(3)] == [set(), set(), {"eps"}]
    with pytest.raises(UsageError, match="term 1 of Sum looks at the rollout of another sampler"):
        backend.Sum((1.0, value), (1.0, backend.ValueThroughSampler(equal)), rollout_of=sampler)
    with pytest.raises(UsageError, match="no term of Sum looks at a rollout"):
        backend.Sum((1.0, replayed), rollout_of=sampler)
