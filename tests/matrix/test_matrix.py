"""Every combination of parts that the contracts allow makes a learner of which all voices agree; others are refused."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.testing import parts, problems, reference
from diffac.testing.conformance import assert_close

from . import page
from .axes import Choice, part
from .rules import RULES, allowed, broken, covering, refused, refused_by_several

STEPS = 2
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") in ("agreement", "explore")
thorough = pytest.mark.skipif(not THOROUGH, reason="minutes: nox -s agreement")


@functools.cache
def pairs() -> list[Choice]:
    """Allowed combinations with every two values that go together, in few learners."""
    return covering(allowed(), 2)


def answer(B: Any, choice: Choice) -> problems.Answer:
    """Metrics and states of a learner after each of two steps, operation by operation; B may be the reference."""
    row, rng = part(choice), np.random.default_rng(1)
    shapes = {"actor": f"actor {row.actor}", "critic": f"critic {row.critic}"}
    shapes["target_critic"] = shapes["critic"]
    networks = {name: parts.random_parameters(rng, parts.SHAPES[shape](parts.DIMS)) for name, shape in shapes.items()}
    problem = problems.Problem("learner", str(choice), networks, np.array(0.7), [], [], row)
    engine, state = problems.start_engine(B, problem)
    to_numpy = (lambda metrics: metrics) if B is reference else problems.tools(B).to_numpy
    answers = {}
    for step in range(STEPS):
        batch, noise = parts.make_batch(rng, filled=False), parts.make_noise(rng, engine)
        state, metrics = engine.step(state, batch, noise)
        answers[str(step)] = {"metrics": problems.computed(to_numpy(metrics)), "state": B.to_arrays(state)}
    return problems.Answer(problems.flatten(answers), {})


@contextlib.contextmanager
def _named(choice: Choice) -> Iterator[None]:
    """Says which combination it was."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{choice}: {error}") from error


def _uncompiled(B: Any) -> contextlib.AbstractContextManager[Any]:
    if B.__name__ != "diffac_equinox":
        return contextlib.nullcontext()
    import jax

    return jax.disable_jit()


def test_every_choice() -> None:
    """Each once at least; hundreds are tried where there is more time."""
    torch_backend = load_backend("torch")
    for choice in covering(allowed(), 1):
        with _named(choice):
            assert_close(answer(torch_backend, choice), answer(reference, choice))


@thorough
@pytest.mark.parametrize("shard", range(8))
def test_pairs(backend: Any, shard: int) -> None:
    """Equinox does not compile them; so a temperature that fits mixtures, loop by loop, is left to its own tests."""
    for choice in pairs()[shard::8]:
        if backend.__name__ == "diffac_equinox" and choice.temperature in ("mixture entropy", "noise entropy"):
            choice = choice._replace(temperature="fixed")
        with _named(choice), _uncompiled(backend):
            assert_close(answer(backend, choice), answer(reference, choice))


@thorough
@pytest.mark.parametrize("shard", range(8))
def test_triples(shard: int) -> None:
    """Hundreds, with every three values that go together."""
    torch_backend = load_backend("torch")
    for choice in covering(allowed(), 3)[shard::8]:
        with _named(choice):
            assert_close(answer(torch_backend, choice), answer(reference, choice))


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """As for users: the library speaks, not the checker of shapes and types that tests switch on."""
    jaxtyping = pytest.importorskip("jaxtyping")
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_a_refusal_says_why(backend: Any, rule: int) -> None:
    """In Equinox, where nothing is compiled, a few; all of them with `nox -s agreement`."""
    combinations = covering(refused(rule), 1)
    for choice in combinations if THOROUGH or backend.__name__ == "diffac_torch" else combinations[:1]:
        with _named(choice), _uncompiled(backend), pytest.raises(UsageError, match=RULES[rule].says):
            answer(backend, choice)


@thorough
@pytest.mark.usefixtures("unchecked_types")
def test_refusals_of_several_rules_are_sentences() -> None:
    torch_backend = load_backend("torch")
    for choice in covering(refused_by_several(), 2):
        with _named(choice), pytest.raises(UsageError, match="|".join(RULES[i].says for i in broken(choice))):
            answer(torch_backend, choice)


def test_a_covering_covers() -> None:
    combinations = [choice for choice in allowed() if choice.schedule == "vp" and choice.critic.startswith("twin")]
    chosen = covering(combinations, 2)
    assert len(chosen) < len(combinations) / 10
    for one in Choice._fields:
        for other in Choice._fields:
            at = [(getattr(c, one), getattr(c, other)) for c in combinations]
            assert set(at) == {(getattr(c, one), getattr(c, other)) for c in chosen}


def test_the_page_is_up_to_date() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), "run python -m tests.matrix.page"
