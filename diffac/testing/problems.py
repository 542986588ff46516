"""Problems with known answers: a row of `parts` with numbers, solved by a backend and by the NumPy reference.

A problem holds NumPy arrays only. `solve` runs it through a backend, `solve_by_reference` through
`diffac.testing.reference`; both give the same named arrays, and `difference` says how far apart they are. The
conformance kit and `diffac validate` are loops over `rows()`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffac.noise import NoiseSpec, draw
from diffac.protocols import Batch, Policy
from diffac.testing import parts, reference
from diffac.testing.parts import DIMS, Dims, Part

Arrays = dict[str, np.ndarray]

PARTICLES = 3
"""Size of the extra leading axis with which schedules, networks and samplers are tried."""
LEARNER_STEPS = 12


class Answer(NamedTuple):
    """Everything that a problem asks for, flat and by name."""

    values: Arrays
    gradients: Arrays
    """By parameter name; empty where nothing is differentiated."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One row with numbers."""

    kind: str
    """A key of `KINDS`."""
    name: str
    """A row of the kind's table."""
    networks: Mapping[str, Arrays]
    """Parameters: of "actor", "critic" and "target_critic"; for kind "network" of every network."""
    temperature: np.ndarray
    batches: list[Batch]
    """In the order in which they are seen."""
    noises: list[dict[str, Any]]
    """One for each batch."""
    part: Part
    """The row."""
    dims: Dims = DIMS

    def cast(self, dtype: Any) -> Problem:
        """The same problem with floating numbers of another type."""

        def one(array: np.ndarray) -> np.ndarray:
            return array.astype(dtype) if array.dtype.kind == "f" else array

        fields = ("networks", "temperature", "batches", "noises")
        return dataclasses.replace(self, **{name: _map(one, getattr(self, name)) for name in fields})


class Kind(NamedTuple):
    """A table of parts, and how its problems are made and solved."""

    table: Mapping[str, Part]
    solve: Callable[[Any, Problem], Answer]
    solve_by_reference: Callable[[Problem], Answer]
    num_batches: int = 1


def make_problem(
    kind: str,
    name: str,
    rng: np.random.Generator,
    *,
    dims: Dims = DIMS,
    magnitude: float = 1.0,
    spread: float = 1.0,
    temperature: float = 0.7,
    termination: float = 0.3,
) -> Problem:
    """A problem with random numbers in float64.

    Args:
        kind: a key of `KINDS`.
        name: a row of its table.
        rng: source of all numbers.
        dims: sizes.
        magnitude: scale of observations and rewards.
        spread: scale of the networks' parameters, relative to 1/sqrt(fan in).
        temperature: the entropy coefficient.
        termination: probability that a transition is terminal.
    """
    part = KINDS[kind].table[name]
    actor, critic = f"actor {part.actor}", f"critic {part.critic}"
    shapes = {"actor": actor, "critic": critic, "target_critic": critic}
    if kind == "network":
        shapes = {name: name for name in parts.SHAPES}
    networks = {n: parts.random_parameters(rng, parts.SHAPES[shape](dims), spread) for n, shape in shapes.items()}
    problem = Problem(kind, name, networks, np.array(temperature), [], [], part, dims)
    spec = noise_spec(kind, part.make(reference, dims), dims)
    return with_batches(problem, spec, rng, magnitude=magnitude, termination=termination)


def with_batches(
    problem: Problem, spec: NoiseSpec, rng: np.random.Generator, *, magnitude: float = 1.0, termination: float = 0.3
) -> Problem:
    """The problem with random batches, as many as its kind takes, and the noise that each needs."""
    batches, noises = [], []
    for _ in range(KINDS[problem.kind].num_batches):
        filled = problem.kind != "learner"
        batches.append(parts.make_batch(rng, problem.dims, magnitude=magnitude, termination=termination, filled=filled))
        noise = draw(rng, spec, np.float64)
        if problem.kind == "critic objective" and "target" in noise:
            noise["target"] = 3 * noise["target"]  # so wide that the bound on it, 3, is reached by some entries
        noises.append(noise)
    return dataclasses.replace(problem, batches=batches, noises=noises)


def noise_spec(kind: str, part: Any, dims: Dims) -> NoiseSpec:
    """The noise that a part needs in a problem of its kind."""
    if kind in ("schedule", "network"):
        return {}
    # one more leading axis for samplers: an objective may ask for particles
    shape = (PARTICLES, *dims.shape) if kind == "sampler" else dims.shape
    return part.noise_spec(shape)


def rows() -> Iterator[tuple[str, str]]:
    """(kind, name) of every row of every table."""
    for kind, entry in KINDS.items():
        for name in entry.table:
            yield kind, name


def large_rows() -> Iterator[tuple[str, str]]:
    """(kind, name) of rows that are worth a problem of size `parts.LARGE` too: together they call all kernels."""
    yield "sampler", "ddpm"
    yield "actor objective", "value_ddpm"
    yield "actor objective", "reverse_truncated"
    yield "critic objective", "gaussian"


def solve(B: Any, problem: Problem) -> Answer:
    """The answer of a backend module, in the precision of the problem's numbers."""
    return KINDS[problem.kind].solve(B, problem)


def solve_by_reference(problem: Problem) -> Answer:
    """The answer of the reference, always in float64."""
    return KINDS[problem.kind].solve_by_reference(problem.cast(np.float64))


class _Precision(NamedTuple):
    """What rounding errors may do to a problem that has an answer in a precision."""

    nudge: float
    """Relative size of the errors, some tens of a rounding."""
    moves: float
    """How far they may move the answer."""
    tie: float
    """Relative distance of two candidates that count as equally good."""
    small: float
    """As for `difference`."""


_PRECISIONS = {
    "float64": _Precision(nudge=1e-14, moves=1e-10, tie=1e-9, small=1e-3),
    "float32": _Precision(nudge=1e-6, moves=5e-4, tie=1e-4, small=1.0),
}


def well_posed(problem: Problem, precision: str = "float64") -> bool:
    """Whether this precision can answer the problem: rounding errors of all its numbers hardly move the reference.

    Neither may two candidates of a sampler or of an actor's loss be equally good: rounding would choose. Two that are
    clipped to the same corner are one action, but have two gradients.
    """
    p = _PRECISIONS[precision]
    rng = np.random.default_rng(0)

    def nudged(array: np.ndarray) -> np.ndarray:
        return array * (1 + p.nudge * rng.standard_normal(array.shape)) if array.dtype.kind == "f" else array

    fields = ("networks", "temperature", "batches", "noises")
    problem = problem.cast(np.float64)
    nudge = dataclasses.replace(problem, **{name: _map(nudged, getattr(problem, name)) for name in fields})
    with reference.margins() as margins:
        answer = solve_by_reference(problem)
    if problem.kind in ("sampler", "actor objective") and min(margins, default=np.inf) < p.tie:
        return False
    values, gradients = zip(answer, solve_by_reference(nudge), strict=True)
    moved = max(difference(*values, small=p.small, floor=1.0), difference(*gradients, small=p.small))
    return moved < p.moves


def tools(B: Any) -> Any:
    """The submodule `testing` of a backend."""
    return importlib.import_module(f"{B.__name__}.testing")


def difference(actual: Arrays, expected: Arrays, *, small: float = 1e-3, floor: float = 0.0) -> float:
    """The worst relative difference of two sets of arrays; infinite if names or shapes differ or one has a NaN.

    An entry is compared with its own size, but at least with `small` times the largest entry of its array (a number
    that is small because large ones cancel cannot be better), which in turn counts as at least `floor`.
    """
    if actual.keys() != expected.keys() or any(actual[n].shape != e.shape for n, e in expected.items()):
        return np.inf
    worst = 0.0
    for name, e in expected.items():
        if e.size:
            a, e = actual[name].astype(np.float64), e.astype(np.float64)
            scale = np.maximum(np.abs(e), small * max(floor, np.abs(e).max()))
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.where(a == e, 0.0, np.abs(a - e) / scale)
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf, posinf=np.inf).max()))
    return worst


def flatten(tree: Any, prefix: str = "") -> Arrays:
    """Leaves of nested mappings and tuples by path; None is left out."""
    if tree is None:
        return {}
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, tuple | list):
        items = list(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
    else:
        return {prefix.rstrip("."): np.asarray(tree)}
    return {name: leaf for key, value in items for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def _map(function: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """The same nesting with every array replaced."""
    if isinstance(tree, Mapping):
        return {name: _map(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        entries = [_map(function, value) for value in tree]
        return type(tree)(*entries) if hasattr(tree, "_fields") else type(tree)(entries)
    return None if tree is None else function(tree)


# schedules


def _schedule_answer(B: Any, schedule: Any, action: Any, eps: Any, times: Any, one: Any) -> Any:
    answer = {}
    for name, t in {"times": times, "integer": one}.items():
        noisy = B.add_noise(schedule, action, eps, t)
        without = B.remove_noise(schedule, noisy, eps, t) if schedule.alpha(schedule.num_steps - 1) > 0 else None
        answer[name] = (noisy, without, B.noise_between(schedule, action, noisy, t), B.score(schedule, eps, t))
    return answer | {"posterior": B.posterior_mean(schedule, action, noisy, one)}


def _schedule_inputs(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean actions [batch act]; noises and times with particles in front."""
    batch, dims = problem.batches[0], problem.dims
    eps = np.stack([0.5 * batch.action + i for i in range(PARTICLES)]).astype(batch.action.dtype)
    times = np.arange(PARTICLES * dims.batch) % dims.steps
    return batch.action, eps, times.reshape(PARTICLES, dims.batch)


def _solve_schedule(B: Any, problem: Problem) -> Answer:
    action, eps, times = map(tools(B).to_backend, _schedule_inputs(problem))
    answer = _schedule_answer(B, problem.part.make(B, problem.dims), action, eps, times, 1)
    return Answer(flatten(tools(B).to_numpy(answer)), {})


def _refer_schedule(problem: Problem) -> Answer:
    schedule = problem.part.make(reference, problem.dims)
    return Answer(flatten(_schedule_answer(reference, schedule, *_schedule_inputs(problem), 1)), {})


# networks

BOUND = {
    "actor denoiser": reference.MLPDenoiser,
    "actor velocity": functools.partial(reference.MLPDenoiser, prediction="velocity"),
    "actor clean": functools.partial(reference.MLPDenoiser, prediction="action"),
    "actor mean_velocity": reference.MeanFlowActor,
    "actor langevin": reference.LangevinActor,
    "actor deterministic": reference.DeterministicActor,
    "actor gaussian": reference.GaussianActor,
    "actor simba_denoiser": reference.MLPDenoiser,
    "actor simba_mean_velocity": reference.MeanFlowActor,
    "actor simba_langevin": reference.LangevinActor,
    "actor simba_deterministic": reference.DeterministicActor,
    "actor simba_gaussian": reference.GaussianActor,
    "critic simba": reference.EnsembleCritic,
    "critic twin": reference.EnsembleCritic,
    "critic three": reference.EnsembleCritic,
    "critic gaussian": reference.GaussianCritic,
    "critic categorical": functools.partial(reference.CategoricalCritic, **parts.ATOMS),
}
"""The reference's network of every name in `parts.SHAPES`."""
_ACTORS_WITHOUT_TIME = tuple(f"actor {body}{name}" for body in ("", "simba_") for name in ("gaussian", "deterministic"))


def _network_inputs(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations [batch obs]; noisy actions and times with particles in front."""
    return (problem.batches[0].obs, *_schedule_inputs(problem)[1:])


def _solve_networks(B: Any, problem: Problem) -> Answer:
    t = tools(B)
    obs, action, times = map(t.to_backend, _network_inputs(problem))
    makers = {f"actor {name}": make for name, make in parts.ACTORS.items()}
    makers |= {f"critic {name}": make for name, make in parts.CRITICS.items()}
    nets = {
        name: B.from_arrays(make(B, problem.dims, 0, activation=problem.name), problem.networks[name])
        for name, make in makers.items()
    }

    answer = t.compiled(_network_outputs)(nets, obs, action, times, problem.dims.steps)
    return Answer(flatten(t.to_numpy(answer)), {})


def _network_outputs(nets: Any, obs: Any, action: Any, times: Any, num_steps: int) -> Any:
    """Everything that networks compute. A function of the module, so that it is compiled once."""
    denoise = nets["actor denoiser"]
    answer = {name: net(obs, action) for name, net in nets.items() if name.startswith("critic")}
    answer |= {"distribution": nets["critic gaussian"].distribution(obs, action)}
    answer |= {"logits": nets["critic categorical"].logits(obs, action)}
    answer |= {name: nets[name](obs) for name in _ACTORS_WITHOUT_TIME}
    answer |= {"simba": nets["actor simba_denoiser"](obs, action, times)}
    answer |= {"times": denoise(obs, action, times), "integer": denoise(obs, action, 1)}
    langevin = nets["actor langevin"]
    answer |= {"drift": langevin(langevin.condition(obs, num_steps), action, times), "step": langevin.step_size()}
    mean_velocity, t = nets["actor mean_velocity"], times / num_steps
    answer |= {
        "mean velocity": mean_velocity(obs, action, t, 0.3 * t),
        "one step": mean_velocity(obs, action, 1.0, 0.0),
    }
    return answer | {"condition": denoise(denoise.condition(obs, num_steps), action, times)}


def _refer_networks(problem: Problem) -> Answer:
    obs, action, times = _network_inputs(problem)
    nets = {name: bound(problem.networks[name], activation=problem.name) for name, bound in BOUND.items()}
    answer = {name: net(obs, action)[0] for name, net in nets.items() if name.startswith("critic")}
    answer |= {"distribution": nets["critic gaussian"].distribution(obs, action)[0]}
    answer |= {"logits": nets["critic categorical"].logits(obs, action)[0]}
    answer |= {name: nets[name](obs)[0] for name in _ACTORS_WITHOUT_TIME}
    answer |= {"simba": nets["actor simba_denoiser"](obs, action, times)[0]}
    langevin = nets["actor langevin"]
    answer |= {"drift": langevin(obs, action, times)[0], "step": langevin.step_size()[0]}
    mean_velocity, t = nets["actor mean_velocity"], times / problem.dims.steps
    answer |= {"mean velocity": mean_velocity(obs, action, t, 0.3 * t)[0]}
    answer |= {"one step": mean_velocity(obs, action, 1.0, 0.0)[0]}
    eps = nets["actor denoiser"](obs, action, times)[0]
    return Answer(
        flatten(answer | {"times": eps, "integer": nets["actor denoiser"](obs, action, 1)[0], "condition": eps}), {}
    )


# the parts of an algorithm


def make_networks(B: Any, problem: Problem) -> tuple[Any, Any, Any]:
    """Actor, critic and target critic of a backend with the problem's parameters."""
    part, dims = problem.part, problem.dims
    return (
        B.from_arrays(parts.make_actor(B, part, dims=dims), problem.networks["actor"]),
        B.from_arrays(parts.make_critic(B, part, dims=dims), problem.networks["critic"]),
        B.from_arrays(parts.make_critic(B, part, dims=dims), problem.networks["target_critic"]),
    )


def bind_networks(problem: Problem) -> tuple[Any, Any, Any]:
    """The same three of the reference."""
    actor, critic = BOUND[f"actor {problem.part.actor}"], BOUND[f"critic {problem.part.critic}"]
    arrays, act = problem.networks, problem.dims.activation
    return actor(arrays["actor"], act), critic(arrays["critic"], act), critic(arrays["target_critic"], act)


def _solve_sampler(B: Any, problem: Problem) -> Answer:
    t, sampler = tools(B), problem.part.make(B, problem.dims)
    actor, critic, _ = make_networks(B, problem)
    obs, noise, temperature = map(t.to_backend, (problem.batches[0].obs, problem.noises[0], problem.temperature))
    rollout, action = t.compiled(_sample)(sampler, actor, obs, noise, critic, temperature)
    return Answer(flatten(t.to_numpy({"rollout": tuple(rollout), "call": action})), {})


def _sample(sampler: Any, actor: Any, obs: Any, noise: Any, critic: Any, temperature: Any) -> tuple[Any, Any]:
    """Both ways of sampling, as one program."""
    return (
        sampler.rollout(Policy(actor, critic, temperature), obs, noise),
        sampler(Policy(actor, critic, temperature), obs, noise),
    )


def _refer_sampler(problem: Problem) -> Answer:
    actor, critic, _ = bind_networks(problem)
    sampler = problem.part.make(reference, problem.dims)
    rollout, _ = sampler.rollout(Policy(actor, critic, problem.temperature), problem.batches[0].obs, problem.noises[0])
    return Answer(flatten({"rollout": tuple(rollout), "call": rollout.action}), {})


def _solve_objective(B: Any, problem: Problem) -> Answer:
    """Loss, metrics, state and gradient of one batch after the other."""
    objective, (actor, critic, target) = problem.part.make(B, problem.dims), make_networks(B, problem)
    of_critic = problem.kind == "critic objective"
    subjects = (critic, target) if of_critic else (actor, critic)
    state = objective.init_state(critic) if of_critic else objective.init_state()
    dtype = problem.temperature.dtype
    state = _map(lambda x: np.asarray(x, dtype if np.asarray(x).dtype.kind == "f" else None), dict(state))
    return _run_objective(problem, lambda *args: tools(B).value_and_grad(objective, *subjects, *args), state)


def _refer_objective(problem: Problem) -> Answer:
    objective, (actor, critic, target) = problem.part.make(reference, problem.dims), bind_networks(problem)
    of_critic = problem.kind == "critic objective"
    subjects = (critic, target) if of_critic else (actor, critic)
    state = objective.init_state(critic) if of_critic else objective.init_state()
    return _run_objective(problem, lambda *args: objective(*subjects, *args), state)


def _run_objective(problem: Problem, value_and_grad: Callable[..., Any], state: Any) -> Answer:
    values, gradients = {}, {}
    for i, (batch, noise) in enumerate(zip(problem.batches, problem.noises, strict=True)):
        loss, gradient = value_and_grad(batch, noise, problem.temperature, state)
        state = loss.state
        values[str(i)] = {"value": loss.value, "metrics": dict(loss.metrics), "state": dict(state)}
        if loss.log_prob is not None:
            values[str(i)]["log_prob"] = loss.log_prob
        gradients[str(i)] = dict(gradient)
    return Answer(flatten(values), flatten(gradients))


def _log_prob(batch: Batch) -> Any:
    policy: Any = batch.next_rollout
    return policy.log_prob


def _solve_temperature(B: Any, problem: Problem) -> Answer:
    t, rule, (actor, critic, _) = tools(B), problem.part.make(B, problem.dims), make_networks(B, problem)
    state = t.to_backend(_map(lambda x: np.asarray(x, problem.temperature.dtype), dict(rule.init_state())))
    update, answers = t.compiled(rule.update), {}
    for i, (batch, noise) in enumerate(zip(problem.batches, problem.noises, strict=True)):
        batch, noise = t.to_backend(batch), t.to_backend(noise)
        policy = Policy(actor, critic, rule.value(state))
        state, metrics = update(state, policy, batch.obs, noise, _log_prob(batch))
        answers[str(i)] = t.to_numpy({"state": dict(state), "metrics": dict(metrics), "value": rule.value(state)})
    return Answer(flatten(answers), {})


def _refer_temperature(problem: Problem) -> Answer:
    rule, (actor, critic, _) = problem.part.make(reference, problem.dims), bind_networks(problem)
    state, answers = rule.init_state(), {}
    for i, (batch, noise) in enumerate(zip(problem.batches, problem.noises, strict=True)):
        policy = Policy(actor, critic, rule.value(state))
        state, metrics = rule.update(state, policy, batch.obs, noise, _log_prob(batch))
        answers[str(i)] = {"state": dict(state), "metrics": dict(metrics), "value": rule.value(state)}
    return Answer(flatten(answers), {})


# whole learners


def start_engine(B: Any, problem: Problem) -> tuple[Any, Any]:
    """(engine, state before the first step) of a backend, or of the reference.

    The target critic is no copy of the critic, as it would be in training, but one of its own: else the two are told
    apart only after many steps.
    """
    learner = problem.part.make(B, problem.dims)
    engine = learner if B is reference else B.Engine(learner)
    networks = bind_networks(problem) if B is reference else make_networks(B, problem)
    state = parts.with_moments(engine, engine.init(*networks[:2]), problem.dims)
    target = {f"target_critic.{name}": array for name, array in problem.networks["target_critic"].items()}
    return engine, B.from_arrays(state, {**B.to_arrays(state), **target})


def computed(metrics: Mapping[str, Any]) -> Arrays:
    """The metrics of a step that were due: the others are absent or NaN."""
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: value for name, value in arrays.items() if not np.isnan(value)}


def _solve_learner(B: Any, problem: Problem) -> Answer:
    (engine, state), to_numpy, answers = start_engine(B, problem), tools(B).to_numpy, {}
    for i, (batch, noise) in enumerate(zip(problem.batches, problem.noises, strict=True)):
        state, metrics = engine.step(state, batch, noise)
        answers[str(i)] = {"metrics": computed(to_numpy(metrics)), "state": B.to_arrays(state)}
    return Answer(flatten(answers), {})


def _refer_learner(problem: Problem) -> Answer:
    (engine, state), answers = start_engine(reference, problem), {}
    for i, (batch, noise) in enumerate(zip(problem.batches, problem.noises, strict=True)):
        state, metrics = engine.step(state, batch, noise)
        answers[str(i)] = {"metrics": computed(metrics), "state": reference.to_arrays(state)}
    return Answer(flatten(answers), {})


KINDS: dict[str, Kind] = {
    "schedule": Kind(parts.SCHEDULES, _solve_schedule, _refer_schedule),
    "network": Kind({act: Part(lambda B, d: None) for act in parts.ACTIVATIONS}, _solve_networks, _refer_networks),
    "sampler": Kind(parts.SAMPLERS, _solve_sampler, _refer_sampler),
    "actor objective": Kind(parts.OBJECTIVES, _solve_objective, _refer_objective, num_batches=2),
    "critic objective": Kind(parts.CRITIC_OBJECTIVES, _solve_objective, _refer_objective, num_batches=2),
    "temperature": Kind(parts.TEMPERATURES, _solve_temperature, _refer_temperature, num_batches=3),
    "learner": Kind(parts.LEARNERS, _solve_learner, _refer_learner, num_batches=LEARNER_STEPS),
}
"""What is compared, simplest first."""
