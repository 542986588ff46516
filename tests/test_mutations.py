"""The mutation check itself takes minutes; that its mistakes can still be made is seen at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("mutations", ROOT / "tests" / "mutation" / "mutations.py")
assert SPEC is not None
assert SPEC.loader is not None
mutations: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutations)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_text_to_be_replaced_is_there_once(mutation: Any) -> None:
    for backend, edit in mutation.edits.items():
        text = edit.find(backend, ROOT / "diffac", ROOT / "backends").read_text()
        assert text.count(edit.old) == 1, f"{backend}: {edit.old!r}"


def test_there_are_enough() -> None:
    """As many as promised, and no name twice."""
    names = [mutation.name for mutation in mutations.MUTATIONS]
    assert len(set(names)) == len(names) >= 40
    assert sum(len(mutation.edits) > 1 for mutation in mutations.MUTATIONS) >= 10
