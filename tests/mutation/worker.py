"""One pytest run on mutated backends; starts in a process of its own, forked from one that has torch and jax loaded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PRELOADED = ["torch", "jax", "equinox", "optax", "scipy.special", "hypothesis", "beartype", "jaxtyping", "pytest"]
"""What the tests import; half of the time of a short run otherwise."""


class Recorder:
    """A pytest plugin that notes what happens."""

    def __init__(self) -> None:
        self.failures: list[dict[str, str]] = []
        self.tests = 0

    def pytest_exception_interact(self, node: Any, call: pytest.CallInfo[Any], report: Any) -> None:
        """Which test fails, in which phase and by which exception."""
        error = call.excinfo.typename if call.excinfo else ""
        self.failures.append({"test": node.nodeid, "phase": getattr(report, "when", "collection"), "error": error})

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The number of tests chosen."""
        self.tests = session.testscollected


def run_pytest(root: Path, folder: Path, arguments: list[str]) -> None:
    """Runs pytest on the tests of a repository with the backends in a folder; leaves `record.json` there.

    The record holds the exit status, the number of tests, failures, and the file of every module imported from `diffac`
    or a backend.
    """
    os.chdir(root)
    sys.path[:0] = [str(folder), str(root)]
    with (folder / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        recorder = Recorder()
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments], plugins=[recorder])
    files = {
        name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("diffac")
    }
    record = {"exit": int(status), "tests": recorder.tests, "failures": recorder.failures, "files": files}
    (folder / "record.json").write_text(json.dumps(record))
