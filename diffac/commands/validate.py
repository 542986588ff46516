"""`diffac validate`: do the backends agree on this machine, with each other and with the NumPy reference?"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import platform
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from diffac.backend import backend_names, get_backend, unknown_backend
from diffac.commands.parsing import parse
from diffac.data.code_by_name import import_of
from diffac.errors import RunError, UsageError, said
from diffac.system import configure
from diffac.system.compiling import compiling
from diffac.system.orphans import end_with_parent
from diffac.system.signals import children_undisturbed
from diffac.system.versions import installed_versions

REFERENCE = "reference"
PRECISIONS = ("float64", "float32")
TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
"""Largest relative difference, entry by entry, that counts as agreement."""
FIT_TOLERANCE = 5e-3
"""That of temperatures in single precision: the fit behind their entropies stops where the likelihood changes by less
than 1e-3, and rounding decides a whole iteration of it."""
CURVE_TOLERANCE = 1e-6
"""Relative difference at which two learners' curves count as different (`--steps`)."""
SEED = 2026


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateArguments:
    """Compares the installed backends with each other and with the NumPy reference: the same parameters and the same
    noise through every part, in double and single precision. Exit code 1 if anything disagrees."""

    backends: tuple[str, ...] = ()
    """Backends to compare; none given: all that are installed."""
    cases: int = 3
    """Problems with other random numbers for each component."""
    steps: int = 0
    """Instead of single components: this many updates of whole learners side by side, and where their curves part."""
    module: str | None = None
    """Instead of our components: those of a module of yours, `my_parts` say, with a table
    `PARTS = {"name": (part_in_torch, part_in_equinox)}`; a third entry may hold arguments of `diffac.testing.compare`.
    In float64, with each other."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """One JSON object on standard output instead of the table."""

    def __post_init__(self) -> None:
        for name in self.backends:
            if name not in backend_names():
                raise unknown_backend(name)
        if self.cases < 1:
            raise UsageError(f"cases must be at least 1, got {self.cases}")
        if self.steps < 0:
            raise UsageError(f"steps must be at least 0, got {self.steps}")
        if self.module is not None and (self.steps or self.backends):
            raise UsageError("--module compares parts in torch and in equinox; leave out --steps and --backends")


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


# the work, in a process for each precision: JAX has to know the precision before it is imported


def _load(names: Sequence[str]) -> dict[str, Any]:
    """The installed backends among these, set up; torch first, because it must be imported before JAX."""
    loaded = {}
    for name in sorted(names, key=lambda name: name != "torch"):
        with contextlib.suppress(UsageError):
            loaded[name] = get_backend(name)
            configure(loaded[name])
    return loaded


def _work(precision: str, names: Sequence[str], config: ValidateArguments, results: Any) -> None:
    """Puts every result into the queue, then None; an exception goes there too."""
    end_with_parent()
    os.environ["JAX_ENABLE_X64"] = str(int(precision == "float64"))
    try:
        backends = _load(names)
        results.put(list(backends))
        if config.module is not None:
            work = compare_module(config.module, config.cases)
        elif config.steps:
            work = compare_learners(backends, config.steps)
        else:
            work = compare(backends, precision, config.cases)
        for result in work:
            results.put(result)
        results.put(None)
    except (UsageError, RunError) as error:
        results.put(error)
    except Exception as error:
        results.put(RunError(f"{type(error).__name__} while validating in {precision}: {error}"))


def compare(backends: Mapping[str, Any], precision: str, cases: int) -> Iterator[Row]:
    """All components on all devices, in the precision that this process was started for."""
    from diffac.testing import parts, problems

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
    from diffac.testing.problems import well_posed

    rng = np.random.default_rng([SEED, case, *f"{kind} {name}".encode()])
    while True:
        problem = _random_problem(kind, name, rng, dims).cast(precision)
        if well_posed(problem, precision):
            return problem


def _random_problem(kind: str, name: str, rng: np.random.Generator, dims: Any) -> Any:
    """Ordinary to unusual numbers."""
    from diffac.testing.parts import DIMS
    from diffac.testing.problems import make_problem

    return make_problem(
        *(kind, name, rng),
        dims=dims or DIMS,
        magnitude=10 ** rng.uniform(-1.5, 1),
        spread=10 ** rng.uniform(-0.5, 0.2),
        temperature=10 ** rng.uniform(-1, 1),
        termination=float(rng.choice([0.0, 0.3, 1.0])),
    )


def _devices_of(B: Any) -> list[str]:
    from diffac.testing.problems import tools

    return tools(B).devices() if hasattr(tools(B), "devices") else ["cpu"]


def _devices(backends: Mapping[str, Any]) -> list[str]:
    """Devices of any backend, the CPU first."""
    found = {device for B in backends.values() for device in _devices_of(B)}
    return sorted(found, key=lambda device: (device != "cpu", device))


def _on(B: Any, device: str) -> Any:
    from diffac.testing.problems import tools

    return tools(B).on_device(device) if hasattr(tools(B), "on_device") else contextlib.nullcontext()


def compare_learners(backends: Mapping[str, Any], steps: int) -> Iterator[Curve]:
    """Every learner of the tables, `steps` updates with the same batches and noise, in pairs; float64 on the CPU."""
    from diffac.testing import parts, problems, reference

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
    from diffac.testing import comparison

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


# the command


def validate(config: ValidateArguments) -> bool:
    """Runs the comparison, prints it, and says whether everything agrees.

    Raises:
        UsageError: no backend is installed.
        RunError: a comparison broke off.
    """
    names = config.backends or tuple(backend_names())
    begin = time.perf_counter()
    used, results = _run(names, config)
    absent = [name for name in names if name not in used]
    if not used:
        raise UsageError(
            f"no backend is installed ({', '.join(names)}); run: python -m pip install 'diffac[torch,equinox]'"
        )
    report = {
        "agree": all(result.agrees for result in results),
        "module": config.module,
        "backends": used,
        "not_installed": absent,
        "versions": _versions(),
        "machine": platform.platform(),
        "seconds": round(time.perf_counter() - begin, 1),
        "curves" if config.steps else "components": [{**r._asdict(), "agrees": r.agrees} for r in results],
    }
    if config.json:
        print(json.dumps(report, indent=1, default=_finite))
    else:
        _print(report, results)
    return report["agree"]


def main(argv: Sequence[str]) -> None:
    """Compares them.

    Raises:
        SystemExit: they disagree (code 1).
    """
    if not validate(parse(ValidateArguments, argv, "diffac validate")):
        raise SystemExit(1)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else str(value)


def _run(names: Sequence[str], config: ValidateArguments) -> tuple[list[str], list[Any]]:
    """A process for each precision; the results in the order of the tables."""
    context = multiprocessing.get_context("spawn")
    precisions = PRECISIONS[:1] if config.steps or config.module else PRECISIONS
    queues = {precision: context.Queue() for precision in precisions}
    workers = {p: context.Process(target=_work, args=(p, names, config, queues[p]), daemon=True) for p in precisions}
    with children_undisturbed():
        for worker in workers.values():
            worker.start()
    try:
        return _collect(workers, queues)
    finally:
        for worker in workers.values():
            worker.kill()


def _collect(workers: Mapping[str, Any], queues: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """What the processes find, until all have ended."""
    from rich.console import Console

    precisions = tuple(queues)
    used: list[str] = []
    collected: dict[str, list[Any]] = {precision: [] for precision in precisions}
    console = Console(stderr=True)
    with console.status("starting the backends") as status, compiling("the parts of both backends"):
        open_queues = set(precisions)
        while open_queues:
            for precision in sorted(open_queues):
                try:
                    result = queues[precision].get(timeout=0.1)
                except queue.Empty:
                    if workers[precision].is_alive():
                        continue
                    code = workers[precision].exitcode
                    raise RunError(f"the process that validates in {precision} died with exit code {code}") from None
                if isinstance(result, Exception):
                    raise result
                if isinstance(result, list):
                    used = result
                elif result is None:
                    open_queues.discard(precision)
                else:
                    collected[precision].append(result)
                    status.update(f"{sum(map(len, collected.values()))} comparisons done, last {result.name}")
    return used, [result for precision in precisions for result in collected[precision]]


def _versions() -> dict[str, str]:
    packages = ("diffac", "numpy", "torch", "jax", "jaxlib", "equinox", "optax")
    return {"python": platform.python_version(), **installed_versions(*packages)}


def _print(report: Mapping[str, Any], results: Sequence[Any]) -> None:
    from rich.console import Console

    console = Console()
    used, absent = report["backends"], report["not_installed"]
    others = " and ".join(used) + " with each other" + ("" if "curves" in report else " and with the NumPy reference")
    if len(used) == 1:
        others = f"{used[0]} with the NumPy reference only"
    if report["module"] is not None:
        others = f"the parts of {report['module']} in torch and in equinox"
    console.print(f"Compared: {others}." + "".join(f" {name} is not installed." for name in absent))
    console.print("  ".join(f"{package} {version}" for package, version in report["versions"].items()), style="dim")
    if results and isinstance(results[0], Curve):
        console.print(_curve_table(results))
    else:
        for device in dict.fromkeys(row.device for row in results):
            console.print(_table([row for row in results if row.device == device], device))
        learners = (
            " Learners: all of the state after each of the first steps; in double precision only, as Adam starts with "
            "the gradient's sign."
        )
        console.print(
            "Relative to the entry, where large numbers cancel to the largest entry of its array."
            + ("" if report["module"] else learners),
            style="dim",
        )
    disagreeing = [r for r in results if not r.agrees]
    if not disagreeing:
        console.print(f"[green]Everything agrees[/green] ({report['seconds']} s).")
        return
    console.print(f"[red]{len(disagreeing)} of {len(results)} comparisons disagree[/red] ({report['seconds']} s):")
    for r in disagreeing:
        what = f"{r.kind} {r.name} in {r.precision}: {r.worst}" if isinstance(r, Row) else f"{r.name}: {r.pair}"
        console.print(f"  {what}")


def _number(value: float | None, tolerance: float) -> str:
    if value is None:
        return ""
    text = "0" if value == 0 else f"{value:.0e}"
    return text if value <= tolerance else f"[red]{text}[/red]"


def _table(rows: Sequence[Row], device: str) -> Any:
    from rich.table import Table

    table = Table(title=f"Worst relative differences on {device}, {rows[0].cases} cases each", title_justify="left")
    table.add_column("component", no_wrap=True)
    precisions = list(dict.fromkeys(row.precision for row in rows))
    for precision in precisions:
        for what in ("values", "gradients"):
            table.add_column(f"{precision}\n{what}", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    last = ""
    for kind, name in dict.fromkeys((row.kind, row.name) for row in rows):
        if kind != last:
            table.add_section()
            table.add_row(f"[bold]{kind}[/bold]")
        last = kind
        found = {row.precision: row for row in rows if (row.kind, row.name) == (kind, name)}
        cells: list[str] = []
        for precision in precisions:
            row = found.get(precision)
            cells += ["", ""] if row is None else [_number(v, row.tolerance) for v in (row.values, row.gradients)]
        agrees = all(row.agrees for row in found.values())
        table.add_row(f"  {name}", *cells, "[green]agree[/green]" if agrees else "[red]disagree[/red]")
    return table


def _curve_table(curves: Sequence[Curve]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"Learners side by side, float64: first difference above {CURVE_TOLERANCE:g}", title_justify="left"
    )
    for column in ("learner", "compared", "steps", "part at step", "worst", "verdict"):
        table.add_column(column, justify="right" if column in ("steps", "worst") else "left", no_wrap=True)
    for curve in curves:
        verdict = "[green]agree[/green]" if curve.agrees else "[red]disagree[/red]"
        parted = "never" if curve.parted is None else str(curve.parted)
        table.add_row(
            *(curve.name, curve.pair, f"{curve.steps:,}", parted, f"{curve.values:.0e}"),
            verdict,
        )
    return table
