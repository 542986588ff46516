"""A Slurm of this machine: the commands that submitit and diffac call, and what happens to jobs on a cluster.

`install` puts the commands on the path of a test; each is this file, called by the command's name. A job is a folder
with its state, its name and the process of its step.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scancel", "squeue", "sacct")
HOME = "FAKE_SLURM"


def install(folder: Path, monkeypatch, slots: int) -> Path:
    """Makes a cluster.

    Args:
        folder: for it, new.
        monkeypatch: of the test.
        slots: jobs that may run at a time.
    """
    (folder / "bin").mkdir(parents=True)
    for number in range(slots):
        (folder / f"slot{number}").touch()
    for name in COMMANDS:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv(HOME, str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


def jobs(home: Path) -> list[Path]:
    """Folders of all, in their order."""
    return sorted(home.glob("job*"), key=lambda path: [int(part) for part in path.name[3:].split("_")])


def state(job: Path) -> str:
    return (job / "state").read_text()


def note(job: Path, name: str, text: str) -> None:
    beside = job / f"new{os.getpid()}"
    beside.write_text(text)
    beside.rename(job / name)


def end(job: Path, how: str, signum: int) -> None:
    """A job that waits or runs ends: how `sacct` calls it, and by which signal."""
    if state(job) in ("PENDING", "RUNNING"):
        note(job, "state", how)
        if (job / "pid").exists():
            os.kill(int((job / "pid").read_text()), signum)


def sbatch(home: Path, file: str) -> None:
    text = Path(file).read_text()
    number = 1 + len({job.name.partition("_")[0] for job in jobs(home)})
    array = re.search(r"--array=0-(\d+)", text)
    indices = [f"_{index}" for index in range(int(array[1]) + 1)] if array else [""]
    for index in indices:
        job = home / f"job{number}{index}"
        job.mkdir()
        note(job, "name", re.search(r"--job-name=(\S+)", text)[1])
        note(job, "state", "PENDING")
        subprocess.Popen(
            [sys.executable, "-S", __file__, "controller", str(job), file], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(f"Submitted batch job {number}")


def controller(home: Path, job: str, file: str) -> None:
    """Waits for a slot and runs the job."""
    folder = Path(job)
    number, _, index = folder.name[3:].partition("_")
    while True:
        for slot in home.glob("slot*"):
            with slot.open() as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if state(folder) != "PENDING":
                    return
                note(folder, "state", "RUNNING")
                array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index} if index else {}
                environment = {**os.environ, "SLURM_JOB_ID": number, "FAKE_JOB": job, **array}
                code = subprocess.run(["bash", file], env=environment).returncode
                if state(folder) == "RUNNING":
                    note(folder, "state", "FAILED" if code else "COMPLETED")
                return
        time.sleep(0.05)


def srun(home: Path, *words: str) -> None:
    job = Path(os.environ["FAKE_JOB"])
    number, _, index = job.name[3:].partition("_")
    output = words[words.index("--output") + 1]
    for mark, value in (("%A", number), ("%a", index), ("%j", number), ("%t", "0")):
        output = output.replace(mark, value)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    note(job, "pid", str(os.getpid()))
    command = words[words.index("--output") + 2 :]
    os.execvp(command[0], command)


def _named(home: Path, words: tuple[str, ...]) -> list[Path]:
    (name,) = (word.removeprefix("--name=") for word in words if word.startswith("--name="))
    return [job for job in jobs(home) if (job / "name").read_text() == name]


def scancel(home: Path, *words: str) -> None:
    for job in _named(home, words):
        end(job, "CANCELLED by 1000", signal.SIGTERM)


def squeue(home: Path, *words: str) -> None:
    """A job that was cancelled is there until its processes have ended."""
    for job in _named(home, words):
        pid = job / "pid"
        alive = pid.exists() and Path("/proc", pid.read_text()).exists()
        if alive or state(job) in ("PENDING", "RUNNING"):
            print(job.name[3:])


def sacct(home: Path, *words: str) -> None:
    print("JobID|State|NodeList")
    for job in jobs(home):
        print(f"{job.name[3:]}|{state(job)}|here")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ[HOME]), *sys.argv[2:])
