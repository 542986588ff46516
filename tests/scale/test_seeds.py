"""Several seeds are as many runs, each as if it had been started alone; the end of one is not that of the others."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_recipe
import numpy as np
import pytest
from alike import assert_same_runs, folders, last
from program import LONG, RECIPE, SECONDS, TWO_PROCESSORS, Program
from rich.console import Console

from diffac.commands.main import main
from diffac.commands.script import run_recipe
from diffac.errors import UsageError
from diffac.logging import ConsoleWriter
from diffac.runs.folder import read_manifest
from diffac.scale import seeds
from diffac.system.signals import HEARD

pytestmark = pytest.mark.usefixtures("third_party")


def test_each_is_the_run_that_it_is_alone(capfd: pytest.CaptureFixture[str]) -> None:
    run = ["train", "fake", "--num-envs", "2", "--asynchronous", "--log-interval", "20", "--checkpoint-interval", "40"]
    assert main([*run, "--num-seeds", "2", "--seed", "3", "--run-root", "together"]) == 0
    captured = capfd.readouterr()
    together = folders("together")
    assert list(together) == [3, 4]
    for seed, folder in together.items():
        assert captured.out.count(f"seed {seed}: {folder}\n") == 2  # at its begin and its end
        assert f"seed {seed}: 80/80 steps  return" in captured.err
    means = [np.load(folder / "evaluations.npz")["results"][-1].mean() for folder in together.values()]
    assert f"mean over 2 seeds {np.mean(means):.1f} ({min(means):.1f} to {max(means):.1f}), 2 ep" in captured.out
    assert f"diffac report {together[3].parent}" in captured.out
    assert main([*run, "--seed", "4", "--run-root", "alone"]) == 0
    assert_same_runs(folders("alone")[4], together[4])
    assert main(["resume", str(together[3])]) == 0


def test_a_seed_that_fails_ends_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """One diverges, one has a mistake in its program, one is killed; one is whole."""
    options = ["--log-interval", "5", "--checkpoint-interval", "20", "--fail", "seeds", "--num-seeds", "4"]
    assert main(["train", "fake", *options]) == 1
    captured = capfd.readouterr()
    assert "note: seed 1 has failed, the others go on: training diverged" in captured.err
    assert "seed 2: ZeroDivisionError: a mistake\n" in captured.err
    assert "mean over 1 seeds" in captured.out
    *_, diverged, mistaken, killed, error = captured.err.splitlines()
    assert diverged.startswith("note: seed 1: training diverged: the critic's loss")
    assert mistaken == "note: seed 2: exit code 1; what it has said is above"
    assert killed == "note: seed 3: its process was ended by signal 9"
    assert error == "error: 3 of 4 seeds failed"
    assert [last(folder).env_step for folder in list(folders().values())[:2]] == [80, 40]


def begun(folder: Path, *argv: str) -> Program:
    """Two seeds in the middle of their runs, also on a machine with another number of processors."""
    program = Program(TWO_PROCESSORS + RECIPE, folder, *LONG, *argv)
    for seed in (0, 1):
        program.wait_for(f"seed {seed}: 10/100,000,000 steps")
    return program


def test_a_signal_stops_all(third_party: Path) -> None:
    """Sent to the process that was started, and not to the others, of which one has not begun."""
    program = begun(third_party, "--num-seeds", "3")
    begin = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    assert program.end(signal.SIGINT, begin) < SECONDS
    assert program.text.count(HEARD) == 1
    assert list(folders()) == [0, 1]
    for seed, folder in folders().items():
        words = f"go on from step {last(folder).env_step:,} with: diffac resume {folder}"
        assert any(line.startswith(f"seed {seed}: interrupted") and line.endswith(words) for line in program.lines)
    assert program.lines[-1] == "1 seeds had not begun; train them with: --seed 2 --num-seeds 1"


def test_a_signal_to_every_process_counts_once(third_party: Path) -> None:
    """Batch systems send it so; nobody takes it for a second one, which would not wait for the checkpoint."""
    program = begun(third_party, "--num-seeds", "2", "--checkpoint-interval", "100000000")
    assert program.stop(signal.SIGTERM) < SECONDS
    assert [last(folder).env_step > 0 for folder in folders().values()] == [True, True]


def test_a_second_ctrl_c_ends_all_at_once(third_party: Path) -> None:
    program = begun(third_party, "--num-seeds", "2", "--env-id", "fakes:Failinghang-v0")
    time.sleep(1)
    begin = time.monotonic()
    for _ in range(2):
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert program.end(signal.SIGINT, begin) < seeds.ECHO + 3
    assert program.text.count("diffac resume ") == 2


def test_a_script_trains_itself(third_party: Path) -> None:
    """And not the recipe that is installed under its name."""
    text = (
        Path(fake_recipe.__file__)
        .read_text()
        .replace('if __name__ == "__main__":', 'if __name__ == "__main__":\n    print("mine")')
    )
    (third_party / "mine.py").write_text(text)
    ran = subprocess.run([sys.executable, "mine.py", "--num-seeds", "2"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert re.findall("^(?:seed .: )?mine$", ran.stdout, re.MULTILINE) == ["mine", "seed 0: mine", "seed 1: mine"]
    for seed, folder in folders().items():
        about = read_manifest(folder)
        assert about["recipe_file"] == str(third_party / "mine.py")
        assert about["command"][1:] == ["--num-seeds", "2", "--seed", str(seed), "--num-seeds", "1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-seeds", "0"], "num_seeds must be at least 1, got 0"),
        (["--num-seeds", "2", "--run-root", "~nobody-of-this-name/x"], "there is no user 'nobody-of-this-name'"),
        (["--num-seeds", "3", "--env-id", "fakes:Rondom-v0"], "error: unknown environment 'fakes:Rondom-v0'"),
        (["--num-seeds", "two"], "two"),
    ],
)
def test_bad_input(argv: list[str], message: str, capfd: pytest.CaptureFixture[str], third_party: Path) -> None:
    """Is refused once, however many seeds there are."""
    assert main(["train", "fake", *argv]) == 2
    captured = capfd.readouterr()
    assert captured.err.count(message) == 1 or message == "two"
    assert message in captured.err
    assert "mean over" not in captured.out
    assert not list(third_party.iterdir())


def test_a_recipe_that_no_process_finds_is_refused(third_party: Path) -> None:
    with pytest.raises(UsageError, match="several seeds need a recipe that has a name or is run as a script; 'sac'"):
        run_recipe(fake_recipe, ["--num-seeds", "2"], "sac")
    assert not list(third_party.iterdir())


@pytest.mark.parametrize(("num_seeds", "processors", "share"), [(2, 8, 4), (3, 8, 2), (8, 8, 1), (9, 2, 1)])
def test_shares(num_seeds: int, processors: int, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its share of the processors, and one thread where there are fewer of them than seeds."""
    monkeypatch.setattr(seeds, "usable_processors", lambda: processors)
    found: list[Any] = []

    class Recorded(seeds._Seeds):
        def train(self, stop: Any) -> None:
            found.append(self._at_once)

    monkeypatch.setattr(seeds, "_Seeds", Recorded)
    monkeypatch.setattr(seeds, "_environment", found.append)
    seeds.run_seeds(["none"], fake_recipe.Config(), num_seeds)
    assert found == [share, min(num_seeds, processors)]


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NPROC": "7", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = seeds._environment(3)
    assert (found["OMP_NUM_THREADS"], found["NPROC"]) == ("3", "7")
    assert "FORCE_COLOR" not in found


def test_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar for each seed, from the plain lines that its process writes; anything else stands above them."""
    out, plain = io.StringIO(), io.StringIO()
    monkeypatch.setattr(seeds, "standard_error", lambda: Console(file=out, force_terminal=True, width=140))
    terminal = seeds._Terminal(fake_recipe.Config(total_timesteps=1000))
    writer = ConsoleWriter(1000, console=Console(file=plain))
    writer.write(200, {"rollout/ep_rew_mean": 10.0, "time/fps": 1234.5})
    terminal.show(3, plain.getvalue().rstrip("\n"), True)
    terminal.show(4, "1,000/1,000 steps  return 20", True)
    terminal.show(4, "note: \x1b[2J", True)
    terminal.close()
    shown = re.sub("\x1b[^A-Za-z]*[A-Za-z]", "", out.getvalue())
    for text in ("200/1000", "seed 3  return 10  steps/s 1234", "1000/1000", "seed 4  return 20"):
        assert text in shown
    assert "seed 4: note: \\x1b[2J" in shown + capsys.readouterr().err


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fake", "--help"]) == 0
    assert "--num-seeds" in capsys.readouterr().out
    assert main([]) == 0
    assert "--num-seeds" in capsys.readouterr().out
