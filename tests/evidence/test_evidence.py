"""The results page is made of its data, and the data of complete runs."""

from __future__ import annotations

import csv
import itertools
import json
import re
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import load_backend

from diffac.runs.recipes import load_recipe
from diffac.scale.plan import read_plan
from diffac_recipes import RECIPES

from . import choose, claims, measured, memory, search, table
from .__main__ import MODES, missing
from .collect import collect, key_of
from .costs import read_costs
from .data import FOLDER, Row, add, read
from .equality import compare
from .page import METHODS, PAGE, TASKS, page

FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DOCS = FOLDER.parents[1]
ORIGIN: dict[str, Any] = {"commit": "abc", "python": "3.11.7", "versions": {"numpy": "2"}}


def rows(recipe: str, seed: int, offset: float = 0.0, **fields: Any) -> list[Row]:
    first = Row("HalfCheetah-v5", recipe, "equinox", "", seed, 0, 0, 0.0, 1.5, 0.0, 0.0)._replace(**fields)
    return [first._replace(step=7_500 * k, updates=k, return_=100.0 * k + offset, seconds=k) for k in range(1, 21)]


def test_the_page_is_made_of_the_data(tmp_path: Path) -> None:
    assert PAGE.read_text() == page(pictures_folder=tmp_path)
    for picture in tmp_path.iterdir():
        assert (PAGE.parent / "pictures" / "results" / picture.name).is_file()


def test_the_claims_are_made_of_the_data() -> None:
    assert claims.PAGE.read_text() == claims.page()


def test_how_to_choose_is_made_of_the_data() -> None:
    assert choose.PAGE.read_text() == choose.render(), "run python -m tests.evidence.choose"


def test_every_recipe_has_a_family() -> None:
    placed = [recipe for family in choose.FAMILIES for recipe in family.recipes]
    assert len(placed) == len(set(placed))
    assert set(placed) >= set(RECIPES)


def test_verdicts_of_known_numbers(tmp_path: Path) -> None:
    """HalfCheetah: intervals apart, on top of each other; the gain of DPMD over SAC."""
    for recipe, offset in (("dacer2", 0.0), ("dacer", 500.0), ("sdac", 2_000.0), ("dpmd", 3_000.0), ("sac", -1_000.0)):
        for seed in range(100, 105):
            for name in ("halfcheetah", "ant"):
                add(name, rows(recipe, seed, offset + seed - 100), ORIGIN, tmp_path)
    lines = claims.page(tmp_path).splitlines()
    verdicts = [line.split("|")[-2].strip(" *") for line in lines if line.startswith("| ")][2:]
    assert verdicts[0] == "not reproduced"
    assert verdicts[1] == "not run yet"
    assert verdicts[4] == "not reproduced", "1,900 + 2,000 is below 1,900 + 3,000"
    assert verdicts[5:7] == ["not run yet", "reproduced"], "4,900 is 444 % above 900"


@pytest.mark.parametrize(("apart", "p_value"), [(0.0, 1.0), (400.0, 2 / 252)])
def test_backends_are_compared_by_whole_curves(tmp_path: Path, apart: float, p_value: float) -> None:
    """The same curves, and five of which each is above all of the other backend's: no division is as far apart."""
    for backend, offset in (("torch", apart), ("equinox", 0.0)):
        for seed in range(100, 105):
            begun = page(tmp_path, tmp_path).partition("## Torch")[2].partition("##")[0]
            assert "| `sac` |" not in begun, "rows come run by run"
            add("halfcheetah", rows("sac", seed, offset + seed - 100, backend=backend), ORIGIN, tmp_path)
    text = page(tmp_path, tmp_path)
    scores = f"{1_902 + apart:,.0f} | 1,902"
    assert f"| HalfCheetah-v5 | `sac` | {scores} | {apart:.0f} | {p_value:.3f} |" in text


def test_the_permutation_test_keeps_its_level() -> None:
    """Of one law, p is at most 0.1 in a tenth of all cases, though the evaluations of a run belong together."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((200, 2, 1, 4)) + 0.1 * rng.standard_normal((200, 2, 6, 4))
    p_values = np.array([compare(*pair).p_value for pair in groups])
    assert np.all((p_values * 35).round(9) % 1 == 0), "70 divisions, each counted with its mirror image"
    assert 0.04 < (p_values <= 0.1).mean() < 0.16


def test_all_rivals_must_have_been_run(tmp_path: Path) -> None:
    """SDAC is above all that were run: reproduced only if these are all there are, and they are named if not."""
    assert {"sdac", "sac", "td3", "dsact", *claims.DIFFUSION} == set(RECIPES)
    for recipe, offset in {"sdac": 2_000.0, **dict.fromkeys(claims.DIFFUSION, 0.0)}.items():
        (*_, line) = (line for line in claims.page(tmp_path).splitlines() if "Above all recent" in line)
        assert line.split("|")[-2].strip(" *") == ("open" if recipe not in ("sdac", "dacer2") else "not run yet")
        assert ("`dime`" in line) == (recipe not in ("sdac", "dacer2"))
        for seed in range(100, 105):
            add("halfcheetah", rows(recipe, seed, offset + seed - 100), ORIGIN, tmp_path)
    (line,) = (line for line in claims.page(tmp_path).splitlines() if "Above all recent" in line)
    assert line.split("|")[-2].strip(" *") == "reproduced"
    assert "not run" not in line


def test_memory_of_known_numbers(tmp_path: Path) -> None:
    """A claim needs both backends, and holds only if all three ratios say so."""
    for peak, verdict in ((200_000_000, "reproduced"), (600_000_000, "open")):
        lines = [
            memory.Row("sdac", "torch", "T=20", peak, nan, nan),
            memory.Row("dacer", "torch", "", 400_000_000, nan, nan),
            memory.Row("sdac", "equinox", "T=20", 100_000_000, 1e6, 1e6),
            memory.Row("dacer", "equinox", "", 200_000_000, 4e6, 1e6),
        ]
        for count in (3, 4):
            table.write(memory.Row, tmp_path / "memory.csv", lines[:count])
            text = claims.page(tmp_path)
            (line,) = (line for line in text.splitlines() if line.startswith("| Less memory"))
            assert line.split("|")[-2].strip(" *") == (verdict if count == 4 else "not run yet")
        assert f"torch {peak / 4e8:.2f}x, Equinox 0.50x, its temporaries 0.25x" in line
        assert f"| sdac (T=20) | torch | {peak / 1e6:.1f} |  |  |" in text
        assert "Not measured yet: dacer2 (torch), dacer2 (equinox), dpmd (torch)," in text


@pytest.mark.slow
def test_memory_of_an_update() -> None:
    """The arguments are at least the networks of SAC, their slow copies and Adam's moments, and the batch."""
    load_backend("equinox")
    row = memory.measured("sac", "equinox")
    widths = [(17 + 6, 256), (256, 256), (256, 256), (256, 1)]
    critics = 2 * sum(n * m + m for n, m in widths)
    assert row.arguments > 4 * 4 * critics
    assert 0 < row.temporary < row.peak


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_the_sweeps_are_possible(name: str) -> None:
    """Search and evaluation share no seed."""
    seeds = {int(job.values["seed"]) for job in read_plan(FOLDER / f"{name}.yaml")}
    assert max(seeds) < 100 if name == "search" else min(seeds) >= 100


def test_the_search_goes_on_with_the_best_two() -> None:
    """docs/data/results/search.yaml: with other seeds are tried the settings that were the best with the first."""
    jobs = read_plan(FOLDER / "search.yaml")
    keys = [key_of(job, jobs) for job in jobs]
    found = search.scores(read("search"))
    for recipe in {key[1] for key in keys}:
        others = sorted(key[3:] for key in keys if key[1] == recipe and key[4] != search.FIRST)
        best = search.going_on(found, recipe)
        assert others in ([], sorted(itertools.product(best, search.OTHERS)))


def test_a_search_of_known_numbers() -> None:
    """What is best with the first seed need not be best over all three."""
    own = [f'{{"tau": {i}}}' for i in range(search.SETTINGS)]
    found = {"sac": {settings: {0: float(i)} for i, settings in enumerate(own)}}
    assert search.going_on(found, "sac") == [own[5], own[4]]
    assert search.chosen(found, "sac") is None
    found["sac"][own[5]] |= {1: 0.0, 2: 0.0}
    assert search.chosen(found, "sac") is None
    found["sac"][own[4]] |= {1: 4.0, 2: 4.0}
    assert search.chosen(found, "sac") == {"tau": 4}
    del found["sac"][own[0]]
    assert search.going_on(found, "sac") == []
    returns = [rows("sac", 0, settings=own[0])[k]._replace(return_=float(k)) for k in range(10)]
    assert search.scores(returns) == {"sac": {own[0]: {0: 8.0}}}


def test_the_presets_are_what_the_search_has_chosen() -> None:
    """`cpu` of every recipe that has one; only such a recipe is in a sweep of the results, with that preset."""
    found = search.scores(read("search"))
    common = {
        "total_timesteps": 150_000, "learning_starts": 5_000, "num_envs": 5, "updates_per_env_step": 0.2,
        "eval_interval": 7_500, "eval_episodes": 10,
    }  # fmt: skip
    presets = {recipe: load_recipe(recipe).PRESETS.get("cpu") for recipe in RECIPES}
    for recipe, preset in presets.items():
        if preset is not None:
            assert preset == common | search.chosen(found, recipe), recipe
    for name, task in TASKS.items():
        jobs = read_plan(FOLDER / f"{name}.yaml")
        assert len({job.values["seed"] for job in jobs}) == task.seeds
        for job in jobs:
            assert presets[job.recipe], job.recipe
            assert job.values["preset"] == "cpu"
            _, config = job.load()
            assert config.env_id == task.env_id
            assert getattr(config, "noise_scale", 0.1) == 0.1


def test_rows_are_kept_and_replaced_by_runs(tmp_path: Path) -> None:
    odd = rows("sac", 100, settings='{"learning_rate": 0.1, "x": "a, b"}')
    add("x", rows("sac", 101) + odd, ORIGIN, tmp_path)
    add("x", rows("sac", 100), ORIGIN, tmp_path)
    add("x", rows("sac", 101, 7.0), ORIGIN | {"commit": "def"}, tmp_path)
    assert read("x", tmp_path) == sorted(odd + rows("sac", 100) + rows("sac", 101, 7.0))
    origins = json.loads((tmp_path / "x.json").read_text())
    assert [(entry["commit"], len(entry["runs"])) for entry in origins] == [("abc", 2), ("def", 1)]


def test_a_page_of_known_numbers(tmp_path: Path) -> None:
    """Scores of 1,900 plus the offset: IQM, every seed, steps to half of the best score, who beats whom."""
    for i, (recipe, backend) in enumerate(METHODS[:2]):
        for seed in range(100, 105):
            add("halfcheetah", rows(recipe, seed, 1000.0 * i + seed, backend=backend), ORIGIN, tmp_path)
    (tmp_path / "costs.csv").write_text("env_id,recipe,backend,seconds\nHalfCheetah-v5,dacer2,equinox,360\n")
    assert read_costs(tmp_path) == {("HalfCheetah-v5", "dacer2", "equinox"): 360.0}
    text = page(tmp_path, tmp_path / "pictures")
    line = next(line for line in text.splitlines() if line.startswith("| dacer2 | equinox"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2] == "2,002"
    assert cells[4] == "2,000, 2,001, 2,002, 2,003, 2,004"
    assert cells[5:] == ["105,000", "0.10"]  # 1,400 + 102 is the first that exceeds 3,002 / 2
    assert "| dacer2 · torch | 100 |  |" in text
    assert "`td3` (equinox)" in text.split("Not run yet: ")[1]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "halfcheetah.svg",
        "halfcheetah_profiles.svg",
    }


def test_only_what_is_not_in_the_data_is_trained(tmp_path: Path) -> None:
    """The same runs as the whole file asks for, known by the same names."""
    settings = {"env_id": "Pendulum-v1", "total_timesteps": 3_000, "learning_starts": 500}
    runs = [{"recipe": "sac", "hidden_sizes": [8, 8]}, {"recipe": "td3", "learning_rate": 1e-4}]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"settings": settings, "runs": runs, "grid": {"seed": [7, 8]}}))
    jobs = read_plan(tmp_path / "x.yaml")
    key = key_of(jobs[1], jobs)
    assert (key[1], key[4]) == ("sac", 8)
    add("x", [Row(*key, 3_000, 500, 1.0, 1.0, 1.0, 1.0)], ORIGIN, tmp_path)
    (tmp_path / "left.yaml").write_text(missing("x", tmp_path))
    left = read_plan(tmp_path / "left.yaml")
    assert [job.name for job in left] == [jobs[i].name for i in (0, 2, 3)]
    add("x", [Row(*key_of(job, jobs), 3_000, 500, 1.0, 1.0, 1.0, 1.0) for job in left], ORIGIN, tmp_path)
    assert missing("x", tmp_path) == ""


def test_runs_whose_modes_are_known_are_not_trained_again(tmp_path: Path) -> None:
    """What is asked for can be read as a sweep, and is all that the published data lacks."""
    for name, file in MODES.items():
        measured_runs = {row.run for row in measured.read(file)}
        jobs = read_plan(FOLDER / f"{name}.yaml")
        asked = tmp_path / f"{name}.yaml"
        asked.write_text(missing(name))
        left = {job.name for job in read_plan(asked)} if asked.read_text() else set()
        assert left == {job.name for job in jobs} - measured_runs


def test_the_table_of_td3_is_that_of_its_data() -> None:
    """docs/results/recipes/td3.md, from docs/data/td3.csv; means over the seeds that got so far."""
    with (DOCS / "data" / "td3.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    text = (DOCS / "results" / "recipes" / "td3.md").read_text()
    table = re.findall(r"^\| (\d\d,000) \|(.*)\|$", text, re.M)
    assert len(table) == 6
    for step, cells in table:
        means = [int(cell.split()[0]) for cell in cells.split("|")]
        for name, mean in zip(("Stable-Baselines3", "torch, uniform", "torch, truncated_normal"), means, strict=True):
            known = [float(r["mean"]) for r in rows if (r["algorithm"], r["step"]) == (name, step.replace(",", ""))]
            assert len(known) == 5
            assert round(np.mean(known)) == mean


def test_only_complete_runs_are_collected(tmp_path: Path) -> None:
    settings = {"total_timesteps": 3_000, "learning_starts": 500, "env_id": "Pendulum-v1", "recipe": "sac"}
    grid = {"seed": [0, 1, 2], "learning_rate": [1e-3, 1e-4]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"settings": settings, "grid": grid}))
    root = tmp_path / "sweep"
    jobs = read_plan(tmp_path / "x.yaml", root)
    manifest = {"git_revision": "0123456789", "python": "3.11.7", "versions": {"numpy": "2", "wandb": "1"}}
    for job, end in zip(jobs, (3_000, 1_500, 3_000, 0, 0, 0), strict=True):
        if not end:
            continue
        job.folder.mkdir(parents=True)
        steps = np.arange(1_500, end + 1, 1_500)
        results = np.array([[1.0, 3.0]] * len(steps))
        np.savez(job.folder / "evaluations.npz", timesteps=steps, updates=steps // 5, results=results)
        table = ["step,time/time_elapsed,time/core_seconds,eval/mean_reward"]
        table += [line for step in steps for line in (f"{step},{step / 100},{step / 200},", f"{step},,,2")]
        (job.folder / "metrics.csv").write_text("\n".join(table) + "\n")
        (job.folder / "manifest.json").write_text(json.dumps(manifest))
    assert collect("x", root, tmp_path) == 4
    found = read("x", tmp_path)
    assert [row[4:] for row in found] == [
        (0, 1_500, 300, 2.0, 1.0, 15.0, 8.0), (0, 3_000, 600, 2.0, 1.0, 30.0, 15.0),
        (2, 1_500, 300, 2.0, 1.0, 15.0, 8.0), (2, 3_000, 600, 2.0, 1.0, 30.0, 15.0),
    ]  # fmt: skip
    assert {row.settings for row in found} == {'{"learning_rate": 0.001}'}
    assert json.loads((tmp_path / "x.json").read_text())[0]["commit"] == "0123456"
    assert collect("x", root, tmp_path) == 4
