"""Writers lose nothing: late columns, crashes, terminals that are none."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import resource
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import yaml
from rich.console import Console

import diffac.logging.console
from diffac.logging import ConsoleWriter, CsvWriter, JsonlWriter, TensorBoardWriter, Writers
from diffac.logging.files import csv_row
from diffac.runs.folder import create_run
from diffac.runs.logs import rewind, save_evaluations
from diffac.runs.manifest import git_revision, manifest
from diffac.training.evaluation import EvaluationRecord


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_keeps_everything_when_columns_come_late(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    writer = CsvWriter(path)
    lines = [{"a": 1.5}, {"a": 2.0, "b,c": 0.1}, {"d": -1e-12}, {"a": 3.0, "d": 4.0}]
    for step, metrics in enumerate(lines):
        writer.write(step, metrics)
        rows = read(path)  # complete on disk after every call, without close
        assert len(rows) == step + 1
        for number, row in enumerate(rows):
            assert {name: float(value) for name, value in row.items() if value} == {"step": number, **lines[number]}
    assert list(rows[0]) == ["step", "a", "b,c", "d"]
    writer.close()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_continues_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for step, name in enumerate(["a", "b"]):
        writer = CsvWriter(path)
        writer.write(step, {name: 1.0})
        writer.close()
    assert read(path) == [{"step": "0", "a": "1.0", "b": ""}, {"step": "1", "a": "", "b": "1.0"}]


FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "a;=1",
    "\uff1d1",
    "\x1b[2J",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_holds_no_formulas(text: str, tmp_path: Path) -> None:
    """Neither the names of metrics nor what a file held before; numbers stay numbers."""
    path = tmp_path / "metrics.csv"
    (head, name) = csv_row(["step", text])
    assert head == "step"
    assert name.isprintable()
    assert not re.search(r"(^|;)\s*[=+\-@\uff1d]", name)
    assert csv_row([-1.5, "-1.5", "1e-3", float("nan"), None, 7]) == [-1.5, "-1.5", "1e-3", "", "", 7]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["step", text], [1, text]])
    for step in (2, 3):
        with contextlib.closing(CsvWriter(path)) as writer:
            writer.write(step, {text: -5.0, f"new {step}": 1.0})
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["step", name, "new 2", "new 3"], ["1", name, "", ""], ["2", "-5.0", "1.0", ""], ["3", "-5.0", "", "1.0"]
    ]  # fmt: skip


def test_a_run_that_goes_on_keeps_no_formulas(tmp_path: Path) -> None:
    """Its log may be a stranger's: a line of anything but numbers is none of a log."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,=1+1\n1,-2.5\n2,=1+1\n3,\n")
    rewind(tmp_path, 5, [])
    assert path.read_text() == "step,'=1+1\n1,-2.5\n3,\n"
    assert "2,=1+1" in (tmp_path / "damaged-metrics.csv").read_text()


def test_writers_pass_everything_on() -> None:
    a, b = fakes.ListWriter(), fakes.ListWriter()
    Writers(a, b).write(3, {"x": 1.0})
    assert a.lines == b.lines == [(3, {"x": 1.0})]


def test_tensorboard_reads_what_we_write(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorBoardWriter(tmp_path)
    for step in (0, 127, 128, 3_000_000_000):
        writer.write(step, {"train/actor_loss": step / 7, "eval/mean_reward": -1.0})
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/actor_loss", "eval/mean_reward"}
    read = events.Scalars("train/actor_loss")
    assert [event.step for event in read] == [0, 127, 128, 3_000_000_000]
    np.testing.assert_allclose([event.value for event in read], [event.step / 7 for event in read], rtol=1e-6)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [10, 2000])
@pytest.mark.parametrize("kind", [CsvWriter, JsonlWriter, TensorBoardWriter])
def test_a_writer_says_at_once_that_the_disk_is_full(kind: Any, size: int, tmp_path: Path) -> None:
    writer = kind(tmp_path if kind is TensorBoardWriter else tmp_path / "metrics")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):  # noqa: PT012
            for step in range(500):
                writer.write(step, dict.fromkeys(map(str, range(20)), 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_all_writers_are_closed_whichever_fails() -> None:
    class Closing(fakes.ListWriter):
        def close(self) -> None:
            closed.append(self)
            raise OSError("full")

    closed: list[Closing] = []
    with pytest.raises(OSError, match="full"):
        Writers(Closing(), Closing(), Closing()).close()
    assert len(closed) == 3


def test_two_event_files_of_one_second(tmp_path: Path) -> None:
    for first in (None, 20):
        writer = TensorBoardWriter(tmp_path, first)
        writer.write(10, {"x": 1.0})
        writer.close()
        writer.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    writer = ConsoleWriter(1000, console=Console(file=out))
    writer.write(10, {"train/critic_loss": 0.25, "train/unknown": 9.0})
    writer.write(20, {"train/critic_loss": 0.5})  # too soon after the first
    writer.write(30, {"eval/mean_reward": 12.345})
    monkeypatch.setattr(diffac.logging.console, "PLAIN_INTERVAL_S", 0.0)
    writer.write(40, {"time/fps": 100.0})
    writer.close()
    assert out.getvalue().splitlines() == [
        "10/1,000 steps  critic 0.25",
        "30/1,000 steps  eval 12.35  critic 0.5",
        "40/1,000 steps  eval 12.35  critic 0.5  steps/s 100",
    ]


@pytest.mark.parametrize("bar", [True, False])
def test_bar_in_a_terminal(bar: bool) -> None:
    out = io.StringIO()
    writer = ConsoleWriter(1000, bar=bar, console=Console(file=out, force_terminal=True, width=120))
    writer.write(250, {"rollout/ep_rew_mean": 1.5})
    writer.close()
    writer.close()
    assert ("━" in out.getvalue()) == bar
    assert "return 1.5" in out.getvalue()


def test_run_folder(tmp_path: Path) -> None:
    config = fakes.config(run_root=str(tmp_path), backend="torch", seed=3)
    folders = [create_run(config, "sac", ["diffac", "train", "sac"]) for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.relative_to(tmp_path).parts[:3] == ("fakes-Random-v0", "sac", "torch")
        assert folder.name.startswith("seed3__")
    written = yaml.safe_load((folders[0] / "config.yaml").read_text())
    assert written.pop("recipe") == "sac"
    assert fakes.config(**written) == config
    facts = json.loads((folders[0] / "manifest.json").read_text())
    assert facts["command"] == ["diffac", "train", "sac"]
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["cpu_count"] >= 1


def test_tuples_survive_as_lists(tmp_path: Path) -> None:
    import fake_recipe

    config = fake_recipe.Config(run_root=str(tmp_path))
    assert yaml.safe_load((create_run(config, "x") / "config.yaml").read_text())["hidden_sizes"] == [8, 8]


def test_revision_only_of_a_repository(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    assert "git_revision" in manifest()


def test_evaluations_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.npz"
    records = [EvaluationRecord(10 * i, i, np.full(3, float(i)), np.full(3, i)) for i in (1, 2)]
    save_evaluations(path, records[:1])
    save_evaluations(path, records)
    with np.load(path) as saved:
        assert set(saved) == {"timesteps", "updates", "results", "ep_lengths"}
        np.testing.assert_array_equal(saved["timesteps"], [10, 20])
        np.testing.assert_array_equal(saved["updates"], [1, 2])
        np.testing.assert_array_equal(saved["results"], [[1.0] * 3, [2.0] * 3])
        assert saved["ep_lengths"].shape == (2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["evaluations.npz"]
