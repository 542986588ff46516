"""Draws the evaluations of runs, one line a seed, one colour a backend, one panel for each environment and recipe.

python -m tests.learning.curves runs --out curves.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

COLOURS = {"torch": "tab:orange", "equinox": "tab:blue"}


def picture(root: Path, out: Path) -> None:
    """Reads evaluations.npz and config.yaml of every run below `root`; band: one standard deviation over episodes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = defaultdict(list)
    for file in sorted(root.rglob("evaluations.npz")):
        config = yaml.safe_load((file.parent / "config.yaml").read_text())
        panels[config["env_id"], config["recipe"]].append((config["backend"], config["seed"], np.load(file)))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((env_id, recipe), runs) in zip(axes.flat, panels.items(), strict=False):
        for backend, seed, data in runs:
            mean, std = data["results"].mean(1), data["results"].std(1)
            style = {"color": COLOURS.get(backend, "tab:gray"), "linestyle": ("-", "--", ":")[seed % 3]}
            axis.plot(data["timesteps"], mean, label=f"{backend}, seed {seed}", **style)
            axis.fill_between(data["timesteps"], mean - std, mean + std, color=style["color"], alpha=0.12, linewidth=0)
        axis.set(title=f"{recipe} on {env_id}", xlabel="environment steps", ylabel="evaluation return")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with runs")
    parser.add_argument("--out", type=Path, required=True, help="where to write the picture (png)")
    arguments = parser.parse_args()
    picture(arguments.root, arguments.out)


if __name__ == "__main__":
    main()
