"""Each faithful preset makes of random inputs what the transcription of the official update makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from official.invented import CONSTANTS, Sizes, invent
from official.recording import Recording
from official.replay import replay, settle
from official.transcription import transcribe

SIZES = {
    "several": Sizes(),
    "one": Sizes(obs=2, action=1, hidden=(5,), batch=1, T=2, N=1, K=1, interval=9, delay=3, updates=4, acting=1),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("algorithm", CONSTANTS)
def test_preset(record_property: Callable[[str, Any], None], backend: str, algorithm: str, sizes: str) -> None:
    entered = invent(algorithm, np.random.default_rng(5), SIZES[sizes])
    settle(replay(backend, Recording(entered.constants, entered.arrays | transcribe(entered))), record_property)
