"""Ctrl-C, SIGTERM and SIGHUP are heard at once and answered within ten seconds, wherever a run is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
import types
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import INSTALLED
from program import CODE, LONG, PATHS, RECIPE, SECONDS, TWO_PROCESSORS, Program

from diffac.data.environments import make_envs
from diffac.runs.store import Store
from diffac.system import signals
from diffac.system.signals import HEARD, Interrupted, StopRequest, undisturbed

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals to process groups")


def the_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*/fake/*/seed*")
    return run


def saved_step(folder: Path) -> int:
    """That of the newest checkpoint, all of which are whole."""
    found, refused = Store(the_run(folder) / "checkpoints").newest()
    assert refused == []
    return 0 if found is None else found.env_step


def wait_for_step(folder: Path, step: int) -> None:
    """Until a run has a checkpoint of that step."""
    end = time.monotonic() + 90
    while not list(folder.glob(f"runs/*/fake/*/seed*/checkpoints/step_{step:012d}")):
        assert time.monotonic() < end
        time.sleep(0.02)


# the places in which a run can be


@pytest.mark.parametrize("entry", ["diffac", "python -m diffac"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_importing(entry: str, signum: int, tmp_path: Path) -> None:
    """While something is imported that would take an exception for something else."""
    (tmp_path / "tyro.py").write_text(  # many instructions: a signal just before one long sleep is seen after it
        "import time\nprint('importing', flush=True)\ntry:\n    for _ in range(6_000):\n        time.sleep(0.01)\n"
        "except BaseException:\n    pass\n"
    )
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["diffac"].partition(":")
    default = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    )
    code = {
        "diffac": f"import sys\nfrom {module} import {function}\nsys.exit({function}())",
        "python -m diffac": "import runpy\nrunpy.run_module('diffac', run_name='__main__', alter_sys=True)",
    }[entry]
    program = Program(default + code, tmp_path, "train")
    program.wait_for("importing")
    assert program.stop(signum) < SECONDS / 2
    assert program.lines == ["importing", "", "interrupted"]


def test_evaluating(tmp_path: Path) -> None:
    """The state at the evaluation's step is saved, and the evaluation will be played again."""
    endless = ("--env-id", "fakes:Endless-v0", "--eval-max-steps", "1000000000", "--eval-interval", "30")
    program = Program(RECIPE, tmp_path, *LONG, *endless)
    wait_for_step(tmp_path, 30)
    time.sleep(0.5)
    assert program.stop(signal.SIGINT) < SECONDS / 2
    assert HEARD in program.text
    assert f"go on from step 30 with: diffac resume {the_run(tmp_path)}" in program.lines[-1]
    found, _ = Store(the_run(tmp_path) / "checkpoints").newest()
    assert found is not None
    assert found.host()["evaluation_due"]


@pytest.mark.parametrize(("mode", "signum"), [("--no-asynchronous", signal.SIGTERM), ("--asynchronous", signal.SIGINT)])
def test_an_environment_that_hangs(mode: str, signum: int, tmp_path: Path) -> None:
    """Its step is not waited for; the last checkpoint counts, and how much was done since then is said."""
    options = ("--env-id", "fakes:Failinghang-v0", "--num-envs", "2", "--checkpoint-interval", "40", mode)
    program = Program(RECIPE, tmp_path, *LONG, *options)
    wait_for_step(tmp_path, 40)
    time.sleep(1)
    assert program.stop(signum) < SECONDS
    assert HEARD in program.text
    assert saved_step(tmp_path) == 40
    assert program.lines[-1].endswith("; the 18 steps after step 40 were not saved")


def test_starting_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal is what comes out, and the processes that had started are gone."""
    start, started = ForkServerProcess.start, []

    def interrupted(process: ForkServerProcess) -> None:
        if started:
            raise Interrupted(signal.SIGINT)
        start(process)
        started.append(process)

    monkeypatch.setattr(ForkServerProcess, "start", interrupted)
    with pytest.raises(Interrupted):
        make_envs("fakes:Random-v0", 2, asynchronous=True)
    assert [process.is_alive() for process in started] == [False]


def test_a_call_in_c(tmp_path: Path) -> None:
    """Neither Python's handler nor an exception reaches it."""
    program = Program(RECIPE, tmp_path, *LONG, "--fail", "native", "--num-envs", "2")
    program.wait_for("in C")
    assert program.stop(signal.SIGHUP) < SECONDS
    assert HEARD in program.text
    step = saved_step(tmp_path)
    assert step > 0
    assert f"go on from step {step} with: diffac resume" in program.lines[-1]


@pytest.mark.parametrize(("seconds", "whole"), [(0.3, True), (1000, False)])
def test_saving(seconds: float, whole: bool, tmp_path: Path) -> None:
    """A checkpoint under way is finished where that is a matter of seconds, or else dropped; never half."""
    program = Program(RECIPE, tmp_path, *LONG, "--fail", f"fsync:{seconds}", "--num-envs", "2")
    program.wait_for("a slow disk")
    before = saved_step(tmp_path)
    assert program.stop(signal.SIGTERM) < SECONDS
    assert HEARD in program.text
    assert (saved_step(tmp_path) > before) == whole
    assert f"go on from step {saved_step(tmp_path)} with" in program.lines[-1]


@pytest.mark.parametrize("fail", ["native", "fsync:1000"])
def test_several_seeds(fail: str, tmp_path: Path) -> None:
    """Both are in a place that no signal ends; each says how it goes on, or else the one that has started them."""
    program = Program(TWO_PROCESSORS + RECIPE, tmp_path, *LONG, "--num-seeds", "2", "--fail", fail)
    for seed in (0, 1):
        program.wait_for(f"seed {seed}: {({'native': 'in C'}).get(fail, 'a slow disk')}")
    assert program.stop(signal.SIGTERM) < SECONDS
    assert program.text.count(HEARD) == 1
    for seed in (0, 1):
        assert f"diffac resume {next(tmp_path.glob(f'runs/*/fake/*/seed{seed}__*'))}" in program.text


# the other commands

WRITING = "import os, time\nos.fsync = lambda file: print('writing', flush=True) or time.sleep(1000)\n"
"""A disk that takes nothing."""
ENDLESS = ("--env-id", "fakes:Endless-v0", "--max-steps", "1000000000")


@pytest.mark.parametrize(
    ("before", "argv", "text", "signum"),
    [
        ("", ["evaluate", "RUN", *ENDLESS], "policy of step", signal.SIGINT),
        ("", ["evaluate", "RUN", *ENDLESS], "policy of step", signal.SIGHUP),
        (WRITING, ["evaluate", "RUN", "--episodes", "1"], "writing", signal.SIGTERM),
        (WRITING, ["report", "runs"], "writing", signal.SIGINT),
        pytest.param(
            "",
            ["validate"],
            "ready",
            signal.SIGTERM,
            marks=pytest.mark.skipif(not any(INSTALLED.values()), reason="validates a backend"),
        ),
    ],
)
def test_other_commands(before: str, argv: list[str], text: str, signum: int, tmp_path: Path) -> None:
    """They end at once, and no file with half of its content has its final name."""
    assert Program(RECIPE, tmp_path, "--eval-interval", "20").process.wait(60) == 0
    known = set(tmp_path.rglob("*"))
    run = str(the_run(tmp_path).relative_to(tmp_path))
    code = RECIPE if argv[0] == "evaluate" else CODE + "c.main()"
    program = Program(before + code, tmp_path, *(run if word == "RUN" else word for word in argv))
    program.wait_for(text)
    time.sleep(1)
    for _ in range(2):  # the second is sent where the first needs time
        begin = time.monotonic()
        program.signal(signum)
        time.sleep(0.1)
        if program.process.poll() is not None:
            break
    assert program.end(signum, begin) < SECONDS / 2
    # Python's own process that cleans up after others may add what it found
    said = [line for line in program.lines if "resource_tracker" not in line]
    assert said[-1] == "interrupted"
    files = [path.name for path in set(tmp_path.rglob("*")) - known if path.is_file()]
    assert [name for name in files if not name.startswith("new-")] == []


@pytest.mark.parametrize("argv", [LONG, ("--num-envs", "0"), ("--help",)])
def test_a_terminal_that_takes_nothing(argv: tuple[str, ...], tmp_path: Path) -> None:
    """As under Ctrl-S: output goes to a pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    code = RECIPE.replace("print('ready', flush=True)", "open('ready', 'w')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, start_new_session=True,
    )  # fmt: skip
    try:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT
    finally:
        process.kill()
        os.close(reader)
        os.close(writer)


# again


@pytest.mark.parametrize("fail", ["native", ""])
def test_signals_that_come_again(fail: str, tmp_path: Path) -> None:
    """The second interrupts what it can; the third ends the process."""
    options = ("--fail", fail) if fail else ("--env-id", "fakes:Failinghang-v0")
    program = Program(RECIPE, tmp_path, *LONG, *options)
    program.wait_for("in C" if fail else "runs/")
    time.sleep(2)
    begin = time.monotonic()
    for _ in range(3 if fail else 2):
        program.signal(signal.SIGINT)
        time.sleep(0.3)
    assert program.end(signal.SIGINT, begin) < 4
    assert program.text.count(HEARD) == 1


def test_nohup(tmp_path: Path) -> None:
    """A signal that was ignored before stays ignored."""
    code = RECIPE.replace("signal.SIGHUP, signal.SIG_DFL", "signal.SIGHUP, signal.SIG_IGN")
    program = Program(code, tmp_path, *LONG)
    program.wait_for("10/100,000,000 steps")
    program.signal(signal.SIGHUP)
    time.sleep(1)
    assert program.process.poll() is None
    assert HEARD not in program.text
    program.stop(signal.SIGTERM)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_the_line_comes_before_those_that_follow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the threads that say it take, but for a terminal that takes nothing."""
    say, taken = signals._say, threading.Event()

    def say_late(*args: Any) -> None:
        time.sleep(0.3)
        say(*args)

    monkeypatch.setattr(signals, "_say", say_late)
    with StopRequest(patient=False), StopRequest():
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == f"{HEARD}\n"
    monkeypatch.setattr(signals, "_say", say)
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(write=lambda _: taken.wait(60), flush=taken.wait))
    with StopRequest(patient=False), StopRequest():
        signal.raise_signal(signal.SIGINT)
        begin = time.monotonic()
    assert time.monotonic() - begin < SECONDS / 2
    taken.set()


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("owns_process", [True, False])
def test_where_python_drops_exceptions(owns_process: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    hook, begin = sys.unraisablehook, time.monotonic()
    with pytest.raises(Interrupted) as caught, StopRequest(patient=False, owns_process=owns_process):  # noqa: PT012
        deleted = Deleted()
        del deleted
        time.sleep(60)
    assert caught.value.signum == signal.SIGTERM
    assert time.monotonic() - begin < signals.LEAVING
    assert sys.unraisablehook == hook
    assert capsys.readouterr().err == ""


# a program of somebody else


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Tests that a shell has started in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    threads = threading.active_count()
    with StopRequest() as stop, StopRequest(patient=False):
        assert not stop.requested
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_other_threads_hear_nothing() -> None:
    heard: list[bool] = []

    def work() -> None:
        with StopRequest() as stop, undisturbed():
            heard.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_the_second_signal_waits_for_what_must_be_whole() -> None:
    done = []
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted), undisturbed():  # noqa: PT012
            signal.raise_signal(signal.SIGINT)
            done.append("saved")
        assert stop.requested
    assert done == ["saved"]


def test_learning_in_a_notebook(tmp_path: Path) -> None:
    """Ctrl-C while an environment hangs: `learn` raises within ten seconds, and Python goes on."""
    code = CODE.replace("import sys,", "import sys, time,") + (
        "from diffac.agent import Agent\n"
        "agent = Agent.from_recipe(fake_recipe, 'fakes:Failinghang-v0', total_timesteps=10**6)\n"
        "try:\n    agent.learn()\nexcept KeyboardInterrupt:\n    print('python goes on', flush=True)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, agent.num_timesteps > 0)\n"
    )
    program = Program(code, tmp_path)
    program.wait_for("ready")
    time.sleep(5)
    begin = time.monotonic()
    program.signal(signal.SIGINT)
    program.wait_for("python goes on", 20)
    assert time.monotonic() - begin < SECONDS
    assert program.process.wait(20) == 0
    assert HEARD in program.text
    assert program.lines[-1] == "True True"
