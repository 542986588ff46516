"""Draws the pictures of a report with matplotlib: PNG and SVG files, and SVG that follows the page's colours."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from diffac.files.untrusted import write_atomically
from diffac.messages import shorten
from diffac.reports.comparison import MOST_POINTS, Method, Pair, thinned
from diffac.reports.statistics import Interval

LIGHT = ("#00458F", "#A93119", "#19AC6D", "#D78400", "#6573FF", "#AA74A1", "#202530")
"""Colours on white. Chosen so that they differ for people with any kind of colour blindness; a test measures it."""
DARK = ("#4B76ED", "#E0570D", "#3AEB7A", "#FEDF31", "#A8C4FF", "#B75E93", "#EDF9E5")
"""The same hues on a dark page."""
OWN_COLOUR = {"dacer2": 0, "sdac": 1, "sac": 2, "dpmd": 3, "dacer": 4}
"""Recipes of diffac have the same colour in every report."""
INK, MUTED, GRID = "#1c2127", "#616a75", "#dde1e6"
LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 3)))
"""Lines of the methods that share a recipe and so a colour."""
NOTHING, MINUS = "\u2013", "\u2212"
MARKED = 12
"""Most evaluations of a curve that are marked one by one."""
LONG = 75
"""Characters of a line of text in the picture of pairs that just fit."""
MOST_PAIRS = 100
"""Pairs in a picture."""
LARGE = 1e12
"""Numbers from here on are written with an exponent."""
WIDTH = 5.0
"""Inches; small enough to be read on a telephone."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11.5,
    "axes.titlepad": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.6,
    "svg.hashsalt": "diffac",
    "path.simplify": True,
}


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    line: Any


class Series(NamedTuple):
    """A method in a panel."""

    method: Method
    size: str
    """How many runs it stands for, in words."""
    x: np.ndarray
    y: np.ndarray
    interval: Interval
    singles: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    """(x, y) of every seed."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Everything is drawn within this context."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the tables have the name in full
        yield


def looks(methods: Sequence[Method]) -> dict[Method, Look]:
    """A colour for each recipe, a line for each method of a recipe."""
    recipes = sorted({method.recipe for method in methods})
    colour = {recipe: OWN_COLOUR[recipe] for recipe in recipes if recipe in OWN_COLOUR}
    free = itertools.cycle([i for i in reversed(range(len(LIGHT))) if i not in colour.values()] or range(len(LIGHT)))
    for recipe in recipes:
        colour.setdefault(recipe, next(free))
    lines = {recipe: itertools.cycle(LINES) for recipe in recipes}
    return {method: Look(LIGHT[colour[method.recipe]], next(lines[method.recipe])) for method in sorted(methods)}


def draw_curves(title: str, series: Sequence[Series], look: Mapping[Method, Look], *, x: str, y: str) -> Figure:
    """IQM with its interval, and every seed faint behind.

    Args:
        title: above the picture.
        series: the methods.
        look: how they are drawn.
        x: "steps", "time" or "share": what the x axis is.
        y: label of the y axis.
    """
    figure, axes = _figure(title, len(series))
    for entry in series:
        colour, line = look[entry.method]
        for xs, ys in entry.singles:
            axes.plot(
                thinned(xs, MOST_POINTS), thinned(ys, MOST_POINTS), color=colour, linewidth=0.8, alpha=0.38, zorder=2
            )
        if not np.isnan(entry.interval.low).any():
            axes.fill_between(entry.x, *entry.interval, color=colour, alpha=0.13, linewidth=0, zorder=1)
        marker = "o" if len(entry.x) <= MARKED else ""
        axes.plot(
            entry.x, entry.y, color=colour, linestyle=line, linewidth=2.1, marker=marker, markersize=4,
            zorder=3,
        )  # fmt: skip
    if x == "time":
        _time_axis(axes, [entry.x for entry in series])
        axes.set_xlabel("wall-clock time")
    elif x == "share":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("share of the environment steps")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlabel("environment steps")
    axes.set_ylabel(y)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    _legend(figure, series, look)
    return figure


def draw_profiles(title: str, series: Sequence[Series], look: Mapping[Method, Look], *, x: str) -> Figure:
    """Performance profiles: shares of runs over thresholds. `x` is the label of the x axis."""
    figure, axes = _figure(title, len(series))
    for entry in series:
        colour, line = look[entry.method]
        if not np.isnan(entry.interval.low).any():
            low, high = entry.interval
            axes.fill_between(entry.x, low, high, color=colour, alpha=0.14, linewidth=0, zorder=1, step="post")
        axes.plot(entry.x, entry.y, color=colour, linestyle=line, linewidth=2.1, drawstyle="steps-post", zorder=3)
    axes.set_xlabel(x)
    axes.set_ylabel("share of runs above")
    axes.set_ylim(-0.04, 1.04)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    _legend(figure, series, look)
    return figure


def draw_trials(title: str, trials: Sequence[tuple[int, float | None, str]]) -> Figure:
    """Objectives of the trials of a search, and the best of the complete ones so far.

    Args:
        title: above the picture.
        trials: number, objective and state of each, in their order.
    """
    figure, axes = _figure(title, 0)
    best: list[tuple[int, float]] = []
    for place, objective, state in trials:
        if objective is None:
            continue
        complete = state == "complete"
        face = LIGHT[0] if complete else "none"
        axes.plot(place, objective, "o", markersize=5, markeredgecolor=LIGHT[0], markerfacecolor=face, zorder=3)
        if complete:
            best.append((place, max(objective, best[-1][1] if best else objective)))
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=LIGHT[1], linewidth=1.6, zorder=2)
    axes.set_xlabel("trial (filled: complete; empty: pruned; line: best so far)")
    axes.set_ylabel("objective")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    return figure


def draw_pairs(pairs: Sequence[Pair], look: Mapping[Method, Look]) -> Figure:
    """One bar for each pair: how likely the first beats the second."""
    labels = ["  over  ".join(_fitting(method.label, 8, WIDTH - 0.9) for method in (pair.x, pair.y)) for pair in pairs]
    long = max(map(len, labels)) > LONG
    labels = [label.replace("  over  ", "\nover  ") for label in labels] if long else labels
    figure = Figure(figsize=(WIDTH, 0.7 + (0.75 if long else 0.58) * len(pairs)), layout="constrained")
    axes = figure.add_subplot()
    for row, pair in enumerate(pairs):
        colour = look[pair.x].colour
        axes.plot([0, 1], [row, row], color=GRID, linewidth=1.2, zorder=1)
        axes.plot([0.5, 0.5], [row - 0.13, row + 0.13], color=MUTED, linewidth=1.2, zorder=2)
        if not np.isnan(pair.interval.low):
            axes.plot(pair.interval, [row, row], color=colour, linewidth=5, alpha=0.4, solid_capstyle="butt", zorder=3)
        axes.plot(pair.probability, row, "o", color=colour, markersize=6.5, zorder=4)
        axes.text(0, row - 0.2, labels[row], fontsize=8, va="bottom")
        axes.text(1.03, row, f"{pair.probability:.0%}", fontsize=9, va="center", color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(pairs) - 0.6, -0.7)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("probability that a run of the first beats one of the second")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    return figure


def _figure(title: str, rows: int) -> tuple[Figure, Axes]:
    """A panel with room for a legend of that many rows below it."""
    figure = Figure(figsize=(WIDTH, 3.2 + 0.2 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_fitting(title, 11.5, WIDTH - 0.9, weight="bold"))
    axes.margins(x=0.02)
    return figure, axes


def _legend(figure: Figure, series: Sequence[Series], look: Mapping[Method, Look]) -> None:
    handles = []
    for entry in series:
        colour, line = look[entry.method]
        handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=2.1, label="method"))
    legend = figure.legend(handles=handles, loc="outside lower left", ncols=1, labelspacing=0.3, borderaxespad=0.2)
    for text, entry in zip(legend.get_texts(), series, strict=True):  # afterwards: a label that begins with _ is hidden
        text.set_text(f"{_fitting(entry.method.label, 9.5, WIDTH - 1.6)}  ({entry.size})")


def _fitting(text: str, size: float, inches: float, *, weight: str = "normal") -> str:
    """The text, or so much of its beginning and its end as is not wider."""
    font, most = FontProperties(family=STYLE["font.family"], size=size, weight=weight), 72 * inches
    shown = text
    while (width := text_to_path.get_text_width_height_descent(shown, font, ismath=False)[0]) > most:
        shown = shorten(text, int(len(shown) * min(0.95, most / width)))
    return shown


COARSE = [1, 10, 60, 600, 3600, 36_000, 86_400, 864_000]
FINE = sorted([*COARSE, 3, 30, 180, 1_800, 10_800, 259_200, 2_592_000])
"""Ticks of a logarithmic time axis in seconds: of one that spans more, or less, than two powers of ten."""
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SPREAD = 8.0
"""Ratio of the longest to the shortest method from which time is drawn on a logarithmic axis."""


def _time_axis(axes: Axes, xs: Iterable[np.ndarray]) -> None:
    """Seconds as people read them; logarithmic where methods differ so much that the fast ones would be a stroke."""
    xs = [x for x in xs if len(x)]
    first, ends = min(x[0] for x in xs), [x[-1] for x in xs]
    if max(ends) / max(min(ends), 1e-9) > SPREAD and first > 1e-3:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(COARSE if max(ends) / first > 200 else FINE))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        return
    unit = next(name for name in reversed(UNITS) if max(ends) >= 2 * UNITS[name] or name == "s")
    steps = [1, 2, 2.5, 5, 10] if unit in ("s", "d") else [1, 1.5, 2, 3, 6, 10]
    axes.xaxis.set_major_locator(_Scaled(UNITS[unit], steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / UNITS[unit]:g} {unit}"))


class _Scaled(MaxNLocator):
    """Nice ticks in a unit of several seconds."""

    def __init__(self, unit: float, steps: Sequence[float]) -> None:
        super().__init__(6, steps=steps)
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> Any:
        return np.asarray(super().tick_values(vmin / self._unit, vmax / self._unit)) * self._unit


def duration(seconds: float) -> str:
    """As people say it: 40 s, 2.1 min, 12 min, 3.5 h, 2 d."""
    unit = next(name for name in reversed(UNITS) if seconds >= UNITS[name] or name == "s")
    value = seconds / UNITS[unit]
    return f"{round(value, 1) if value < 10 else round(value):g} {unit}"


def number(value: float) -> str:
    """Four digits, with separators: 5,088, 712.8, 12.35, 0.031, 1.2e+15; a dash for NaN."""
    if not np.isfinite(value):
        return NOTHING
    size = abs(value)
    short = size < 1 or size >= LARGE
    text = f"{value:.3g}" if short else f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2}f}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return text.replace("-", MINUS)


def save(figure: Figure, folder: Path, name: str) -> str:
    """Writes `name.png` and `name.svg`, light on white, and returns SVG for the page."""
    write_atomically(folder / f"{name}.png", _drawn(figure, "png", dpi=200, facecolor="white"))
    write_atomically(folder / f"{name}.svg", _drawn(figure, "svg", facecolor="white", metadata={"Date": None}))
    return _inline(_drawn(figure, "svg", transparent=True, metadata={"Date": None}).decode(), name)


def _drawn(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, **options)
    return file.getvalue()


def _inline(svg: str, name: str) -> str:
    """SVG as part of a page: scalable, its own names, colours as variables of the page (see `colour_variables`)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for variable, light, _ in colour_variables():
        svg = re.sub(re.escape(light), f"var(--{variable})", svg, flags=re.IGNORECASE)
    return svg.strip()


def colour_variables() -> list[tuple[str, str, str]]:
    """(name, colour on white, colour on a dark page) of everything that is drawn."""
    series = [(f"series-{i}", light, dark) for i, (light, dark) in enumerate(zip(LIGHT, DARK, strict=True))]
    return [*series, ("ink", INK, "#e9edf1"), ("muted", MUTED, "#a0aab5"), ("grid", GRID, "#2d343c")]
