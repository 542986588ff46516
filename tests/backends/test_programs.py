"""The compiled programs of torch's learner: the same numbers as the calls they were recorded from, or those calls."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.testing import parts
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import LEARNERS, changed, make_batch, make_engine, make_noise

WIDE = parts.Dims(obs=5, action=3, batch=128, hidden=(128, 128))
"""Enough for the products of oneDNN."""


@pytest.fixture
def torch_backend() -> Any:
    return load_backend("torch")


@pytest.fixture
def programs(torch_backend: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which compiles small products too."""
    from diffac_torch.kernels import programs

    monkeypatch.setattr(programs, "_MIN_WORK", 0)
    monkeypatch.setattr(programs, "_MAX_OPERATIONS", programs._MAX_OPERATIONS)
    return programs


@pytest.fixture
def recorded_only(programs: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is recorded runs as it was recorded, for compiling takes half a minute; the recordings."""
    import torch

    found: list[Any] = []

    def compile_(graph: Any, **options: Any) -> Any:
        found.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", compile_)
    return found


@pytest.fixture
def in_float32(torch_backend: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def trained(
    B: Any, name: str, steps: int = 4, dims: Any = parts.DIMS, engine: Any = None, dtype: Any = np.float64
) -> dict[str, Any]:
    """State and metrics after some steps, from numbers that are the same in each call."""
    own, state = make_engine(B, name, dims)
    engine, rng = engine or own, np.random.default_rng(0)
    results: dict[str, Any] = {}
    for step in range(steps):
        batch = make_batch(rng, dims, filled=False, dtype=dtype)
        state, metrics = engine.step(state, batch, make_noise(rng, engine, dims, dtype))
        results |= {f"{step} {key}": np.asarray(value) for key, value in metrics.items()}
    return results | B.to_arrays(state)


def assert_same(results: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        scale = max(1e-3, np.abs(array).max())
        np.testing.assert_allclose(results[name], array, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_recording_is_the_update(name: str, torch_backend: Any, recorded_only: list[Any], programs: Any) -> None:
    """All numbers of several updates, by one recording of each half for all of them and for other states."""
    programs._MIN_WORK = 1 << 60
    expected = trained(torch_backend, name)
    assert not recorded_only
    programs._MIN_WORK = 0
    engine, _ = make_engine(torch_backend, name)
    for _ in range(2):
        assert_same(trained(torch_backend, name, engine=engine), expected, 1e-11)
    assert len(recorded_only) == 2
    wider = parts.DIMS._replace(batch=9)
    wide = trained(torch_backend, name, engine=engine, dims=wider)
    assert len(recorded_only) == 4
    programs._MIN_WORK = 1 << 60
    assert_same(wide, trained(torch_backend, name, dims=wider), 1e-11)


def test_very_long_functions_run_as_they_are(torch_backend: Any, recorded_only: list[Any], programs: Any) -> None:
    """DIPO's forty steps up Q, say, would take minutes to compile; the half that is shorter is compiled."""
    trained(torch_backend, "dipo")
    lengths = sorted(len(graph.graph.nodes) for graph in recorded_only)
    recorded_only.clear()
    programs._MAX_OPERATIONS = lengths[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        results = trained(torch_backend, "dipo")
    assert [len(graph.graph.nodes) for graph in recorded_only] == lengths[:1] != lengths
    programs._MIN_WORK = 1 << 60
    assert_same(results, trained(torch_backend, "dipo"), 1e-11)


def test_another_objective_gets_another_program(torch_backend: Any, recorded_only: list[Any], programs: Any) -> None:
    engine, _ = make_engine(torch_backend, "sac")
    trained(torch_backend, "sac", engine=engine)
    other = torch_backend.MeanSquaredTD(factor=0.5, soft=True)
    engine.learner = dataclasses.replace(engine.learner, critic_objective=other)
    results = trained(torch_backend, "sac", engine=engine)
    assert len(recorded_only) == 3
    programs._MIN_WORK = 1 << 60
    other = torch_backend.Engine(engine.learner)
    assert_same(results, trained(torch_backend, "sac", engine=other), 1e-11)


def test_compiled_in_double_precision(torch_backend: Any, programs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        results = trained(torch_backend, "dacer2")
    programs._MIN_WORK = 1 << 60
    assert_same(results, trained(torch_backend, "dacer2"), 1e-10)


def test_compiled_at_the_sizes_of_a_run(torch_backend: Any, in_float32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With products of oneDNN where the processor has them."""
    from diffac_torch.kernels import products, programs

    calls, onednn = [], products._recorded_onednn
    monkeypatch.setattr(products, "_recorded_onednn", lambda *arguments: calls.append(0) or onednn(*arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        results = trained(torch_backend, "sac", 1, WIDE, dtype=np.float32)
    assert bool(calls) == products._HAS_ONEDNN
    monkeypatch.setattr(programs, "_MIN_WORK", 1 << 60)
    expected = trained(torch_backend, "sac", 1, WIDE, dtype=np.float32)
    # Adam's first step is a sign, but for tiny gradients
    results, expected = ({k: v for k, v in a.items() if "optimiser.m" in k or "loss" in k} for a in (results, expected))
    assert len(expected) > 10
    assert_same(results, expected, 1e-4)


class Odd:
    """An actor objective that does something that cannot be recorded."""

    def __init__(self, inner: Any, factor: Callable[[Any], Any]) -> None:
        self.inner, self.factor = inner, factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *arguments: Any) -> Any:
        loss = self.inner(*arguments)
        return loss._replace(value=loss.value * self.factor(loss.value))


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (lambda loss: 1 + abs(loss.item()), "RuntimeError: It appears that you're trying to get value"),
        (lambda loss: 2 if loss > 0 else 3, "RuntimeError: It appears that you're trying to get value"),
        (lambda loss: float(np.abs(loss.detach().numpy())), "UsageError: a part of the update turns a tensor into"),
        (lambda loss: float(np.asarray(loss.detach())), "UsageError: a part of the update turns a tensor into"),
    ],
)
def test_a_part_that_looks_at_values(
    factor: Any, reason: str, torch_backend: Any, recorded_only: list[Any], programs: Any
) -> None:
    """Its half of the update runs as it is, once with a warning; the other half is compiled."""

    def engine() -> Any:
        plain, _ = make_engine(torch_backend, "dacer2")
        return changed(torch_backend, plain, actor_objective=Odd(plain.learner.actor_objective, factor))

    with pytest.warns(UserWarning, match=f"the update cannot be compiled \\({reason}") as caught:
        results = trained(torch_backend, "dacer2", engine=engine())
    assert len(caught) == 1
    assert len(recorded_only) == 1
    programs._MIN_WORK = 1 << 60
    assert_same(results, trained(torch_backend, "dacer2", engine=engine()), 1e-11)


def test_errors_are_those_of_the_part(torch_backend: Any, recorded_only: list[Any]) -> None:
    engine, _ = make_engine(torch_backend, "sac")
    silent = torch_backend.AdditiveNoise(torch_backend.TanhGaussianSampler())
    engine = changed(torch_backend, engine, sampler=silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UsageError, match=r"needs batch\.next_rollout\.log_prob"):
            trained(torch_backend, "sac", engine=engine)
    assert not recorded_only


def test_without_a_compiler(torch_backend: Any, programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles when a program is first called; the state is not touched before."""
    import torch

    def compile_(graph: Any, **options: Any) -> Any:
        def run(*tensors: Any) -> Any:
            raise RuntimeError("no C++ compiler was found\nand more")

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.warns(
        UserWarning, match=r"RuntimeError: no C\+\+ compiler was found\).*TORCH_COMPILE_DISABLE=1"
    ) as caught:
        results = trained(torch_backend, "sac")
    assert len(caught) == 2, "each half of the update is tried once"
    programs._MIN_WORK = 1 << 60
    assert_same(results, trained(torch_backend, "sac"), 1e-12)


def test_compiling_switched_off(torch_backend: Any, recorded_only: list[Any]) -> None:
    import torch

    with torch._dynamo.config.patch(disable=True):  # which pytest's monkeypatch would not undo
        trained(torch_backend, "sac", 1)
    assert not recorded_only


# acting


def test_a_compiled_policy_is_for_what_it_was_compiled_for(torch_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other parameters and states of the same sizes. Noise of other shapes or names, and other types, never reach it.

    The program itself does not look at them, and would read memory that is not there.
    """
    import torch

    engine, state = make_engine(torch_backend, "sac")
    rng = np.random.default_rng(0)
    with unchecked_shapes():
        engine.compile_act(state, parts.DIMS.obs, parts.DIMS.action, ())
    plain = engine._action
    stepwise: list[int] = []

    def policy(*arguments: Any, **named: Any) -> Any:
        stepwise.append(1)
        return plain(*arguments, **named)

    monkeypatch.setattr(engine, "_action", policy)

    def act(state: Any, rows: int, noise: Any = None) -> Any:
        """The action, and what it should be."""
        obs = rng.standard_normal((rows, parts.DIMS.obs)).astype(np.float32)
        if noise is None:
            noise = draw(rng, engine.act_noise_spec((rows, parts.DIMS.action)))
        action, programs, engine._act_programs = engine.act(state, obs, noise), engine._act_programs, {}
        number = len(stepwise)
        same = engine.act(state, obs, noise)
        engine._act_programs = programs
        del stepwise[number:]
        return action, same

    other = make_engine(torch_backend, "sac", key=3)[1]
    engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
    columns = np.asfortranarray(rng.standard_normal((4, parts.DIMS.action)))
    for given, rows, own in ((state, 1, None), (other, 4, None), (state, 16, None), (state, 4, columns)):
        action, same = act(given, rows, None if own is None else {"exploration": own})
        np.testing.assert_allclose(action, same, atol=1e-6)
    assert not stepwise
    noise = rng.standard_normal((1, parts.DIMS.action))
    assert np.array_equal(*act(state, 3, {"exploration": noise}))  # one row for all
    assert len(stepwise) == 1
    with pytest.raises(KeyError, match="exploration"):
        engine.act(state, rng.standard_normal((1, parts.DIMS.obs)), {"start": noise})
    assert len(stepwise) == 2
    for network in (other.actor, other.critic):
        network.to(torch.float32)
    assert np.array_equal(*act(other, 3))
    assert len(stepwise) == 3


def test_a_policy_that_cannot_be_compiled(torch_backend: Any) -> None:
    """It says why, and acts as before."""

    @dataclasses.dataclass(frozen=True, eq=False)
    class Looking:
        inner: Any

        def noise_spec(self, shape: Any) -> Any:
            return self.inner.noise_spec(shape)

        def rollout(self, *arguments: Any, **named: Any) -> Any:
            return self.inner.rollout(*arguments, **named)

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            action = self.inner(*arguments, **named)
            return action if float(action.sum()) > 0 else -action

    engine, state = make_engine(torch_backend, "sac")
    engine = changed(torch_backend, engine, sampler=Looking(engine.learner.sampler))
    with unchecked_shapes(), pytest.raises(UsageError, match=r"acting cannot be compiled \(\w+: .*C\+\+ compiler, and"):
        engine.compile_act(state, parts.DIMS.obs, parts.DIMS.action, (1,))
    noise = draw(np.random.default_rng(0), engine.act_noise_spec((2, parts.DIMS.action)))
    assert engine.act(state, np.zeros((2, parts.DIMS.obs)), noise).shape == (2, parts.DIMS.action)
