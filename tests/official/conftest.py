"""The backends, the folder of recordings, and a summary of how near everything came."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from conftest import FRAMEWORKS, load_backend

from official.recording import Recording, load

DEFAULT = Path(__file__).parents[3] / "shared" / "official"


@pytest.fixture(params=[*FRAMEWORKS, "numpy"])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn; "numpy" is the reference."""
    if request.param == "numpy":
        request.getfixturevalue("numpy_backend")
        importlib.import_module("diffac_numpy.testing")
    else:
        load_backend(request.param)
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `recording` runs once for each file of the folder."""
    if "recording" not in metafunc.fixturenames:
        return
    folder = Path(metafunc.config.getoption("--data") or DEFAULT)
    files = sorted(folder.glob("*.npz"))
    absent = pytest.mark.skip(reason=f"no recordings in {folder}; name their folder by --data")
    parameters = [pytest.param(path, id=path.stem) for path in files] or [pytest.param(None, id="absent", marks=absent)]
    metafunc.parametrize("recording", parameters, indirect=True)


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Recording:
    """One file."""
    return load(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest difference of each test that reports one."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())]
    rows = [(report.nodeid.rpartition("::")[2], dict(report.user_properties)) for report in reports]
    rows = [(test, row["difference"], row["where"]) for test, row in rows if "difference" in row]
    if rows:
        terminalreporter.section("largest difference, relative to the largest entry of its array")
        for test, difference, where in rows:
            terminalreporter.write_line(f"{difference:8.1e}  {test}  ({where})")
