"""What a person reads while programs are compiled, and what is measured of it."""

from __future__ import annotations

import threading
import time
from typing import Any

import fakes
import pytest

from diffac.system import compiling as module
from diffac.system.compiling import compiling
from diffac.training.loop import train

LINE = "note: compiling the update; about a minute the first time on this machine, cached afterwards\n"


class Slow(fakes.FakeEngine):
    """Its first update takes as long as a compiler's."""

    def update(self, state: Any, batches: Any, key: int) -> Any:
        if state.updates == 0:
            time.sleep(0.5)
        return super().update(state, batches, key)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT", 0.1)


def test_training_says_that_it_compiles_and_how_long_that_took(capsys: pytest.CaptureFixture[str]) -> None:
    writer = fakes.ListWriter()
    train(Slow(), fakes.FakeState(), fakes.config(log_interval=20), writer=writer)
    assert capsys.readouterr().err == LINE
    seconds = [row["time/compile"] for _, row in writer.lines if "time/compile" in row]
    compiled = [value for value in seconds if value > 0.4]
    assert len(compiled) == 1
    assert compiled[0] < 60
    fractions = [
        value for _, row in writer.lines for name, value in row.items() if name in ("time/update_fraction", "time/fps")
    ]
    assert fractions
    assert all(value >= 0 for value in fractions)
    assert all(row["time/update_fraction"] <= 1 for _, row in writer.lines if "time/update_fraction" in row)


def test_nothing_is_said_where_nothing_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    train(fakes.FakeEngine(), fakes.FakeState(), fakes.config())
    assert capsys.readouterr().err == ""


def test_of_several_threads_one_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    def compile_slowly() -> None:
        with compiling("the update"):
            time.sleep(0.5)

    threads = [threading.Thread(target=compile_slowly) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err == LINE
    with compiling("the update"):
        time.sleep(0.3)
    assert capsys.readouterr().err == LINE  # and the next one says it again
