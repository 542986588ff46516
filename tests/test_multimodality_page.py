"""What is said about multimodality is what the data says, and the data is of the published sweeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import INSTALLED
from evidence import multimodality
from evidence.measured import STARTS, Point, Row, add, add_points, read, read_points
from evidence.multimodality_page import SECTIONS, page, spread

from diffac.errors import UsageError
from diffac.scale.plan import read_plan
from diffac.testing.multimodality import MODES
from diffac_recipes import RECIPES

ROW = Row(
    "diffac/MultiGoal-v0", "sac", "torch", 100, "centre", "off", 60_000, 20_000, (150, 0, 50, 0), 0, -120.5, 0,
    -3000.25, 0.25, math.nan, "diffac-MultiGoal-v0/sac/torch/seed100__12345678", "abc1234", "torch 2.13.0",
)  # fmt: skip
SWEEPS = {env_id: multimodality.DATA.with_name(f"{section.name}.yaml") for env_id, section in SECTIONS.items()}


def test_published_page_is_made_of_the_published_data() -> None:
    """Nobody edits it by hand."""
    assert page(read(multimodality.DATA), multimodality.ablated()) == multimodality.PAGE.read_text()


def test_published_data_is_of_the_published_sweeps() -> None:
    """Whoever changes a sweep trains again, or takes its rows out; and pictures show runs that are in the table."""
    rows = read(multimodality.DATA)
    for env_id, file in SWEEPS.items():
        jobs = {job.name for job in read_plan(file)}
        assert {row.run for row in rows if row.env_id == env_id} <= jobs
    pictured = {point[:3] for point in read_points(multimodality.POINTS)}
    assert pictured <= {(row.env_id, row.recipe, row.seed) for row in rows}


@pytest.mark.parametrize("env_id", SWEEPS)
def test_every_sweep_asks_for_every_recipe_alike(env_id: str) -> None:
    """Five seeds each, the same budget, and where recipes share a field the same number."""
    configs = [job.load()[1] for job in read_plan(SWEEPS[env_id])]
    assert sorted((name, seed) for name in RECIPES for seed in range(100, 105)) == sorted(
        (type(config).__module__.rpartition(".")[2], config.seed) for config in configs
    )
    shared = ("env_id", "total_timesteps", "total_updates", "num_envs", "batch_size", "hidden_sizes", "learning_rate",
              "tau", "gamma", "reward_scale", "learning_starts", "n_step", "normalise_obs")  # fmt: skip
    assert {tuple(getattr(config, name) for name in shared) for config in configs} == {
        tuple(getattr(configs[0], name) for name in shared)
    }
    assert configs[0].env_id == env_id
    assert env_id in MODES


def test_rows_survive_a_file(tmp_path: Path) -> None:
    """One a run, start and exploration, in a fixed order, whichever was measured first."""
    file = tmp_path / "rows.csv"
    assert read(file) == []
    nothing = ROW._replace(seed=101, counts=(0,) * 4, missed=200, blocked=-1, blocked_return=math.nan)
    add(file, [nothing, ROW._replace(mean_return=3.0)])
    found = add(file, [ROW])
    assert str(found) == str([ROW, nothing]) == str(read(file))
    assert not list(tmp_path.glob("*.new"))


def test_a_picture_keeps_the_lowest_seed(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    assert read_points(file) == []
    mine = [Point("e", "sac", 101, 0, t, 0.5, -1.25) for t in range(2)]
    other = [Point("e", "td3", 103, 0, 0, 0.0, 0.0)]
    add_points(file, [*mine, *other])
    assert add_points(file, [mine[0]._replace(seed=102)]) == [*mine, *other]
    assert add_points(file, [mine[0]._replace(seed=100, x=2.0)]) == [mine[0]._replace(seed=100, x=2.0), *other]
    assert read_points(file) == [mine[0]._replace(seed=100, x=2.0), *other]


def test_the_page_says_what_the_rows_say() -> None:
    """By hand: seeds of 150 and 50 of 200 and of all 200 at one goal; and one whose rollouts reach nothing."""
    text = page([ROW, ROW._replace(seed=101, counts=(0, 200, 0, 0), mean_return=-100.5, blocked_share=0.0)], {})
    mean = (math.log(2) * 2 - 0.75 * math.log(3)) / 2
    line = next(line for line in text.splitlines() if line.startswith("| [`sac`]"))
    assert f"| -110 (-120 to -100) | 1.5 (1.0 to 2.0) | {mean:.2f} (0.00 to 0.56) | 0.62 (0.50 to 0.75) | 0% |" in line
    assert line.endswith("| -3000 | 12% (0% to 25%) |")
    assert (
        "| `sac` | torch | 100 | centre | off | 150, 0, 50, 0 | 0 | -120.5 | 0: -3000 | `seed100__12345678` |" in text
    )
    lost = ROW._replace(counts=(0,) * 4, missed=200, blocked=-1, blocked_return=math.nan, blocked_share=math.nan)
    assert "| 0.0 | none | none | 100% | none | none |" in page([lost], {})
    assert page([], {}).count("Not measured yet.") == 3


def test_spread() -> None:
    assert spread([1.0, 2.0, 6.0], ".1f") == "3.0 (1.0 to 6.0)"
    assert spread([-0.0, 0.0], ".1f") == "0.0"
    assert spread([math.nan], ".1f") == "none"


def test_places_are_known() -> None:
    assert set(multimodality.PLACES) == set(MODES) == set(SECTIONS)
    assert {start for places in multimodality.PLACES.values() for start in places} == set(STARTS)


@pytest.mark.parametrize("env_id", SECTIONS)
def test_a_run_is_measured(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained for a moment: every place and exploration has its row, twice the same, and all of it is published."""
    pytest.importorskip("matplotlib")
    backend = next((name for name, there in INSTALLED.items() if there), None)
    if backend is None:
        pytest.skip("needs a backend")
    from diffac.commands.main import main

    monkeypatch.chdir(tmp_path)
    options = ["--total-timesteps", "200", "--learning-starts", "100", "--batch-size", "8", "--hidden-sizes", "8"]
    options += ["--updates-per-env-step", "0.02", "--eval-episodes", "1", "--no-progress"]
    assert main(["train", "sac", "--env-id", env_id, "--backend", backend, *options]) == 0
    files: dict[str, Any] = {"data": tmp_path / "rows.csv", "points": tmp_path / "points.csv"}
    runs = multimodality.runs_below([tmp_path / "runs"])
    first = list(multimodality.session(runs, **files, rollouts=3))
    rows = files["data"].read_text()
    assert list(multimodality.session(runs, **files, rollouts=3)) == first
    assert files["data"].read_text() == rows
    found = read(files["data"])
    assert [row.starts for row in found] == [
        start for start in sorted(multimodality.PLACES[env_id]) for _ in multimodality.EXPLORATION
    ]
    assert all(row.rollouts == 3 and row.env_steps == 200 for row in found)
    assert np.isnan([row.energy_distance for row in found]).all() == (env_id != "diffac/FourModes-v0")
    multimodality.publish(**files, page_file=tmp_path / "page.md", pictures=tmp_path)
    assert (tmp_path / "page.md").read_text() == page(found, multimodality.ablated())
    assert len(list(tmp_path.glob("*.png"))) == (env_id in multimodality.PICTURES)


def test_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        multimodality.runs_below([tmp_path])
