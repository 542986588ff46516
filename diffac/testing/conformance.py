"""What a backend runs to prove itself: a pytest suite that needs the backend, NumPy and pytest, and nothing else.

In a test file of your own, with double precision switched on:

    import pytest
    import diffac
    from diffac.testing.conformance import *

    @pytest.fixture
    def backend():
        return diffac.get_backend("mine")

A gap that you know of is a line in a dictionary, returned by a fixture of yours. It names a test, or one of its rows,
and gives the reason. That test is then expected to fail, and fails if it passes:

    @pytest.fixture
    def known_gaps():
        return {"test_rows_agree_with_the_reference[sampler-ddim_two]": "no subsampled DDIM yet"}

Every row of `diffac.testing.parts` is compared with `diffac.testing.reference`: values to 1e-9, and gradients with the
reference's analytic ones to 1e-9, entry by entry (see `problems.difference`), also the state of a learner after each
of its first twelve steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jaxtyping
import numpy as np
import pytest

from diffac import protocols
from diffac.backend import Backend
from diffac.errors import UsageError
from diffac.noise import draw
from diffac.parts import PARTS
from diffac.parts.arguments import REQUIRED
from diffac.parts.inputs import entry
from diffac.parts.schedules import flow_schedule
from diffac.parts.temperatures import MIXTURE_ARGUMENTS
from diffac.protocols import Policy, Rollout
from diffac.runs.recipes import load_recipe, preset_values, recipe_modules
from diffac.testing import parts, problems, reference
from diffac.testing.parts import DIMS, LEARNERS, OBJECTIVES, SAMPLERS
from diffac.testing.problems import Answer, Problem, difference, make_problem, solve, solve_by_reference, tools

TOLERANCE = 1e-9
ROWS = [pytest.param(kind, name, id=f"{kind}-{name}".replace(" ", "_")) for kind, name in problems.rows()]
SEED = 20

__all__ = ["backend", "known_gap", "known_gaps"]  # and every test, below


@pytest.fixture
def backend() -> Any:
    """To be overridden: the backend module under test."""
    raise UsageError("the conformance suite tests a backend: define a fixture `backend` that returns its module")


@pytest.fixture
def known_gaps() -> Mapping[str, str]:
    """To be overridden where something is missing: name of a test, or of one of its rows -> reason."""
    return {}


@pytest.fixture(autouse=True)
def known_gap(request: pytest.FixtureRequest, known_gaps: Mapping[str, str]) -> None:
    """Marks a test in the list of gaps as expected to fail; an unexpected pass is a failure."""
    function = getattr(request.node, "originalname", "")
    for gap in known_gaps:
        if gap.partition("[")[0] not in globals():
            raise UsageError(f"known_gaps names {gap!r}, which is no test of the conformance suite")
    row = f"{function}[{'-'.join(_row_ids(request))}]"
    for gap in (function, row):
        if gap in known_gaps:
            request.applymarker(pytest.mark.xfail(reason=known_gaps[gap], strict=True))


def _row_ids(request: pytest.FixtureRequest) -> list[str]:
    """The test's own parameters, without those of a parametrised fixture."""
    spec = getattr(request.node, "callspec", None)
    own = [] if spec is None else [str(v) for n, v in spec.params.items() if n in ("kind", "name", "mistake")]
    return [value.replace(" ", "_") for value in own]


def assert_close(actual: Answer, expected: Answer, tolerance: float = TOLERANCE) -> None:
    """Same names, shapes and numbers; the message names the worst array."""
    for what, a, e in zip(Answer._fields, actual, expected, strict=True):
        assert sorted(a) == sorted(e), what
        # A loss may cancel. The slope of a saturated tanh, 1 - tanh^2, has lost digits, so that an array of gradients
        # below 1e-3 is known to 1e-15 only.
        floor = 1.0 if what == "values" else 1e-3
        for name in e:
            assert a[name].shape == e[name].shape, name
            error = difference({name: a[name]}, {name: e[name]}, floor=floor)
            assert error <= tolerance, f"{name} ({what}) is off by {error:.2e}: {a[name]!r} instead of {e[name]!r}"


def a_problem(kind: str, name: str, seed: int = SEED) -> Problem:
    """Ordinary numbers; networks that are small enough for some predicted actions to lie inside the box."""
    return make_problem(kind, name, np.random.default_rng(seed), spread=0.6)


# what there is, and how it is called


def test_names(backend: Any) -> None:
    """Every name of `diffac.backend.Backend`, and the tools in the submodule `testing`."""
    missing = [name for name in Backend.__annotations__ if not hasattr(backend, name)]
    assert not missing
    missing = [
        name for name in ("to_backend", "to_numpy", "compiled", "value_and_grad") if not hasattr(tools(backend), name)
    ]
    assert not missing


ARGUMENTS = {**{name: part.arguments for name, part in PARTS.items()}, "mixture_entropy": MIXTURE_ARGUMENTS}
"""Name in every backend -> its arguments, in their order."""


def signature(name: str) -> inspect.Signature:
    """What the constructor of a part must look like, without annotations."""
    arguments = ARGUMENTS[name].items()
    return inspect.Signature([inspect.Parameter(n, a.kind, default=a.default) for n, a in arguments])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_constructors(backend: Any, name: str) -> None:
    """Arguments, their order, kinds and defaults, as `diffac.parts` declares them: recipes rely on all of it."""

    def described(signature: inspect.Signature) -> list[str]:
        return [str(p.replace(annotation=p.empty)) for p in signature.parameters.values()]

    given, wanted = inspect.signature(getattr(backend, name)), signature(name)
    assert described(given) == described(wanted), f"{name} takes {given}, and should take {wanted}"
    kinds = [p.kind for p in wanted.parameters.values()]
    assert [p.kind for p in given.parameters.values()] == kinds, f"{name} takes {given}, and should take {wanted}"


def sensible_arguments(B: Any, name: str) -> dict[str, Any]:
    """What a part cannot do without."""
    sampler = parts.chain(B, DIMS)
    sensible = {
        "schedule": flow_schedule(DIMS.steps, last=0.98),  # which every part takes
        "sampler": B.AdditiveNoise(sampler),
        "proposal": B.PolicyProposal(),
        "obs_dim": 3,
        "action_dim": 2,
        "capacity": 10,
        "key": 0,
        "samples": tools(B).to_backend(np.zeros((4, 2, 1))),
        "actor_objective": B.ValueThroughSampler(sampler),
        "critic_objective": B.MeanSquaredTD(),
        "temperature": B.FixedTemperature(),
        "actor_optimiser": B.Adam(),
        "critic_optimiser": B.Adam(),
    }
    declared = ARGUMENTS[name].items()
    return {n: sensible[n] for n, argument in declared if argument.default is REQUIRED}


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "Sum"])
def test_arguments_without_sense_are_refused(backend: Any, name: str) -> None:
    """Each number out of its range, not finite or of another type, with the sentence of `diffac.parts`."""
    make, sensible, wrong = getattr(backend, name), sensible_arguments(backend, name), []
    with unchecked_shapes():
        make(**sensible)
        for argument, declared in ARGUMENTS[name].items():
            for value in declared.wrong:
                with pytest.raises(UsageError) as expected:
                    declared.check(argument, value)
                try:
                    make(**{**sensible, argument: value})
                    said = "nothing"
                except Exception as error:  # whatever a backend does with it
                    said = f"{type(error).__name__}: {error}"
                if said != f"UsageError: {expected.value}":
                    wrong.append(f"{argument}={value!r}: {said} in place of {expected.value}")
    assert not wrong, "\n".join(wrong)


CONTRACTS = {
    "schedule": protocols.NoiseSchedule,
    "sampler": protocols.Sampler,
    "actor objective": protocols.ActorObjective,
    "critic objective": protocols.CriticObjective,
    "temperature": protocols.Temperature,
    "learner": protocols.Learner,
}


@pytest.mark.parametrize(("kind", "name"), [row for row in ROWS if row.values[0] in CONTRACTS])
def test_signatures(backend: Any, kind: str, name: str) -> None:
    """Methods take the arguments of their protocol, in its order; more arguments need defaults."""
    part = problems.KINDS[kind].table[name].make(backend, DIMS)
    assert_signatures(part, CONTRACTS[kind])
    if kind == "learner":
        assert_signatures(backend.Engine(part), protocols.Engine)


def assert_signatures(part: Any, contract: Any) -> None:
    methods = {n: m for n, m in vars(contract).items() if inspect.isfunction(m) and (n == "__call__" or n[0] != "_")}
    assert methods
    for method, wanted in methods.items():
        given = list(inspect.signature(getattr(part, method)).parameters.values())
        names = list(inspect.signature(wanted).parameters)[1:]
        assert [p.name for p in given[: len(names)]] == names, method
        assert all(p.default is not p.empty for p in given[len(names) :]), method


def test_networks_satisfy_their_contracts(backend: Any) -> None:
    denoiser = parts.ACTORS["denoiser"](backend, DIMS, 0)
    assert isinstance(denoiser, protocols.ConditionalDenoiser)
    assert isinstance(parts.CRITICS["twin"](backend, DIMS, 0), protocols.Critic)
    assert isinstance(parts.CRITICS["gaussian"](backend, DIMS, 0), protocols.DistributionalCritic)


# values and gradients


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_rows_agree_with_the_reference(backend: Any, kind: str, name: str) -> None:
    """Values, metrics, states and gradients of every row."""
    problem = a_problem(kind, name)
    expected = solve_by_reference(problem)
    if kind.endswith("objective"):
        assert any(np.abs(gradient).max() > 1e-6 for gradient in expected.gradients.values()), "an empty problem"
    assert_close(solve(backend, problem), expected, TOLERANCE)


# noise is an input


def _with_noise(kind: str) -> list[Any]:
    return [row for row in ROWS if row.values[0] == kind and row.values[1] != "deterministic"]


@pytest.mark.parametrize(
    ("kind", "name"), [row for kind in CONTRACTS if kind != "schedule" for row in _with_noise(kind)]
)
def test_noise_specifications(backend: Any, kind: str, name: str) -> None:
    """Names, laws, shapes and order: the order decides which numbers an entry gets."""
    make = problems.KINDS[kind].table[name].make
    ours, theirs = make(backend, DIMS).noise_spec(DIMS.shape), make(reference, DIMS).noise_spec(DIMS.shape)
    assert _listed(ours) == _listed(theirs)


def _listed(spec: Any) -> list[Any]:
    return [(n, _listed(law) if isinstance(law, Mapping) else law) for n, law in spec.items()]


@pytest.mark.parametrize(("kind", "name"), _with_noise("sampler"))
def test_the_same_noise_gives_the_same_actions(backend: Any, kind: str, name: str) -> None:
    """To the last bit, whatever NumPy's global generator does; other noise gives other actions."""
    problem = a_problem(kind, name)
    first = solve(backend, problem)
    np.random.seed(1)  # noqa: NPY002
    np.random.standard_normal(7)  # noqa: NPY002
    again = solve(backend, problem)
    for value in first.values:
        np.testing.assert_array_equal(first.values[value], again.values[value])
    rng = np.random.default_rng(99)
    made = problem.part.make(reference, DIMS)
    problem.noises[0] = draw(rng, made.noise_spec((problems.PARTICLES, *DIMS.shape)), np.float64)
    assert np.abs(solve(backend, problem).values["call"] - first.values["call"]).max() > 1e-6


@pytest.mark.parametrize("name", LEARNERS)
def test_updates_are_deterministic(backend: Any, name: str) -> None:
    """The same state, batches and key give the same bits, another key gives others."""
    results = []
    for key in (3, 3, 4):
        engine, state = problems.start_engine(backend, a_problem("learner", name))
        state, _ = engine.update(state, parts.make_batch(np.random.default_rng(0), leading=(3,), filled=False), key)
        results.append(backend.to_arrays(state))
    for array in results[0]:
        np.testing.assert_array_equal(results[0][array], results[1][array], err_msg=array)
    assert any((results[0][array] != results[2][array]).any() for array in results[0])


@pytest.mark.parametrize("name", LEARNERS)
def test_update_is_repeated_step(backend: Any, name: str) -> None:
    """K fused updates equal K steps with the noise of `draw_noise`, twice in a row, so that delays are crossed."""
    engine, fused = problems.start_engine(backend, a_problem("learner", name))
    _, single = problems.start_engine(backend, a_problem("learner", name))
    rng = np.random.default_rng(1)
    for key in (12, 2**31 + 5):
        batches = parts.make_batch(rng, leading=(3,), filled=False)
        fused, metrics = engine.update(fused, batches, key)
        seen: dict[str, list[float]] = {}
        for i in range(3):
            batch = entry(batches, i)
            single, one = engine.step(single, batch, engine.draw_noise(key, i, DIMS.shape))
            for metric, value in problems.computed(tools(backend).to_numpy(one)).items():
                seen.setdefault(metric, []).append(float(value))
        assert_close(Answer(backend.to_arrays(fused), {}), Answer(backend.to_arrays(single), {}))
        means = {metric: np.array(np.mean(values)) for metric, values in seen.items()}
        fused_metrics = problems.computed(tools(backend).to_numpy(metrics))
        assert_close(Answer(fused_metrics, {}), Answer(means, {}))


# metrics


@pytest.mark.parametrize("name", LEARNERS)
def test_measures_and_their_way_to_the_host(backend: Any, name: str) -> None:
    """`measure` agrees with the reference; `fetch` changes no number and leaves none out."""
    t, problem = tools(backend), a_problem("learner", name)
    engine, state = problems.start_engine(backend, problem)
    other_engine, other = problems.start_engine(reference, problem)
    measured = engine.measure(state)
    numbers = problems.computed(t.to_numpy(measured))
    assert_close(Answer(numbers, {}), Answer(problems.computed(other_engine.measure(other)), {}))
    assert numbers["state_nonfinite"] == 0
    _, metrics = engine.step(state, problem.batches[0], problem.noises[0])
    rows = [problems.computed(t.to_numpy(metrics)), numbers]
    fetched = engine.fetch([metrics, measured])
    assert {n for row in rows for n in row} <= set(fetched)
    for metric, column in fetched.items():
        assert column.dtype == np.float64
        np.testing.assert_array_equal(column, [row.get(metric, np.nan) for row in rows], err_msg=metric)


@pytest.mark.parametrize("name", LEARNERS)
def test_metrics_have_the_same_names_in_every_update(backend: Any, name: str) -> None:
    """Also where the first update of an engine is one in which not every part is due; NaN exactly where one is not."""
    problem = a_problem("learner", name)
    engine, state = problems.start_engine(backend, problem)
    due, delay = engine.learner.first_actor_update, engine.learner.actor_delay
    arrays = {**backend.to_arrays(state), "updates": np.asarray(due + 1, np.int32)}
    late, resumed = problems.start_engine(backend, problem)
    resumed = backend.from_arrays(resumed, arrays)
    rows = []
    for batch, noise in zip(problem.batches[:4], problem.noises[:4], strict=True):
        state, metrics = engine.step(state, batch, noise)
        rows.append(engine.fetch([metrics]))
    _, metrics = late.step(resumed, problem.batches[0], problem.noises[0])
    late_row = late.fetch([metrics])
    assert {frozenset(row) for row in [*rows, late_row]} == {frozenset(rows[0])}
    assert [bool(np.isfinite(row["actor_loss"][0])) for row in rows] == [u % delay == due for u in range(4)]
    assert np.isfinite(late_row["actor_loss"][0]) == (delay == 1)


@pytest.mark.parametrize("name", LEARNERS)
def test_numbers_that_are_not_finite_are_counted(backend: Any, name: str) -> None:
    """An infinite reward in the second of three fused updates: its step makes NaN of the critic that the actor asks.

    A categorical critic clips it to its range; NaN stays NaN.
    """
    engine, state = problems.start_engine(backend, a_problem("learner", name))
    batches = parts.make_batch(np.random.default_rng(0), leading=(3,), filled=False)
    batches.reward[1, 0] = np.nan if LEARNERS[name].critic == "categorical" else np.inf
    with np.errstate(all="ignore"):
        state, metrics = engine.update(state, batches, 3)
    fetched = engine.fetch([metrics, engine.measure(state)])
    made = LEARNERS[name].make(reference, DIMS)
    due = [u for u in range(3) if u % made.actor_delay == made.first_actor_update]
    actor_nonfinite = np.mean([u > 1 or (u == 1 and made.critic_steps_before_actor > 0) for u in due])
    assert fetched["critic_nonfinite"][0] == pytest.approx(2 / 3)
    assert fetched["actor_nonfinite"][0] == pytest.approx(actor_nonfinite)
    assert fetched["state_nonfinite"][1] == 1


# shapes


@pytest.mark.parametrize(("kind", "name"), _with_noise("sampler"))
def test_samplers_broadcast_observations(backend: Any, kind: str, name: str) -> None:
    """obs [batch obs] beside particles equals obs repeated for every particle."""
    t, problem = tools(backend), a_problem(kind, name)
    sampler, (actor, critic, _) = problem.part.make(backend, DIMS), problems.make_networks(backend, problem)
    obs, results = problem.batches[0].obs, []
    for given in (obs, np.broadcast_to(obs, (problems.PARTICLES, *obs.shape)).copy()):
        given, noise, temperature = map(t.to_backend, (given, problem.noises[0], problem.temperature))
        results.append(t.to_numpy(t.compiled(sampler)(Policy(actor, critic, temperature), given, noise)))
    assert results[0].shape == (problems.PARTICLES, *DIMS.shape)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", parts.CRITICS)
def test_critics_broadcast(backend: Any, name: str) -> None:
    """[batch obs] beside [particles batch act] equals particle after particle."""
    t, rng = tools(backend), np.random.default_rng(2)
    critic = parts.randomise(backend, parts.CRITICS[name](backend, DIMS, 0), rng)
    obs, action = rng.standard_normal((DIMS.batch, DIMS.obs)), rng.uniform(-1, 1, (4, *DIMS.shape))
    together = t.to_numpy(critic(t.to_backend(obs), t.to_backend(action)))
    apart = [t.to_numpy(critic(t.to_backend(obs), t.to_backend(one))) for one in action]
    np.testing.assert_allclose(together, np.stack(apart, axis=1), rtol=1e-12, atol=1e-13)


# parameters


@pytest.mark.parametrize("name", parts.SHAPES)
def test_parameters_have_the_common_names_and_round_trip(backend: Any, name: str) -> None:
    """Names and shapes of `parts.SHAPES`; what goes in comes out, to the last bit, as a copy."""
    role, _, network = name.partition(" ")
    make = (parts.ACTORS if role == "actor" else parts.CRITICS)[network]
    net = make(backend, DIMS, 5)
    shapes = {n: a.shape for n, a in backend.to_arrays(net).items()}
    assert shapes == parts.SHAPES[name](DIMS)
    arrays = parts.random_parameters(np.random.default_rng(0), shapes)
    given = {n: a.copy() for n, a in arrays.items()}
    net = backend.from_arrays(net, given)
    for array in given.values():
        array += 1
    for n, array in backend.to_arrays(net).items():
        assert array.dtype == np.float64, "switch double precision on before the tests"
        np.testing.assert_array_equal(array, arrays[n], err_msg=n)
        array += 1
    for n, array in backend.to_arrays(net).items():
        np.testing.assert_array_equal(array, arrays[n], err_msg=n)


@pytest.mark.parametrize("name", LEARNERS)
def test_states_round_trip_into_the_reference(backend: Any, name: str) -> None:
    """A state continues in the reference and comes back: names, layouts and meaning of everything in it."""
    problem = a_problem("learner", name)
    engine, state = problems.start_engine(backend, problem)
    other_engine, other = problems.start_engine(reference, problem)
    rng = np.random.default_rng(4)

    def data() -> tuple[Any, Any]:
        return parts.make_batch(rng, filled=False), parts.make_noise(rng, engine)

    for _ in range(3):
        state, _ = engine.step(state, *data())
    other = reference.from_arrays(other, backend.to_arrays(state))
    for _ in range(3):
        batch, noise = data()
        state, _ = engine.step(state, batch, noise)
        other, _ = other_engine.step(other, batch, noise)
    _, fresh = problems.start_engine(backend, problem)
    back = backend.from_arrays(fresh, reference.to_arrays(other))
    assert_close(Answer(backend.to_arrays(back), {}), Answer(backend.to_arrays(state), {}))
    batch, noise = data()
    (state, _), (back, _) = engine.step(state, batch, noise), engine.step(back, batch, noise)
    assert_close(Answer(backend.to_arrays(back), {}), Answer(backend.to_arrays(state), {}))


def test_arrays_that_do_not_fit_are_refused(backend: Any) -> None:
    """The message names each array that is missing, unexpected or of another shape."""
    actor = parts.ACTORS["denoiser"](backend, DIMS, 0)
    arrays = backend.to_arrays(actor)
    name = "layers.1.weight"
    rest = {n: a for n, a in arrays.items() if n != name}
    for wrong, word in (
        (rest, "missing"),
        ({**arrays, "layers.9.weight": arrays[name]}, "unexpected"),
        ({**arrays, name: np.zeros((3, 3))}, "shape"),
    ):
        with pytest.raises(UsageError, match=rf"(?is){word}|{re.escape(name)}"):
            backend.from_arrays(actor, wrong)


# samplers on exact denoisers, acting


@pytest.mark.parametrize("name", [name for name, part in SAMPLERS.items() if part.actor == "denoiser"])
def test_samplers_return_a_point_mass(backend: Any, name: str) -> None:
    """The exact denoiser of a point mass leads every chain to the point, also on the boundary of the box."""
    t, rng = tools(backend), np.random.default_rng(0)
    sampler = SAMPLERS[name].make(backend, DIMS)
    inner = sampler
    while not hasattr(inner, "schedule"):
        inner = inner.sampler
    point = rng.uniform(-0.99, 0.99, DIMS.shape)
    point[0] = [1.0, -1.0]
    target = t.to_backend(point)

    def exact(obs: Any, noisy: Any, time: Any) -> Any:
        return backend.noise_between(inner.schedule, target, noisy, time)

    critic = parts.make_critic(backend, SAMPLERS[name])
    obs, noise = t.to_backend(rng.standard_normal((DIMS.batch, DIMS.obs))), t.to_backend(parts.make_noise(rng, sampler))
    action = sampler(Policy(exact, critic, t.to_backend(np.array(0.0))), obs, noise)  # 0: no exploration
    np.testing.assert_allclose(t.to_numpy(action), point, atol=1e-9)


@pytest.mark.parametrize("name", LEARNERS)
def test_acting(backend: Any, name: str) -> None:
    """Float32 NumPy actions inside the box; the same noise gives the same action; the state stays usable."""
    engine, state = problems.start_engine(backend, a_problem("learner", name))
    rng = np.random.default_rng(5)
    obs = rng.standard_normal((4, DIMS.obs)).astype(np.float32)
    for deterministic in (False, True):
        spec = engine.act_noise_spec((4, DIMS.action), deterministic=deterministic)
        noise = draw(rng, spec)
        action = engine.act(state, obs, noise, deterministic=deterministic)
        assert isinstance(action, np.ndarray)
        assert action.dtype == np.float32
        assert action.shape == (4, DIMS.action)
        assert np.abs(action).max() <= 1
        np.testing.assert_array_equal(engine.act(state, obs, noise, deterministic=deterministic), action)
    engine.step(state, parts.make_batch(rng, filled=False), parts.make_noise(rng, engine))


@contextlib.contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Without jaxtyping's check of shapes at every call: it would make constants of those that torch traces."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def test_compiled_acting(backend: Any) -> None:
    """`compile_act` changes no action: for no number of observations, in no evaluation, and not after an update."""
    rng, sizes = np.random.default_rng(6), (1, 3, 16)
    engine, state = problems.start_engine(backend, a_problem("learner", "qvpo"))
    plain, same = problems.start_engine(backend, a_problem("learner", "qvpo"))
    with unchecked_shapes():
        engine.compile_act(state, DIMS.obs, DIMS.action, sizes[:2])
    for _ in range(2):
        for size in sizes:
            obs = rng.standard_normal((size, DIMS.obs)).astype(np.float32)
            for deterministic in (False, True):
                how = {"deterministic": deterministic}
                noise = draw(rng, engine.act_noise_spec((size, DIMS.action), **how))
                action, expected = engine.act(state, obs, noise, **how), plain.act(same, obs, noise, **how)
                np.testing.assert_allclose(action, expected, atol=1e-6)
        batch, noise = parts.make_batch(rng, filled=False), parts.make_noise(rng, engine)
        (state, _), (same, _) = engine.step(state, batch, noise), plain.step(same, batch, noise)


# recipes

SMALL = {
    "total_timesteps": 1_000,
    "learning_starts": 10,
    "hidden_sizes": (4,),
    "batch_size": DIMS.batch,
    "num_diffusion_steps": 2,
    "num_candidates": 2,
    "num_particles": 2,
}
"""Sizes for recipes, as far as they have them."""


@pytest.mark.parametrize("name", recipe_modules())
def test_recipes_run(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset can be built; the default one learns and acts, and all its numbers stay finite."""
    recipe = load_recipe(name)
    monkeypatch.setattr(recipe, "get_backend", lambda _: backend, raising=False)

    def built(preset: str) -> tuple[Any, Any, Any]:
        config = recipe.Config(**preset_values(recipe, name, preset))
        sizes = {n: size for n, size in SMALL.items() if hasattr(config, n)}
        return recipe.build(dataclasses.replace(config, **sizes), DIMS.obs, DIMS.action)

    for preset in recipe.PRESETS:
        built(preset)
    learner, *networks = built("default")
    engine = backend.Engine(learner)
    state, rng = engine.init(*networks), np.random.default_rng(0)
    for key in range(2):
        batches = parts.make_batch(rng, leading=(2,), filled=False)
        state, metrics = engine.update(state, batches, key)
    fetched = engine.fetch([metrics, engine.measure(state)])
    assert fetched["state_nonfinite"][1] == 0, fetched
    assert np.isfinite(fetched["critic_loss"][0]), fetched
    obs = rng.standard_normal((4, DIMS.obs)).astype(np.float32)
    action = engine.act(state, obs, draw(rng, engine.act_noise_spec((4, DIMS.action))))
    assert action.shape == (4, DIMS.action), f"actions of shape {action.shape}"
    assert np.isfinite(action).all(), f"actions {action}"


# properties that are more than agreement


def with_values(problem: Problem, *, scale: float = 1.0, shift: float = 0.0) -> Problem:
    """The same problem with a critic whose values (means) are scale * Q + shift."""
    critic = {name: array.copy() for name, array in problem.networks["critic"].items()}
    for last in sorted(critic)[-2:]:  # bias and weight of the last layer
        critic[last][:, 0] *= scale
        critic[last][:, 0] += shift * last.endswith("bias")
    return dataclasses.replace(problem, networks={**problem.networks, "critic": critic})


@pytest.mark.parametrize("name", [name for name, part in OBJECTIVES.items() if part.shift_invariant])
def test_adding_a_constant_to_q_changes_no_gradient(backend: Any, name: str) -> None:
    problem = a_problem("actor objective", name)
    plain, shifted = solve(backend, problem), solve(backend, with_values(problem, shift=7.0))
    assert_close(Answer({}, shifted.gradients), Answer({}, plain.gradients), 1e-7)


@pytest.mark.parametrize("name", [name for name, part in OBJECTIVES.items() if part.boltzmann])
def test_scaling_q_and_temperature_together_changes_no_gradient(backend: Any, name: str) -> None:
    """Of the objectives that weight by exp(Q / temperature); scaling Q alone changes it."""
    problem = a_problem("actor objective", name)
    hot = with_values(problem, scale=10.0)
    plain, alone = solve(backend, problem), solve(backend, hot)
    both = solve(backend, dataclasses.replace(hot, temperature=10 * hot.temperature))
    assert_close(Answer({}, both.gradients), Answer({}, plain.gradients), 1e-7)
    assert difference(alone.gradients, plain.gradients) > 1e-6


# mistakes


def _chain(B: Any) -> Any:
    return parts.chain(B, DIMS)


def _learner(B: Any, **change: Any) -> Any:
    sampler = _chain(B)
    arguments = {
        "sampler": sampler,
        "actor_objective": B.ValueThroughSampler(sampler),
        "critic_objective": B.MeanSquaredTD(),
        "temperature": B.FixedTemperature(),
        "actor_optimiser": B.Adam(),
        "critic_optimiser": B.Adam(),
    }
    return B.Learner(**{**arguments, **change})


def _step(B: Any, **change: Any) -> Any:
    engine, state = parts.make_engine(B, "sdac")
    rng = np.random.default_rng(0)
    batch = parts.make_batch(rng, filled=False)._replace(**change)
    return engine.step(state, batch, parts.make_noise(rng, engine))


def _sample(B: Any, sampler: Any) -> Any:
    t, rng = tools(B), np.random.default_rng(0)
    obs = t.to_backend(rng.standard_normal((DIMS.batch, DIMS.obs)))
    return sampler(Policy(parts.ACTORS["denoiser"](B, DIMS, 0)), obs, t.to_backend(parts.make_noise(rng, sampler)))


def _loss(B: Any, objective: Any, module: Any, other: Any, state: Any, **change: Any) -> Any:
    rng = np.random.default_rng(0)
    batch = parts.make_batch(rng)._replace(**change)
    noise = parts.make_noise(rng, objective)
    return tools(B).value_and_grad(objective, module, other, batch, noise, np.array(1.0), state)


def _critic_loss(B: Any, objective: Any, **change: Any) -> Any:
    critic = parts.CRITICS["twin"](B, DIMS, 0)
    return _loss(B, objective, critic, critic, {}, **change)


def _actor_loss(B: Any, objective: Any, **change: Any) -> Any:
    actor, critic = parts.ACTORS["denoiser"](B, DIMS, 0), parts.CRITICS["twin"](B, DIMS, 1)
    return _loss(B, objective, actor, critic, objective.init_state(), **change)


MISTAKES: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "candidates": (lambda B: B.BestOf(_chain(B), num_candidates=0), ("num_candidates", "0")),
    "particles": (lambda B: B.ReverseProposal(_chain(B), num_particles=-1), ("num_particles", "-1")),
    "ddim steps": (lambda B: B.DDIMSampler(parts.schedule(DIMS), num_steps=9), ("num_steps", "9", "4")),
    "noise without signal": (
        lambda B: _sample(B, B.DDPMSampler(flow_schedule(4))),
        ("alpha(3) of the schedule is 0", 'prediction="velocity"'),
    ),
    "reverse kernel without signal": (
        lambda B: _actor_loss(B, B.ReweightedScoreMatching(flow_schedule(4), B.ReverseProposal(_chain(B)))),
        ("alpha(3) of the schedule is 0", "no reverse kernel", "flow_schedule(20, last=0.98)"),
    ),
    "Heun off the flow": (
        lambda B: B.HeunSampler(parts.schedule(DIMS)),
        ("HeunSampler needs a flow, alpha = 1 - s and sigma = s", "use DDIMSampler"),
    ),
    "Heun's steps": (lambda B: B.HeunSampler(flow_schedule(4), num_steps=5), ("num_steps", "5", "4")),
    "noise in Heun's method": (
        lambda B: _sample(B, B.HeunSampler(flow_schedule(4))),
        ("alpha(3) of the schedule is 0", 'prediction="velocity"'),
    ),
    "equal times": (lambda B: B.MeanFlowMatching(B.PolicyProposal(), 1.5), ("equal_fraction", "1.5")),
    "learning rate": (lambda B: B.Adam(-1.0), ("learning_rate", "-1")),
    "norm": (lambda B: B.Adam(max_grad_norm=0.0), ("max_grad_norm", "0")),
    "factor": (lambda B: B.MeanSquaredTD(factor=0.0), ("factor", "0")),
    "omega": (lambda B: B.GaussianTD(tau=0.0), ("tau", "0")),
    "rate": (lambda B: B.PolicyProposal(rate=1.0), ("rate", "1")),
    "temperature": (lambda B: B.FixedTemperature(0.0), ("temperature", "0")),
    "empty sum": (lambda B: B.Sum(), ("Sum",)),
    "tau": (lambda B: _learner(B, tau=2.0), ("tau", "2")),
    "delay": (lambda B: _learner(B, actor_delay=0), ("actor_delay", "0")),
    "hidden sizes": (lambda B: B.TwinCritic(3, 2, key=0, hidden_sizes=(8, 0)), ("hidden_sizes", "0")),
    "time features": (lambda B: B.MLPDenoiser(3, 2, key=0, time_dim=7), ("dim", "7")),
    "bounds": (
        lambda B: B.GaussianActor(3, 2, key=0, log_std_min=1.0, log_std_max=1.0),
        ("log_std_min must be below log_std_max, got 1.0 and 1.0",),
    ),
    "nothing to anneal": (lambda B: B.NoiseEntropyTemperature(2, B.AdditiveNoise(_chain(B), 0.0)), ("noise_scale",)),
    "weight": (lambda B: B.Sum((float("nan"), B.ValueThroughSampler(_chain(B)))), ("weight of term 0", "nan")),
    "pair": (lambda B: B.Sum(B.ValueThroughSampler(_chain(B))), ("term 0 of Sum must be a pair (weight, objective)",)),
    "next action": (
        lambda B: _actor_loss(
            B, B.ReweightedScoreMatching(parts.schedule(DIMS), B.PolicyProposal()), next_rollout=None
        ),
        ("PolicyProposal needs batch.next_rollout, got None",),
    ),
    "next action for critics": (
        lambda B: _critic_loss(B, B.MeanSquaredTD(), next_rollout=None),
        ("MeanSquaredTD needs batch.next_rollout, got None",),
    ),
    "log-probability of the next action": (
        lambda B: _critic_loss(B, B.MeanSquaredTD(soft=True), next_rollout=Rollout(np.zeros(DIMS.shape))),
        ("MeanSquaredTD(soft=True) needs batch.next_rollout.log_prob, got None",),
    ),
    "critics without distribution": (
        lambda B: B.GaussianTD().init_state(parts.CRITICS["twin"](B, DIMS, 0)),
        ("GaussianTD needs a critic with a method `distribution`", "TwinCritic"),
    ),
    "no reward": (lambda B: _step(B, reward=None), ("reward must be an array of shape (5,), got NoneType",)),
    "no critic": (lambda B: _sample(B, B.BestOf(_chain(B), num_candidates=2)), ("critic",)),
    "no temperature": (lambda B: _sample(B, B.AdditiveNoise(_chain(B))), ("temperature",)),
    "column of rewards": (lambda B: _step(B, reward=np.zeros((DIMS.batch, 1))), ("reward", f"{DIMS.batch}, 1")),
    "integer observations": (lambda B: _step(B, obs=np.zeros((DIMS.batch, DIMS.obs), np.int64)), ("obs", "int64")),
    "length of observations": (lambda B: _step(B, next_obs=np.zeros((DIMS.batch, 9))), ("next_obs", "9")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(backend: Any, mistake: str) -> None:
    """A UsageError that says what was given and what it was given for."""
    action, mentions = MISTAKES[mistake]
    with unchecked_shapes(), pytest.raises(UsageError) as caught:
        action(backend)
    for mention in mentions:
        assert mention in str(caught.value), f"{mention!r} is not mentioned in: {caught.value}"


__all__ += [name for name in list(globals()) if name.startswith("test_")]
