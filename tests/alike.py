"""Whether two runs are the same to the last bit."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import yaml

from diffac.runs.checkpoints import Checkpoint
from diffac.runs.store import Store


def folders(root: Path | str = "runs") -> dict[int, Path]:
    """Seed -> folder of its run."""
    found = {
        yaml.safe_load(path.read_text())["seed"]: path.parent for path in Path(root).absolute().rglob("config.yaml")
    }
    return dict(sorted(found.items()))


def last(folder: Path) -> Checkpoint:
    checkpoint, refused = Store(folder / "checkpoints").newest()
    assert checkpoint is not None
    assert refused == []
    return checkpoint


def metrics(folder: Path) -> list[dict[str, str]]:
    """All lines of a run, without times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: cell for name, cell in row.items() if not name.startswith("time/")} for row in csv.DictReader(file)
        ]


def assert_same_runs(one: Path, other: Path) -> None:
    """Configuration, learner, replay memory, metrics and evaluations, to the last bit."""
    left, right = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (one, other))
    assert {**left, "run_root": None} == {**right, "run_root": None}
    a, b = last(one), last(other)
    assert (a.env_step, a.manifest["updates"]) == (b.env_step, b.manifest["updates"])
    mine, theirs = a.learner_arrays(), b.learner_arrays()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)
    replays = [np.concatenate(list(map(np.load, sorted(found.folder.glob("replay_*.npy"))))) for found in (a, b)]
    assert replays[0].tobytes() == replays[1].tobytes()
    assert metrics(one) == metrics(other)
    with np.load(one / "evaluations.npz") as saved, np.load(other / "evaluations.npz") as its:
        assert all((saved[name] == its[name]).all() for name in saved)
