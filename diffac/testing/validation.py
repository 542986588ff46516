"""What `diffac validate` measures: parts and learners of the backends, with each other and with the NumPy reference."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffac.data.code_by_name import import_of
from diffac.errors import RunError, UsageError, said
from diffac.testing import comparison, parts, problems, reference

REFERENCE = "reference"
TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
"""Largest relative difference, entry by entry, that counts as agreement."""
FIT_TOLERANCE = 5e-3
"""That of temperatures in single precision: the fit behind their entropies stops where the likelihood changes by less
than 1e-3, and rounding decides a whole iteration of it."""
CURVE_TOLERANCE = 1e-6
"""Relative difference at which two learners' curves count as different (`--steps`)."""
SEED = 2026


class Row(NamedTuple):
    """One component in one precision on one device."""

    kind: str
    name: str
    precision: str
    device: str
    cases: int
    values: float
    """Worst relative difference between any two of the backends and the reference."""
    gradients: float | None
    """Likewise; None: nothing is differentiated."""
    worst: str
    """The two that differ most."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether both are within the tolerance."""
        return max(self.values, self.gradients or 0.0) <= self.tolerance


class Curve(NamedTuple):
    """One learner driven side by side."""

    name: str
    pair: str
    steps: int
    parted: int | None
    """The first step after which losses or parameters differ by more than `CURVE_TOLERANCE`; None: never."""
    values: float
    """Worst relative difference up to there."""

    @property
    def agrees(self) -> bool:
        """Whether the curves stayed together for the first hundred steps: rounding grows, errors are there at once."""
        return self.parted is None or self.parted > 100


def compare(backends: Mapping[str, Any], precision: str, cases: int) -> Iterator[Row]:
    """All components on all devices, in the precision that this process was started for."""
    rows = [(*row, parts.DIMS) for row in problems.rows()] + [(*row, parts.LARGE) for row in problems.large_rows()]
    rows.sort(key=lambda row: list(problems.KINDS).index(row[0]))
    for device in _devices(backends):
        here = {n: B for n, B in backends.items() if device in _devices_of(B)}
        for kind, name, dims in rows:
            if kind == "learner" and precision == "float32":
                continue  # Adam's first steps are lr * sign(gradient): rounding of a vanishing gradient decides
            worst = {"values": (0.0, ""), "gradients": (0.0, "")}
            differentiated = False
            number = cases if dims is parts.DIMS else 1
            for case in range(number):
                problem = _problem(kind, name, case, precision, dims)
                answers = {REFERENCE: problems.solve_by_reference(problem)}
                for backend, B in here.items():
                    with _on(B, device):
                        answers[backend] = problems.solve(B, problem)
                differentiated |= bool(answers[REFERENCE].gradients)
                for one, other in itertools.combinations(answers, 2):
                    for what in worst:
                        error = problems.difference(
                            *(getattr(answers[n], what) for n in (other, one)),
                            # a number that is small because large ones cancel is not known better in single precision
                            small=1e-3 if precision == "float64" else 1.0,
                            floor=1.0 if what == "values" else 0.0,
                        )
                        if error >= worst[what][0]:
                            worst[what] = (error, f"{one} - {other}")
            yield Row(
                kind=kind,
                name=name if dims is parts.DIMS else f"{name}, large",
                precision=precision,
                device=device,
                cases=number,
                values=worst["values"][0],
                gradients=worst["gradients"][0] if differentiated else None,
                worst=max(worst.values())[1],
                tolerance=FIT_TOLERANCE if (kind, precision) == ("temperature", "float32") else TOLERANCES[precision],
            )


def _problem(kind: str, name: str, case: int, precision: str, dims: Any = None) -> Any:
    """A problem in this precision, another one for each case and component; dims: None for the usual small ones.

    Some problems have no answer in a precision: where two candidates are equally good, rounding picks one. Then another
    one is drawn.
    """
    rng = np.random.default_rng([SEED, case, *f"{kind} {name}".encode()])
    while True:
        problem = _random_problem(kind, name, rng, dims).cast(precision)
        if problems.well_posed(problem, precision):
            return problem


def _random_problem(kind: str, name: str, rng: np.random.Generator, dims: Any) -> Any:
    """Ordinary to unusual numbers."""
    return problems.make_problem(
        *(kind, name, rng),
        dims=dims or parts.DIMS,
        magnitude=10 ** rng.uniform(-1.5, 1),
        spread=10 ** rng.uniform(-0.5, 0.2),
        temperature=10 ** rng.uniform(-1, 1),
        termination=float(rng.choice([0.0, 0.3, 1.0])),
    )


def _devices_of(B: Any) -> list[str]:
    return problems.tools(B).devices() if hasattr(problems.tools(B), "devices") else ["cpu"]


def _devices(backends: Mapping[str, Any]) -> list[str]:
    """Devices of any backend, the CPU first."""
    found = {device for B in backends.values() for device in _devices_of(B)}
    return sorted(found, key=lambda device: (device != "cpu", device))


def _on(B: Any, device: str) -> Any:
    return problems.tools(B).on_device(device) if hasattr(problems.tools(B), "on_device") else contextlib.nullcontext()


def compare_learners(backends: Mapping[str, Any], steps: int) -> Iterator[Curve]:
    """Every learner of the tables, `steps` updates with the same batches and noise, in pairs; float64 on the CPU."""
    worlds = dict(backends) if len(backends) > 1 else {**backends, REFERENCE: reference}
    for name in parts.LEARNERS:
        problem = _problem("learner", name, 0, "float64")
        running = {world: problems.start_engine(B, problem) for world, B in worlds.items()}
        pairs = list(itertools.combinations(worlds, 2))
        worst, parted = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs)
        rng = np.random.default_rng(SEED)
        for step in range(1, steps + 1):
            batch = parts.make_batch(rng, filled=False)
            noise = parts.make_noise(rng, next(iter(running.values()))[0])
            seen = {}
            for world, (engine, state) in running.items():
                state, metrics = engine.step(state, batch, noise)
                running[world] = (engine, state)
                if world != REFERENCE:
                    metrics = problems.tools(worlds[world]).to_numpy(metrics)
                # all parameters now and then: copying them costs more than an update
                arrays = worlds[world].to_arrays(state) if step % 50 == 0 or step == steps else {}
                seen[world] = {**problems.computed(metrics), **arrays}
            for pair in pairs:
                if parted[pair] is None:
                    error = problems.difference(*(seen[world] for world in pair), floor=1.0)
                    worst[pair] = max(worst[pair], error)
                    parted[pair] = step if error > CURVE_TOLERANCE else None
            if all(step is not None for step in parted.values()):
                break
        for pair in pairs:
            yield Curve(name, " - ".join(pair), steps, parted[pair], worst[pair])


def compare_module(name: str, cases: int) -> Iterator[Row]:
    """The pairs of a user's module, see `ValidateArguments.module`.

    Raises:
        UsageError: there is no such module, or it has no such table.
        RunError: a part raised an error.
    """
    for part, (in_torch, in_equinox, options) in _pairs(name).items():
        try:
            found = comparison.measure(in_torch, in_equinox, draws=cases, **options)
        except UsageError as error:
            raise UsageError(f"part {part!r} of {name}: {error}") from error
        except Exception as error:
            where = " ".join(getattr(error, "__notes__", []))
            raise RunError(f"part {part!r} of {name} raised {type(error).__name__}: {said(error)} {where}") from error
        worst = next((line for error, line in found.differences if error > TOLERANCES["float64"]), "")
        numbers = {"values": found.values, "gradients": found.gradients, "tolerance": TOLERANCES["float64"]}
        yield Row(found.kind, part, "float64", "cpu", cases, **numbers, worst=worst)


def _pairs(name: str) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    try:
        module = import_of(f"{name}:PARTS")
    except ImportError as error:
        raise UsageError(f"the module {name!r} cannot be imported: {error}") from error
    table = getattr(module, "PARTS", None)
    if not isinstance(table, Mapping) or not table:
        raise UsageError(f'{name} needs a table PARTS = {{"name": (part_in_torch, part_in_equinox)}}, got {table!r}')
    for part, row in table.items():
        if not isinstance(row, tuple) or len(row) not in (2, 3) or (len(row) == 3 and not isinstance(row[2], dict)):
            raise UsageError(
                f"PARTS[{part!r}] of {name} must be (part_in_torch, part_in_equinox), perhaps with a dictionary of "
                f"arguments for diffac.testing.compare, got {row!r}"
            )
    return {str(part): (row[0], row[1], row[2] if len(row) == 3 else {}) for part, row in table.items()}
