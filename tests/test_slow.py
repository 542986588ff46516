"""The list of slow tests names tests that there are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import SLOW, is_slow

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("line", SLOW)
def test_a_line_names_a_test(line: str) -> None:
    file, _, name = line.partition("[")[0].partition("::")
    files = [ROOT / file, *([ROOT / "diffac/testing/conformance.py"] if file.endswith("test_conformance.py") else [])]
    nodes = [node for path in files for node in ast.parse(path.read_text()).body]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names |= {ast.unparse(target) for node in nodes if isinstance(node, ast.Assign) for target in node.targets}
    assert name.partition("::")[0] in names


def test_the_list_is_sorted() -> None:
    assert sorted(set(SLOW)) == SLOW


def test_patterns() -> None:
    assert is_slow("tests/test_docs.py::test_code_runs[README-0]")
    assert not is_slow("tests/test_docs.py::test_code_runs_not")
