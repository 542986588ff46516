"""The results as a picture: gains beside fractions of the machine's peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cases import CASES, SIZES
from .results import Results
from .tables import BACKENDS, PEERS

COLOURS = {"torch": "#D55E00", "equinox": "#0072B2"}
"""Two that can be told apart with any kind of colour blindness."""


def draw_chart(results: Results, path: Path) -> None:
    """Writes the picture; the ending of the name says in which format.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra "plot", is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    style: dict[Any, Any] = {"font.size": 10, "svg.hashsalt": "diffac", "figure.facecolor": "white"}
    style |= {f"axes.spines.{side}": False for side in ("top", "right", "left")}
    places = [(case, env) for case in CASES for env in SIZES if results.get(case, env, "", "", "work") is not None]
    with plt.rc_context(style):
        height = 1.6 + 0.5 * len(places)
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, height), sharey=True, layout="constrained")
        for side, (backend, title) in zip((-0.2, 0.2), BACKENDS.items(), strict=True):
            gains = [_gain(results, case, env, backend) for case, env in places]
            fractions = [results.get(case, env, backend, "ours", "fraction") or 0.0 for case, env in places]
            for axes, pattern, values in ((left, "{:.1f}x", gains), (right, "{:.0%}", fractions)):
                position = [i + side for i in range(len(places))]
                bars = axes.barh(position, values, 0.38, color=COLOURS[backend], label=title)
                labels = [pattern.format(value) if value else "" for value in values]
                axes.bar_label(bars, labels, padding=3, fontsize=8, color="#444444")
        left.set_yticks(range(len(places)), [f"{CASES[case].title}\n{env}" for case, env in places], fontsize=9)
        left.invert_yaxis()
        left.axvline(1, color="#444444", linewidth=0.8)
        left.set_title(
            "One update: times as fast as naive code\n(SAC: as Stable-Baselines3, SBX)", loc="left", fontsize=11
        )
        right.set_xlim(0, 1.05)
        right.xaxis.set_major_formatter(PercentFormatter(1))
        right.set_title("Necessary operations, share of the\nmachine's fastest matrix product", loc="left", fontsize=11)
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.1, y=0.01)
            axes.grid(axis="x", linewidth=0.4, alpha=0.6)
            axes.set_axisbelow(True)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _gain(results: Results, case: str, env: str, backend: str) -> float:
    other = PEERS[backend] if CASES[case].recipe == "sac" else "naive"
    return results.ratio((case, env, backend, other, "update"), (case, env, backend, "ours", "update")) or 0.0
