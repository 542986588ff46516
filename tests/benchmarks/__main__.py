"""How fast diffac is, as tables, a picture and files.

    python -m tests.benchmarks                          # everything, one to two hours on two cores
    python -m tests.benchmarks --quick                  # updates and latency of three cases, minutes
    python -m tests.benchmarks --case sdac --measure updates --env Humanoid --backend torch
    python -m tests.benchmarks --check                  # --quick, and fails where a ratio has become worse
    python -m tests.benchmarks --publish    # everything, and writes docs/results/benchmarks.md and recorded.json
    python -m tests.benchmarks.updates --help           # times of updates alone, for tuning

`nox -s bench -- OPTIONS` does the same and brings Stable-Baselines3 and SBX. The machine should do nothing else:
ratios are fair on a busy one, but not repeatable.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from diffac.errors import UsageError

from . import suite
from .cases import CASES, SIZES
from .chart import draw_chart
from .origin import command, machine, origin
from .page import page
from .protocol import ROOT
from .ratios import RECORDED, TOLERANCE, ratios, read_recorded, record, too_low
from .results import Results, Row
from .seeds import seeds
from .tables import show, tables

MEASURES = ("updates", "calls", "switches", "training", "seeds")
QUICK = ("dacer2", "sdac_small", "sac")
CALLS = ("dacer2", "sdac", "sac")
RUNS = ("dacer2", "sdac", "dpmd", "dacer", "sac")
"""Cases of whole training runs."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        "tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="updates of three cases for HalfCheetah, fewer turns")
    made.add_argument("--case", nargs="+", choices=CASES, help="default: all; of --quick: " + ", ".join(QUICK))
    made.add_argument(
        "--env",
        nargs="+",
        choices=SIZES,
        help="sizes of observations and actions; default: both, for most rivals HalfCheetah",
    )
    made.add_argument("--backend", nargs="+", choices=("torch", "equinox"), default=["torch", "equinox"])
    made.add_argument("--measure", nargs="+", choices=MEASURES, help="default: all; of --quick: updates")
    made.add_argument("--rounds", type=int, help="turns of each contender; default: 5, of --quick: 3")
    made.add_argument("--peers", help="interpreter of an environment with stable-baselines3 and sbx-rl; default: none")
    made.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmarks", help="folder of the files")
    made.add_argument("--check", action="store_true", help=f"fail where a ratio lost more than {TOLERANCE:g} of itself")
    made.add_argument("--record", action="store_true", help="keep the ratios of this run for --check")
    made.add_argument("--publish", action="store_true", help="write docs/results/benchmarks.md too, and --record")
    return made


def measure(options: argparse.Namespace, say: Console) -> Results:
    """Runs what the options ask for."""
    quick = options.quick or options.check
    plan = suite.Plan(
        cases=options.case or (QUICK if quick else tuple(CASES)),
        envs=options.env or (("HalfCheetah",) if quick else None),
        backends=options.backend,
        rounds=options.rounds or (3 if quick else 5),
        peers=options.peers,
    )
    wanted = options.measure or (("updates",) if quick else MEASURES)
    rows: list[Row] = []
    where = origin(command(), options.peers)  # now: the repository may change meanwhile
    begin = time.perf_counter()

    def run(title: str, found: list[Row]) -> None:
        rows.extend(found)
        say.print(f"{time.perf_counter() - begin:6.0f} s  {title}", style="dim")

    for case in plan.cases:
        envs = plan.envs_of(case)
        for env in envs:
            if "updates" in wanted:
                run(f"updates, {case}, {env}", suite.updates(plan, case, env))
        if "HalfCheetah" in envs:
            if "calls" in wanted and case in CALLS:
                run(f"calls, {case}", suite.calls(plan, case, "HalfCheetah"))
            if "switches" in wanted:
                run(f"switches, {case}", suite.switches(plan, case, "HalfCheetah"))
        if "training" in wanted and case in RUNS:
            for env in envs:
                run(f"training, {case}, {env}", suite.training(plan, case, env))
    if "calls" in wanted:
        run("replay", suite.replay(plan))
    if "seeds" in wanted and not options.case:
        run("seeds", seeds())
    return Results(rows, where)


def judge(options: argparse.Namespace, results: Results, say: Console) -> bool:
    """Whether all ratios are good enough; those that are not are measured once more before they count.

    Raises:
        UsageError: this kind of machine has no recorded ratios, or none of those that were measured.
    """
    recorded = read_recorded(machine())
    now = ratios(results)
    try:
        low = too_low(now, recorded)
    except ValueError as error:
        raise UsageError(
            f"{error} for this kind of machine ({machine()}) in {RECORDED.name}; "
            f"record them from a commit that is fast enough: nox -s bench -- --record"
        ) from None
    if low:
        say.print(f"{len(low)} ratios are too low; measuring again")
        again = ratios(measure(options, say))
        low = {name: pair for name, pair in too_low(again, recorded).items() if name in low}
    for name, (value, before) in low.items():
        say.print(f"too slow: {name} is {value:.2f}, recorded {before:.2f} (at least {(1 - TOLERANCE) * before:.2f})")
    say.print(f"{len(now.keys() & recorded.keys()) - len(low)} ratios are as good as recorded, {len(low)} are not")
    return not low


def main() -> int:
    """The command."""
    options = parser().parse_args()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    say = Console(width=160) if not sys.stdout.isatty() else Console()
    results = measure(options, say)
    results.write(options.output)
    (options.output / "benchmarks.md").write_text("\n".join(table.markdown() for table in tables(results)))
    draw_chart(results, options.output / "benchmarks.svg")
    show(results, say)
    say.print(f"{options.output}: benchmarks.csv, .json, .md, .svg")
    if options.publish:
        docs = ROOT / "docs"
        results.write(docs / "data")
        shutil.copy(options.output / "benchmarks.svg", docs / "pictures" / "benchmarks.svg")
        (docs / "results" / "benchmarks.md").write_text(page(Results.read(docs / "data")))
    if options.record or options.publish:
        record(machine(), ratios(results))
    try:
        return 0 if not options.check or judge(options, results, say) else 1
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
