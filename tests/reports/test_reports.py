"""Reports: statistics checked independently, everybody's files read, nothing hidden."""

from __future__ import annotations

import csv
import html.parser
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from diffac.commands.main import main
from diffac.errors import UsageError
from diffac.reports import make_report, pictures
from diffac.reports.comparison import Cell, Comparison, Method
from diffac.reports.reading import Run, read_runs
from diffac.reports.search import Skipped
from diffac.reports.statistics import bootstrap, improvement, improvement_interval, iqm, mean_std, profile

RNG = np.random.default_rng


def write_run(root: Path, recipe: str = "sdac", seed: int = 0, returns: Any = (1.0, 2.0, 3.0), **more: Any) -> Path:
    """The folder of a run, as `diffac train` leaves it; one evaluation of two episodes every 1,000 steps."""
    env_id, backend = more.pop("env_id", "Hopper-v5"), more.pop("backend", "torch")
    started, resumed = more.pop("started", "2026-01-01T00:00:00+00:00"), more.pop("resumed", [])
    folder = root / env_id / recipe / backend / f"seed{seed}__{len(list(root.rglob('config.yaml')))}"
    folder.mkdir(parents=True)
    steps = 1000 * (1 + np.arange(len(returns)))
    config = {"recipe": recipe, "env_id": env_id, "backend": backend, "seed": seed, "total_timesteps": int(steps[-1])}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **more}))
    manifest = {"started": started, "python": "3.11.0", "versions": {"mujoco": "3.2.1"}, "cpu_count": 2}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "git_revision": "abcdef", "resumed": resumed}))
    with (folder / "metrics.csv").open("w") as file:
        file.write("step,time/time_elapsed,eval/mean_reward\n")
        for step in steps:
            file.write(f"{step},{step / 100},\n{step},,1.0\n")
    values = np.asarray(returns, float)[:, None] + [-1.0, 1.0]
    np.savez(folder / "evaluations.npz", timesteps=steps, updates=steps // 2, results=values, ep_lengths=values)
    return folder


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- statistics


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 11])
def test_iqm_by_hand(number: int) -> None:
    scores = RNG(number).normal(size=number)
    trimmed = sorted(scores)[number // 4 : number - number // 4]
    assert iqm([scores]) == pytest.approx(sum(trimmed) / len(trimmed), rel=1e-12)
    assert iqm(np.split(scores, [number // 2])) == pytest.approx(iqm([scores])), "environments are put together"


def test_iqm_ignores_an_outlier_that_the_mean_does_not() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    assert iqm([scores]) == 2.5
    assert iqm([np.array([1.0, 2.0, 3.0, 1e9])]) == 2.5


def test_profile_by_brute_force() -> None:
    strata = [RNG(0).normal(size=4), RNG(1).normal(size=3)]
    thresholds = np.linspace(-2, 2, 9)
    everyone = [*strata[0], *strata[1]]
    expected = [sum(score > threshold for score in everyone) / 7 for threshold in thresholds]
    np.testing.assert_allclose(profile(strata, thresholds), expected)


def test_improvement_by_brute_force() -> None:
    rng = RNG(0)
    x = [rng.integers(0, 4, size).astype(float) for size in (3, 5)]
    y = [rng.integers(0, 4, size).astype(float) for size in (4, 2)]
    shares = []
    for ours, theirs in zip(x, y, strict=True):
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(ours, theirs)]
        shares.append(sum(wins) / len(wins))
    assert improvement(x, y) == pytest.approx(sum(shares) / 2)
    assert improvement(x, y) + improvement(y, x) == pytest.approx(1.0)
    assert improvement(x, x) == pytest.approx(0.5)


@pytest.mark.parametrize("sizes", [(5, 5), (2, 7), (1, 3)])
def test_the_interval_of_improvement_is_that_of_the_bootstrap(sizes: tuple[int, int]) -> None:
    """The same resamples, whoever compares them; NaN for a single seed."""
    rng = RNG(0)
    x, y = ([rng.integers(0, 9, size).astype(float) for size in (n, n + 1)] for n in sizes)
    np.testing.assert_allclose(improvement_interval(x, y), bootstrap(improvement, x, y), atol=1e-12)


def test_improvement_of_known_distributions() -> None:
    """X ~ N(1, 1) beats Y ~ N(0, 1) with probability Phi(1 / sqrt 2) = 0.7602."""
    x, y = RNG(0).normal(1, 1, 2000), RNG(1).normal(0, 1, 2000)
    assert improvement([x], [y]) == pytest.approx(0.7602, abs=0.02)


def test_interval_covers_as_often_as_it_says() -> None:
    """20 seeds of a normal distribution around 3: between 90 and 97 of 100 intervals hold 3 (measured: 93.4 %)."""
    rng = RNG(0)
    hits = [
        low <= 3 <= high
        for low, high in (bootstrap(iqm, [rng.normal(3, 2, 20)], resamples=500, seed=k) for k in range(400))
    ]
    assert 0.90 <= np.mean(hits) <= 0.97


def test_interval_of_three_seeds_covers_less() -> None:
    """What the page warns of (docs/use/reports.md: 73 %)."""
    rng = RNG(1)
    hits = [
        low <= 0 <= high
        for low, high in (bootstrap(iqm, [rng.normal(size=3)], resamples=500, seed=k) for k in range(400))
    ]
    assert 0.66 <= np.mean(hits) <= 0.80


def test_bootstrap_is_stratified() -> None:
    """Environments far apart: drawing runs across them would make the interval as wide as their distance."""
    strata = [RNG(0).normal(0, 1, 10), RNG(1).normal(1000, 1, 10)]
    low, high = bootstrap(lambda parts: np.concatenate(parts, axis=-1).mean(axis=-1), strata)
    assert low < np.concatenate(strata).mean() < high
    assert high - low < 2


def test_bootstrap_draws_whole_curves() -> None:
    """The difference of two points of the same seed is 1 in every sample."""
    first = RNG(0).normal(size=6)
    curves = np.stack([first, first + 1])
    low, high = bootstrap(lambda parts: (parts[0][..., 1, :] - parts[0][..., 0, :]).mean(axis=-1), [curves])
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)


def test_bootstrap_agrees_with_a_loop() -> None:
    scores = RNG(0).normal(size=8)
    rng = RNG(5)
    means = sorted(rng.choice(scores, 8).mean() for _ in range(20_000))
    low, high = bootstrap(lambda parts: parts[0].mean(axis=-1), [scores], resamples=20_000)
    assert low == pytest.approx(means[500], abs=0.02)
    assert high == pytest.approx(means[19_500], abs=0.02)


def test_one_seed_has_no_interval() -> None:
    interval = bootstrap(iqm, [np.ones((3, 1)), np.ones((3, 5))])
    assert interval.low.shape == (3,)
    assert np.isnan(interval).all()
    assert mean_std(np.array([3.0]))[0] == 3.0
    assert np.isnan(mean_std(np.array([3.0]))[1])
    assert mean_std(np.array([1.0, 3.0])) == (2.0, pytest.approx(2**0.5))


# ---- reading


def test_run_of_diffac(tmp_path: Path) -> None:
    write_run(tmp_path, seed=3, returns=(1.0, 5.0))
    ((run,), skipped) = read_runs([str(tmp_path)])
    assert skipped == []
    assert (run.env_id, run.recipe, run.backend, run.seed) == ("Hopper-v5", "sdac", "torch", 3)
    np.testing.assert_array_equal(run.steps, [1000, 2000])
    np.testing.assert_array_equal(run.returns, [1.0, 5.0])
    assert run.updates is not None
    np.testing.assert_array_equal(run.updates, [500, 1000])
    assert run.seconds is not None
    np.testing.assert_array_equal(run.seconds, [10.0, 20.0])
    assert run.finished


def test_the_cost_of_runs(tmp_path: Path) -> None:
    """Core-hours: of all seeds of a method together, and of the whole report; nothing where one run does not say."""
    for seed in (0, 1):
        folder = write_run(tmp_path / "runs", "sac", seed)
        rows = "".join(f"{step},{step / 100},{step * 1.8},\n" for step in (1000, 2000, 3000))
        (folder / "metrics.csv").write_text(
            f"step,time/time_elapsed,time/core_seconds,eval/mean_reward\n{rows}3000,,,1\n"
        )
    out = tmp_path / "report"
    make_report([str(tmp_path / "runs")], out)
    assert [row["core_hours"] for row in read_csv(out / "data/results.csv")] == ["3.0"]
    assert "They took 3 core-hours" in (out / "report.html").read_text()
    write_run(tmp_path / "runs", "td3")
    make_report([str(tmp_path / "runs")], out)
    assert [row["core_hours"] for row in read_csv(out / "data/results.csv")] == ["3.0", ""]
    assert "core-hours." not in (out / "report.html").read_text()


def test_clock_of_a_resumed_run(tmp_path: Path) -> None:
    """The second process counts anew from step 2,000, and repeats that step."""
    folder = write_run(tmp_path, returns=(1.0, 2.0, 3.0))
    (folder / "metrics.csv").write_text("step,time/time_elapsed\n1000,10\n2000,20\n2000,4\n3000,9\n30")
    ((run,), _) = read_runs([str(tmp_path)])
    assert run.seconds is not None
    np.testing.assert_array_equal(run.seconds, [10, 24, 29])


def test_a_table_with_settings(tmp_path: Path) -> None:
    """Runs of a recipe that differ in them are different methods, not seeds to average over; so is an empty text."""
    rows = [
        {"recipe": "sac", "settings": settings, "seed": seed, "step": step, "return": value}
        for settings, value in (("", 1.0), ('{"tau": 0.01}', 5.0))
        for seed in (0, 1)
        for step in (100, 200)
    ]
    path = write_csv(tmp_path / "Hopper-v4" / "search.csv", rows)
    make_report([str(path)], tmp_path / "report")
    results = read_csv(tmp_path / "report/data/results.csv")
    assert [(row["seeds"], row["last_mean"]) for row in results] == [("2", "1.0"), ("2", "5.0")]
    assert "tau" in results[1]["variant"]


def test_table_of_other_people(tmp_path: Path) -> None:
    """Rows in any order, several episodes of one evaluation, several seeds; the name of the file is the method."""
    rows = [
        {"seed": seed, "step": step, "return": value + seed, "extra": "x"}
        for seed in (7, 8)
        for step in (200, 100)
        for value in (10, 20)
    ]
    path = write_csv(tmp_path / "Hopper-v4" / "td3.csv", rows)
    runs, _ = read_runs([str(path)])
    assert [(run.env_id, run.recipe, run.backend, run.seed) for run in runs] == [
        ("Hopper-v4", "td3", "", 7), ("Hopper-v4", "td3", "", 8),
    ]  # fmt: skip
    np.testing.assert_array_equal(runs[0].steps, [100, 200])
    np.testing.assert_array_equal(runs[0].returns, [22, 22])
    assert runs[0].seconds is None


def test_names_that_are_given_win(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"step": 1, "return": 2, "seed": 0}])
    ((run,), _) = read_runs([f"My method={path}"], env_id="Ant-v5")
    assert (run.env_id, run.recipe) == ("Ant-v5", "My method")
    write_csv(tmp_path / "b.csv", [{"step": 1, "return": 2, "seed": 0, "env_id": "Swimmer-v5", "recipe": "ppo"}])
    ((run,), _) = read_runs([str(tmp_path / "b.csv")], env_id="Ant-v5")
    assert (run.env_id, run.recipe) == ("Swimmer-v5", "ppo")


def monitor(path: Path, begin: float, episodes: list[tuple[float, int, float]], tail: str = "") -> None:
    """A file as Stable-Baselines3's `Monitor` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'#{{"t_start": {begin}, "env_id": "Walker2d-v4"}}', "r,l,t", *(f"{r},{n},{t}" for r, n, t in episodes)]
    path.write_text("\n".join(lines) + "\n" + tail)


def test_monitors_of_two_environments_become_one_run(tmp_path: Path) -> None:
    """Episodes in the order of their ends; the second environment began two seconds later."""
    folder = tmp_path / "sac" / "Walker2d-v4_3"
    monitor(folder / "0.monitor.csv", 100.0, [(10.0, 5, 1.0), (30.0, 5, 6.0)], tail="4.0,")
    monitor(folder / "1.monitor.csv", 102.0, [(20.0, 7, 2.0)])
    ((run,), _) = read_runs([str(tmp_path)])
    assert (run.env_id, run.recipe, run.seed) == ("Walker2d-v4", "sac", 3)
    np.testing.assert_array_equal(run.steps, [5, 12, 17])
    np.testing.assert_allclose(run.returns, [10, 15, 20])  # means of the episodes so far
    assert run.seconds is not None
    np.testing.assert_allclose(run.seconds, [1, 4, 6])
    assert run.measured.startswith("training episodes")


def test_monitor_means_the_last_hundred_episodes(tmp_path: Path) -> None:
    values = RNG(0).normal(size=150)
    monitor(tmp_path / "monitor.csv", 0.0, [(value, 1, i + 1.0) for i, value in enumerate(values)])
    ((run,), _) = read_runs([str(tmp_path)])
    assert run.returns[-1] == pytest.approx(values[50:].mean())


def test_evaluations_of_stable_baselines3(tmp_path: Path) -> None:
    """With a monitor beside them, which tells environment and time."""
    folder = tmp_path / "td3_1"
    monitor(folder / "monitor.csv", 0.0, [(1.0, 100, 10.0), (1.0, 100, 20.0)])
    np.savez(
        folder / "evaluations.npz", timesteps=[100, 200], results=[[1.0, 3.0], [5.0, 7.0]], ep_lengths=[[1, 1]] * 2
    )
    ((run,), _) = read_runs([f"TD3={tmp_path}"])
    assert (run.env_id, run.recipe, run.measured, run.seed) == ("Walker2d-v4", "TD3", "evaluation", None)
    np.testing.assert_array_equal(run.returns, [2, 6])
    assert run.seconds is not None
    np.testing.assert_array_equal(run.seconds, [10, 20])
    assert run.updates is None


def test_real_monitor_of_stable_baselines3(tmp_path: Path) -> None:
    module = pytest.importorskip("stable_baselines3.common.monitor")
    import gymnasium as gym

    env = module.Monitor(gym.make("Pendulum-v1"), str(tmp_path / "run"))
    total = 0.0
    env.reset(seed=0)
    for _ in range(200):
        total += float(env.step(np.zeros(1, np.float32))[1])
    env.close()
    ((run,), _) = read_runs([str(tmp_path)])
    assert (run.env_id, run.steps.tolist()) == ("Pendulum-v1", [200])
    assert run.returns[0] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lacks the column step and return and seed .it has: none, the file is empty."),
        ("step,reward,seed\n1,2,3\n", "lacks the column return .it has: step, reward, seed."),
        ("step;return;seed\n1;2;3\n", "lacks the column step and return and seed"),
        ("step,return,seed\n", "has no rows"),
        ("step,return,seed\n1,2,3\n2,good,3\n", "line 3: step, return and seed must be numbers"),
        ("step,return,seed\n1,2,3\n2\n", "line 3: step, return and seed must be numbers"),
        ("step,return,seed\n1,2,3\n2000,nan,3\n", "return at step 2,000 is nan"),
        ("step,return,seed\nnan,2,3\n", "steps must be whole numbers from 0 to 9,007,199,254,740,992, but one is nan"),
    ],
)
def test_bad_tables_are_left_out_with_a_sentence(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UsageError, match=reason):
        read_runs([str(tmp_path)])
    write_csv(tmp_path / "good.csv", [{"step": 1, "return": 2, "seed": 0}])
    runs, (left_out,) = read_runs([str(tmp_path)])
    assert len(runs) == 1
    assert re.search(reason, left_out.reason)


def test_one_bad_seed_does_not_spoil_the_others(tmp_path: Path) -> None:
    rows = [{"step": 1, "return": "inf" if seed == 2 else seed, "seed": seed} for seed in range(4)]
    write_csv(tmp_path / "a.csv", rows)
    runs, (left_out,) = read_runs([str(tmp_path)])
    assert [run.seed for run in runs] == [0, 1, 3]
    assert left_out.source.endswith("a.csv, seed 2")


def spoil(folder: Path, how: str) -> None:
    path = folder / "evaluations.npz"
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "config":
        (folder / "config.yaml").write_text("a: [")
    elif how == "pickle":
        np.savez(path, timesteps=[1], results=np.array([[{}]], dtype=object), allow_pickle=True)
    else:
        steps, results = {"empty": ([], np.zeros((0, 2))), "nan": ([1, 2], [[1.0], [np.nan]])}.get(
            how, ([2, 1], [[1.0], [2.0]])
        )
        np.savez(path, timesteps=np.array(steps, int), results=np.array(results))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "no evaluation took place"),
        ("cut", "evaluations.npz is no archive of arrays"),
        ("pickle", "evaluations.npz is no archive of arrays"),
        ("config", "config.yaml is no YAML"),
        ("empty", "no evaluation took place"),
        ("nan", "return at step 2 is nan"),
        ("order", "steps do not increase"),
    ],
)
def test_bad_runs_are_left_out_with_a_sentence(how: str, reason: str, tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    bad = write_run(tmp_path, seed=1)
    spoil(bad, how)
    runs, (left_out,) = read_runs([str(tmp_path)])
    assert [run.seed for run in runs] == [0]
    assert left_out.source == str(bad)
    assert reason in left_out.reason
    assert "\n" not in left_out.reason


def test_unfinished_runs_are_left_out_unless_wanted(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, total_timesteps=4000)
    runs, (left_out,) = read_runs([str(tmp_path)])
    assert [run.seed for run in runs] == [0]
    assert left_out.reason.startswith("unfinished: evaluated until 3,000 of 4,000 environment steps")
    assert len(read_runs([str(tmp_path)], unfinished=True)[0]) == 2


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    """The newest finished one; settings without effect on learning do not make it another."""
    old = write_run(tmp_path, returns=(1.0, 1.0), log_interval=5)
    new = write_run(tmp_path, returns=(2.0, 2.0), started="2026-02-01T00:00:00+00:00", log_interval=7)
    (run,), (left_out,) = read_runs([str(tmp_path)])
    assert run.source == str(new)
    assert left_out == Skipped(str(old), f"same settings and seed as the newer {new}")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file or folder"):
        read_runs([str(tmp_path / "missing")])
    with pytest.raises(UsageError, match=r"no usable runs in .*; wanted are folders of diffac, CSV files"):
        read_runs([str(tmp_path)])


# ---- comparing


def make(env_id: str, recipe: str, seed: int, returns: Any, **fields: Any) -> Run:
    steps = 100 * (1 + np.arange(len(returns)))
    return Run(f"{recipe}{seed}", env_id, recipe, "torch", seed, steps, np.asarray(returns, float), **fields)


def test_summary_by_hand() -> None:
    """20 evaluations: the last 10 % of 2,000 steps are those at 1,800, 1,900 and 2,000."""
    first, second = np.arange(20.0), np.arange(20.0)
    first[3], first[17] = 50.0, 30.0
    cell = Cell("A", Method("x"), [make("A", "x", 0, first), make("A", "x", 1, second)])
    assert cell.summary.iqm == 19.0
    assert cell.summary.last == (19.0, 0.0)
    assert cell.summary.best_late == (24.5, pytest.approx(np.std([30, 19], ddof=1)))
    assert cell.summary.best == (34.5, pytest.approx(np.std([50, 19], ddof=1)))


def test_seeds_are_cut_at_the_last_common_step() -> None:
    cell = Cell("A", Method("x"), [make("A", "x", 0, [1, 2, 3, 100]), make("A", "x", 1, [1, 2, 5])])
    assert (cell.end, cell.cut_from) == (300, 400)
    assert cell.summary.last[0] == 4.0
    assert cell.summary.best[0] == 4.0
    np.testing.assert_array_equal(cell.curve.x, [100, 200, 300])


def test_seeds_at_different_steps_are_interpolated() -> None:
    """Two straight lines, evaluated at different steps: their mean is a straight line, too."""
    places = (np.array([10, 50, 110]), np.array([20, 60, 100]))
    runs = [
        Run("", "A", "x", "", seed, steps, (seed + 1.0) * steps, seconds=steps / (seed + 1))
        for seed, steps in enumerate(places)
    ]
    cell = Cell("A", Method("x"), runs)
    assert cell.curve.x[0] == 20
    np.testing.assert_allclose(cell.curve.mean, 1.5 * cell.curve.x)
    np.testing.assert_allclose(cell.seconds, 0.75 * cell.curve.x)


def test_settings_that_differ_make_methods() -> None:
    common = {"total_timesteps": 300, "progress": True, "depth": 2}
    configs = [{"tau": 0.1, "width": 8}, {"tau": 0.1, "width": 8}, {"tau": 0.2, "width": 16}, {"tau": 0.2}]
    runs = [make("A", "x", i, [1, 2, 3], config={**common, "seed": i, **own}) for i, own in enumerate(configs)]
    assert [method.variant for method in Comparison(runs).methods] == ["tau=0.1", "tau=0.2"]
    assert [cell.seeds for cell in Comparison(runs).cells.values()] == [2, 2]
    assert [m.variant for m in Comparison(runs[:3]).methods] == ["tau=0.1, …", "tau=0.2, …"], (
        "and the width differs, too"
    )
    assert [m.variant for m in Comparison(runs[:2]).methods] == [""]


def test_all_environments_together_holds_only_complete_methods() -> None:
    runs = [make(env, recipe, seed, [0, 5, 10]) for env in "AB" for recipe in "xy" for seed in (0, 1)]
    runs.append(make("A", "z", 0, [0, 50, 100]))
    comparison = Comparison(runs)
    assert [method.recipe for method in comparison.complete] == ["x", "y"]
    assert comparison.scale == {"A": (0.0, 100.0), "B": (0.0, 10.0)}
    curve = comparison.aggregate_curve(comparison.complete[0])
    assert (curve.x[0], curve.x[-1]) == (pytest.approx(1 / 3), 1.0)
    assert curve.iqm[-1] == pytest.approx((0.1 + 1.0) / 2)
    assert not Comparison(runs[:2]).aggregates


def test_an_environment_of_one_method_does_not_keep_others_apart() -> None:
    runs = [make(env, recipe, 0, [0, 5, 10]) for env in "ABC" for recipe in "xy"]
    runs += [make("D", "z", 0, [0, 1]), make("A", "z", 0, [0, 1])]
    comparison = Comparison(runs)
    assert comparison.shared == ["A", "B", "C"]
    assert [method.recipe for method in comparison.complete] == ["x", "y"]


def test_pairs_need_two_seeds_and_name_who_is_left_out() -> None:
    runs = [make("A", "good", seed, [0, 9 + seed]) for seed in range(3)]
    runs += [make("A", "bad", seed, [0, 1 + seed]) for seed in range(2)] + [make("A", "single", 0, [0, 5])]
    (pair,), alone = Comparison(runs).pairs()
    assert (pair.x.recipe, pair.y.recipe, pair.probability, pair.seeds) == ("good", "bad", 1.0, (3, 2))
    assert [method.recipe for method in alone] == ["single"]


# ---- drawing

# Machado, Oliveira, Fernandes (2009): what people without one kind of cone see, in linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    x = TO_XYZ @ rgb.clip(0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """WCAG 2: 3 is wanted of graphics, 4.5 of text."""
    dark, light = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("palette", "page"), [(pictures.LIGHT, "#ffffff"), (pictures.DARK, "#14171a")])
def test_colours_differ_for_everybody(palette: tuple[str, ...], page: str) -> None:
    """A distance of 20 in CIELAB is plain to see (2.3 is just noticeable)."""
    for kind, matrix in BLINDNESS.items():
        seen = [cielab(np.array(matrix) @ linear(colour)) for colour in palette]
        distance = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
        assert distance > 20, kind
    assert min(contrast(colour, page) for colour in palette) > 2.8


def test_text_can_be_read_on_either_page() -> None:
    for name, light, dark in pictures.colour_variables():
        if name in ("ink", "muted"):
            assert contrast(light, "#ffffff") > 4.5
            assert contrast(dark, "#14171a") > 4.5


def test_a_recipe_has_one_colour_everywhere() -> None:
    few = pictures.looks([Method("sac", "torch"), Method("sac", "equinox"), Method("other")])
    many = pictures.looks([Method(name, "torch") for name in ("dacer", "dacer2", "dpmd", "sac", "sdac", "a", "b", "c")])
    assert few[Method("sac", "torch")].colour == few[Method("sac", "equinox")].colour
    assert few[Method("sac", "torch")].line != few[Method("sac", "equinox")].line
    assert few[Method("sac", "torch")].colour == many[Method("sac", "torch")].colour
    assert len({look.colour for look in many.values()}) == len(pictures.LIGHT)


@pytest.mark.parametrize(
    ("value", "text"),
    [(5088.4, "5,088"), (712.84, "712.8"), (12.349, "12.35"), (0.0314, "0.0314"), (-3.5, "\u22123.5"), (1000, "1,000"),
     (100.0, "100"), (0.0, "0"), (float("nan"), "\u2013")],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert pictures.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59, "59 s"), (129, "2.1 min"), (1440, "24 min"), (5400, "1.5 h"), (2e5, "2.3 d")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert pictures.duration(seconds) == text


# ---- the page


class Page(html.parser.HTMLParser):
    """Collects what a page loads, its names, its text and whether its elements close."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "img", "iframe", "link", "image") and any(name in given for name in ("src", "href")):
            self.loads.append(tag)
        if identifier := given.get("id"):
            self.ids.append(identifier)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in self.VOID else self.open

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """Two environments; SDAC in both with three seeds, SAC with one and two seeds, a run that is not finished."""
    root = tmp_path_factory.mktemp("runs")
    for env_id, seeds in (("Hopper-v5", 3), ("Ant-v5", 3)):
        for seed in range(seeds):
            write_run(root, seed=seed, env_id=env_id, returns=[1.0, 10.0 + seed, 100.0 * (1 + seed)])
    resumed = [{"env_step": 1000, "backend": "equinox"}]
    write_run(root, "sac", env_id="Hopper-v5", returns=[5.0, 6.0, 7.0], resumed=resumed)
    write_run(root, "sac", env_id="Ant-v5", returns=[5.0, 6.0, 7.0])
    write_run(root, "sac", env_id="Ant-v5", seed=1, returns=[5.0, 6.0, 9.0])
    write_run(root, "sac", env_id="Ant-v5", seed=2, total_timesteps=9000)
    write_csv(root / "<script>alert(1)<" / "x.csv", [{"step": 1, "return": "bad", "seed": 0}])
    out = root / "report"
    assert make_report([root], out) == out / "report.html"
    return out, Page((out / "report.html").read_text())


def test_page_is_complete_by_itself(report: tuple[Path, Page]) -> None:
    out, page = report
    assert page.loads == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    text = (out / "report.html").read_text()
    assert not re.findall(r"url\((?!#)", text), "a style loads something"
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    assert used <= set(page.ids), "something is referred to that does not exist"
    assert "prefers-color-scheme: dark" in text
    assert "<script>alert" not in text


def test_page_says_what_stands_behind_its_numbers(report: tuple[Path, Page]) -> None:
    _, page = report
    for words in (
        "9 runs of 2 methods in 2 environments: Ant-v5, Hopper-v5",
        "Hopper-v5: 1 seed for sac · torch: no interval",
        "Ant-v5: fewer than 5 seeds for every method",
        "Left out: 2 runs or files (1 unfinished",
        "evaluated until 3,000 of 9,000 environment steps",
        "mujoco 3.2.1",
        "python 3.11.0",
        "revision abcdef",
        "resumed at 1,000 with equinox",
        "3,000",  # steps
        "1,500",  # updates
        "30 s",
        "200 ± 100",  # 100, 200, 300
        "8 ± 1.41",  # 7, 9
        "no interval",
    ):
        assert words in page.text, words


def test_files_beside_the_page(report: tuple[Path, Page]) -> None:
    out, _ = report
    names = {path.stem for path in (out / "pictures").glob("*.png")}
    assert names == {path.stem for path in (out / "pictures").glob("*.svg")}
    kinds = ("curves_steps", "curves_time", "profiles")
    expected = {f"{kind}_{env}" for kind in kinds for env in ("Ant-v5", "Hopper-v5")}
    assert names == expected | {"curves_steps_all", "profiles_all", "improvement"}
    for path in (out / "pictures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    linked = set(re.findall(r'href="(pictures/[^"]+)"', (out / "report.html").read_text()))
    assert linked == {f"pictures/{path.name}" for path in (out / "pictures").iterdir()}


def test_csv_files_hold_what_is_drawn(report: tuple[Path, Page]) -> None:
    out, _ = report
    ant = [row for row in read_csv(out / "data/curves.csv") if (row["env_id"], row["recipe"]) == ("Ant-v5", "sdac")]
    assert [(float(row["step"]), float(row["iqm"]), float(row["seconds"])) for row in ant] == [
        (1000, 1, 10), (2000, 11, 20), (3000, 200, 30),
    ]  # fmt: skip
    assert float(ant[-1]["low"]) == 100
    assert float(ant[-1]["high"]) == 300
    single = [row for row in read_csv(out / "data/curves.csv") if row["seeds"] == "1"]
    assert {(row["low"], row["high"], row["std"]) for row in single} == {("", "", "")}
    (pair,) = read_csv(out / "data/improvement.csv")
    assert (pair["x"], pair["y"], pair["environments"], float(pair["probability"])) == (
        "sdac · torch", "sac · torch", "Ant-v5", 1.0,
    )  # fmt: skip
    assert len(read_csv(out / "data/runs.csv")) == 9
    assert len(read_csv(out / "data/left_out.csv")) == 2
    assert {row["env_id"] for row in read_csv(out / "data/profiles.csv")} == {"Ant-v5", "Hopper-v5", "All environments"}


def test_single_seeds_can_be_read_again(report: tuple[Path, Page]) -> None:
    out, _ = report
    runs, _ = read_runs([str(out / "data/seeds.csv")])
    original, _ = read_runs([str(out.parent)])
    assert len(runs) == len(original) == 9
    for one, other in zip(
        *(sorted(many, key=lambda r: (r.env_id, r.recipe, r.seed or 0)) for many in (runs, original)), strict=True
    ):
        np.testing.assert_array_equal(one.returns, other.returns)
        np.testing.assert_array_equal(one.steps, other.steps)


def test_the_report_itself_is_not_read(report: tuple[Path, Page]) -> None:
    out, _ = report
    _, skipped = read_runs([str(out.parent)])
    assert not any("report" in entry.source.removeprefix(str(out.parent)) for entry in skipped)


def test_smallest_report(tmp_path: Path) -> None:
    """One seed, one evaluation, no clock, nothing to compare."""
    write_csv(tmp_path / "x.csv", [{"step": 1, "return": -2, "seed": 0}])
    page = Page(make_report([tmp_path / "x.csv"], tmp_path / "out").read_text())
    assert "unknown environment: 1 seed for x: no interval" in page.text
    assert "Wall-clock time" not in page.text
    assert "not recorded" in page.text
    assert not (tmp_path / "out/pictures/improvement.png").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "x.csv", [{"step": 1, "return": -2, "seed": 0}])
    out = tmp_path / "out"
    assert main(["report", str(path), "--out", str(out), "--env-id", "Ant-v5"]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    assert "Ant-v5" in (out / "report.html").read_text()
    for arguments, message in [
        ([], "error: diffac report needs PATH [PATH ...]: Folders of diffac (runs/)"),
        ([str(tmp_path / "missing")], "error: there is no file or folder"),
        ([str(path), "--out", str(path)], "error: the report cannot be written to"),
    ]:
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(message)
        assert said.count("\n") == 1
