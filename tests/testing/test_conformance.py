"""The conformance kit on every backend: the two that we ship, and a third one in plain NumPy, found by entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from conftest import FRAMEWORKS, NUMPY_BACKEND, load_backend

from diffac.backend import GROUP, backend_names, get_backend
from diffac.errors import UsageError
from diffac.testing.conformance import *  # noqa: F403


@pytest.fixture(params=[*FRAMEWORKS, "numpy"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Each backend in turn."""
    if request.param == "numpy":
        return request.getfixturevalue("numpy_backend")
    return load_backend(request.param)


def test_a_third_backend_is_found_by_its_entry_point(numpy_backend: Any) -> None:
    assert "numpy" in backend_names()
    assert get_backend("numpy") is numpy_backend
    assert {entry.value for entry in entry_points(group=GROUP)} >= {"diffac_numpy"}
    with pytest.raises(UsageError, match="did you mean 'numpy'"):
        get_backend("nunpy")


GAPS = """
import dataclasses
import subprocess
import sys

import pytest

sys.path.insert(0, {backend!r})
import diffac_numpy
from diffac.testing.conformance import *

right = diffac_numpy.DDIMSampler
diffac_numpy.DDIMSampler = lambda *args, **kw: right(*args, **kw | {{"start_scale": 3.0}})


@pytest.fixture
def backend():
    return diffac_numpy


@pytest.fixture
def known_gaps():
    return {gaps!r}
"""


def run_with_gaps(folder: Path, gaps: dict[str, str], select: str) -> str:
    """What pytest says about a backend whose DDIM is wrong, and that admits to these gaps."""
    (folder / "test_mine.py").write_text(GAPS.format(backend=str(NUMPY_BACKEND), gaps=gaps))
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-k", select, "test_mine.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200).stdout


def test_a_known_gap_is_expected_to_fail_and_must_not_pass(tmp_path: Path) -> None:
    row = "test_rows_agree_with_the_reference[sampler-ddim]"
    said = run_with_gaps(tmp_path, {row: "no DDIM yet", "test_names": "nameless"}, "rows_agree and ddim or test_names")
    assert f"XFAIL test_mine.py::{row}" in said
    assert "no DDIM yet" in said
    assert "FAILED test_mine.py::test_names" in said
    assert "XPASS(strict)" in said
    assert "FAILED test_mine.py::test_rows_agree_with_the_reference[sampler-ddim_two]" in said


def test_a_gap_must_name_a_test(tmp_path: Path) -> None:
    said = run_with_gaps(tmp_path, {"test_rows_agree": "misspelt"}, "test_names")
    assert "known_gaps names 'test_rows_agree', which is no test of the conformance suite" in said


def test_a_constructor_that_differs_is_shown(tmp_path: Path) -> None:
    said = run_with_gaps(tmp_path, {}, "test_constructors and DD")
    assert "FAILED test_mine.py::test_constructors[DDIMSampler]" in said
    assert "DDIMSampler takes (*args, **kw), and should take (schedule, start_scale=None, num_steps=None)" in said
    assert "PASSED test_mine.py::test_constructors[DDPMSampler]" in said
