"""Several seeds of one recipe: an ordinary run for each, in a process of its own with its share of the processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.progress import TaskID

from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.logging.console import PLAIN_LINE, progress_bar, standard_error
from diffac.messages import command, note, printable, say
from diffac.system.early_signals import ONE_OF_SEVERAL
from diffac.system.processors import shares, usable_processors
from diffac.system.signals import HEARD, Interrupted, StopRequest, children_undisturbed
from diffac.training.config import TrainConfig

AT_ONCE = "interrupted at once; go on from the last checkpoints with:"
GLANCE = 0.05
"""Seconds between two looks at the processes."""
ECHO = 0.3
"""Seconds in which a process says that it has heard a signal itself, as batch systems send theirs to every process."""
LAST_LINES = 2.0
"""Seconds for which output is read on after the end of a process; one that it has left behind may keep it open."""


def run_seeds(program: Sequence[str], config: TrainConfig, num_seeds: int) -> None:
    """Trains seeds `config.seed`, `config.seed` + 1, ...: each as if it had been started alone.

    As many at a time as there are processors, which they share. The others begin when the first has made its folder,
    so what is wrong with the arguments is said once. A seed whose run breaks off (it diverges, an environment fails,
    the disk is full, a program has a mistake) ends alone; the others go on.

    Args:
        program: the command line that trains `config`; `--seed` is added to it.
        config: arguments of the first seed.
        num_seeds: how many.

    Raises:
        UsageError: impossible arguments; nothing was written.
        RunError: at least one seed failed; the others are complete.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after every seed that had begun has written a checkpoint.
    """
    if num_seeds < 1:
        raise UsageError(f"num_seeds must be at least 1, got {num_seeds}")
    root, processors = absolute(config.run_root), usable_processors()
    at_once = min(num_seeds, processors)
    threads = processors // at_once
    environment = _environment(threads)
    terminal, begin = _Terminal(config), time.perf_counter()

    def start(seed: int) -> _Seed:
        if seed == config.seed + 1:  # nothing is wrong with the arguments
            terminal.tell(f"{num_seeds} seeds, {at_once} at a time, threads of each: {threads}")
        return _Seed(seed, [*program, "--seed", str(seed), "--num-seeds", "1"], environment, root, terminal.show)

    seeds = _Seeds(start, range(config.seed, config.seed + num_seeds), at_once, terminal.tell)
    with StopRequest() as stop:
        stop.last_words = lambda: "\n".join([AT_ONCE, *(seed.resume for seed in seeds.running)])
        try:
            seeds.train(stop)
        finally:
            for seed in seeds.running:  # after an error of ours
                seed.process.kill()
            terminal.close()
    done = [seed for seed in seeds.begun if seed.process.returncode == 0]
    if stop.requested and len(done) < num_seeds:
        raise Interrupted(stop.signum or signal.SIGTERM, seeds.left_over)
    say(*_report(done, time.perf_counter() - begin))
    if failed := [seed for seed in seeds.begun if seed not in done]:
        for seed in failed:
            note(f"seed {seed.seed}: {seed.failure}")
        raise RunError(f"{len(failed)} of {num_seeds} seeds failed")


def _environment(threads: int) -> dict[str, str]:
    """The environment of each process; what this one says about threads and memory stays.

    Args:
        threads: for each process.
    """
    terminal = {"PYTHONUNBUFFERED": "1", "TTY_COMPATIBLE": "0"}  # lines come at once, and no bar is drawn
    ours = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return {**shares(threads), **ours, **terminal, ONE_OF_SEVERAL: "1"}


class _Seed:
    """The process of one seed, which has begun.

    Args:
        seed: its number.
        program: its command line.
        environment: the process's.
        root: folder of all runs.
        show: told what it says: (seed, line, whether on standard error).
    """

    def __init__(
        self,
        seed: int,
        program: Sequence[str],
        environment: dict[str, str],
        root: Path,
        show: Callable[[int, str, bool], None],
    ) -> None:
        self.seed = seed
        self.folder: Path | None = None
        """Of its run, from the time on that it says so."""
        self.has_heard = False
        """Whether it has said that it stops."""
        self.ended = False
        self._error, self._root, self._show = "", root, show
        with children_undisturbed([signum for signum in (signal.SIGINT, getattr(signal, "SIGHUP", None)) if signum]):
            self.process = subprocess.Popen(
                program,
                env=environment, text=True, errors="backslashreplace",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._read, args=(stream, stream is self.process.stderr), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: TextIO, is_error: bool) -> None:
        """Passes on what it says; an error in the last line is kept instead."""
        for line in stream:
            line = line.rstrip("\n")
            if self._error and is_error:
                self._show(self.seed, self._error, is_error)
                self._error = ""
            if is_error and line == HEARD:
                self.has_heard = True
            elif is_error and line.startswith("error: "):
                self._error = line
            elif line:
                if not is_error and self.folder is None:
                    folder = self._root.joinpath(*Path(line).parts[-4:])  # the root may hold what cannot be printed
                    self.folder = folder if (folder / "manifest.json").is_file() else None
                self._show(self.seed, line, is_error)

    def has_ended(self) -> bool:
        """Whether the process has; then all that it has said is known."""
        if not self.ended and self.process.poll() is not None:
            for reader in self._readers:
                reader.join(LAST_LINES)
            self.ended = True
        return self.ended

    def stop(self) -> None:
        """Has it save and end, or the second time end at once. Windows tells all processes of a terminal itself."""
        if os.name != "nt":
            self.process.terminate()

    @property
    def failure(self) -> str:
        """Why it has ended before its time."""
        code = self.process.returncode
        if code < 0:
            return f"its process was ended by signal {-code}"
        if code > 128:
            return f"its process was interrupted{f'; go on with: {self.resume}' if self.folder else ''}"
        return self._error.removeprefix("error: ") or f"exit code {code}; what it has said is above"

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return command("diffac", "resume", self.folder) if self.folder else f"seed {self.seed} has made no folder yet"


class _Seeds:
    """All of them, so many at a time.

    Args:
        start: begins one.
        numbers: which they are.
        at_once: how many at a time.
        tell: told what a person should know.
    """

    def __init__(
        self, start: Callable[[int], _Seed], numbers: Sequence[int], at_once: int, tell: Callable[[str], None]
    ) -> None:
        self._start, self._waiting, self._at_once, self._tell = start, list(numbers), at_once, tell
        self.begun: list[_Seed] = []
        self._asked = False

    @property
    def running(self) -> list[_Seed]:
        return [seed for seed in self.begun if not seed.ended]

    @property
    def left_over(self) -> str:
        """What to do about those that have not begun."""
        if not (left := self._waiting):
            return ""
        return f"{len(left)} seeds had not begun; train them with: --seed {left[0]} --num-seeds {len(left)}"

    def train(self, stop: StopRequest) -> None:
        """Until all have ended, or somebody wants it and those that have begun have ended.

        Raises:
            UsageError: the first ended for its arguments, before it has made a folder.
        """
        try:
            self._look_after(stop)
        except KeyboardInterrupt:  # again, or the time for saving is over
            if not self._asked:
                self._ask()
                time.sleep(ECHO)
            self._ask()
            self._look_after(stop)

    def _look_after(self, stop: StopRequest) -> None:
        while self.running or (self._waiting and not stop.requested):
            for seed in self.running:
                if seed.has_ended() and seed.process.returncode != 0 and not stop.requested:
                    self._report_failure(seed)
            if stop.requested and not self._asked:
                time.sleep(ECHO)
                self._ask()
            elif self._waiting and not stop.requested and self._may_start():
                self.begun.append(self._start(self._waiting[0]))
                del self._waiting[0]
            time.sleep(GLANCE)

    def _ask(self) -> None:
        """Has all save and end; the second time at once."""
        for seed in self.running:
            if self._asked or not seed.has_heard:
                seed.stop()
        self._asked = True

    def _report_failure(self, seed: _Seed) -> None:
        if seed is self.begun[0] and seed.folder is None and seed.process.returncode == 2:
            raise UsageError(seed.failure)
        others = ", the others go on" if self.running or self._waiting else ""
        self._tell(f"seed {seed.seed} has failed{others}: {seed.failure}")

    def _may_start(self) -> bool:
        first_has_begun = not self.begun or self.begun[0].folder is not None or self.begun[0].ended
        return first_has_begun and len(self.running) < self._at_once


class _Terminal:
    """Shows what several processes say: line by line behind the seed, and progress in bars where they can be redrawn.

    Args:
        config: arguments of all.
    """

    def __init__(self, config: TrainConfig) -> None:
        console = standard_error()
        self._total, self._lock = config.total_timesteps, threading.Lock()
        self._bars: dict[int, TaskID] = {}
        self._progress = progress_bar(console) if config.progress and console.is_terminal else None
        if self._progress is not None:
            self._progress.start()

    def show(self, seed: int, line: str, is_error: bool) -> None:
        """A line of one seed."""
        match = PLAIN_LINE.fullmatch(line)
        with self._lock:
            if self._progress is None or match is None:
                stream = sys.stderr if is_error else sys.stdout
                print(f"seed {seed}: {printable(line)}\n", end="", file=stream, flush=True)
                return
            if seed not in self._bars:
                self._bars[seed] = self._progress.add_task("", total=self._total, text="")
            step, text = int(match[1].replace(",", "")), f"seed {seed}  {match[2]}"
            self._progress.update(self._bars[seed], completed=min(step, self._total), text=text)

    def tell(self, text: str) -> None:
        """What a person should know, in a line of its own."""
        with self._lock:
            note(text)

    def close(self) -> None:
        """Ends the display."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()


def _report(done: Sequence[_Seed], seconds: float) -> list[str]:
    """The last evaluations of the seeds that are complete; a callback may have stopped one before its first."""
    folders = [seed.folder for seed in done if seed.folder is not None and (seed.folder / "evaluations.npz").exists()]
    if not folders:
        return []
    last = np.array([np.load(folder / "evaluations.npz")["results"][-1] for folder in folders])
    means = last.mean(axis=1)
    minutes, rest = divmod(round(seconds), 60)
    return [
        f"mean over {len(means)} seeds {means.mean():.1f} ({means.min():.1f} to {means.max():.1f}), "
        f"{last.shape[1]} episodes each, {minutes} min {rest} s",
        f"compare them: {command('diffac', 'report', folders[0].parent)}",
    ]
