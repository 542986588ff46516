"""Results as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from .cases import CASES, SIZES
from .results import Results
from .switches import SWITCHES
from .targets import targets

BACKENDS = {"torch": "PyTorch", "equinox": "Equinox"}
PEERS = {"torch": "sb3", "equinox": "sbx"}
OTHERS = {"naive": "naive", "sb3": "Stable-Baselines3", "sbx": "SBX"}


class Table(NamedTuple):
    """A table of texts."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A section with the table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{self.note}\n\n{body}\n"

    def rich(self) -> RichTable:
        """The same for a terminal."""
        table = RichTable(*self.header, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


def number(value: float | None, pattern: str = "{:.3g}") -> str:
    """A number as text; a dash for what was not measured."""
    return "-" if value is None else pattern.format(value)


def tables(results: Results) -> list[Table]:
    """All tables that have a row."""
    makers: list[Callable[[Results], Table]] = [
        target_table, update_table, latency_table, switch_table, call_table, training_table, seed_table, peak_table,
    ]  # fmt: skip
    return [table for table in (make(results) for make in makers) if table.rows]


def show(results: Results, console: Console) -> None:
    """All tables."""
    for table in tables(results):
        console.print(table.rich())


def _places(results: Results) -> Iterator[tuple[str, str, str]]:
    """(case, env, backend) of our contenders, in the order of the tables."""
    present = {row[:3] for row in results.rows}
    for case in CASES:
        for env in SIZES:
            for backend in BACKENDS:
                if (case, env, backend) in present:
                    yield case, env, backend


def target_table(results: Results) -> Table:
    """Each target with what was measured."""
    rows = []
    for one in targets(results):
        sign = "≥" if one.at_least else "≤"
        rows.append([one.text, f"{sign} {one.wanted:g}{one.unit}", f"{one.value:.2g}{one.unit}"
                     if abs(one.value) < 1 else f"{one.value:.2f}{one.unit}", one.verdict])  # fmt: skip
    met = sum(one.met for one in targets(results))
    note = f"{met} of {len(rows)} are met. They were set before the work began, for this kind of machine."
    return Table("Targets", note, ["Target", "wanted", "measured", "verdict"], rows)


def update_table(results: Results) -> Table:
    """Updates against naive implementations or peers, and against the machine."""
    header = ["Case", "sizes", "backend", "against", "gain", "of peak", "GFLOP", "ms *", "compile s *", "memory GB *"]
    rows = []
    for case, env, backend in _places(results):
        place, other = (case, env, backend), PEERS[backend] if CASES[case].recipe == "sac" else "naive"
        ours = (*place, "ours")
        update = results.get(*ours, "update")
        if update is None:
            continue
        gain = results.ratio((*place, other, "update"), (*ours, "update"))
        rows.append(
            [
                CASES[case].title, env, BACKENDS[backend], OTHERS[other], number(gain, "{:.2f}x"),
                number(results.get(*ours, "fraction"), "{:.0%}"), number(results.get(case, env, "", "", "work")),
                number(update), number(results.get(*ours, "compile"), "{:.1f}"),
                number(results.get(*ours, "memory"), "{:.2f}"),
            ]
        )  # fmt: skip
    note = (
        "One update of a batch of 256: drawing the batch from a full replay memory, all of the update, until its "
        "results are there; the mean over both kinds of update where the actor is due every second time. *Gain*: time "
        "of the other over ours, in the same run, taking turns. *Of peak*: the operations that the mathematics needs "
        "(GFLOP), over the time, over the machine's fastest matrix product of these sizes. *Memory*: beyond the replay "
        "memory and the imported packages, compilers included. Columns with a star are of this machine, for "
        "orientation."
    )
    return Table("Updates", note, header, rows)


LATENCIES = {
    "1 obs *": "act 1",
    "8 obs *": "act 8",
    "1 obs, N=1 *": "act 1 without best-of-N",
    "8 obs, N=1 *": "act 8 without best-of-N",
    "1 obs, compiled *": "act 1 compiled",
    "8 obs, compiled *": "act 8 compiled",
    "1 obs, ONNX *": "act 1 exported",
    "8 obs, ONNX *": "act 8 exported",
}
"""Column -> measure."""


def latency_table(results: Results) -> Table:
    """Time of an action."""
    places = [place for place in _places(results) if results.get(*place, "ours", "act 1") is not None]
    columns = {
        column: measure
        for column, measure in LATENCIES.items()
        if any(results.get(*place, "ours", measure) is not None for place in places)
    }
    rows = []
    for case, env, backend in places:
        ours = (case, env, backend, "ours")
        sac = results.ratio((*ours, "act 1"), ("sac", env, backend, "ours", "act 1"))
        own = [number(results.get(*ours, measure)) for measure in columns.values()]
        peer = results.get(case, env, backend, PEERS[backend], "act 1")
        rows.append([CASES[case].title, env, BACKENDS[backend], number(sac, "{:.2f}x"), *own, number(peer)])
    header = ["Case", "sizes", "backend", "over SAC's", *columns, "peer, 1 obs *"]
    compiled = "*Compiled*: after `Agent.compile`; with JAX it always is. " if "1 obs, compiled *" in columns else ""
    note = (
        "Milliseconds of one call of `act`, NumPy to NumPy, noise given; median of three turns, each a median. *N=1*: "
        "without best-of-N. *Over SAC's*: time for one observation over that of our SAC (256x2) in the same backend. "
        f"{compiled}*ONNX*: the policy exported by `diffac export`, in onnxruntime; one program for any number of "
        "observations. Peer: `predict` of Stable-Baselines3 or SBX. Columns with a star are of this machine, for "
        "orientation."
    )
    return Table("Action latency", note, header, rows)


def switch_table(results: Results) -> Table:
    """Each optimisation off against on."""
    rows = []
    for name, switch in SWITCHES.items():
        for case, env, backend in _places(results):
            off = results.get(case, env, backend, name, "update")
            on = results.get(case, env, backend, "ours", "update beside switches")
            if off is None or on is None:
                continue
            row = [switch.title, CASES[case].title, env, BACKENDS[backend], f"{off / on:.2f}x", number(off), number(on)]
            rows.append(row)
    note = (
        "One part replaced by a slower one with equal results (a test compares them), everything else as it is; both "
        "take turns in one run. *Brings*: time without it over time with it. Values near 1 are noise, or mean that the "
        "compiler finds it without us. Columns with a star are of this machine, for orientation. Not in the table, "
        "since it takes a quota of processor time: no more threads than a container grants ([what it brings]"
        "(../start/getting-started.md#threads))."
    )
    header = ["Optimisation", "Case", "sizes", "backend", "brings", "ms without *", "ms with *"]
    return Table("What each optimisation brings", note, header, rows)


CALLS = (
    ("K = 10 updates in one call, against one", "update beside calls", "update, 10 fused", "{:.2f}x"),
    ("batch from replay on the host, against one on the device", "update beside calls", "update, batch on device",
     "{:.2f}x"),
    ("caches of compiled programs: first run, against later ones", "compile", "compile, caches full", "{:.2f}x"),
    ("`Agent.predict`, against the bare call", "predict", "bare", "{:.2f}x"),
)  # fmt: skip


def call_table(results: Results) -> Table:
    """What surrounds an update."""
    rows = []
    for title, above, below, pattern in CALLS:
        for case, env, backend in _places(results):
            ours = (case, env, backend, "ours")
            ratio = results.ratio((*ours, above), (*ours, below))
            if ratio is not None:
                rows.append([title, CASES[case].title, env, BACKENDS[backend], pattern.format(ratio)])
    for case, env, backend in _places(results):
        share = results.get(case, env, backend, "ours", "adaptation")
        if share is not None:
            title = "adaptation of the temperature, share of the updates' time"
            rows.append([title, CASES[case].title, env, BACKENDS[backend], f"{share:.1%}"])
    ratio = results.get("", "HalfCheetah", "", "ours", "replay over raw")
    if ratio is not None:
        rows.append(["1,000,000 transitions in memory, over their raw size", "", "HalfCheetah", "", f"{ratio:.3f}x"])
    note = "Ratios of times of one run. The adaptation has the recipe's default interval."
    return Table("Around the update", note, ["What", "Case", "sizes", "backend", "ratio"], rows)


def training_table(results: Results) -> Table:
    """Whole runs."""
    rows = []
    for case, env, backend in _places(results):
        steps = {kind: results.get(case, env, backend, kind, "steps") for kind in ("synchronous", "asynchronous")}
        for kind, value in steps.items():
            if value is None:
                continue
            run = (case, env, backend, kind)
            shares = [
                number(results.get(*run, name), "{:.1%}")
                for name in ("learner", "host", "act", "update", "env", "other")
            ]
            against = results.ratio((*run, "steps"), (case, env, backend, "synchronous", "steps"))
            title = [CASES[case].title, env, BACKENDS[backend], kind]
            rows.append([*title, number(against, "{:.2f}x"), *shares, number(value)])
    note = (
        "Five environments, one update for each environment step, five updates in a call, compiled before. *Learner*: "
        "acting and updating without the drawing of batches, share of the wall time. *Host*: drawing of batches and "
        "the loop itself, over the learner's time. The next four are shares of the wall time as they are logged "
        "(`time/...`, see [logged numbers](../use/metrics.md)). *Gain*: environment steps a second over those with "
        "synchronous environments. The column with a star is of this machine, for orientation."
    )
    header = [
        "Case", "environment", "backend", "environments", "gain", "learner", "host", "act", "update", "env", "other",
        "env steps/s *",
    ]  # fmt: skip
    return Table("Whole training runs", note, header, rows)


def seed_table(results: Results) -> Table:
    """Several seeds, each in a process of its own."""
    found = [row for row in results.rows if row.contender == "seeds"]
    rows = [[row.case, BACKENDS.get(row.backend, row.backend), row.measure, number(row.value, "{:.2f}x"), row.statistic]
            for row in found if row.unit == "ratio"]  # fmt: skip
    note = (
        "Updates of both seeds a second on two processors: `diffac train --num-seeds 2`, which is two runs at a "
        "time with a thread each, against two runs one after the other with two threads."
    )
    return Table("Many seeds", note, ["Recipe", "backend", "what", "gain", "measured"], rows)


def peak_table(results: Results) -> Table:
    """The matrix products alone, the median over all groups of the run."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in results.rows:
        if row.contender == "peak":
            found.setdefault((row.measure, row.backend), []).append(row.value)
    shapes = list(dict.fromkeys(shape for shape, _ in found))
    rows = []
    for shape in shapes:
        values = [sorted(found.get((shape, backend), [])) for backend in BACKENDS]
        rows.append([shape, *(number(v[len(v) // 2] if v else None, "{:.0f}") for v in values)])
    note = (
        "GFLOP/s of products with 256 x 256 weights in float32, measured between the turns of every case; the median "
        "over cases. What a fraction of peak refers to is the best of a case's own."
    )
    return Table("The machine's peak", note, ["Product", *(f"{title} *" for title in BACKENDS.values())], rows)
