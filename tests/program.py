"""A program of diffac in a process of its own, to which signals are sent, and what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

TESTS = Path(__file__).parent
PATHS = [str(TESTS), *(str(TESTS.parent / name) for name in (".", "backends", "recipes"))]
"""Where a process finds fakes, diffac, backends and recipes."""
CODE = (
    "import sys, signal, fake_recipe, diffac.commands.main as c, diffac.commands.script as s\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    "print('ready', flush=True)\n"
)
RECIPE = CODE + "sys.modules['__main__'] = fake_recipe\ns.recipe_main('fake')"
TWO_PROCESSORS = "import diffac.scale.seeds\ndiffac.scale.seeds.usable_processors = lambda: 2\n"
"""Before the code of a program: as many seeds run at once, whatever the machine has."""
SECONDS = 10.0
LONG = ("--total-timesteps", "100000000", "--checkpoint-interval", "10", "--log-interval", "10", "--no-progress")


class Program:
    """A process group of its own, whose output is read as it comes.

    Args:
        code: what Python runs.
        folder: where.
        argv: its arguments.
    """

    def __init__(self, code: str, folder: Path, *argv: str) -> None:
        paths = [*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            env=environment, cwd=folder, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, timeout: float = 90.0) -> None:
        """Until a line of its output holds that."""
        end = time.monotonic() + timeout
        while text not in self.text:
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)

    def signal(self, signum: int) -> None:
        os.killpg(self.process.pid, signum)

    def stop(self, signum: int) -> float:
        """Sends the signal to the whole group; the seconds until the end, which must leave no traceback."""
        begin = time.monotonic()
        self.signal(signum)
        return self.end(signum, begin)

    def end(self, signum: int, begin: float) -> float:
        try:
            code = self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        seconds = time.monotonic() - begin
        self._thread.join(5)
        assert code == 128 + signum, self.text
        for word in ("Traceback", "Exception ignored", "Error"):
            assert word not in self.text, self.text
        return seconds


def harmless(text: str) -> bool:
    """Neither control nor format characters, nor halves of others; line breaks at the end of lines only."""
    return not {unicodedata.category(c) for c in text} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
