"""Fixtures of tests of many runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from program import PATHS

METADATA = {"METADATA": "Name: fake\nVersion: 1\n", "entry_points.txt": "[diffac.recipes]\nfake = fake_recipe\n"}


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The recipe `fake` is installed, for processes that are started too; the folder for runs, which is empty."""
    metadata, work = tmp_path / "site" / "fake-1.dist-info", tmp_path / "work"
    for folder in (metadata, work):
        folder.mkdir(parents=True)
    for name, text in METADATA.items():
        (metadata / name).write_text(text)
    monkeypatch.syspath_prepend(metadata.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(metadata.parent), *PATHS]))
    monkeypatch.chdir(work)
    return work
