"""`compare`: one part, written in torch and in Equinox, on equal numbers."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffac.backend import get_backend
from diffac.errors import UsageError, check_count, unknown
from diffac.parts.schedules import tabulated, vp_schedule
from diffac.protocols import Loss
from diffac.testing import parts, problems
from diffac.testing.parts import DIMS, Dims, Part
from diffac.testing.problems import Answer, Arrays, Problem, difference, flatten, tools

NAMES = ("torch", "equinox")
"""In the order in which they are imported."""
LINES = 8
"""Of a message."""
FLOORS = {"values": 1.0, "gradients": 1e-3}
"""Size below which an array counts as this large: a loss may cancel, the slope of a saturated tanh has lost digits."""


class Comparison(NamedTuple):
    """What `compare` found."""

    name: str
    """Of the class in torch."""
    kind: str
    draws: int
    values: float
    """Worst relative difference of values, metrics and states."""
    gradients: float | None
    """Likewise; None: nothing is differentiated."""
    differences: tuple[tuple[float, str], ...] = ()
    """Of each array, with a sentence: values first, then gradients, the worst of each first."""

    def __str__(self) -> str:
        differentiated = "" if self.gradients is None else f", gradients to {self.gradients:.0e}"
        return f"{self.name} ({self.kind}, {self.draws} draws): values agree to {self.values:.0e}{differentiated}"


class Disagreement(AssertionError):
    """The two differ."""


def compare(
    part_in_torch: Any,
    part_in_equinox: Any,
    *,
    actor: Any = "denoiser",
    critic: Any = "gaussian",
    dims: Dims = DIMS,
    draws: int = 3,
    tolerance: float = 1e-9,
) -> Comparison:
    """Asserts that two implementations of a part compute the same, in float64, with equal parameters, batch and noise.

    The part is a network, noise schedule, sampler, actor objective, proposal, critic objective, temperature,
    normaliser, optimiser or learner; which one is seen from its methods. Compared are its noise specification, values,
    metrics, states (of a few batches in a row) and gradients by parameter name; of an optimiser or learner all that its
    steps change. Networks are copied, and both copies get the same random float64 parameters, so these must have the
    same names and shapes in both.

    Nothing need be set beforehand, and the parts may have been made in float32. While it runs, torch's default dtype is
    float64 and its default device the CPU (in this process), and JAX has `jax_enable_x64` and the CPU as default device
    (in this thread); all of it is put back at the end.

    Args:
        part_in_torch: the part, an object.
        part_in_equinox: its counterpart.
        actor: the network that a part is called with: a name in `diffac.testing.parts.ACTORS` ("denoiser", "velocity",
            "clean", "deterministic", "gaussian"), or your own, as a pair (in torch, in Equinox).
        critic: likewise, of `CRITICS` ("gaussian", "twin", "three").
        dims: sizes; observations have 3 entries, actions 2, unless you say otherwise.
        draws: number of random problems.
        tolerance: of the relative difference of each entry, see `diffac.testing.problems.difference`.

    Returns:
        How far apart they are.

    Raises:
        Disagreement: says which arrays differ, and by how much.
        UsageError: a backend is not installed, or the two are no parts of one kind.
    """
    found = measure(part_in_torch, part_in_equinox, actor=actor, critic=critic, dims=dims, draws=draws)
    if max(found.values, found.gradients or 0.0) > tolerance:
        lines = [line for error, line in found.differences if error > tolerance]
        more = f"\n  and {len(lines) - LINES} more" if len(lines) > LINES else ""
        raise Disagreement(
            f"{found.name} differs between torch and equinox ({tolerance:g} is allowed):\n  "
            + "\n  ".join(lines[:LINES])
            + more
        )
    return found


def measure(
    part_in_torch: Any,
    part_in_equinox: Any,
    *,
    actor: Any = "denoiser",
    critic: Any = "gaussian",
    dims: Dims = DIMS,
    draws: int = 3,
) -> Comparison:
    """How far apart the two are, whatever it is. Arguments and errors as for `compare`."""
    check_count("draws", draws)
    pair = dict(zip(NAMES, (part_in_torch, part_in_equinox), strict=True))
    kinds = {name: kind_of(part) for name, part in pair.items()}
    name = type(part_in_torch).__name__
    if len(set(kinds.values())) > 1:
        raise UsageError(f"{name} is a {kinds['torch']} in torch, and a {kinds['equinox']} in equinox")
    backends = {name: get_backend(name) for name in NAMES}
    solve = SOLVERS[kinds["torch"]]
    try:
        with _double_precision(backends.values()):
            answers = [solve(backends, pair, actor, critic, dims, draw) for draw in range(draws)]
    except Disagreement as error:
        return Comparison(name, kinds["torch"], draws, np.inf, None, ((np.inf, str(error)),))
    worst, lines = {}, []
    for what, floor in FLOORS.items():
        found: dict[str, tuple[float, str]] = {}
        for draw, answer in enumerate(answers):
            one, other = (getattr(answer[name], what) for name in NAMES)
            for array, error, said in _differences(one, other, floor):
                # parts that see several batches have their answers by batch; a network's own names may begin so
                of_batch = array[0].isdigit() and kinds["torch"] != "network"
                batch, _, rest = array.partition(".") if of_batch else ("", "", array)
                where = f"draw {draw}, batch {batch}" if batch else f"draw {draw}"
                line = f"{'gradient of ' * (what == 'gradients')}{rest} ({where}): {said}"
                found[rest] = max(found.get(rest, (-1.0, "")), (error, line))
        worst[what] = max((error for error, _ in found.values()), default=0.0)
        lines += sorted(found.values(), reverse=True)
    gradients = worst["gradients"] if answers[0]["torch"].gradients else None
    return Comparison(name, kinds["torch"], draws, worst["values"], gradients, tuple(lines))


@contextlib.contextmanager
def _double_precision(backends: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for B in backends:
            stack.enter_context(tools(B).double_precision())
            stack.enter_context(tools(B).on_device("cpu"))
        yield


def _differences(one: Arrays, other: Arrays, floor: float) -> Iterator[tuple[str, float, str]]:
    """(name, relative difference, sentence) of every array; infinite where only one has it, or where shapes differ."""
    for name in {**one, **other}:
        if name not in one or name not in other:
            yield name, np.inf, f"only in {'torch' if name in one else 'equinox'}"
        elif one[name].shape != other[name].shape:
            yield name, np.inf, f"shape {one[name].shape} in torch, {other[name].shape} in equinox"
        elif one[name].size:
            error = difference({name: one[name]}, {name: other[name]}, floor=floor)
            distance = np.abs(np.subtract(one[name], other[name], dtype=np.float64))
            at = np.unravel_index(np.nan_to_num(distance, nan=np.inf).argmax(), distance.shape)
            where = f" at [{', '.join(map(str, at))}]" if at else ""
            a, b = (float(array[name][at]) for array in (one, other))
            yield name, error, f"{a:.10g} in torch, {b:.10g} in equinox{where}, relative difference {error:.0e}"


# what a part is


def kind_of(part: Any) -> str:
    """What a part is, by the methods that it has.

    Raises:
        UsageError: it is nothing that can be compared.
    """

    def has(*names: str) -> bool:
        return all(hasattr(part, name) for name in names)

    if not isinstance(part, type):
        if has("num_steps", "alpha", "sigma"):
            return "schedule"
        if has("init", "step"):
            return "learner" if has("noise_spec") else "optimiser"
        if has("noise_spec", "rollout"):
            return "sampler"
        if has("noise_spec", "init_state", "update", "value"):
            return "temperature"
        if has("noise_spec", "init_state", "__call__"):
            if _num_inputs(part.noise_spec) == 2:
                return "proposal"
            return "critic objective" if _num_inputs(part.init_state) else "actor objective"
        if has("init_state", "__call__"):
            return "normaliser"
        if callable(part) and (has("parameters", "forward") or has("__dataclass_fields__")):
            return "network"
    raise UsageError(
        f"{part!r} cannot be compared: it must be an object, a network or one with the methods of NoiseSchedule, "
        "Sampler, ActorObjective, CriticObjective, Temperature, ObsNormaliser, Optimiser or Learner (diffac.protocols)"
    )


def _num_inputs(function: Callable[..., Any]) -> int:
    """Number of arguments without default."""
    arguments = inspect.signature(getattr(function, "forward", function)).parameters.values()
    return sum(a.default is a.empty and a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments)


# how it is solved: (backends, pair of parts, actor, critic, dims, number of the draw) -> an answer a backend

Answers = dict[str, Answer]


def _solve_schedule(backends: Any, pair: Any, actor: Any, critic: Any, dims: Dims, draw: int) -> Answers:
    tables = {name: tabulated(part) for name, part in pair.items()}
    return {name: Answer({"alpha": table.alphas, "sigma": table.sigmas}, {}) for name, table in tables.items()}


def _solve_row(kind: str, backends: Any, pair: Any, actor: Any, critic: Any, dims: Dims, draw: int) -> Answers:
    """As a row of `diffac.testing.parts`."""
    rng = np.random.default_rng([draw, *kind.encode()])
    row = Part(lambda B, d: pair[B.name], _maker("actor", actor, parts.ACTORS), _maker("critic", critic, parts.CRITICS))
    of_torch = {"actor": parts.make_actor, "critic": parts.make_critic, "target_critic": parts.make_critic}
    made = {name: {n: make(B, row, dims=dims) for n, make in of_torch.items()} for name, B in backends.items()}
    networks = {
        n: _equal_parameters(rng, n, {name: (B, made[name][n]) for name, B in backends.items()}) for n in of_torch
    }
    specs = {name: problems.noise_spec(kind, part, dims) for name, part in pair.items()}
    if _ordered(specs["torch"]) != _ordered(specs["equinox"]):
        raise Disagreement(f"noise_spec: {specs['torch']} in torch, {specs['equinox']} in equinox")
    problem = Problem(kind, "", networks, np.array(0.7), [], [], row, dims)
    problem = problems.with_batches(problem, specs["torch"], rng)
    beside = "".join(f", with the {role} {given!r}" for role, given in {"actor": actor, "critic": critic}.items())
    return {name: _named(name + beside, problems.solve, B, problem) for name, B in backends.items()}


def _solve_proposal(backends: Any, pair: Any, actor: Any, critic: Any, dims: Dims, draw: int) -> Answers:
    """Through the regression on its data."""
    schedule = vp_schedule(dims.steps)
    whole = {name: B.ReweightedScoreMatching(schedule, pair[name]) for name, B in backends.items()}
    return _solve_row("actor objective", backends, whole, actor, critic, dims, draw)


def _solve_normaliser(backends: Any, pair: Any, actor: Any, critic: Any, dims: Dims, draw: int) -> Answers:
    """Its first moments, and what it makes of observations by others."""
    obs = np.random.default_rng([draw, *b"normaliser"]).standard_normal((problems.PARTICLES, dims.batch, dims.obs))
    answers = {}
    for name, B in backends.items():
        part, t = pair[name], tools(B)
        seen = _named(name, part, *map(t.to_backend, (obs, parts.moments(dims))))
        answers[name] = Answer(flatten({"first": part.init_state(), "seen": t.to_numpy(seen)}), {})
    return answers


def _solve_optimiser(backends: Any, pair: Any, actor: Any, critic: Any, dims: Dims, draw: int) -> Answers:
    """In a learner whose both networks it trains."""

    def learner(B: Any, optimiser: Any) -> Any:
        sampler = B.DDPMSampler(vp_schedule(dims.steps))
        return B.Learner(
            sampler=sampler,
            actor_objective=B.ValueThroughSampler(sampler),
            critic_objective=B.MeanSquaredTD(),
            temperature=B.FixedTemperature(),
            actor_optimiser=optimiser,
            critic_optimiser=optimiser,
        )

    whole = {name: learner(B, pair[name]) for name, B in backends.items()}
    return _solve_row("learner", backends, whole, actor, critic, dims, draw)


def _solve_network(backends: Any, pair: Any, actor: Any, critic: Any, dims: Dims, draw: int) -> Answers:
    """Everything that it computes, with another leading axis for actions and times, and the gradient of its square."""
    rng = np.random.default_rng([draw, *b"network"])
    arrays = _equal_parameters(rng, "network", {name: (B, pair[name]) for name, B in backends.items()})
    obs = rng.standard_normal((dims.batch, dims.obs))
    action = rng.uniform(-1, 1, (problems.PARTICLES, *dims.shape))
    times = rng.integers(0, dims.steps, (problems.PARTICLES, dims.batch))
    inputs = (obs, action, times)[: _num_inputs(pair["torch"])]
    return {name: _named(name, _run_network, B, pair[name], arrays, inputs, dims) for name, B in backends.items()}


def _run_network(B: Any, network: Any, arrays: Arrays, inputs: tuple[Any, ...], dims: Dims) -> Answer:
    t = tools(B)
    network = t.in_evaluation_mode(B.from_arrays(copy.deepcopy(network), arrays))
    outputs = t.compiled(_outputs)(network, t.to_backend(inputs), dims.steps)
    _, gradient = t.value_and_grad(_square, network, inputs, dims.steps, {})
    return Answer(flatten(t.to_numpy(outputs)), flatten(gradient))


def _outputs(network: Any, inputs: tuple[Any, ...], num_steps: int) -> dict[str, Any]:
    outputs = {"output": network(*inputs)}
    if hasattr(network, "distribution"):
        outputs["distribution"] = network.distribution(*inputs)
    if hasattr(network, "condition"):
        outputs["with condition"] = network(network.condition(inputs[0], num_steps), *inputs[1:])
    if len(inputs) == 3:
        outputs["at time 1"] = network(*inputs[:2], 1)
    return outputs


def _square(network: Any, inputs: tuple[Any, ...], num_steps: int, state: Any) -> Loss:
    return Loss(sum((leaf**2).mean() for leaf in _leaves(_outputs(network, inputs, num_steps))), {}, state)


def _leaves(tree: Any) -> list[Any]:
    branches = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, tuple) else None
    return [tree] if branches is None else [leaf for branch in branches for leaf in _leaves(branch)]


SOLVERS: dict[str, Callable[..., Answers]] = {
    "network": _solve_network,
    "schedule": _solve_schedule,
    "sampler": lambda *args: _solve_row("sampler", *args),
    "actor objective": lambda *args: _solve_row("actor objective", *args),
    "proposal": _solve_proposal,
    "critic objective": lambda *args: _solve_row("critic objective", *args),
    "temperature": lambda *args: _solve_row("temperature", *args),
    "normaliser": _solve_normaliser,
    "optimiser": _solve_optimiser,
    "learner": lambda *args: _solve_row("learner", *args),
}


def _maker(role: str, given: Any, table: Mapping[str, Any]) -> Callable[..., Any] | str:
    """What a row of `diffac.testing.parts` has in the place of a network."""
    if isinstance(given, str):
        if given not in table:
            raise unknown(role, given, table)
        return given
    if not isinstance(given, tuple) or len(given) != 2:
        raise UsageError(f"{role} must be a name ({', '.join(table)}) or a pair (in torch, in equinox), got {given!r}")
    own = dict(zip(NAMES, given, strict=True))
    return lambda B, *args, **kw: tools(B).in_evaluation_mode(copy.deepcopy(own[B.name]))


def _equal_parameters(rng: np.random.Generator, role: str, networks: Mapping[str, tuple[Any, Any]]) -> Arrays:
    """Float64 parameters for both networks: torch's initial ones, moved, so that nothing hides behind a zero."""
    arrays = {name: B.to_arrays(network) for name, (B, network) in networks.items()}
    shapes = [{n: array.shape for n, array in arrays[name].items()} for name in NAMES]
    if shapes[0] != shapes[1]:
        different = _differences(arrays["torch"], arrays["equinox"], 1.0)
        wrong = [f"{array}: {line}" for array, error, line in different if np.isinf(error)]
        raise UsageError(
            f"the parameters of the {role} must have the same names and shapes in both backends: {'; '.join(wrong)}"
        )
    return {n: _moved(rng, array) for n, array in sorted(arrays["torch"].items())}


def _moved(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    scale = 0.3 / np.sqrt(array.shape[-1]) if array.ndim else 0.3
    return array.astype(np.float64) + scale * rng.standard_normal(array.shape)


def _ordered(spec: Any) -> list[Any]:
    """The order counts: it decides which numbers an entry gets."""
    return [(name, _ordered(law) if isinstance(law, Mapping) else law) for name, law in spec.items()]


def _named(where: str, function: Callable[..., Answer], *args: Any) -> Answer:
    """The call; an error says in which of the two it happened."""
    try:
        return function(*args)
    except Exception as error:
        error.add_note(f"(computing the part in {where})")
        raise
