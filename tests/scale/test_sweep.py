"""A sweep is as many ordinary runs; whatever is killed meanwhile, the same command completes it, bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_recipe
import pytest
import yaml
from alike import assert_same_runs, folders, last
from program import CODE, SECONDS, Program
from rich.console import Console

from diffac.commands.main import main
from diffac.errors import UsageError
from diffac.runs.folder import read_manifest
from diffac.scale import cost, progress
from diffac.scale.executors.processes import Processes, output_of
from diffac.scale.journal import Journal
from diffac.scale.plan import read_plan
from diffac.scale.progress import Lines, LiveTable, duration, progress_of
from diffac.scale.sweep import run_sweep
from diffac.scale.work import Job, Outcome

SWEEP = CODE + "sys.exit(c.main())"
LONG = {"recipe": "fake", "total_timesteps": 20_000, "checkpoint_interval": 500, "log_interval": 100}
"""Seconds, and what is saved often."""

pytestmark = pytest.mark.usefixtures("third_party")


def write(name: str = "mine", *, seeds: int = 2, **settings: Any) -> Path:
    """The file of a sweep over seeds."""
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({"settings": {"recipe": "fake", **settings}, "grid": {"seed": list(range(seeds))}}))
    return path


def entries(root: str = "sweeps/mine") -> list[dict[str, Any]]:
    """All attempts."""
    return [json.loads(line) for line in Path(root, "journal.jsonl").read_text().splitlines()]


def test_runs_are_those_that_they_are_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """Said again, nothing is trained; a larger file adds what it asks for."""
    assert main(["sweep", str(write(log_interval=20))]) == 0
    captured = capfd.readouterr()
    assert "2 of 2 runs complete" in captured.out
    assert "diffac report" in captured.out
    assert captured.err.splitlines()[-1].endswith("2 of 2 complete")
    runs = folders("sweeps/mine")
    assert main(["train", "fake", "--log-interval", "20", "--seed", "1", "--no-progress"]) == 0
    assert_same_runs(folders()[1], runs[1])
    assert read_manifest(runs[1])["command"][1:] == sys.argv[1:], "what was typed"
    assert [entry["state"] for entry in entries()] == ["complete", "complete"]
    assert all(entry["seconds"] > 0 and entry["core_seconds"] > 0 for entry in entries())
    assert main(["sweep", str(write(seeds=3, log_interval=20))]) == 0
    assert len(entries()) == 3
    assert list(folders("sweeps/mine")) == [0, 1, 2]
    assert main(["resume", str(runs[0])]) == 0, "an ordinary run"
    assert multiprocessing.active_children() == []


def test_a_run_that_fails_ends_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """One diverges, which it would do again; one has a mistake, one is killed: both are tried again; one is whole."""
    path = write(seeds=4, fail="seeds", log_interval=5, checkpoint_interval=20)
    assert main(["sweep", str(path)]) == 1
    captured = capfd.readouterr()
    attempts = [entry["run"].split("/")[-1][:5] for entry in entries()]
    assert [attempts.count(f"seed{seed}") for seed in range(4)] == [1, 1, 2, 2]
    *_, diverged, mistaken, killed, error = captured.err.splitlines()
    assert diverged.startswith("note: seed=1: training diverged: the critic's loss")
    assert mistaken == "note: seed=2: ZeroDivisionError: a mistake"
    assert killed.startswith("note: seed=3: its process was ended by signal 9; what it has said is in ")
    assert error == "error: 3 of 4 runs failed; try them again with: diffac sweep mine.yaml"
    assert "1 of 4 runs complete" in captured.out
    assert "ZeroDivisionError" in output_of(read_plan(path)[2]).read_text()
    assert main(["sweep", str(path), "--retries", "0"]) == 1
    assert len(entries()) == 9, "each of the three once more"
    assert [last(folder).env_step for folder in list(folders("sweeps/mine").values())[:2]] == [80, 40]


def test_impossible_arguments_of_a_run_are_its_failure(capfd: pytest.CaptureFixture[str]) -> None:
    """What a configuration cannot know, such as whether the environment exists."""
    grid = {"env_id": ["fakes:Rondom-v0", "fakes:Random-v0"]}
    Path("mine.yaml").write_text(yaml.safe_dump({"settings": {"recipe": "fake"}, "grid": grid}))
    assert main(["sweep", "mine.yaml"]) == 1
    assert "note: fakes:Rondom-v0: unknown environment 'fakes:Rondom-v0'" in capfd.readouterr().err
    assert [entry["state"] for entry in entries()].count("failed") == 1


def undisturbed(path: Path) -> dict[int, Path]:
    """The same sweep without any fault."""
    assert main(["sweep", str(path), "--root", "alone"]) == 0
    return folders("alone")


def begun(path: Path, *argv: str) -> Program:
    """The program in the middle of its first runs, two at a time."""
    two = "import diffac.scale.executors.processes as p\np.usable_processors = lambda: 2\n"
    program = Program(two + SWEEP, Path.cwd(), "sweep", str(path), *argv)
    wait_for(lambda: len(list(Path("sweeps/mine").rglob("run.json"))) >= 2, program)
    return program


def wait_for(condition: Any, program: Program) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert program.process.poll() is None, program.text
        assert time.monotonic() < end, program.text
        time.sleep(0.01)


def completed(path: Path) -> None:
    """The same command, and what comes of it."""
    assert main(["sweep", str(path)]) == 0
    whole = undisturbed(path)
    found = folders("sweeps/mine")
    assert list(found) == list(whole)
    for seed, folder in whole.items():
        assert_same_runs(folder, found[seed])


@pytest.mark.parametrize("to_all", [False, True], ids=["the driver", "all processes"])
def test_a_signal_saves_all_runs(to_all: bool) -> None:
    path = write(seeds=3, **LONG)
    program = begun(path)
    begin = time.monotonic()
    (program.signal if to_all else program.process.send_signal)(signal.SIGTERM)
    assert program.end(signal.SIGTERM, begin) < SECONDS
    assert program.lines[-1] == "interrupted; 0 of 3 runs are complete, go on with: diffac sweep mine.yaml"
    assert [entry["state"] for entry in entries()] == ["stopped", "stopped"]
    assert all(0 < last(folder).env_step < 20_000 for folder in folders("sweeps/mine").values())
    completed(path)


def test_the_driver_is_killed(third_party: Path) -> None:
    """Its runs end with it, so the same command can go on at once."""
    path = write(seeds=3, **LONG)
    program = begun(path)
    program.process.kill()
    program.process.wait()
    completed(path)


def test_a_worker_is_killed() -> None:
    """Its run goes on from its last checkpoint, the other one does not notice."""
    path = write(**LONG)
    program = begun(path)
    folder = folders("sweeps/mine")[0]
    os.kill(int((folder / "lock").read_text().split()[1]), signal.SIGKILL)
    assert program.process.wait(60) == 0, program.text
    assert "seed=0: failed, is tried again: its process was ended by signal 9" in program.text
    assert [entry["state"] for entry in entries()] == ["failed", "complete", "complete"]
    assert len(read_manifest(folder)["resumed"]) == 1
    completed(path)


def test_two_drivers_of_one_sweep() -> None:
    path = write(**LONG)
    program = begun(path)
    again = subprocess.run(
        [sys.executable, "-m", "diffac", "sweep", str(path)], capture_output=True, text=True, timeout=60
    )
    program.process.send_signal(signal.SIGINT)
    assert again.returncode == 2
    assert "is in use by process" in again.stderr
    assert "a sweep belongs to one process at a time" in again.stderr


def test_a_process_that_died_before_its_run_began() -> None:
    """Whatever it has left of the folder."""
    path = write(seeds=3, log_interval=20)
    jobs = read_plan(path)
    assert main(["sweep", str(path), "--root", "whole"]) == 0
    whole = folders("whole")
    for job in jobs:
        job.folder.mkdir(parents=True)
    (jobs[1].folder / "new-config.yaml").write_text("rec")
    shutil.copy(whole[2] / "config.yaml", jobs[2].folder)
    assert main(["sweep", str(path)]) == 0
    found = folders("sweeps/mine")
    for seed, folder in whole.items():
        assert_same_runs(folder, found[seed])
    assert not list(Path("sweeps").rglob("new-*"))


def test_the_journal_survives_what_is_no_line_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    path = write(seeds=3)
    assert main(["sweep", str(path)]) == 0
    journal = Path("sweeps/mine/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b'{"run": 3}\n\x00\xff\n' + lines[1] + lines[2][:30])
    capfd.readouterr()
    assert main(["sweep", str(path)]) == 0
    captured = capfd.readouterr()
    assert captured.err.count("it is passed over, and its run looked at again") == 3
    assert "3 of 3 runs complete" in captured.out
    last_line = journal.read_bytes().splitlines()[-1]
    assert json.loads(last_line)["run"] == json.loads(lines[2])["run"], "one was looked at again"


def test_a_run_whose_folder_is_gone_is_trained_anew() -> None:
    path = write()
    assert main(["sweep", str(path)]) == 0
    shutil.rmtree(folders("sweeps/mine")[0])
    assert main(["sweep", str(path)]) == 0
    assert list(folders("sweeps/mine")) == [0, 1]
    assert len(entries()) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["absent.yaml"], "absent.yaml cannot be read"),
        ([], "needs FILE"),
        (["mine.yaml", "--retries", "-1"], "retries must be at least 0, got -1"),
        (["mine.yaml", "--cpus-per-run", "0"], "cpus_per_run must be from 1 to"),
        (["mine.yaml", "--cpus-per-run", "1000000"], "cpus_per_run must be from 1 to"),
        (["mine.yaml", "--executor", "clouds"], "clouds"),
        (["mine.yaml", "--root", "mine.yaml"], "cannot make the folder of the sweep"),
    ],
)
def test_bad_input(argv: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    write()
    assert main(["sweep", *argv]) == 2
    assert message in capfd.readouterr().err


def test_a_dry_run_says_what_it_costs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of each kind is measured, and nothing is written."""
    monkeypatch.setattr(cost, "MINUTE", 1.0)
    monkeypatch.setattr(cost, "SHORTEST", 0.2)
    grid = {"batch_size": [4, 8], "seed": [0, 1, 2]}
    content = {"settings": {"recipe": "fake", "total_timesteps": 1_000_000}, "grid": grid}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "mine.yaml", "--dry-run"]) == 0
    first, second, total = sorted(capfd.readouterr().out.splitlines(), key=lambda line: "core-hours" in line)
    assert {line.partition(":")[0] for line in (first, second)} == {"3 x batch_size=4", "3 x batch_size=8"}
    assert re.fullmatch(r"6 runs, about \S+ core-hours, .* on this machine; they go to .*sweeps/mine", total)
    assert not Path("sweeps").exists()


def test_a_dry_run_leaves_out_what_is_complete(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "MINUTE", 1.0)
    monkeypatch.setattr(cost, "SHORTEST", 0.2)
    assert main(["sweep", str(write(seeds=1))]) == 0
    journal = Path("sweeps/mine/journal.jsonl").read_bytes()
    capfd.readouterr()
    assert main(["sweep", str(write(seeds=1)), "--dry-run"]) == 0
    assert capfd.readouterr().out == "all runs are complete\n"
    assert main(["sweep", str(write(seeds=3)), "--dry-run"]) == 0
    assert "2 runs, about" in capfd.readouterr().out
    assert Path("sweeps/mine/journal.jsonl").read_bytes() == journal


def test_a_dry_run_of_what_cannot_begin(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write(env_id="fakes:Rondom-v0")), "--dry-run"]) == 1
    assert "error: seed=0: unknown environment 'fakes:Rondom-v0'" in capfd.readouterr().err


def test_costs_are_those_of_the_whole_run() -> None:
    config = fake_recipe.Config(total_timesteps=1_000, learning_starts=100, eval_interval=300)
    assert cost.Cost(start=5.0, random_step=0.01, step=0.1, evaluation=2.0).of(config) == pytest.approx(5 + 1 + 90 + 8)


class Fake:
    """Executes nothing: every job ends as it is told."""

    room = 1

    def __init__(self, outcomes: dict[str, list[Outcome]]) -> None:
        self.outcomes, self.under_way = outcomes, []

    def submit(self, work: Any, job: Job) -> None:
        self.under_way.append(job)
        self.room = 0

    def finished(self, timeout: float) -> list[tuple[Job, Outcome]]:
        ended, self.under_way, self.room = self.under_way, [], 1
        return [(job, self.outcomes[job.label].pop(0)) for job in ended]

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_the_order_of_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that fail come again after all others, as often as they may; what all have cost is added up."""
    jobs = read_plan(write(seeds=3))
    bad, good = Outcome("failed", "no", seconds=1.0, core_seconds=0.5), Outcome("complete", seconds=2.0)
    outcomes = {"seed=0": [bad, bad, bad], "seed=1": [bad, good], "seed=2": [Outcome("failed", "never", hopeless=True)]}
    monkeypatch.setattr(Journal, "is_complete", lambda self, job: self[job.name].state == "complete")
    summary = run_sweep(jobs, lambda: Fake(outcomes), retries=2, display=lambda journal: Lines(jobs, journal))
    order = [entry["run"].split("/")[-1][:5] for entry in entries()]
    assert order == ["seed0", "seed1", "seed2", "seed0", "seed1", "seed0"]
    assert [job.label for job in summary.complete] == ["seed=1"]
    assert [(job.label, error) for job, error in summary.failed] == [("seed=0", "no"), ("seed=2", "never")]
    assert (summary.left, summary.seconds, summary.core_seconds) == ([], 6.0, 2.0)


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows the runs under way from their logs, and above it a line for each that ends."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "standard_error", lambda: Console(file=out, force_terminal=True, width=100))
    jobs = read_plan(write(seeds=3, total_timesteps=1_000))
    jobs[0].folder.mkdir(parents=True)
    lines = [{"step": 100, "time/fps": 25.0}, {"step": 100, "eval/mean_reward": 7.25}, {"step": 200, "time/fps": 50.0}]
    half = "\n".join(map(json.dumps, lines)) + '\n{"st'
    (jobs[0].folder / "metrics.jsonl").write_text(half)
    assert progress_of(jobs[0]) == (200, 50.0, 7.25)
    assert progress_of(jobs[1]) == (0, 0.0, None)
    with contextlib.closing(Journal(jobs[0].root)) as journal, LiveTable(jobs, journal) as table:
        table.begun(jobs[0])
        table.begun(jobs[1])
        table.refresh()
        table.ended(jobs[1], Outcome("failed", "no \x1b[2J luck"), again=True)
    text = out.getvalue()
    for words in (
        "seed=0",
        "200",
        "1,000",
        "50",
        "7.2",
        "16 s",
        "0 of 3 complete, 2 running, 1 waiting; about 56 s left",
    ):
        assert words in text
    assert "seed=1: failed, is tried again: no \\x1b[2J luck" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (600, "10 min"), (3_661, "1 h 1 min"), (7.3e6, "2,027 h 46 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


CLEARED = """
import contextlib, multiprocessing.util, pathlib, shutil
from diffac.scale.executors.processes import Processes
from diffac.scale.work import Job

if __name__ == "__main__":
    job = Job("a/b", "", "fake", {}, 1, "mine.yaml", pathlib.Path("sweeps"))
    with contextlib.closing(Processes()) as executor:
        for _ in range(2):
            executor.submit(repr, job)
            ((_, result),) = executor.finished(60)
            assert result == repr(job), result
            shutil.rmtree(multiprocessing.util.get_temp_dir())
            pathlib.Path(multiprocessing.util.get_temp_dir()).mkdir()  # which Python removes when it ends
"""


def test_cleared_temporary_files_end_nothing(tmp_path: Path) -> None:
    """As systems do after some days: the fork server listens on a file there."""
    (tmp_path / "cleared.py").write_text(CLEARED)
    subprocess.run([sys.executable, "cleared.py"], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize(("processors", "each", "slots"), [(8, 3, 2), (8, 1, 8), (2, 2, 1)])
def test_shares(processors: int, each: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffac.scale.executors.processes.usable_processors", lambda: processors)
    assert Processes(each).room == slots
    with pytest.raises(UsageError, match=f"cpus_per_run must be from 1 to {processors}"):
        Processes(processors + 1)
