"""Puts a report together: pictures, CSV files and the page."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffac.errors import UsageError
from diffac.files.untrusted import inside, write_atomically
from diffac.logging.files import csv_row
from diffac.messages import shorten
from diffac.reports import page, pictures
from diffac.reports.comparison import Cell, Comparison, Method, differing_settings, setting_text, with_room
from diffac.reports.page import Column, Picture, Section, Value
from diffac.reports.pictures import NOTHING, Series, duration, number
from diffac.reports.reading import Run, read_runs
from diffac.reports.search import PAGE, PARTS_OF_A_REPORT, Skipped
from diffac.reports.searches import STATES, SearchResult, read_searches
from diffac.reports.statistics import FEW_SEEDS, MIN_SEEDS, RESAMPLES, Interval
from diffac.system.versions import diffac_version

PROFILE_POINTS = 201
"""Thresholds of a performance profile."""
METHOD = ("recipe", "backend", "variant")
LISTED = 1_000
"""Most runs in the table of runs and in that of what is left out; data/ has all."""
SEARCHES, BEST = 50, 10
"""Most searches on the page, and trials of each in its table; data/ has all."""
LONGEST_FILE_NAME = 100


def write_report(
    paths: Sequence[str], out: Path, *, env_id: str | None, unfinished: bool
) -> tuple[Path, list[Skipped]]:
    """The page, and what is left out of it; see `diffac.reports.make_report`."""
    runs, skipped = read_runs(paths, env_id=env_id, unfinished=unfinished)
    runs, too_many = with_room(runs)
    searches, unread = read_searches(paths)
    skipped += too_many + unread
    try:
        for folder in PARTS_OF_A_REPORT:
            inside(out, folder).mkdir(parents=True, exist_ok=True)
        with pictures.style():
            text = _Report(Comparison(runs), searches, skipped, out).page()
        write_atomically(out / PAGE, text.encode())
    except OSError as error:
        raise UsageError(f"the report cannot be written to {out}: {error}") from error
    return out / PAGE, skipped


class _Report:
    """One report."""

    def __init__(
        self, comparison: Comparison, searches: Sequence[SearchResult], skipped: Sequence[Skipped], out: Path
    ) -> None:
        self.comparison, self.searches, self.skipped, self.out = comparison, searches, skipped, out
        self.files: set[str] = set()
        self.differing: dict[tuple[str, str, str], list[str]] = {}
        """(environment, recipe, backend) -> settings."""
        self.look = pictures.looks(comparison.methods)
        self.colour = {light: f"var(--{name})" for name, light, _ in pictures.colour_variables()}

    def page(self) -> str:
        """Writes all files but the page, and returns the page."""
        comparison = self.comparison
        runs = [run for cell in comparison.cells.values() for run in cell.runs]
        lead = (
            f"{count(len(runs), 'run')} of {count(len(comparison.methods), 'method')} "
            f"in {count(len(comparison.env_ids), 'environment')}: {', '.join(comparison.env_ids)}."
        )
        if (hours := _core_hours(runs)) is not None:
            lead += f" They took {hours:,.3g} core-hours."
        sections = [self.results(), self.steps(), self.time(), self.profiles(), self.improvement(), self.provenance()]
        if self.searches:
            sections.insert(0, self.search())
        if self.skipped:
            sections.append(self.left_out())
        sections.append(Section("How the numbers are made", page.definitions(DEFINITIONS)))
        footer = page.escape(
            f"Made {datetime.datetime.now():%Y-%m-%d %H:%M} with diffac {diffac_version()}. Pictures lie beside this "
            "page in pictures/, all that is drawn in data/ as CSV."
        )
        return page.page("Report of runs", lead, self.care(), [s for s in sections if s is not None], footer)

    # ---- what to know first

    def care(self) -> list[str]:
        """Sentences that keep a reader from concluding too much."""
        sentences = []
        for env_id in self.comparison.env_ids:
            cells = self.comparison.of_env(env_id)
            sentences += [f"{env_id}: {sentence}" for sentence in [*_seeds_care(cells), *_environment_care(cells)]]
        if self.searches:
            seeds = ", ".join(map(str, sorted({seed for result in self.searches for seed in result.seeds})))
            sentences.append(
                f"Runs of {count(len(self.searches), 'search', 'searches')} are among these. What was chosen by its "
                f"return on a seed looks better on it than it is: compare with other seeds than {seeds}."
            )
        if self.skipped:
            unfinished = sum(entry.reason.startswith("unfinished") for entry in self.skipped)
            more = f" ({unfinished} unfinished: leaving out runs that failed flatters a method)" if unfinished else ""
            sentences.append(f"Left out: {count(len(self.skipped), 'run or file', 'runs or files')}{more}; see below.")
        return sentences

    # ---- sections

    def results(self) -> Section:
        """A table for each environment."""
        columns = [
            Column("Method", is_text=True), Column("Seeds"), Column("Last: IQM, 95 % interval"),
            Column("Last: mean ± std"), Column("Best of last 10 %: mean ± std"), Column("Best: mean ± std"),
            Column("Environment steps"), Column("Updates"), Column("Median time"), Column("Core-hours"),
        ]  # fmt: skip
        note = (
            "IQM: interquartile mean over the seeds. Std: over the seeds. Core-hours: of all seeds together. Papers "
            "report different columns: SDAC and DPMD the best evaluation of the run, DACER and DACER2 the best of the "
            "last 10 %. Compare like with like."
        )
        parts, records = [page.paragraph(note, "note")], []
        for env_id in self.comparison.env_ids:
            cells = self.comparison.of_env(env_id)
            parts += [page.heading(env_id), page.table(columns, [self._result_row(cell) for cell in cells])]
            records += [_result_record(cell) for cell in cells]
        self.csv("results", records)
        return Section("Results", "".join(parts))

    def _result_row(self, cell: Cell) -> list[Value | str]:
        summary, updates = cell.summary, _updates(cell)
        return [
            self._method(cell),
            Value(str(cell.seeds), cell.seeds),
            Value(number(summary.iqm), summary.iqm, interval_text(summary.interval)),
            *(Value(mean_std_text(*pair), pair[0]) for pair in (summary.last, summary.best_late, summary.best)),
            Value(f"{cell.end:,}", cell.end),
            Value(span(updates), updates[0]) if updates else NOTHING,
            Value(duration(_median_seconds(cell)), _median_seconds(cell)) if cell.timed else NOTHING,
            NOTHING if (hours := _core_hours(cell.runs)) is None else Value(f"{hours:.3g}", hours),
        ]

    def _method(self, cell: Cell) -> Value:
        """The name of a method, with its dot and the settings by which it differs."""
        method = cell.method
        settings = setting_text(cell.runs[0], self._differing(cell)) if method.variant else ""
        return Value(method._replace(variant="").label, method.label, settings, self.colour[self.look[method].colour])

    def _differing(self, cell: Cell) -> list[str]:
        """Settings in which the methods of the same recipe and backend differ."""
        key = (cell.env_id, *cell.method[:2])
        if key not in self.differing:
            cells = [other for other in self.comparison.of_env(cell.env_id) if other.method[:2] == cell.method[:2]]
            self.differing[key] = differing_settings([run for other in cells for run in other.runs])
        return self.differing[key]

    def steps(self) -> Section:
        """Curves over environment steps: sample efficiency."""
        drawn, records = [], []
        for env_id in self.comparison.env_ids:
            cells = self.comparison.of_env(env_id)
            series = [_series(cell) for cell in cells]
            drawn.append(self.picture(
                f"curves_steps_{env_id}", f"Return over environment steps in {env_id}",
                pictures.draw_curves(env_id, series, self.look, x="steps", y=_measure(cells)),
            ))  # fmt: skip
            records += [record for cell in cells for record in _curve_records(cell)]
        self.csv("curves", records)
        self.csv("seeds", [r for cell in self.comparison.cells.values() for r in _seed_records(cell)])
        note = "Thick: interquartile mean over the seeds, with its 95 % interval. Thin: every seed."
        if self.comparison.aggregates:
            drawn.append(self._aggregate())
        return Section(
            "Sample efficiency", page.paragraph(note + " " + self._aggregate_note(), "note") + page.panels(drawn)
        )

    def _aggregate(self) -> Picture:
        series, records = [], []
        for method in self.comparison.complete:
            curve = self.comparison.aggregate_curve(method)
            series.append(Series(method, self._size(method), curve.x, curve.iqm, curve.interval))
            records += _rows(method, "share_of_steps", curve.x, iqm=curve.iqm, **curve.interval._asdict())
        self.csv("curves_all", records)
        return self.picture(
            "curves_steps_all", "Normalised return in several environments together",
            pictures.draw_curves(
                f"{self._shared}, normalised", series, self.look, x="share", y="normalised return"
            ),
        )  # fmt: skip

    @property
    def _shared(self) -> str:
        """The environments that are put together, in words."""
        some = len(self.comparison.shared) < len(self.comparison.env_ids)
        return f"{len(self.comparison.shared)} environments" if some else "All environments"

    def _size(self, method: Method) -> str:
        return count(sum(self.comparison.cells[env_id, method].seeds for env_id in self.comparison.shared), "run")

    def _aggregate_note(self) -> str:
        """Whether and for whom environments are put together."""
        comparison = self.comparison
        if len(comparison.env_ids) == 1:
            return ""
        if not comparison.aggregates:
            return "No picture over several environments: no two methods share any two."
        missing = [method.label for method in comparison.methods if method not in comparison.complete]
        scales = ((env_id, *comparison.scale[env_id]) for env_id in comparison.shared)
        scale = "; ".join(f"{env_id} {number(low)} to {number(high)}" for env_id, low, high in scales)
        left = f" Not in it, because they did not run in all of these: {'; '.join(missing)}" if missing else ""
        return (
            f"{self._shared} together: 0 is the lowest first, 1 the highest last return of any run here ({scale}); "
            f"runs of one environment are drawn anew only among themselves (stratified).{left}"
        )

    def time(self) -> Section | None:
        """Curves over wall-clock time."""
        drawn, without = [], []
        for env_id in self.comparison.env_ids:
            cells = [cell for cell in self.comparison.of_env(env_id) if cell.timed]
            without += [f"{c.method.label} in {env_id}" for c in self.comparison.of_env(env_id) if not c.timed]
            if not cells:
                continue
            series = [_series(cell, time=True) for cell in cells]
            drawn.append(self.picture(
                f"curves_time_{env_id}", f"Return over wall-clock time in {env_id}",
                pictures.draw_curves(env_id, series, self.look, x="time", y=_measure(cells)),
            ))  # fmt: skip
        if not drawn:
            return None
        missing = f" No time is known of {'; '.join(without)}" if without else ""
        note = (
            "The same returns, over the median time in which the seeds reached each step. Thin: every seed over its "
            "own time. Compilation and evaluations are included, and so is what else the machine did; runs on "
            f"different machines are not comparable.{missing}"
        )
        return Section("Wall-clock time", page.paragraph(note, "note") + page.panels(drawn))

    def profiles(self) -> Section:
        """How the last returns are distributed over the runs."""
        drawn, records = [], []
        for env_id in self.comparison.env_ids:
            cells = self.comparison.of_env(env_id)
            thresholds = _thresholds(np.concatenate([cell.last for cell in cells]))
            series = [self._profile(cell.method, _size(cell), [cell.last], thresholds) for cell in cells]
            drawn.append(self.picture(
                f"profiles_{env_id}", f"Performance profile in {env_id}",
                pictures.draw_profiles(env_id, series, self.look, x="last return"),
            ))  # fmt: skip
            records += [record for entry in series for record in _profile_records(env_id, entry)]
        if self.comparison.aggregates:
            scores = {method: self.comparison.last_normalised(method) for method in self.comparison.complete}
            thresholds = _thresholds(np.concatenate([s for strata in scores.values() for s in strata]))
            series = [self._profile(m, self._size(m), strata, thresholds) for m, strata in scores.items()]
            drawn.append(self.picture(
                "profiles_all", "Performance profile over several environments",
                pictures.draw_profiles(
                    f"{self._shared}, normalised", series, self.look, x="normalised last return"
                ),
            ))  # fmt: skip
            records += [record for entry in series for record in _profile_records(self._shared, entry)]
        self.csv("profiles", records)
        note = (
            "The share of runs whose last return exceeds a value: higher is better; a long tail shows unreliable seeds."
        )
        return Section("Performance profiles", page.paragraph(note, "note") + page.panels(drawn))

    def _profile(self, method: Method, size: str, strata: Sequence[np.ndarray], thresholds: np.ndarray) -> Series:
        return Series(method, size, thresholds, *self.comparison.profile_of(strata, thresholds))

    def improvement(self) -> Section:
        """Which method beats which."""
        pairs, alone = self.comparison.pairs()
        columns = ("x", "y", "environments", "seeds_x", "seeds_y", "probability", "low", "high")
        self.csv("improvement", [
            dict(zip(columns, (
                pair.x.label, pair.y.label, " ".join(pair.env_ids), *pair.seeds, pair.probability,
                float(pair.interval.low), float(pair.interval.high),
            ), strict=True))
            for pair in pairs
        ], columns)  # fmt: skip
        note = (
            "How likely the last return of a run of the first method is higher than that of the second, a tie counting "
            "half; the mean over the environments in which both ran."
        )
        if alone:
            names = "; ".join(method.label for method in alone)
            note += f" Not compared, for want of {MIN_SEEDS} seeds in an environment with another such method: {names}"
        if not pairs:
            return Section("Probability of improvement", page.paragraph(note, "note"))
        if len(pairs) > pictures.MOST_PAIRS:
            note += f" Drawn are {pictures.MOST_PAIRS} of {len(pairs):,} pairs; data/improvement.csv has all."
            pairs = pairs[: pictures.MOST_PAIRS]
        drawn = self.picture("improvement", "Probability of improvement", pictures.draw_pairs(pairs, self.look))
        return Section("Probability of improvement", page.paragraph(note, "note") + page.panels([drawn]))

    def search(self) -> Section:
        """What was searched, and found."""
        parts, records, columns = [], [], ["Trial", "Objective", "Core time"]
        for result in self.searches[:SEARCHES]:
            names = list(dict.fromkeys(name for trial in result.trials for name in trial.settings))
            states = [trial.state for trial in result.trials]
            counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
            shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items())
            note = (
                f"Objective: {result.objective}. {result.planned} trials: {counts or 'none'}. Seeds: "
                f"{', '.join(map(str, result.seeds))}. Pruned by: {result.pruner}. "
                + (f"Importance of the settings (PED-ANOVA): {shares}." if shares else "")
            )
            rows = [
                [
                    Value(str(trial.number), trial.number), _value(trial.objective),
                    NOTHING if trial.core_seconds is None else Value(duration(trial.core_seconds), trial.core_seconds),
                    *(trial.settings.get(name, NOTHING) for name in names),
                ]
                for trial in result.best[:BEST]
            ]  # fmt: skip
            drawn = self.picture(
                f"search_{result.label}", f"Objective of the trials of {result.label}",
                pictures.draw_trials(result.label, [(t.number, t.objective, t.state) for t in result.trials]),
            )  # fmt: skip
            head = [Column(name) for name in (*columns, *names)]
            parts += [page.heading(result.label), page.paragraph(note, "note"), page.table(head, rows)]
            parts.append(page.panels([drawn]))
        for result in self.searches:
            records += [
                {"search": result.label, "trial": trial.number, "state": trial.state, "objective": trial.objective,
                 "core_seconds": trial.core_seconds, "settings": json.dumps(trial.settings), "source": result.source}
                for trial in result.trials
            ]  # fmt: skip
        self.csv("searches", records, ["search", "trial", "state", "objective", "core_seconds", "settings", "source"])
        return Section("Search", "".join(parts))

    def provenance(self) -> Section:
        """Every run, and the versions and machines behind them."""
        cells = list(self.comparison.cells.values())
        runs = [run for cell in cells for run in cell.runs]
        origins = list(dict.fromkeys((_versions(run), _machine(run)) for run in runs))
        letters = {origin: letter(i) for i, origin in enumerate(origins)}
        sources = [os.path.abspath(run.source) for run in runs]
        base = os.path.commonpath(sources) if len(set(sources)) > 1 else os.path.dirname(sources[0])
        columns = [
            Column("Environment", is_text=True), Column("Method", is_text=True), Column("Seed"), Column("Last return"),
            Column("Best return"), Column("Steps"), Column("Updates"), Column("Time"), Column("Started", is_text=True),
            Column("Made with", is_text=True), Column("Returns of", is_text=True), Column("Where", is_text=True),
        ]  # fmt: skip
        rows, records = [], []
        for cell in cells:
            for run in cell.runs:
                origin = _versions(run), _machine(run)
                record = _run_record(cell, run, setting_text(run, self._differing(cell)), *origin)
                records.append(record)
                rows.append([
                    run.env_id, self._method(cell), _value(run.seed), _value(record["last"]), _value(record["best"]),
                    _value(record["steps"])._replace(small="" if run.finished else "unfinished"),
                    _value(record["updates"]),
                    NOTHING if run.seconds is None else Value(duration(record["seconds"]), record["seconds"]),
                    Value(record["started"][:16].replace("T", " ") or NOTHING, small=_resumed(run)), letters[origin],
                    run.measured, os.path.relpath(run.source, base),
                ])  # fmt: skip
        self.csv("runs", records)
        made = [
            Column("", is_text=True),
            Column("Versions", is_text=True, wide=True),
            Column("Machine", is_text=True, wide=True),
        ]
        versions = page.table(made, [[letters[o], o[0] or "not recorded", o[1] or "not recorded"] for o in origins])
        where = page.paragraph(f"Places are below {base}", "note")
        where += _unlisted(len(rows), "runs")
        rows = rows[:LISTED]
        return Section("Runs", where + page.table(columns, rows) + page.heading("Made with") + versions)

    def left_out(self) -> Section:
        """What is not used, and why."""
        self.csv("left_out", [{"source": entry.source, "reason": entry.reason} for entry in self.skipped])
        columns = [Column("What", is_text=True, wide=True), Column("Why", is_text=True, wide=True)]
        rows = [[entry.source, entry.reason] for entry in self.skipped[:LISTED]]
        return Section("Left out", _unlisted(len(self.skipped), "left_out") + page.table(columns, rows))

    # ---- files

    def picture(self, name: str, description: str, figure: Figure) -> Picture:
        """Saves a picture, in files whose names no other picture has, on no file system."""
        name = stem = shorten(re.sub(r"[^A-Za-z0-9._-]+", "-", name), LONGEST_FILE_NAME).replace("…", "-")
        number = 1
        while name.lower() in self.files:
            number += 1
            name = f"{stem}_{number}"
        self.files.add(name.lower())
        return Picture(name, pictures.save(figure, self.out / "pictures", name), description)

    def csv(self, name: str, records: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
        """Writes rows; NaN and None are empty cells."""
        columns = list(columns or records[0])
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(csv_row(record[column] for column in columns) for record in records)
        write_atomically(self.out / "data" / f"{name}.csv", file.getvalue().encode())


def _unlisted(number: int, file: str) -> str:
    """Says where the rows are that a long table of the page lacks."""
    if number <= LISTED:
        return ""
    return page.paragraph(f"The first {LISTED:,} of {number:,}; data/{file}.csv has all.", "note")


def _measure(cells: Sequence[Cell]) -> str:
    """Label of the y axis."""
    kinds = {run.measured for cell in cells for run in cell.runs}
    if len(kinds) > 1:
        return "mean return"
    return "mean return of evaluations" if kinds == {"evaluation"} else "mean return of training episodes"


def _seeds_care(cells: Sequence[Cell]) -> Iterable[str]:
    def names(wanted: Callable[[Cell], bool]) -> str:
        chosen = [cell.method.label for cell in cells if wanted(cell)]
        return "every method" if len(chosen) == len(cells) > 1 else "; ".join(chosen)

    if single := names(lambda cell: cell.seeds < MIN_SEEDS):
        yield f"1 seed for {single}: no interval, and no conclusion about which is better."
    if few := names(lambda cell: MIN_SEEDS <= cell.seeds < FEW_SEEDS):
        yield f"fewer than {FEW_SEEDS} seeds for {few}: look at the single seeds; the intervals are too narrow."


def _environment_care(cells: Sequence[Cell]) -> Iterable[str]:
    for cell in cells:
        if cell.cut_from:
            ends = f"between {cell.end:,} and {cell.cut_from:,} steps"
            yield f"seeds of {cell.method.label} end {ends}; all are cut at {cell.end:,}."
    if len(ends := {cell.end for cell in cells}) > 1:
        steps = f"{min(ends):,} to {max(ends):,}"
        yield f"methods were trained for different numbers of steps ({steps}), which the table does not even out."
    runs = [run for cell in cells for run in cell.runs]
    if len(kinds := sorted({run.measured for run in runs})) > 1:
        yield f"the returns are not of one kind: {' and '.join(kinds)}."
    differing = _differing_versions(runs)
    if differing:
        yield f"made with different versions: {', '.join(differing)}."
    if len(revisions := {str(run.manifest.get("git_revision")) for run in runs if run.manifest}) > 1:
        yield f"made with {len(revisions)} revisions of diffac; see the table of runs."
    if len(machines := {_machine(run) for run in runs if run.seconds is not None}) > 1:
        yield f"made on {len(machines)} different machines: wall-clock times are not comparable."


def _differing_versions(runs: Sequence[Run]) -> list[str]:
    """`name 1.0 and 2.0` for packages of which the runs used several versions."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, version in _version_table(run).items():
            seen.setdefault(name, set()).add(version)
    return [f"{name} {' and '.join(sorted(versions))}" for name, versions in seen.items() if len(versions) > 1]


def _version_table(run: Run) -> dict[str, str]:
    python = {"python": run.manifest["python"]} if "python" in run.manifest else {}
    return {**run.manifest.get("versions", {}), **python}


def _versions(run: Run) -> str:
    revision = run.manifest.get("git_revision")
    texts = [f"{name} {version}" for name, version in _version_table(run).items()]
    return ", ".join([*texts, *([f"revision {str(revision)[:12]}"] if revision else [])])


def _resumed(run: Run) -> str:
    """Where the run was taken up again, and by what, if it was another backend."""
    return "; ".join(
        f"resumed at {entry['env_step']:,}" + (f" with {entry['backend']}" if entry["backend"] != run.backend else "")
        for entry in run.manifest.get("resumed", [])
    )


def _machine(run: Run) -> str:
    manifest = run.manifest
    cores = f"{manifest['cpu_count']} cores" if manifest.get("cpu_count") else ""
    return ", ".join(str(part) for part in (manifest.get("platform"), manifest.get("processor"), cores) if part)


def _size(cell: Cell) -> str:
    return count(cell.seeds, "seed")


def _series(cell: Cell, *, time: bool = False) -> Series:
    """A cell as a curve over steps or seconds; a single seed is its own mean and not drawn twice."""
    curve = cell.curve
    xs = [run.seconds if time and run.seconds is not None else run.steps for run in cell.runs]
    singles = list(zip(xs, (run.returns for run in cell.runs), strict=True)) if cell.seeds > 1 else []
    return Series(cell.method, _size(cell), cell.seconds if time else curve.x, curve.iqm, curve.interval, singles)


def _updates(cell: Cell) -> list[int]:
    return [int(run.updates[-1]) for run in cell.runs if run.updates is not None]


def _median_seconds(cell: Cell) -> float:
    return float(np.median([run.seconds[-1] for run in cell.runs if run.seconds is not None]))


def _core_hours(runs: Sequence[Run]) -> float | None:
    """Processor time of runs; None where one does not say."""
    seconds = [run.core_seconds for run in runs if run.core_seconds is not None]
    return sum(seconds) / 3600 if len(seconds) == len(runs) else None


def _result_record(cell: Cell) -> dict[str, Any]:
    summary = cell.summary
    pairs = {"last": summary.last, "best_late": summary.best_late, "best": summary.best}
    return {
        "env_id": cell.env_id,
        **cell.method._asdict(),
        "seeds": cell.seeds,
        "last_iqm": summary.iqm,
        "last_iqm_low": float(summary.interval.low),
        "last_iqm_high": float(summary.interval.high),
        **{
            f"{name}_{kind}": value
            for name, pair in pairs.items()
            for kind, value in zip(("mean", "std"), pair, strict=True)
        },
        "steps": cell.end,
        "updates": span(_updates(cell)).replace(",", ""),
        "median_seconds": _median_seconds(cell) if cell.timed else None,
        "core_hours": _core_hours(cell.runs),
    }


def _run_record(cell: Cell, run: Run, settings: str, versions: str, machine: str) -> dict[str, Any]:
    return {
        "env_id": run.env_id,
        **cell.method._asdict(),
        "seed": run.seed,
        "last": float(run.returns[-1]),
        "best": float(run.returns.max()),
        "steps": int(run.steps[-1]),
        "updates": None if run.updates is None else int(run.updates[-1]),
        "seconds": None if run.seconds is None else float(run.seconds[-1]),
        "core_seconds": run.core_seconds,
        "started": str(run.manifest.get("started", "")),
        "settings": settings,
        "versions": versions,
        "machine": machine,
        "returns_of": run.measured,
        "source": run.source,
    }


def _rows(method: Method, axis: str, x: np.ndarray, **values: np.ndarray) -> list[dict[str, Any]]:
    columns = {axis: x, **values}
    return [{**method._asdict(), **{name: float(v[i]) for name, v in columns.items()}} for i in range(len(x))]


def _curve_records(cell: Cell) -> list[dict[str, Any]]:
    curve = cell.curve
    seconds = cell.seconds if cell.timed else np.full(len(curve.x), np.nan)
    values = {"iqm": curve.iqm, **curve.interval._asdict(), "mean": curve.mean, "std": curve.std}
    rows = _rows(cell.method, "step", curve.x, seconds=seconds, **values)
    return [{"env_id": cell.env_id, "seeds": cell.seeds, **row} for row in rows]


def _profile_records(env_id: str, entry: Series) -> list[dict[str, Any]]:
    rows = _rows(entry.method, "threshold", entry.x, share=entry.y, **entry.interval._asdict())
    return [{"env_id": env_id, "size": entry.size, **row} for row in rows]


def _seed_records(cell: Cell) -> list[dict[str, Any]]:
    """Points of the single seeds, in a form that `diffac report` reads."""
    records = []
    for place, run in enumerate(cell.runs):
        seconds = [None] * len(run.steps) if run.seconds is None else [float(s) for s in run.seconds]
        recipe = " ".join(part for part in (cell.method.recipe, cell.method.variant) if part)
        seed = place if run.seed is None else run.seed
        base = {"env_id": cell.env_id, "recipe": recipe, "backend": cell.method.backend, "seed": seed}
        for step, value, second in zip(run.steps, run.returns, seconds, strict=True):
            records.append({**base, "step": int(step), "return": float(value), "seconds": second})
    return records


def _thresholds(scores: np.ndarray) -> np.ndarray:
    """From a little below the lowest to a little above the highest score."""
    low, high = float(scores.min()), float(scores.max())
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return np.linspace(low - margin, high + margin, PROFILE_POINTS)


def mean_std_text(mean: float, std: float) -> str:
    """`12.3 ± 0.4`, or the mean alone."""
    return number(mean) if np.isnan(std) else f"{number(mean)} ± {number(std)}"


def _value(value: float | None) -> Value:
    """A number of a table, or a dash."""
    return Value(NOTHING) if value is None else Value(f"{value:,}" if isinstance(value, int) else number(value), value)


def letter(place: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    more, place = divmod(place, 26)
    return f"{chr(ord('A') + place)}{more or ''}"


def interval_text(interval: Interval) -> str:
    """The interval in brackets, or that there is none."""
    low, high = float(interval.low), float(interval.high)
    return "no interval" if np.isnan(low) else f"[{number(low)}, {number(high)}]"


def span(values: Sequence[int]) -> str:
    """One number, or the smallest and the largest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def count(number: int, one: str, many: str = "") -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


DEFINITIONS = [
    (
        "Return",
        "Undiscounted, unscaled sum of rewards. One number for each seed and evaluation: the mean over its episodes.",
    ),
    (
        "Last, best, best of last 10 %",
        "Of each seed: the last evaluation; the highest; the highest in the last tenth of the environment steps. The "
        "best of a run is biased upwards, for it is the highest of noisy numbers, the more so the more often "
        "a run is evaluated. Where seeds end at different steps, all are cut at the last one that every seed reached.",
    ),
    (
        "IQM",
        "Interquartile mean: the mean of the runs that are left when the lowest and the highest quarter are trimmed "
        "(rounded down: with fewer than four runs it is the mean).",
    ),
    (
        "95 % interval",
        f"Percentile bootstrap: {RESAMPLES:,} times, as many seeds as there are, are drawn with replacement, within "
        "each environment (stratified). One seed has no interval. With fewer than five it covers the true value "
        "clearly less often than it says, and where all seeds agree it has no width; neither means certainty.",
    ),
    (
        "Std",
        "Sample standard deviation over the seeds (divided by one less than their number); neither over episodes nor "
        "a standard error.",
    ),
    (
        "Method",
        "Recipe and backend. Runs whose settings differ in anything that changes learning are kept apart and named by "
        "what differs. Of several runs with the same settings and seed the newest counts.",
    ),
    ("Curves", "Seeds that were evaluated at different steps are interpolated linearly at common places."),
]
"""Term -> meaning, at the end of the page."""
