"""A process for each contender, which waits while others are measured: none disturbs another's memory or threads.

One line of JSON asks, one answers. Imports neither diffac nor a framework, because peers live in an environment of
their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answers until the input ends. What the commands print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(commands[name](**arguments)), file=answers, flush=True)


class Process:
    """A contender, from outside.

    Args:
        module: of this package; its main program ends in `serve`.
        spec: its argument.
        python: the interpreter, and so the environment.
        env: variables added to this process's own.
    """

    def __init__(self, module: str, spec: Mapping[str, Any], python: str = sys.executable, **env: str) -> None:
        self.spec = dict(spec)
        command = [python, "-W", "ignore", "-m", f"tests.benchmarks.{module}", json.dumps(self.spec)]
        self._errors: list[str] = []
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-30:], line]

    def __call__(self, command: str, **arguments: Any) -> Any:
        """The answer of one of its commands.

        Raises:
            RuntimeError: the process died; the message holds what it said last.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([command, arguments]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise RuntimeError(f"{self.spec} failed at {command}:\n{''.join(self._errors)}")
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def memory() -> tuple[int, int]:
    """Bytes in use by this process now, and at most so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most
