"""What eta does to DACER2 on the bandit: `python -m tests.learning.eta --out eta.png --data eta.csv`.

One backend, a few seeds for each eta, once with the paper's target and once with the contractive one of ours: the mean
value that the policy's samples reach, and how many of the four modes they cover. Everything is drawn from the table.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from tests.learning.bandit import modes_covered, q_value, value

ETAS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TARGETS: dict[str, float | None] = {"paper": None, "contractive": 0.2}
"""Name -> `contractive_step`."""
FIELDS = ("backend", "target", "eta", "seed", "mean_q", "modes")


def measure(path: Path, backend: str, seeds: range) -> None:
    """Trains, and writes a row for each policy as soon as it is known."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for target, step in TARGETS.items():
            for eta in (0.0, *ETAS) if step is None else ETAS:
                for seed in seeds:
                    samples = value(backend, eta=eta or None, contractive_step=step, seed=seed).sample()
                    row = (backend, target, eta, seed, f"{q_value(samples).mean():.4f}", modes_covered(samples))
                    writer.writerow(row)
                    file.flush()
                    print(*row)


def draw(path: Path, data: Path) -> None:
    """Mean value and modes over eta, a dot a seed and a line through their means; grey: the value term alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, field, label in zip(
        axes, ("mean_q", "modes"), ("mean Q of the samples", "modes covered, of 4"), strict=True
    ):
        alone = [float(row[field]) for row in rows if float(row["eta"]) == 0]
        axis.axhline(np.mean(alone), color="grey", linewidth=1, label="value term alone")
        for target, marker in zip(TARGETS, "os", strict=True):
            chosen = [row for row in rows if row["target"] == target and float(row["eta"]) > 0]
            etas = sorted({float(row["eta"]) for row in chosen})
            means = [np.mean([float(row[field]) for row in chosen if float(row["eta"]) == eta]) for eta in etas]
            (line,) = axis.plot(etas, means, label=f"{target} target")
            dots = [float(row["eta"]) for row in chosen], [float(row[field]) for row in chosen]
            axis.plot(*dots, marker, color=line.get_color(), alpha=0.5, markersize=4, linestyle="none")
        axis.set(xscale="log", xlabel="eta", ylabel=label)
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where to write the picture (png)")
    parser.add_argument("--data", type=Path, required=True, help="table (csv): drawn if it exists, else measured first")
    parser.add_argument("--backend", default="equinox")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        measure(arguments.data, arguments.backend, range(arguments.seeds))
    draw(arguments.out, arguments.data)


if __name__ == "__main__":
    main()
