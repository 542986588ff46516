"""What parts of users hand back: anything that is a number works, whatever gradient it carries; the rest is named."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.data.replay import NumberedReplay, ReplayBuffer
from diffac.errors import UsageError
from diffac.protocols import Loss, RowUpdate, provides
from diffac.testing.parts import DIMS, make_batch, make_noise

NUMBERS = {
    "python": 0.5,
    "whole": 3,
    "flag": True,
    "numpy": np.float32(1.5),
    "numpy_whole": np.int64(4),
    "numpy_flag": np.bool_(False),
    "zero_d": np.array(2.5),
}
"""Metrics and entries of a state, as a user may write them."""


class Wrapped:
    """A part of ours, with what a user's would return beside it."""

    def __init__(self, part: Any, metrics: Any = None, state: Any = None) -> None:
        self.part = part
        self.metrics = NUMBERS if metrics is None else metrics
        self.state = {"calls": 0, "ema": 0.0, **NUMBERS} if state is None else state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "part":
            raise AttributeError(name)
        return getattr(self.part, name)

    def noise_spec(self, shape: Any) -> Any:
        return self.part.noise_spec(shape)

    def init_state(self, *critic: Any) -> Any:
        return {**self.part.init_state(*critic), "calls": 0, "ema": 0.0, **NUMBERS}

    def own(self, state: Any) -> Any:
        """The state of the part of ours."""
        return {name: array for name, array in state.items() if name not in {"calls", "ema", *NUMBERS}}

    def after(self, state: Any, graph: Any) -> Any:
        """The user's state after a call; `graph` still carries its gradient."""
        return {**self.state, "calls": state["calls"] + 1, "ema": state["ema"] + graph} if state else self.state


class UserObjective(Wrapped):
    def __call__(self, module: Any, other: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        loss = self.part(module, other, batch, noise, temperature, self.own(state))
        metrics = {**loss.metrics, "undetached": 2 * loss.value, **self.metrics}
        return loss._replace(metrics=metrics, state={**loss.state, **self.after(state, loss.value)})


class UserTemperature(Wrapped):
    @property
    def interval(self) -> Any:
        return self.part.interval

    def value(self, state: Any) -> Any:
        return 0.2

    def update(self, state: Any, policy: Any, obs: Any, noise: Any, log_prob: Any = None) -> Any:
        new, metrics = self.part.update(self.own(state), policy, obs, noise, log_prob)
        graph = policy.critic(obs, policy.actor(obs)[0]).mean()  # depends on the parameters of both networks
        return {**new, **self.after(state, graph)}, {**metrics, "undetached": graph, **self.metrics}


def an_engine(B: ModuleType, **change: Any) -> tuple[Any, Any]:
    """SAC with parts of a user, and its first state."""
    sampler = B.TanhGaussianSampler()
    arguments = {
        "sampler": sampler,
        "actor_objective": UserObjective(B.EntropyRegularisedValue(sampler)),
        "critic_objective": UserObjective(B.MeanSquaredTD(soft=True)),
        "temperature": UserTemperature(B.TargetEntropyTemperature(DIMS.action, interval=2)),
        "actor_optimiser": B.Adam(1e-3),
        "critic_optimiser": B.Adam(1e-3),
        "actor_delay": 2,
    }
    engine = B.Engine(B.Learner(**{**arguments, **change}))
    actor = B.GaussianActor(DIMS.obs, DIMS.action, key=1, hidden_sizes=DIMS.hidden)
    return engine, engine.init(actor, B.TwinCritic(DIMS.obs, DIMS.action, key=2, hidden_sizes=DIMS.hidden))


@pytest.mark.parametrize("fused", [False, True])
def test_any_number_is_a_metric_or_a_state(backend_also_compiled: ModuleType, fused: bool) -> None:
    """Undetached ones too: they reach the log, the next update, and a checkpoint."""
    B, rng = backend_also_compiled, np.random.default_rng(0)
    engine, state = an_engine(B)
    rows = []
    for key in range(2):
        if fused:
            state, metrics = engine.update(state, make_batch(rng, leading=(2,), filled=False), key)
        else:
            for _ in range(2):
                state, metrics = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
                rows.append(metrics)
        rows.append(metrics)
    fetched = engine.fetch([*rows, engine.measure(state)])
    for part in ("actor", "critic", "temperature"):
        for name, number in NUMBERS.items():
            column = fetched[f"{part}_{name}"]
            assert np.nanmin(column) == np.nanmax(column) == float(number), (part, name)
        assert np.isfinite(fetched[f"{part}_undetached"]).any(), part
    arrays = B.to_arrays(state)
    assert np.nanmin(fetched["temperature"]) == np.nanmax(fetched["temperature"]) == 0.2
    for part, calls in {"actor_objective": 2, "critic_objective": 4, "temperature": 2}.items():
        assert arrays[f"{part}.calls"] == calls
        assert arrays[f"{part}.calls"].dtype.kind == "i"
        assert arrays[f"{part}.flag"].dtype.kind == "b"
        assert arrays[f"{part}.ema"] != 0
        assert arrays[f"{part}.python"] == 0.5
    B.from_arrays(state, arrays)
    engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))


class Table:
    """Keeps rewards by the transition's number, in a table of eight rows of two."""

    def __init__(self, inner: Any, **wrong: Any) -> None:
        self.inner, self.wrong = inner, wrong

    def noise_spec(self, shape: Any) -> Any:
        return self.inner.noise_spec(shape)

    def init_state(self, *critic: Any) -> Any:
        return {**self.inner.init_state(*critic), "table": np.zeros((8, 2)), "seen": np.zeros(8, np.int64)}

    def __call__(self, module: Any, other: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        own = {name: array for name, array in state.items() if name not in ("table", "seen")}
        loss, rows = self.inner(module, other, batch, noise, temperature, own), batch.number % 8
        values = batch.reward[:, None] * state["table"][:1] + batch.number[:, None]
        update = RowUpdate(rows, values)._replace(**self.wrong)
        return loss._replace(state={**loss.state, "table": update, "seen": RowUpdate(rows, batch.number)})


def test_rows_of_a_state_may_be_replaced(backend_also_compiled: ModuleType) -> None:
    """Of the actor's objective and the critic's; other rows stay, whether the actor is due or not."""
    B, rng = backend_also_compiled, np.random.default_rng(0)
    tables = {
        "critic_objective": Table(B.MeanSquaredTD()),
        "actor_objective": Table(B.EntropyRegularisedValue(B.TanhGaussianSampler())),
    }
    engine, state = an_engine(B, **tables)
    expected = {name: np.zeros(8) for name in tables}
    for i in range(5):
        numbers = rng.permutation(8)[: DIMS.batch].astype(np.int32) + 8 * i
        batch = make_batch(rng, filled=False)._replace(number=numbers)
        state, _ = engine.step(state, batch, make_noise(rng, engine))
        for name in tables:
            if name == "critic_objective" or i % 2 == 0:
                expected[name][numbers % 8] = numbers
        arrays = B.to_arrays(state)
        for name, rows in expected.items():
            np.testing.assert_array_equal(arrays[f"{name}.seen"], rows)
            np.testing.assert_array_equal(arrays[f"{name}.table"][:, 0] != 0, rows != 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"values": np.zeros((DIMS.batch, 3))},
            r"state 'table' of Table must keep its shape \(5, 2\), got shape \(5, 3\)",
        ),
        ({"rows": np.zeros(4, np.int32)}, r"must keep its shape \(4, 2\), got shape \(5, 2\)"),
        ({"rows": np.zeros(DIMS.batch)}, r"the rows of state 'table' of Table must be \[n\] of integers, got float"),
        ({"rows": np.zeros((DIMS.batch, 1), np.int32)}, r"must be \[n\] of integers, got int of shape \(5, 1\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(backend: ModuleType, wrong: dict[str, Any], says: str) -> None:
    rng = np.random.default_rng(0)
    engine, state = an_engine(backend, critic_objective=Table(backend.MeanSquaredTD(), **wrong))
    with pytest.raises(UsageError, match=says):
        engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))


class Inconstant:
    """A metric that comes and goes."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def noise_spec(self, shape: Any) -> Any:
        return self.inner.noise_spec(shape)

    def init_state(self, *critic: Any) -> Any:
        return self.inner.init_state(*critic)

    def __call__(self, *arguments: Any) -> Loss:
        loss, self.calls = self.inner(*arguments), self.calls + 1
        return loss._replace(metrics={**loss.metrics, f"call_{self.calls}": 1.0})


def test_metrics_that_change_their_names() -> None:
    """In torch; in Equinox names are those of the compiled program."""
    B, rng = load_backend("torch"), np.random.default_rng(0)
    engine, state = an_engine(B, critic_objective=Inconstant(B.MeanSquaredTD(soft=True)))
    engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
    with pytest.raises(UsageError, match="metrics must keep their names, got critic_call_2 for the first time"):
        engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"metrics": {"note": "good"}}, "metric 'note' of UserObjective must be one number, got str"),
    "nothing": ({"metrics": {"note": None}}, "metric 'note' of UserObjective must be one number, got NoneType"),
    "vector": ({"metrics": {"q": np.zeros(3)}}, "metric 'q' of UserObjective must be one number, got shape (3,)"),
    "list": ({"metrics": {"q": [1.0]}}, "metric 'q' of UserObjective must be one number, got list"),
    "lost state": ({"state": {"ema": 0.0}}, "the state of UserObjective must keep its names"),
    "state's shape": (
        {"state": {**NUMBERS, "zero_d": np.zeros(2)}},
        "state 'zero_d' of UserObjective must keep its shape (), got shape (2,)",
    ),
    "state's type": (
        {"state": {**NUMBERS, "whole": 0.5}},
        "state 'whole' of UserObjective must stay a whole number, got float",
    ),
    "state's text": ({"state": {**NUMBERS, "whole": "3"}}, "state 'whole' of UserObjective must be numbers, got str"),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_is_no_number_is_named(backend: ModuleType, which: str) -> None:
    """Before a step with it is done: the state that was passed in stays as it was where it is changed in place."""
    given, sentence = WRONG[which]
    sampler, rng = backend.TanhGaussianSampler(), np.random.default_rng(0)
    objective = UserObjective(backend.EntropyRegularisedValue(sampler), **given)
    engine, state = an_engine(backend, actor_objective=objective)
    with pytest.raises(UsageError) as caught:
        engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
    assert sentence in str(caught.value)


class Returns:
    """An objective that returns something else than a `Loss` of one number."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def noise_spec(self, shape: Any) -> Any:
        return {}

    def init_state(self) -> Any:
        return {}

    def __call__(self, actor: Any, critic: Any, batch: Any, *_: Any) -> Any:
        return self.result(actor(batch.obs)[0])


RESULTS: dict[str, tuple[Any, str]] = {
    "array": (lambda mean: mean.mean(), "Returns must return a diffac.Loss(value, metrics, state), got "),
    "nothing": (lambda mean: None, "Returns must return a diffac.Loss(value, metrics, state), got NoneType"),
    "vector": (lambda mean: Loss(mean[:, 0], {}, {}), "the loss of Returns must be one number, got shape (5,)"),
    "no mapping": (lambda mean: Loss(mean.mean(), None, {}), "the metrics of Returns must be a mapping, got NoneType"),
    "no state": (lambda mean: Loss(mean.mean(), {}, None), "the state of Returns must be a mapping, got NoneType"),
}


@pytest.mark.parametrize("which", RESULTS)
def test_what_is_no_loss_is_named(backend: ModuleType, which: str) -> None:
    result, sentence = RESULTS[which]
    engine, state = an_engine(backend, actor_objective=Returns(result))
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError) as caught:
        engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
    assert sentence in str(caught.value)


def test_an_initial_state_that_is_no_state_is_named(backend: ModuleType) -> None:
    objective = Returns(lambda mean: Loss(mean.mean(), {}, {}))
    for state, sentence in (
        (None, "the state of Returns must be a mapping, got NoneType"),
        ({"ema": "zero"}, "state 'ema' of Returns must be numbers, got str"),
    ):
        objective.init_state = lambda given=state: given  # type: ignore[method-assign]
        with pytest.raises(UsageError) as caught:
            an_engine(backend, actor_objective=objective)
        assert sentence in str(caught.value)


class Passing(Wrapped):
    """What it does not know it passes on."""

    def __call__(self, *arguments: Any) -> Any:
        return self.part(*arguments)

    def __len__(self) -> int:
        return len(self.part)


class Counting:
    """Whose state counts the updates in which the actor does not step."""

    def noise_spec(self, shape: Any) -> Any:
        return {}

    def init_state(self) -> Any:
        return {"count": np.zeros(())}

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def track(self, critic: Any, batch: Any, state: Any) -> Any:
        return {"count": state["count"] + 1}


@pytest.mark.parametrize("name", ["torch", "equinox"])
def test_what_a_wrapper_passes_on_counts(name: str) -> None:
    """Python's `isinstance` with a protocol does not see it from 3.12 on."""
    objective = load_backend(name).Sum((1.0, Passing(Counting())))
    assert objective.track(None, None, {"term0.count": 2.0}) == {"term0.count": 3.0}
    buffer = ReplayBuffer(8, 3, 1)
    assert provides(Passing(buffer), NumberedReplay)
    assert not provides(object(), NumberedReplay)
