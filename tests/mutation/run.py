"""Does the test suite notice mistakes? Applies the mutations of `mutations.py` one at a time and runs the tests.

    python tests/mutation/run.py [--jobs 2] [NAME ...]

A mutation is killed if a test fails on a copy of `diffac` and the backends that has it. It survives if none does; then
a test is missing. It is broken if its text is not found exactly once, if the copy cannot be imported or collected, or
if the code crashes with it where a test should have disagreed. Exit code 1 unless all are killed.

Each copy first meets the comparison with the NumPy reference of the rows named in the mutation; what survives that
meets the rest of the conformance kit and of the backends' tests. In a mutation of both backends, agreement between them
cannot see it, so both must be killed, Equinox by the rows alone, because there every test compiles for seconds.

This is a script and not mutmut or cosmic-ray: those change operators and constants all over the files, thousands of
mutants of which many are equivalent, cannot make the same mistake in two implementations, and know nothing of a
discount, a dropped detach or a stale critic. The mistakes here are those that implementations of these algorithms make.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mutations import MUTATIONS, Edit, Mutation
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from worker import PRELOADED, run_pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KIT = "tests/testing/test_conformance.py"
OTHERS = [
    *(
        f"tests/backends/test_{name}.py"
        for name in ("learner", "frozen", "normaliser", "traps", "properties", "networks", "critics", "temperatures")
    ),
    *(f"tests/parts/test_{name}.py" for name in ("bad_input", "schedules")),
]
DISAGREEMENTS = ("AssertionError", "Failed", "TypeCheckError")
"""What a test raises that notices something: a comparison, `pytest.raises`, a checked shape. Others are crashes."""

PROCESSES = multiprocessing.get_context("forkserver")


class Outcome(NamedTuple):
    """What became of one mutation in one backend."""

    verdict: str
    """ "killed", "survived" or "broken"."""
    by: str
    """The test that failed, or what is broken."""
    seconds: float


def mutate(folder: Path, backend: str, edit: Edit) -> str | None:
    """Applies an edit to the copy of a backend in a folder; returns what is wrong with it, if anything."""
    file = edit.find(backend, folder / "diffac", folder)
    text = file.read_text()
    if text.count(edit.old) != 1:
        return f"its text occurs {text.count(edit.old)} times in {backend}'s {edit.file}: {edit.old!r}"
    mutated = text.replace(edit.old, edit.new)
    try:
        compile(mutated, edit.file, "exec")
    except SyntaxError as error:
        return f"{backend}'s {edit.file} is no Python any more: {error}"
    file.write_text(mutated)
    return None


def copy_packages(packages: Iterable[Path], folder: Path) -> None:
    """Copies them without compiled files, which could be older than the mutation."""
    for package in packages:
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def run_tests(folder: Path, files: Sequence[str], selection: str) -> Outcome:
    """Runs the selected tests with the backends of a folder."""
    record = folder / "record.json"
    record.unlink(missing_ok=True)
    start = time.monotonic()
    process = PROCESSES.Process(target=run_pytest, args=(ROOT, folder, [*files, "-k", selection]))
    process.start()
    process.join()
    seconds = time.monotonic() - start
    if not record.exists():
        output = folder / "output.txt"
        said = output.read_text()[-300:].strip() if output.exists() else ""
        return Outcome("broken", f"pytest broke off with code {process.exitcode}: {said}", seconds)
    return Outcome(*judge(json.loads(record.read_text()), folder), seconds)


def judge(record: dict, folder: Path) -> tuple[str, str]:
    """(verdict, by) of a recorded run."""
    modules = {
        m: f for m, f in record["files"].items() if m.partition(".")[0] in ("diffac", "diffac_torch", "diffac_equinox")
    }
    for module, file in modules.items():
        if not file or not Path(file).is_relative_to(folder):
            return "broken", f"{module} was imported from {file}, not from the copy"
    if record["exit"] == 0 and modules:
        return "survived", ""
    if not record["failures"]:
        return "broken", f"pytest ended with code {record['exit']} after choosing {record['tests']} tests"
    failure = record["failures"][0]
    if failure["phase"] != "call" or failure["error"] not in DISAGREEMENTS:
        return "broken", f"{failure['error']} in {failure['phase']} of {failure['test']}"
    return "killed", failure["test"].rpartition("/")[2]


def rows(backend: str, *selections: str) -> str:
    """The pytest expression for the comparison of some rows with the reference."""
    return f"{backend} and test_rows_agree and ({' or '.join(f'({s})' for s in selections)})"


def try_mutation(source: Path, mutation: Mutation) -> dict[str, Outcome]:
    """Backend -> outcome."""
    outcomes = {}
    for backend, edit in mutation.edits.items():
        with tempfile.TemporaryDirectory(prefix="mutation-") as name:
            folder = Path(name).resolve()
            copy_packages(source.glob("diffac*"), folder)
            problem = mutate(folder, backend, edit)
            if problem:
                outcomes[backend] = Outcome("broken", problem, 0.0)
                continue
            outcome = run_tests(folder, [KIT], rows(backend, mutation.rows))
            if outcome.verdict == "survived" and backend == "torch":
                rest = run_tests(folder, [KIT, *OTHERS], backend)
                outcome = rest._replace(seconds=outcome.seconds + rest.seconds)
            outcomes[backend] = outcome
    return outcomes


def try_unchanged(folder: Path, mutations: Sequence[Mutation]) -> Iterator[tuple[str, Outcome]]:
    """The tests on the backends of a folder without a mutation: backend, outcome."""
    yield "torch", run_tests(folder, [KIT, *OTHERS], "torch")
    compared = sorted({mutation.rows for mutation in mutations if "equinox" in mutation.edits})
    if compared:
        yield "equinox", run_tests(folder, [KIT], rows("equinox", *compared))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only mutations whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=1, help="mutations tried at the same time")
    arguments = parser.parse_args()
    os.environ |= {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    )
    PROCESSES.set_forkserver_preload(PRELOADED)
    console = Console(width=None if sys.stdout.isatty() else 190)
    start = time.monotonic()

    chosen = [m for m in MUTATIONS if not arguments.names or any(name in m.name for name in arguments.names)]
    if not chosen or len({m.name for m in MUTATIONS}) < len(MUTATIONS):
        console.print("no such mutation" if not chosen else "two mutations have the same name")
        return 1
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        original = Path(name).resolve()  # so that nobody has to stop editing meanwhile
        copy_packages([ROOT / "diffac", *(ROOT / "backends").glob("diffac_*")], original)
        for backend, outcome in try_unchanged(original, chosen):
            if outcome.verdict != "survived":
                console.print(f"The tests fail without any mutation in {backend}: {outcome.by}", markup=False)
                return 1
            console.print(f"{backend} without a mutation passes in {outcome.seconds:.0f} s")
        results = []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            tried = pool.map(partial(try_mutation, original), chosen)
            for mutation, outcomes in track(zip(chosen, tried, strict=True), "Mutations", len(chosen), console=console):
                results.append(outcomes)
                for backend, outcome in outcomes.items():
                    if outcome.verdict != "killed":
                        line = f"{outcome.verdict} in {backend}: {mutation.name}. {outcome.by}"
                        console.print(line, markup=False)

    table = Table("mutation", "backend", "verdict", Column("by", overflow="fold"), "seconds")
    for mutation, outcomes in zip(chosen, results, strict=True):
        for backend, outcome in outcomes.items():
            colour = "green" if outcome.verdict == "killed" else "red"
            verdict = f"[{colour}]{outcome.verdict}[/]"
            table.add_row(mutation.name, backend, verdict, outcome.by.replace("[", r"\["), f"{outcome.seconds:.0f}")
    console.print(table)
    killed = sum(all(o.verdict == "killed" for o in outcomes.values()) for outcomes in results)
    console.print(f"{killed} of {len(chosen)} mutations killed in {time.monotonic() - start:.0f} s")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
