"""Trains the `quick` presets on InvertedPendulum with seeds that had no part in choosing them.

    python -m tests.learning.learns                                    # every recipe, hours
    python -m tests.learning.learns dpmd sdac --seeds 40 41 --backends torch --jobs 1

`nox -s learns -- OPTIONS` does the same. As soon as a run ends it is added to docs/data/learns.csv, and
docs/results/learns.md made anew; a session that was broken off goes on where it was. Fails where a recipe solves less
than 9 in 10 of its runs. Presets are tuned on seeds below 20.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffac.runs.recipes import load_recipe, preset_values
from diffac_recipes import RECIPES

from .learned import BACKENDS, ENOUGH, ENV_ID, SOLVED, Row, add, read, share
from .learned_page import page

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data" / "learns.csv"
PAGE = ROOT / "docs" / "results" / "learns.md"
SEEDS = (40, 41, 42, 43, 44)
PRESET = "quick"
FRAMEWORKS = {"torch": "torch", "equinox": "jax"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
REPEAT = ("code", "settings", "all")


class Wanted(NamedTuple):
    """A run that should be in the data."""

    recipe: str
    backend: str
    seed: int
    code: str
    settings: str


def wanted(recipe: str, backend: str, seed: int) -> Wanted:
    """A run of the code and the preset as they are now."""
    return Wanted(recipe, backend, seed, code(recipe, backend), settings(recipe))


def settings(recipe: str) -> str:
    """A digest of the preset."""
    values = preset_values(load_recipe(recipe), recipe, PRESET, ENV_ID)
    return _digest(repr(sorted(values.items())).encode())


def code(recipe: str, backend: str) -> str:
    """A digest of every line that may have a part in a run."""
    module = Path(str(load_recipe(recipe).__file__))
    folders = [ROOT / "diffac", ROOT / "backends" / f"diffac_{backend}"]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    return _digest(*(file.read_bytes() for file in [*files, module]))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def is_done(run: Wanted, rows: Sequence[Row], repeat: str) -> bool:
    """Whether the data holds the run, and it need not be repeated."""
    for row in rows:
        if (row.recipe, row.backend, row.seed) == run[:3]:
            same_code = repeat == "settings" or row.code == run.code
            return repeat != "all" and same_code and row.settings == run.settings
    return False


def train(run: Wanted) -> Row:
    """A run of the command line, in a process and with a thread of its own.

    Raises:
        RuntimeError: it did not begin, or somebody stopped it; the message holds what it said last.
    """
    runs = ROOT / "runs" / "learns"
    runs.mkdir(parents=True, exist_ok=True)
    commit = _commit()  # now: the repository may change meanwhile
    folder = Path(tempfile.mkdtemp(prefix=f"{run.recipe}-{run.backend}-{run.seed}-", dir=runs))
    command = [sys.executable, "-m", "diffac", "train", run.recipe, "--preset", PRESET, "--env-id", ENV_ID]
    command += ["--backend", run.backend, "--seed", str(run.seed), "--run-root", str(folder), "--no-progress"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"} | ONE_THREAD
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    began = next(folder.rglob("config.yaml"), None)
    if began is None or done.returncode not in (0, 1):  # 1: broke off by itself, which is a result
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return row_of(run, began.parent, completed=done.returncode == 0, commit=commit)


def row_of(run: Wanted, folder: Path, *, completed: bool, commit: str) -> Row:
    """What the evaluations in the folder of a run say."""
    steps, updates, means = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    if (file := folder / "evaluations.npz").exists():
        with np.load(file) as data:
            steps, updates, means = data["timesteps"], data["updates"], data["results"].mean(1)
    reached = steps[means >= SOLVED]
    return Row(
        recipe=run.recipe,
        backend=run.backend,
        seed=run.seed,
        best=round(float(means.max()), 1) if len(means) else None,
        step_of_950=int(reached[0]) if len(reached) else None,
        last=round(float(means[-1]), 1) if completed and len(means) else None,
        env_steps=int(steps[-1]) if len(steps) else 0,
        updates=int(updates[-1]) if len(updates) else 0,
        settings=run.settings,
        code=run.code,
        commit=commit,
        versions=", ".join(f"{name} {version(name)}" for name in (FRAMEWORKS[run.backend], "gymnasium", "mujoco")),
    )


def _commit() -> str:
    """The last commit that changed what may have a part in a run."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "diffac", "backends", "recipes"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("log", "-1", "--format=%h") or "unknown") + (" with changes" if changed else "")


def session(
    runs: Sequence[Wanted],
    *,
    jobs: int = 2,
    repeat: str = "code",
    data: Path = DATA,
    page_file: Path = PAGE,
    train: Callable[[Wanted], Row] = train,
    say: Callable[[str], None] = print,
) -> bool:
    """Trains what is not in the data yet; whether every recipe solved enough of its runs.

    Args:
        runs: what should be in the data in the end.
        jobs: runs at a time.
        repeat: of the runs in the data those of other "code" or settings, those of other "settings" only, or "all".
        data: the file of all results; each is there as soon as its run has ended.
        page_file: the page made of them.
        train: does a run.
        say: prints a line.
    """
    rows = read(data)
    todo = [run for run in runs if not is_done(run, rows, repeat)]
    say(f"{len(runs)} runs, of which {len(runs) - len(todo)} are in {data.name} already")
    lock, failed = threading.Lock(), set[Wanted]()

    def keep(run: Wanted) -> Row:
        row = train(run)
        with lock:
            page_file.write_text(page(add(data, row)))
        return row

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(keep, run): run for run in todo}
        try:
            for future in as_completed(futures):
                run = futures[future]
                try:
                    say(future.result().line())
                except RuntimeError as error:
                    failed.add(run)
                    say(f"{run.recipe}, {run.backend}, seed {run.seed} failed: {error}")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return judge(runs, read(data), failed, say)


def judge(runs: Sequence[Wanted], rows: Sequence[Row], failed: set[Wanted], say: Callable[[str], None]) -> bool:
    """Whether each recipe solved enough of its runs; those that failed are not solved, whatever older data says."""
    kept = {row.key: row for row in rows}
    good = True
    for recipe in dict.fromkeys(run.recipe for run in runs):
        mine = [run for run in runs if run.recipe == recipe]
        solved = sum(run not in failed and kept[run[:3]].solved for run in mine)
        enough = solved >= ENOUGH * len(mine)
        say(f"{recipe}: solved {share(solved, len(mine))}" + ("" if enough else f", wanted {ENOUGH:.0%}"))
        good &= enough
    return good


def _recipe(name: str) -> str:
    if name not in RECIPES:
        raise argparse.ArgumentTypeError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return name


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        "tests.learning.learns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("recipes", nargs="*", type=_recipe, metavar="RECIPE", help="default: all")
    made.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="default: 40 to 44")
    made.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all")
    made.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each; default: 2")
    made.add_argument(
        "--repeat", choices=REPEAT, default="code",
        help="which runs in the data do not count: of another code or preset (default), of another preset, or all",
    )  # fmt: skip
    return made


def main() -> int:
    """The command."""
    options = parser().parse_args()
    for backend in options.backends:
        importlib.import_module(f"diffac_{backend}")  # a backend that is missing would cost an error a run
    runs = [
        wanted(recipe, backend, seed)
        for recipe in options.recipes or RECIPES
        for seed in options.seeds
        for backend in options.backends
    ]
    try:
        return 0 if session(runs, jobs=options.jobs, repeat=options.repeat) else 1
    except KeyboardInterrupt:
        print(f"stopped; what had ended is in {DATA.name}, and the same command does the rest")
        return 130


if __name__ == "__main__":
    sys.exit(main())
