"""Recordings of the authors' code through every faithful preset, and through the transcription."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from official.recording import Recording, difference
from official.replay import PRESETS, replay, settle
from official.transcription import transcribe

pytestmark = pytest.mark.official


@pytest.fixture(autouse=True)
def has_preset(recording: Recording) -> None:
    """Skips a file that no preset promises to be."""
    if recording.constants["algorithm"] not in PRESETS:
        pytest.skip(f"no preset promises to be the official {recording.constants['algorithm']}")


def test_preset(record_property: Callable[[str, Any], None], recording: Recording, backend: str) -> None:
    settle(replay(backend, recording), record_property)


def test_transcription(record_property: Callable[[str, Any], None], recording: Recording) -> None:
    left = transcribe(recording)
    recorded = {name for name in recording.arrays if "/after/" in name or "/loss/" in name}
    assert {name for name in recorded if not name.endswith("/loss/temperature")} <= left.keys()
    settle({n: difference(a, recording.arrays[n]) for n, a in left.items() if n in recording.arrays}, record_property)
