"""Sweeps as jobs of Slurm: submitit's own executors, and a Slurm of this machine, whose jobs are lost in every way."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
import yaml
from alike import assert_same_runs, folders, last
from program import SECONDS, Program
from test_sweep import SWEEP, entries, wait_for

from diffac.commands.main import main
from diffac.errors import UsageError
from diffac.scale.executors import slurm
from diffac.scale.executors.slurm import Slurm, load_submitit, sbatch_options
from diffac.scale.plan import read_plan
from diffac.scale.progress import Lines, progress_of
from diffac.scale.sweep import Summary, run_sweep
from diffac.scale.work import Job

pytestmark = pytest.mark.usefixtures("third_party")
ARGUMENTS = ("--executor", "slurm", "--slurm", "time=1:00:00")


def write(seeds: int = 3, **settings: Any) -> Path:
    path = Path("mine.yaml")
    settings = {"recipe": "fake", "total_timesteps": 400, "checkpoint_interval": 100, "log_interval": 100, **settings}
    path.write_text(yaml.safe_dump({"settings": settings, "grid": {"seed": list(range(seeds))}}))
    return path


def test_options_of_sbatch() -> None:
    given = ["time=2:00:00", "partition=gpu,cpu", "mem_per_cpu=2G", "exclusive"]
    assert sbatch_options(given) == {
        "time": "2:00:00", "partition": "gpu,cpu", "mem-per-cpu": "2G", "exclusive": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs the time limit of a run"),
        (["partition=gpu"], "needs the time limit of a run"),
        (["time"], "needs the time limit of a run"),
        (["time="], r"takes options of sbatch such as partition=gpu, without dashes, got 'time='"),
        (["--time=3"], "without dashes, got '--time=3'"),
        (["time=3", "=4"], "without dashes, got '=4'"),
        (["time=3", "mem=4\n#SBATCH --wrap=x"], "takes options of sbatch"),
        (["time=3", "cpus-per-task=4"], "cannot set cpus-per-task, which diffac sets itself; use --cpus-per-run"),
        (["time=3", "gpus_per_node=4"], "use --gpus-per-run"),
        (["time=3", "requeue"], "cannot set requeue"),
        (["time=3", "no-requeue"], "cannot set no-requeue"),
        (["time=3", "array=0-5"], "cannot set array"),
    ],
)
def test_bad_options_of_sbatch(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sbatch_options(words)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--executor", "slurm"], "--slurm time=4:00:00"),
        ([*ARGUMENTS, "--cpus-per-run", "0"], "cpus_per_run must be at least 1, got 0"),
        ([*ARGUMENTS, "--gpus-per-run", "0.5"], "gpus_per_run must be a whole number, at least 0, with Slurm, got 0.5"),
        ([*ARGUMENTS, "--gpus-per-run", "-1"], "gpus_per_run must be a whole number"),
        ([*ARGUMENTS, "--gpus-per-run", "inf"], "gpus_per_run must be a whole number"),
        (["--slurm", "time=3"], "--slurm needs --executor slurm"),
        ([*ARGUMENTS, "--address", "auto"], "--address needs --executor ray"),
        (["--gpus-per-run", "1"], "--gpus-per-run needs --executor ray or slurm"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write()), *argv]) == 2
    assert message in capfd.readouterr().err


def installed() -> None:
    if find_spec("submitit") is None:
        pytest.skip("needs submitit")
    load_submitit()


def test_importing_submitit_leaves_logging_alone() -> None:
    installed()
    code = (
        "import io, logging; stream = io.StringIO(); logging.basicConfig(stream=stream)\n"
        "class Closing(logging.StreamHandler):\n"
        "    def close(self): self.stream.close()\n"
        "handler = Closing(io.StringIO()); logging.getLogger('mine').addHandler(handler)\n"
        "from diffac.scale.executors.slurm import load_submitit; load_submitit(); assert not handler.stream.closed\n"
        "import os; assert 'SUBMITIT_LOG_LEVEL' not in os.environ\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_submitit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["sweep", str(write()), *ARGUMENTS]) == 2
    assert "needs submitit; run: python -m pip install 'diffac[slurm]'" in capfd.readouterr().err


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    installed()
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["sweep", str(write()), *ARGUMENTS]) == 2
    assert "there is no Slurm on this machine" in capfd.readouterr().err


def sweep(jobs: list[Job], cluster: str = "slurm", retries: int = 2, display: Any = Lines) -> Summary:
    made = partial(Slurm, jobs[0].root, {"time": "1:00:00"}, cluster=cluster)
    return run_sweep(jobs, made, retries=retries, display=partial(display, jobs))


def undisturbed(path: Path) -> dict[int, Path]:
    assert main(["sweep", str(path), "--root", "alone"]) == 0
    return folders("alone")


def assert_undisturbed(path: Path) -> None:
    for seed, folder in undisturbed(path).items():
        assert_same_runs(folder, folders("sweeps/mine")[seed])


def test_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitit's executor `debug`."""
    installed()
    monkeypatch.setattr(slurm, "LOOK", 0.0)
    path = write(seeds=2)
    summary = sweep(read_plan(path), "debug")
    assert len(summary.complete) == 2, summary.failed
    assert_undisturbed(path)


@pytest.mark.sweeps
def test_in_processes_of_submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its executor `local`: one run fails for good, one is killed each time, and logs lie in the sweep's folder."""
    installed()
    monkeypatch.setattr(slurm, "APPEARING", 1.0)
    path = write(seeds=4, fail="seeds")
    jobs = read_plan(path)
    summary = sweep(jobs, "local", retries=1)
    assert [job.label for job in summary.complete] == ["seed=0"]
    attempts = [entry["run"].split("/")[-1][:5] for entry in entries()]
    assert [attempts.count(f"seed{seed}") for seed in range(4)] == [1, 1, 2, 2]
    killed = {job.label: error for job, error in summary.failed}["seed=3"]
    assert "has ended without a result" in killed
    assert len(list(Path("sweeps/mine/slurm").glob("*/*_log.out"))) == 6
    assert not list(Path("sweeps/mine/slurm").glob("*/*.pkl"))
    assert_undisturbed(write(seeds=1, fail="seeds"))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Slurm of two machines with a processor each, which looks like one to submitit."""
    installed()
    from submitit.slurm.slurm import SlurmJob

    SlurmJob.watcher.clear()
    SlurmJob.watcher._registered.clear()
    monkeypatch.setattr(slurm, "LOOK", 0.2)
    monkeypatch.setattr(slurm, "APPEARING", 1.0)
    home = fake_slurm.install(tmp_path / "cluster", monkeypatch, slots=2)
    yield home
    for job in fake_slurm.jobs(home):
        with contextlib.suppress(ProcessLookupError):
            fake_slurm.end(job, "CANCELLED", signal.SIGKILL)


@pytest.mark.sweeps
def test_runs_are_jobs_of_one_array(cluster: Path) -> None:
    path = write()
    assert main(["sweep", str(path), *ARGUMENTS, "mem=4G", "--cpus-per-run", "3", "--gpus-per-run", "1"]) == 0
    assert [job.name for job in fake_slurm.jobs(cluster)] == ["job1_0", "job1_1", "job1_2"]
    (file,) = Path("sweeps/mine/slurm").glob("*/*_submission.sh")
    text = file.read_text()
    for line in ("time=1:00:00", "mem=4G", "no-requeue", "signal=TERM@60", "cpus-per-task=3", "gpus-per-node=1"):
        assert f"#SBATCH --{line}\n" in text
    assert 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-3}"' in text
    assert not list(Path("sweeps/mine/slurm").glob("*/*.pkl"))
    assert_undisturbed(path)


@pytest.mark.sweeps
def test_a_search_sends_its_trials(cluster: Path) -> None:
    pytest.importorskip("optuna")
    search = {"space": {"gain": [1.0, 2.0]}, "trials": 2, "seeds": [0, 1]}
    Path("mine.yaml").write_text(yaml.safe_dump({"settings": {"recipe": "fake"}, "search": search}))
    assert main(["sweep", "mine.yaml", "--search", *ARGUMENTS]) == 0
    assert [fake_slurm.state(job) for job in fake_slurm.jobs(cluster)][:3] == ["COMPLETED"] * 3
    assert len(folders("sweeps/mine")) == 2
    assert len(list(Path("sweeps/mine").rglob("trial000?/seed*/evaluations.npz"))) == 4


@pytest.mark.sweeps
@pytest.mark.parametrize("how", ["preempted", "out of time", "lost", "cancelled by somebody"])
def test_a_job_is_lost(cluster: Path, how: str) -> None:
    """It counts as failed, and its run goes on from where it was saved; the others do not notice."""
    path = write(total_timesteps=8_000)
    lost: list[Path] = []
    ends = {
        "preempted": ("PREEMPTED", signal.SIGTERM),
        "out of time": ("RUNNING", signal.SIGTERM),
        "lost": ("NODE_FAIL", signal.SIGKILL),
        "cancelled by somebody": ("CANCELLED by 0", signal.SIGTERM),
    }

    class Losing(Lines):
        """Ends the first job in the middle."""

        def refresh(self) -> None:
            if not lost and progress_of(self.jobs[0]).step > 1_000:
                lost.append(fake_slurm.jobs(cluster)[0])
                fake_slurm.end(lost[0], *ends[how])

    summary = sweep(read_plan(path), display=Losing)
    assert lost
    assert len(summary.complete) == 3, summary.failed
    errors = [entry["error"] for entry in entries() if entry["state"] == "failed"]
    assert len(errors) == 1
    saved = how != "lost"
    assert ("and it was saved" if saved else "without a result (node fail); what it has said is in") in errors[0]
    assert_undisturbed(path)


@pytest.mark.sweeps
def test_a_signal_cancels_what_waits_and_saves_what_runs(cluster: Path) -> None:
    path = write(total_timesteps=8_000)
    program = begun(path)
    begin = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    assert program.end(signal.SIGTERM, begin) < SECONDS
    assert "0 of 3 runs are complete, go on with" in program.lines[-1]
    assert {entry["state"] for entry in entries()} == {"stopped"}
    assert len(entries()) == 3
    assert all(0 < last(folder).env_step < 8_000 for folder in folders("sweeps/mine").values())
    assert main(["sweep", str(path), *ARGUMENTS]) == 0
    assert_undisturbed(path)


@pytest.mark.sweeps
def test_the_driver_is_killed(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its jobs go on until the same command cancels them, and sends them again when they have ended."""
    path = write(total_timesteps=8_000)
    program = begun(path)
    program.process.kill()
    program.process.wait()
    assert [fake_slurm.state(job) for job in fake_slurm.jobs(cluster)] == ["RUNNING", "RUNNING", "PENDING"]
    assert main(["sweep", str(path), *ARGUMENTS]) == 0
    assert "jobs that an earlier call has left" in capfd.readouterr().err
    states = [fake_slurm.state(job) for job in fake_slurm.jobs(cluster)]
    assert states[:3] == ["CANCELLED by 1000"] * 3
    assert len(states) == 6
    assert {entry["state"] for entry in entries()} == {"complete"}
    assert_undisturbed(path)


def begun(path: Path) -> Program:
    """The command in the middle of two runs; a third one waits."""
    code = "import diffac.scale.executors.slurm as s\ns.LOOK = 0.2\n" + SWEEP
    program = Program(code, Path.cwd(), "sweep", str(path), *ARGUMENTS)
    wait_for(lambda: sum(progress_of(job).step > 1_000 for job in read_plan(path)) == 2, program)
    return program


def test_what_slurm_refuses(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Is a failure of the runs, which are tried again."""
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no such partition' >&2\nexit 1\n")
    assert main(["sweep", str(write()), *ARGUMENTS]) == 1
    assert "seed=0: Slurm has not taken its job: " in capfd.readouterr().err
    assert len(entries()) == 6


def test_a_slurm_that_does_not_answer(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whether jobs of an earlier call are there is not known, so none is sent."""
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert main(["sweep", str(write()), *ARGUMENTS]) == 2
    assert "Slurm does not say which jobs there are" in capfd.readouterr().err


def test_jobs_of_an_earlier_call_that_do_not_end(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ENDING", 0.1)
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\necho 17\n")
    with pytest.raises(UsageError, match="jobs of an earlier call do not end; end them with: scancel 17"):
        Slurm(Path.cwd(), {"time": "1"})
