"""After `kill -9` of a run or a validation, none of the processes that it has started remains."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import INSTALLED
from program import CODE, RECIPE, Program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")

SPAWN = "import multiprocessing as m\nm.get_all_start_methods = lambda: ['spawn']\n"
SECONDS = 10.0


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """What the environment of every process holds that descends from this test; they are ended with it."""
    name, value = "DIFFAC_TEST_ORPHANS", uuid.uuid4().hex
    monkeypatch.setenv(name, value)
    mark = f"{name}={value}".encode()
    yield mark
    for pid in descendants(mark):
        os.kill(pid, signal.SIGKILL)


def descendants(mark: bytes) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes() and " Z " not in (path / "stat").read_text():
                found.append(int(path.name))
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
    return [pid for pid in found if pid != os.getpid()]


def assert_none_remains(program: Program, mark: bytes, at_least: int) -> None:
    """Kills a program that has started so many processes; all must be gone soon."""
    assert len(descendants(mark)) > at_least, program.text
    program.process.kill()
    end = time.monotonic() + SECONDS
    while (left := descendants(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    assert not left, (commands, program.text)


@pytest.mark.parametrize("start", ["", SPAWN], ids=["forkserver", "spawn"])
def test_idle_processes_of_environments_end_with_the_run(tmp_path: Path, mark: bytes, start: str) -> None:
    program = Program(start + RECIPE, tmp_path, "--asynchronous", "--num-envs", "2", "--fail", "native")
    program.wait_for("in C")
    assert_none_remains(program, mark, 2)


@pytest.mark.parametrize(
    ("how", "when"),
    [("python", "step"), ("sleep", "step"), ("locked", "step"), ("sleep", "make"), ("locked", "reset")],
)
def test_busy_processes_of_environments_end_with_the_run(tmp_path: Path, mark: bytes, how: str, when: str) -> None:
    options = ["--asynchronous", "--num-envs", "2", "--env-id", "fakes:Busy-v0", "--env-kwargs"]
    program = Program(RECIPE, tmp_path, *options, f"how={how}", f"when={when}")
    program.wait_for("hard at work")
    assert_none_remains(program, mark, 2)


def test_busy_processes_end_where_there_is_no_fork_server(tmp_path: Path, mark: bytes) -> None:
    options = ["--asynchronous", "--num-envs", "2", "--env-id", "fakes:Busy-v0", "--env-kwargs", "how=locked"]
    program = Program(SPAWN + RECIPE, tmp_path, *options)
    program.wait_for("hard at work")
    assert_none_remains(program, mark, 2)


def test_processes_of_several_seeds_end_with_them(tmp_path: Path, mark: bytes) -> None:
    options = ["--asynchronous", "--num-envs", "2", "--env-id", "fakes:Busy-v0", "--num-seeds", "2"]
    program = Program(RECIPE, tmp_path, *options, "--env-kwargs", "how=sleep")
    program.wait_for("hard at work")
    assert_none_remains(program, mark, 4)


@pytest.mark.skipif(not all(INSTALLED.values()), reason="validates both backends")
def test_processes_of_a_validation_end_with_it(tmp_path: Path, mark: bytes) -> None:
    program = Program(CODE + "c.main(['validate', '--cases', '1000'])", tmp_path)
    end = time.monotonic() + 60
    while len(descendants(mark)) < 4 and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(2)
    assert_none_remains(program, mark, 2)
