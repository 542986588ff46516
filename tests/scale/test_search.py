"""Searches: trials of equal number, none lost and none trained twice whatever is killed, and what they find."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from program import SECONDS, Program
from test_sweep import SWEEP, wait_for

from diffac.commands.main import main
from diffac.errors import DamagedError, UsageError
from diffac.reports.searches import read_searches as read_searches_of_report
from diffac.scale import cost
from diffac.scale import search as driver
from diffac.scale.plan import read_plan, read_searches
from diffac.scale.search import Found, Summary, run_searches
from diffac.scale.trials import JOURNAL, STOP, evaluations, objective
from diffac.scale.work import Job, Outcome

pytestmark = pytest.mark.usefixtures("third_party")
needs_optuna = pytest.mark.skipif("not __import__('importlib').util.find_spec('optuna')", reason="needs optuna")
SPACE = {
    "gain": {"low": 0.5, "high": 8.0, "log": True},
    "batch_size": {"low": 2, "high": 9},
    "hidden_sizes": [[8], [5]],
}
TRIAL = {"trial": 0, "state": "complete", "objective": 1.0, "settings": {}, "core_seconds": None}
CONTENT = {
    "settings": {"recipe": "fake", "total_timesteps": 500, "eval_interval": 100},
    "search": {"space": SPACE, "trials": 8, "seeds": [0, 1]},
}


def write(content: Any = None, name: str = "mine.yaml", **search: Any) -> Path:
    content = copy.deepcopy(CONTENT if content is None else content)
    if search:
        content["search"].update(search)
    path = Path(name)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# ---- the file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "search must hold space, trials and seeds"),
        ([3], "search must hold space, trials and seeds"),
        ({"trails": 3}, "unknown entry of search in .* 'trails'; did you mean 'trials'"),
        ({"gain": [1.0, 2.0]}, "what is searched belongs below `space`"),
        ({"space": "gone"}, "search needs `space`: learning_rate: {low: 1.0e-4"),
        ({"trials": "gone"}, "search needs `trials`"),
        ({"seeds": "gone"}, "search needs `seeds`"),
        ({"space": {}}, "space must hold lines such as"),
        ({"space": ["gain"]}, "space must hold lines such as"),
        ({"trials": 0}, "trials must be a whole number from 1 to 10,000, got 0"),
        ({"trials": 2.0}, "trials must be a whole number"),
        ({"trials": True}, "trials must be a whole number"),
        ({"trials": 10**6}, "trials must be a whole number"),
        ({"seeds": 3}, "seeds must be a list of whole numbers, at least 0, got 3"),
        ({"seeds": []}, "seeds must be a list of whole numbers"),
        ({"seeds": [-1]}, "seeds must be a list of whole numbers"),
        ({"seeds": [0, "1"]}, "seeds must be a list of whole numbers"),
        ({"seeds": [0, 1, 0]}, "seeds holds a seed twice"),
        ({"pruner": "medain"}, "unknown pruner in .* 'medain'; did you mean 'median'"),
        ({"pruner": None}, "unknown pruner"),
        ({"space": {"gain": 3}}, "gain must be a list of values or a range such as"),
        ({"space": {"gain": [1.0]}}, "gain must list from 2 to 1,000 values"),
        ({"space": {"gain": [1.0, 1.0]}}, "gain lists a value twice"),
        ({"space": {"gain": {"low": 1.0}}}, "high must be a finite number, got None"),
        ({"space": {"gain": {"low": "1e-4", "high": 1.0}}}, r"got '1e-4' \(YAML reads 1e-4 as a text: write 1.0e-4\)"),
        ({"space": {"gain": {"low": 0.0, "high": float("inf")}}}, "high must be a finite number"),
        ({"space": {"gain": {"low": 0.0, "high": True}}}, "high must be a finite number, got True"),
        ({"space": {"gain": {"low": 2.0, "high": 1.0}}}, "low must be less than high, got 2.0 and 1.0"),
        ({"space": {"gain": {"low": 0.0, "high": 1.0, "log": True}}}, "low must be greater than 0 where log is true"),
        ({"space": {"gain": {"low": 0.1, "high": 1.0, "log": 1}}}, "log must be true or false, got 1"),
        ({"space": {"gain": {"low": 0.1, "high": 1.0, "step": 1}}}, "unknown entry of .*gain: 'step'"),
        ({"space": {"gian": [1.0, 2.0]}}, "unknown key in .* 'gian'; did you mean 'gain'"),
        ({"space": {3: [1.0, 2.0]}}, "unknown key in .* 3"),
        ({"space": {"gain": [1.0, "x"]}}, "gain must be a number, got 'x'"),
        ({"space": {"batch_size": {"low": 0, "high": 4}}}, "batch_size=0: batch_size must be at least 1"),
        ({"space": {"batch_size": {"low": 0.5, "high": 4.0}}}, "batch_size must be a whole number, got 0.5"),
        ({"space": {"preset": ["loud", "lound"]}}, "unknown preset of fake 'lound'"),
        ({"space": {"seed": [0, 1]}}, "seed cannot be searched: it is the same for all trials"),
        ({"space": {"total_timesteps": [500, 600]}}, "total_timesteps cannot be searched"),
        ({"space": {"env_id": ["a", "b"]}}, "env_id cannot be searched"),
    ],
)
def test_bad_sections(changes: Any, message: str) -> None:
    content = copy.deepcopy(CONTENT)
    if isinstance(changes, dict):
        content["search"] = {name: value for name, value in {**content["search"], **changes}.items() if value != "gone"}
    else:
        content["search"] = changes
    with pytest.raises(UsageError, match=message):
        read_searches(write(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"recipe": "fake", "seed": 3}},
            "seed cannot be set, the seeds of a search belong into its `seeds`",
        ),
        ({"grid": {"seed": [3]}}, "seed cannot be set"),
        ({"grid": {"gain": [3.0]}}, "gain cannot be set, it is searched"),
        ({"runs": [{"gain": 3.0}]}, "gain cannot be set, it is searched"),
        ({"grid": {"num_envs": [2, 2]}}, "asks twice for the search"),
        ({"settings": {"recipe": "fake", "settings_from": "best.yaml"}}, "settings_from does not go with a search"),
    ],
)
def test_bad_files(changes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_searches(write({**CONTENT, **changes}))


def test_section_and_flag_belong_together(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write())]) == 2
    assert "describes a search; begin it with: diffac sweep " in capfd.readouterr().err
    write({"settings": {"recipe": "fake"}})
    assert main(["sweep", "mine.yaml", "--search"]) == 2
    assert "--search needs a section `search` in " in capfd.readouterr().err


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", str(write()), "--search"]) == 2
    assert "--search needs Optuna; run: python -m pip install 'diffac[sweep]'" in capfd.readouterr().err


def test_a_search_is_known_again_by_what_it_is() -> None:
    """More trials, or another pruner, go on with it; another space or other seeds are another search."""

    def name(**search: Any) -> str:
        (found,) = read_searches(write(**search))
        return found.name

    known = name()
    assert name(trials=9, pruner="none") == known
    assert len({known, name(seeds=[0, 2]), name(space={**SPACE, "gain": [1.0, 2.0]})}) == 3


# ---- the search, with runs that are only said to be trained


class Simulated:
    """Executes nothing: in every look each run comes to its next evaluation.

    Args:
        value: of a run's evaluation, given the run and the evaluation's number from 1 on.
        outcome: of a run that has ended; may raise for the end of this process.
        slots: runs at a time.
    """

    def __init__(
        self,
        value: Callable[[Job, int], float],
        outcome: Callable[[Job], Outcome] = lambda job: Outcome("complete", core_seconds=1.0),
        slots: int = 4,
    ) -> None:
        self.value, self.outcome, self.slots = value, outcome, slots
        self.running: dict[str, tuple[Job, list[float]]] = {}
        self.log: list[Job] = []

    @property
    def room(self) -> int:
        return self.slots - len(self.running)

    def submit(self, work: Any, job: Job) -> None:
        assert job.name not in self.running, "nothing is trained twice at once"
        job.folder.mkdir(parents=True, exist_ok=True)
        self.running[job.name] = job, []
        self.log.append(job)

    def finished(self, timeout: float) -> list[tuple[Job, Outcome]]:
        ended = []
        for job, values in list(self.running.values()):
            if not (job.folder.parent / STOP).exists():
                values.append(self.value(job, len(values) + 1))
                steps = 100 * (1 + np.arange(len(values)))
                np.savez(job.folder / "evaluations.npz", timesteps=steps, results=np.array(values)[:, None])
                if len(values) * 100 < job.steps:
                    continue
            ended.append((job, self.outcome(job)))
            del self.running[job.name]
        return ended

    def stop(self) -> None: ...

    def close(self) -> None: ...


def by_gain(job: Job, number: int) -> float:
    """The best gain is 2."""
    return number * (10.0 - abs(job.values["gain"] - 2.0)) + job.values["seed"]


def run(path: Path, executor: Any) -> Summary:
    return run_searches(read_searches(path), lambda: executor)


def results(found: Found) -> list[dict[str, Any]]:
    return json.loads((found.search.folder / "search.json").read_text())["trials"]


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOOK", 0.0)
    monkeypatch.setattr(driver, "LOOKS", 0)


@needs_optuna
def test_what_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    """All runs of all trials, the objective by hand, the best settings in a file; said again, nothing is trained."""
    path, executor = write(trials=20, pruner="none"), Simulated(by_gain)
    (found,) = run(path, executor).found
    assert found.counts == {"complete": 20, "pruned": 0, "failed": 0, "left": 0}
    assert len(executor.log) == 40
    assert len({job.name for job in executor.log}) == 40
    trials = results(found)
    for trial in trials:
        hand = np.mean([4 * (10 - abs(trial["settings"]["gain"] - 2)) + seed for seed in (0, 1)])
        assert trial["objective"] == pytest.approx(hand), "evaluations 3, 4 and 5"
        assert trial["core_seconds"] == 2.0
        assert type(trial["settings"]["batch_size"]) is int
        assert trial["settings"]["hidden_sizes"] in ([8], [5])
    best = max(trials, key=lambda trial: trial["objective"])
    assert found.best == (best["trial"], best["objective"], best["settings"])
    content = yaml.safe_load(found.path.read_text())
    assert content.pop("found_by_search") == {"trial": found.best[0], "objective": found.best[1], "seeds": [0, 1]}
    assert content == {**CONTENT["settings"], **best["settings"]}
    shares = json.loads((found.search.folder / "search.json").read_text())["importances"]
    assert max(shares, key=lambda name: shares[name]) == "gain"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert "fake trial 0 of 20: complete, " in capfd.readouterr().err
    again = Simulated(by_gain)
    assert run(path, again).found[0].best == found.best
    assert not again.log


@needs_optuna
@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_bad_trials_end_early(pruner: str) -> None:
    path, executor = write(trials=25, pruner=pruner), Simulated(by_gain)
    (found,) = run(path, executor).found
    assert found.counts["pruned"] > 3
    assert found.counts["complete"] + found.counts["pruned"] == 25
    trials = {trial["trial"]: trial for trial in results(found)}
    lengths = {number: [len(evaluations(job)[0]) for job in executor.log if f"trial{number:04d}" in job.name]
               for number in trials}  # fmt: skip
    assert all(lengths[number] == [5, 5] for number, trial in trials.items() if trial["state"] == "complete")
    assert all(min(lengths[number]) < 5 for number, trial in trials.items() if trial["state"] == "pruned")
    mean = {state: np.mean([abs(trial["settings"]["gain"] - 2) for trial in trials.values() if trial["state"] == state])
            for state in ("complete", "pruned")}  # fmt: skip
    assert mean["complete"] < mean["pruned"]


@needs_optuna
def test_every_combination_gets_equally_many_trials() -> None:
    """By turns, and only so many at a time that later ones learn from earlier ones."""
    content = {**CONTENT, "grid": {"env_id": ["fakes:Random-v0", "fakes:Terminates-v0"]}}
    executor = Simulated(by_gain, slots=100)
    most: list[int] = []
    executor_finished = executor.finished
    executor.finished = lambda timeout: (most.append(len(executor.running)), executor_finished(timeout))[1]
    summary = run(write(content, pruner="none"), executor)
    assert [found.counts["complete"] for found in summary.found] == [8, 8]
    assert [found.search.label for found in summary.found] == ["fakes:Random-v0", "fakes:Terminates-v0"]
    assert max(most) == 2 * 2 * 2, "searches, a quarter of eight trials, seeds"


@needs_optuna
def test_more_trials_go_on() -> None:
    executor = Simulated(by_gain)
    run(write(trials=4), executor)
    (found,) = run(write(trials=6), executor).found
    assert sum(found.counts.values()) == 6
    assert len({job.name for job in executor.log}) == len(executor.log) == 12


class PowerFailure(Exception):
    pass


@needs_optuna
def test_a_trial_under_way_is_taken_up_again() -> None:
    """With the settings that it had, whatever has ended this process."""

    def fails(job: Job) -> Outcome:
        if "trial0003" in job.name:
            raise PowerFailure
        return Outcome("complete")

    path, first, second = write(pruner="none"), Simulated(by_gain, fails), Simulated(by_gain)
    with pytest.raises(PowerFailure):
        run(path, first)
    (found,) = run(path, second).found
    assert found.counts["complete"] == 8
    begun = {job.name for job in first.log if "trial0003" in job.name}
    assert begun <= {job.name for job in second.log}, "a name says all settings"
    assert not {job.name for job in second.log} & {job.name for job in first.log if "trial0000" in job.name}
    numbers = {trial: [job for job in {job.name for job in first.log + second.log} if f"trial{trial:04d}" in job]
               for trial in range(8)}  # fmt: skip
    assert all(len(names) == 2 for names in numbers.values())


@needs_optuna
def test_a_trial_that_fails() -> None:
    """For good: it counts, and its other run ends; else it is taken up by the next call, after all attempts of this."""

    def diverges(job: Job) -> Outcome:
        if "trial0001" in job.name and job.values["seed"] == 0:
            return Outcome("failed", "diverged", hopeless=True)
        return Outcome("failed", "lost") if "trial0002" in job.name else Outcome("complete")

    path, first = write(pruner="none"), Simulated(by_gain, diverges, slots=1)
    summary = run(path, first)
    (found,) = summary.found
    assert found.counts == {"complete": 6, "pruned": 0, "failed": 1, "left": 1}
    assert [error for _, error in summary.failed] == ["lost", "lost"]
    assert [len([job for job in first.log if f"trial000{number}" in job.name]) for number in (1, 2)] == [1, 4]
    (found,) = run(path, Simulated(by_gain)).found
    assert found.counts == {"complete": 7, "pruned": 0, "failed": 1, "left": 0}


@needs_optuna
def test_returns_that_are_no_numbers() -> None:
    path = write(trials=1)
    (found,) = run(path, Simulated(lambda job, number: float("nan"))).found
    assert found.counts["failed"] == 1
    assert found.best is None
    assert not found.path.exists()


@needs_optuna
def test_no_trial_is_complete(capfd: pytest.CaptureFixture[str]) -> None:
    """Of an environment that does not exist, which no configuration can know."""
    content = {**CONTENT, "settings": {**CONTENT["settings"], "env_id": "fakes:Rondom-v0"}}
    assert main(["sweep", str(write(content, trials=1, seeds=[0])), "--search"]) == 1
    captured = capfd.readouterr()
    assert "fake: 1 trials, 1 failed" in captured.out
    assert "trial 0 seed 0: failed: unknown environment 'fakes:Rondom-v0'" in captured.err
    assert "no trial is complete; what went wrong is said above" in captured.err


def test_a_dry_run_says_what_a_search_costs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most, as if no trial ended early."""
    monkeypatch.setattr(cost, "MINUTE", 0.5)
    monkeypatch.setattr(cost, "SHORTEST", 0.1)
    content = {**CONTENT, "settings": {"recipe": "fake", "total_timesteps": 1_000_000}}
    assert main(["sweep", str(write(content)), "--search", "--dry-run"]) == 0
    captured = capfd.readouterr()
    assert "16 runs, about " in captured.out
    assert not Path("sweeps").exists()


@needs_optuna
def test_the_journal() -> None:
    """Half a line that a power failure has left is no harm; what is no journal is one sentence."""
    path = write()
    run(path, Simulated(by_gain))
    journal = Path("sweeps/mine", JOURNAL)
    with journal.open("a") as file:
        file.write('{"op_code": 4, "wor')
    (found,) = run(path, Simulated(by_gain)).found
    assert found.counts["left"] == 0
    for content in ("no journal\n", '{"op_code": 99}\n[]\n', "\x00\n\x00\n"):
        journal.write_text(content + content)
        with pytest.raises(DamagedError, match=r"search\.journal is no journal of a search"):
            run(path, Simulated(by_gain))
    journal.unlink()
    journal.symlink_to("elsewhere")
    with pytest.raises(DamagedError, match="symbolic link"):
        run(path, Simulated(by_gain))


def test_objective_of_runs_without_evaluations(tmp_path: Path) -> None:
    (search,) = read_searches(write())
    jobs = search.jobs(0, {})
    assert np.isnan(objective(jobs))


# ---- what comes after


@needs_optuna
def test_the_report_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    path = write({**CONTENT, "settings": {**CONTENT["settings"], "total_timesteps": 100}}, trials=3)
    assert main(["sweep", str(path), "--search"]) == 0
    captured = capfd.readouterr()
    assert "fake: 3 trials, 3 complete" in captured.out
    assert "best.yaml" in captured.out
    assert main(["report", "sweeps/mine"]) == 0
    text = Path("report/report.html").read_text()
    for words in (
        "Search</h2>",
        "Objective: mean over the seeds",
        "compare with other seeds than 0, 1",
        "hidden_sizes",
    ):
        assert words in text
    assert len(Path("report/data/searches.csv").read_text().splitlines()) == 4
    assert Path("report/pictures/search_fake.png").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([], "a table of names and values"),
        ({"label": 3}, "label must be a text"),
        ({"of": -1}, "of must be a whole number"),
        ({"seeds": ["0"]}, "seeds must be a whole number"),
        ({"importances": {"gain": "much"}}, "importances must be a finite number"),
        ({"trials": {}}, "trials must be a list"),
        ({"trials": [{"trial": 0}]}, "lacks 'state'"),
        ({"trials": [{**TRIAL, "state": "<b>"}]}, "'<b>' is no state of a trial"),
        ({"trials": [{**TRIAL, "objective": 1e200}]}, "objective is too large"),
        ({"trials": [{**TRIAL, "settings": [3]}]}, "settings must be a table"),
    ],
)
def test_what_is_no_result_of_a_search(changes: Any, reason: str) -> None:
    """Whatever a stranger has left there."""
    content = {"label": "x", "objective": "y", "of": 3, "seeds": [0], "pruner": "none", "importances": {}, "trials": []}
    path = Path("search.json")
    path.write_text(json.dumps(content))
    assert len(read_searches_of_report(["."])[0]) == 1
    path.write_text(json.dumps({**content, **changes} if isinstance(changes, dict) else changes))
    results, (skipped,) = read_searches_of_report(["."])
    assert results == []
    assert reason in skipped.reason


FOUND = {"recipe": "fake", "gain": 2.5, "found_by_search": {"trial": 1, "objective": 3.0, "seeds": [0, 1]}}


def plan(content: Any, found: Any = None) -> list[Job]:
    Path("deep").mkdir(exist_ok=True)
    Path("deep/best.yaml").write_text(yaml.safe_dump(FOUND if found is None else found))
    Path("deep/new.yaml").write_text(yaml.safe_dump(content))
    return read_plan("deep/new.yaml")


def test_settings_of_a_search_in_a_sweep() -> None:
    """They count less than what the sweep says itself; the path goes from its file on."""
    jobs = plan({"settings": {"batch_size": 5}, "runs": [{"settings_from": "best.yaml"}], "grid": {"seed": [4, 5]}})
    assert [(c.gain, c.batch_size, c.seed) for c in (job.load()[1] for job in jobs)] == [(2.5, 5, 4), (2.5, 5, 5)]
    (job,) = plan({"settings": {"settings_from": str(Path("deep/best.yaml").absolute()), "gain": 3.0, "seed": 7}})
    assert job.load()[1].gain == 3.0


@pytest.mark.parametrize(
    ("content", "found", "message"),
    [
        ({"grid": {"seed": [4, 1]}}, None, "has used the seed 1; evaluate with others than 0, 1"),
        ({"settings": {"seed": 0}}, None, "has used the seed 0"),
        ({"settings": {"seed": False}}, None, "has used the seed False"),
        ({}, None, "must say its seed, one that the search has not used"),
        ({"settings": {"recipe": "td3", "seed": 4}}, None, "has settings of fake, not of td3"),
        ({"settings": {"settings_from": 3, "seed": 4}}, None, "settings_from must be the path of a best.yaml, got 3"),
        ({"settings": {"settings_from": "absent.yaml", "seed": 4}}, None, r"absent\.yaml cannot be read"),
        ({"settings": {"seed": 4}}, {"recipe": "fake"}, "was not written by a search"),
        ({"settings": {"seed": 4}}, {"recipe": "fake", "found_by_search": 3}, "a table of names and values"),
        ({"settings": {"seed": 4}}, {"recipe": "fake", "found_by_search": {}}, "lacks 'seeds'"),
        ({"settings": {"seed": 4}}, {"recipe": "fake", "found_by_search": {"seeds": 4}}, "a list"),
    ],
)
def test_seeds_of_a_search_are_refused(content: Any, found: Any, message: str) -> None:
    settings = {"settings_from": "best.yaml", **content.get("settings", {})}
    with pytest.raises(UsageError, match=message):
        plan({**content, "settings": settings}, found)


def test_a_training_with_the_file_of_a_search(capfd: pytest.CaptureFixture[str]) -> None:
    Path("best.yaml").write_text(yaml.safe_dump(FOUND))
    assert main(["train", "fake", "--config", "best.yaml"]) == 2
    assert "found_by_search" in capfd.readouterr().err


# ---- real runs, real signals

LONG = {**CONTENT, "settings": {**CONTENT["settings"], "total_timesteps": 4_000, "checkpoint_interval": 100}}


def begun(path: Path) -> Program:
    """The program in the middle of its first trial."""
    two = "import diffac.scale.executors.processes as p\np.usable_processors = lambda: 2\n"
    program = Program(two + SWEEP, Path.cwd(), "sweep", str(path), "--search")

    def saved() -> bool:
        with contextlib.suppress(FileNotFoundError):  # of a checkpoint that makes room for the next one
            return len(list(Path("sweeps/mine").rglob("run.json"))) >= 2
        return False

    wait_for(saved, program)
    return program


def names() -> set[str]:
    return {path.parent.name for path in Path("sweeps/mine").rglob("config.yaml")}


@needs_optuna
@pytest.mark.sweeps
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["a signal", "kill -9"])
def test_the_driver_ends(signum: int) -> None:
    """The same command goes on with the trial that was under way."""
    path = write(LONG, trials=3)
    program = begun(path)
    before, begin = names(), time.monotonic()
    if signum == signal.SIGKILL:
        program.process.kill()
        program.process.wait()
    else:
        program.process.send_signal(signum)
        assert program.end(signum, begin) < SECONDS
        assert "interrupted; 3 trials are left, go on with: diffac sweep mine.yaml --search" in program.lines[-1]
    assert main(["sweep", str(path), "--search"]) == 0
    (result,) = Path("sweeps/mine").rglob("search.json")
    states = [trial["state"] for trial in json.loads(result.read_text())["trials"]]
    assert len(states) == 3
    assert set(states) <= {"complete", "pruned"}
    assert before <= names()
    assert len(names()) == 6
    resumed = [json.loads(path.read_text()).get("resumed", []) for path in Path("sweeps/mine").rglob("manifest.json")]
    assert sum(map(len, resumed)) >= 2


@needs_optuna
@pytest.mark.sweeps
def test_several_machines_share_a_search() -> None:
    """Every trial is trained by one of them only."""
    path = write(LONG, trials=8, pruner="none")
    programs = [begun(path) for _ in range(2)]
    assert [program.process.wait(250) for program in programs] == [0, 0], [program.text for program in programs]
    (result,) = Path("sweeps/mine").rglob("search.json")
    assert [trial["state"] for trial in json.loads(result.read_text())["trials"]] == ["complete"] * 8
    assert len(names()) == 16
    done = [program.text.count(": complete, ") for program in programs]
    assert sum(done) == 8
    assert all(done)
    for manifest in Path("sweeps/mine").rglob("manifest.json"):
        assert json.loads(manifest.read_text()).get("resumed", []) == []
    assert os.path.lexists("sweeps/mine/search.journal")
