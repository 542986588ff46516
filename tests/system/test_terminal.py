"""The terminal never ends a run: whatever happens to it, the run goes on and exits with the code it deserves."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from program import PATHS

from diffac.logging import ConsoleWriter
from diffac.runs.store import Store
from diffac.system.terminal import TolerantStream, tolerant

PROGRAM = """
import signal, sys, fake_recipe, diffac.commands.exit_codes as e, diffac.commands.script as c
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    with e.exit_code() as code:
        c.run_recipe(fake_recipe, name="fake")
    sys.exit(code.value)
"""
FIELDS = ["--total-timesteps", "400", "--log-interval", "15", "--checkpoint-interval", "40", "--eval-interval", "20"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), **more}


def shell(command: str, folder: Path, *arguments: str, **variables: str) -> int:
    """The exit code of a line of bash in which "$@" is the program; that of the program where there is a pipe."""
    (folder / "program.py").write_text(PROGRAM)
    script = f'set -o pipefail; {command}; exit "${{PIPESTATUS[0]}}"'
    program = [sys.executable, str(folder / "program.py"), *FIELDS, *arguments]
    ran = subprocess.run(
        ["bash", "-c", script, "bash", *program],
        cwd=folder, env=environment(**variables), timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return ran.returncode


def assert_complete(folder: Path) -> None:
    """All files of a run of 400 steps are there and hold nothing but what belongs to them."""
    (run,) = folder.glob("runs/*/fake/*/seed*")
    with (run / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert steps[-1] == 400
    with np.load(run / "evaluations.npz") as saved:
        assert saved["timesteps"].tolist() == list(range(20, 401, 20))
    found, refused = Store(run / "checkpoints").newest()
    assert found is not None
    assert (found.env_step, refused) == (400, [])
    for path in [run / "lock", *run.glob("metrics.*"), *run.glob("events.*")]:
        assert b"400/400 steps" not in path.read_bytes()
        assert b"final return" not in path.read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        '"$@" 2>&1 | head -1',
        '"$@" | true',
        '"$@" > /dev/full 2>&1',
        '"$@" 2>&-',
        '"$@" --asynchronous --num-envs 2 <&- >&- 2>&-',
        '"$@" --env-id fakes:Chatty-v0 --asynchronous --num-envs 2 2>&1 | head -1',
    ],
)
def test_a_run_outlives_its_terminal(command: str, tmp_path: Path) -> None:
    assert shell(command, tmp_path) == 0
    assert_complete(tmp_path)


def test_several_seeds_outlive_it_too(tmp_path: Path) -> None:
    assert shell('"$1" -m fake_recipe "${@:3}" --num-seeds 2 2>&1 | head -1', tmp_path) == 0
    assert len(list(tmp_path.glob("runs/*/fake/*/seed*/checkpoints/step_000000000400*"))) == 2


@pytest.mark.parametrize("stream", ["2>&1 | true", "> /dev/full 2>&1", ">&- 2>&-"])
def test_the_other_commands_outlive_it_too(stream: str, tmp_path: Path) -> None:
    assert shell('"$@"', tmp_path) == 0
    (run,) = tmp_path.glob("runs/*/fake/*/seed*")
    script, diffac = (f'"{sys.executable}" {program}' for program in ("program.py", "-m diffac"))
    commands = {
        f'{script} evaluate "{run}" --episodes 2': 0,
        f'{script} resume "{run}"': 0,
        f"{script} --help": 0,
        f"{diffac} report runs --out report": 0,
        f"{diffac} recipes": 0,
        f"{diffac} evaluate nowhere": 2,
        f"{diffac} nothing": 2,
    }
    for command, code in commands.items():
        assert (command, shell(f"{command} {stream}", tmp_path)) == (command, code)
    (path,) = run.glob("evaluations/*.json")
    assert len(json.loads(path.read_text())["returns"]) == 2
    assert (tmp_path / "report/report.html").read_text().endswith("</html>\n")


@pytest.mark.parametrize("stream", ["2>&1 | true", "2> /dev/full"])
def test_errors_keep_their_exit_code(stream: str, tmp_path: Path) -> None:
    assert shell(f'"$@" --num-envs 0 {stream}', tmp_path) == 2
    assert shell(f'"$@" --env-id fakes:Failingraise-v0 {stream}', tmp_path) == 1


def test_an_encoding_without_the_characters(tmp_path: Path) -> None:
    """The folder's name, which is printed, holds what ASCII lacks, and a byte that no encoding has."""
    folder = tmp_path / os.fsdecode(b"l\xc3\xa4ufe\xff")
    folder.mkdir()
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    assert shell('"$@" --run-root "$PWD/runs" > out.txt', folder, **ascii_only) == 0
    assert_complete(folder)
    assert b"ufe\\udcff" in (folder / "out.txt").read_bytes()


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """With a bar that is redrawn; then the window goes, and every write to it fails."""
    (tmp_path / "program.py").write_text(PROGRAM)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "program.py", *FIELDS, "--total-timesteps", "4000", "--eval-interval", "20"],
        cwd=tmp_path, env=environment(TERM="xterm"), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while b"steps" not in shown:
        shown += os.read(master, 1000)
    os.close(master)
    assert process.wait(120) == 0
    (run,) = tmp_path.glob("runs/*/fake/*/seed*")
    assert list(run.glob("checkpoints/step_000000004000*"))


def test_ctrl_c_that_ends_the_reader_too(tmp_path: Path) -> None:
    """`| tee`: the reader dies of the same Ctrl-C, and the run answers with its own code and a checkpoint."""
    (tmp_path / "program.py").write_text(PROGRAM)
    program = f'"{sys.executable}" program.py {" ".join(FIELDS)} --total-timesteps 400000'
    line = f'trap : INT; {program} 2>&1 | cat > log; exit "${{PIPESTATUS[0]}}"'
    process = subprocess.Popen(["bash", "-c", line], cwd=tmp_path, env=environment(), start_new_session=True)
    while not list(tmp_path.glob("runs/*/fake/*/seed*/checkpoints/step_*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    (run,) = tmp_path.glob("runs/*/fake/*/seed*")
    assert Store(run / "checkpoints").newest()[0] is not None


class Broken(io.StringIO):
    """A stream on which everything fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "EIO"), ValueError("closed file")])
def test_a_writer_of_the_library_survives_too(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(error))
    writer = ConsoleWriter(100)
    writer.write(10, {"eval/mean_reward": 1.0})
    writer.close()


@pytest.mark.parametrize("stream", [None, io.TextIOWrapper(io.BytesIO(), "ascii", "strict")])
def test_a_tolerant_stream(stream: Any) -> None:
    once = tolerant(stream)
    assert tolerant(once) is once
    print("naïve", "\udcff", file=once, flush=True)
    once.writelines(["a", "b\n"])
    once.flush()
    if stream is not None:
        assert stream.buffer.getvalue() == b"na\\xefve \\udcff\nab\n"
        assert once.encoding == "ascii"
        stream.close()
    assert not once.isatty()
    print("more", file=once, flush=True)
    assert isinstance(once, TolerantStream)


def test_the_fake_environment_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    fakes.Chatty().reset()
    assert "hello" in capsys.readouterr().out
