"""`diffac validate`: do the backends agree on this machine, with each other and with the NumPy reference?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Annotated, Any

import tyro

from diffac.backend import backend_names, get_backend, unknown_backend
from diffac.commands.parsing import parse
from diffac.errors import RunError, UsageError
from diffac.system import configure
from diffac.system.compiling import compiling
from diffac.system.orphans import end_with_parent
from diffac.system.signals import children_undisturbed
from diffac.system.versions import installed_versions
from diffac.testing.validation import CURVE_TOLERANCE, Curve, Row, compare, compare_learners, compare_module

PRECISIONS = ("float64", "float32")
"""A process each: JAX has to know the precision before it is imported."""


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


def _load(names: Sequence[str]) -> dict[str, Any]:
    """The installed backends among these, set up; torch first, because it must be imported before JAX."""
    loaded = {}
    for name in sorted(names, key=lambda name: name != "torch"):
        with contextlib.suppress(UsageError):
            loaded[name] = get_backend(name)
            configure(loaded[name])
    return loaded


def _work(precision: str, names: Sequence[str], config: ValidateArguments, results: Connection) -> None:
    """Sends the backends that are used and every result; what goes wrong, too."""
    end_with_parent()
    os.environ["JAX_ENABLE_X64"] = str(int(precision == "float64"))
    try:
        backends = _load(names)
        results.send(list(backends))
        if config.module is not None:
            work = compare_module(config.module, config.cases)
        elif config.steps:
            work = compare_learners(backends, config.steps)
        else:
            work = compare(backends, precision, config.cases)
        for result in work:
            results.send(result)
    except (UsageError, RunError) as error:
        results.send(error)
    except Exception as error:
        results.send(RunError(f"{type(error).__name__} while validating in {precision}: {error}"))


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
    workers: dict[str, Any] = {}
    results: dict[Connection, str] = {}
    try:
        with children_undisturbed():
            for precision in precisions:
                receiver, sender = context.Pipe(duplex=False)
                workers[precision] = context.Process(target=_work, args=(precision, names, config, sender), daemon=True)
                workers[precision].start()
                sender.close()  # so that the pipe ends with the process
                results[receiver] = precision
        return _collect(workers, results)
    finally:
        for worker in workers.values():
            worker.kill()


def _collect(workers: Mapping[str, Any], results: dict[Connection, str]) -> tuple[list[str], list[Any]]:
    """What the processes find, until all have ended."""
    from rich.console import Console

    used: list[str] = []
    collected: dict[str, list[Any]] = {precision: [] for precision in workers}
    with Console(stderr=True).status("starting the backends") as status, compiling("the parts of both backends"):
        while results:
            ready = wait(list(results), timeout=0.1)
            for receiver in [receiver for receiver in results if receiver in ready]:
                try:
                    result = receiver.recv()
                except EOFError:
                    worker = workers[precision := results.pop(receiver)]
                    worker.join()
                    if worker.exitcode != 0:
                        died = f"the process that validates in {precision} died with exit code {worker.exitcode}"
                        raise RunError(died) from None
                    continue
                if isinstance(result, Exception):
                    raise result
                if isinstance(result, list):
                    used = result
                else:
                    collected[results[receiver]].append(result)
                    status.update(f"{sum(map(len, collected.values()))} comparisons done, last {result.name}")
    return used, [result for precision in workers for result in collected[precision]]


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
