"""`diffac validate`: the comparison, its verdicts and what it prints."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffac.commands import validate as validation
from diffac.commands.main import main
from diffac.commands.validate import ValidateArguments
from diffac.errors import UsageError
from diffac.testing import problems
from diffac.testing.validation import Curve, Row, compare, compare_learners

ROWS = [("schedule", "vp"), ("sampler", "tanh_gaussian"), ("critic objective", "mean_squared"), ("learner", "sac")]


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of the tables' rows."""
    monkeypatch.setattr(problems, "rows", lambda: iter(ROWS))
    monkeypatch.setattr(problems, "large_rows", lambda: iter(()))


def test_difference_is_relative_to_the_entry_but_not_to_a_cancelled_one() -> None:
    expected = {"a": np.array([100.0, 1.0, 1e-6])}
    assert problems.difference({"a": np.array([101.0, 1.0, 1e-6])}, expected) == pytest.approx(0.01)
    assert problems.difference({"a": np.array([100.0, 1.001, 1e-6])}, expected) == pytest.approx(0.001)
    assert problems.difference({"a": np.array([100.0, 1.0, 2e-6])}, expected) == pytest.approx(1e-5)
    assert problems.difference({"a": np.array([1e-6])}, {"a": np.array([0.0])}, floor=1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "actual", [{"b": np.ones(2)}, {"a": np.ones(3)}, {"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, np.inf])}]
)
def test_difference_of_what_cannot_be_compared_is_infinite(actual: dict[str, Any]) -> None:
    assert problems.difference(actual, {"a": np.ones(2)}) == np.inf


@pytest.mark.usefixtures("few_rows")
def test_both_backends_agree(both: SimpleNamespace) -> None:
    rows = list(compare({"torch": both.torch, "equinox": both.equinox}, "float64", cases=2))
    assert [(row.kind, row.name) for row in rows] == ROWS
    assert all(row.agrees and 0 <= row.values < 1e-9 for row in rows)
    assert [row.gradients is None for row in rows] == [True, True, False, True]


@pytest.mark.usefixtures("few_rows")
def test_one_backend_is_compared_with_the_reference(backend: Any) -> None:
    rows = list(compare({backend.name: backend}, "float64", cases=1))
    assert {row.worst for row in rows} == {f"reference - {backend.name}"}
    assert all(row.agrees for row in rows)


@pytest.mark.usefixtures("few_rows")
def test_single_precision_leaves_learners_out(backend: Any) -> None:
    rows = list(compare({backend.name: backend}, "float32", cases=1))
    assert [(row.kind, row.name) for row in rows] == ROWS[:-1]
    assert all(row.agrees and row.values > 1e-12 for row in rows), "that was not single precision"


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_arrays_as_large_as_in_a_run(backend: Any, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For which torch has kernels of its own."""
    monkeypatch.setattr(problems, "rows", lambda: iter(()))
    rows = list(compare({backend.name: backend}, precision, cases=1))
    assert [row.name for row in rows] == [f"{name}, large" for _, name in problems.large_rows()]
    assert all(row.agrees for row in rows)


@pytest.mark.usefixtures("few_rows")
def test_a_wrong_backend_is_seen(both: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    right = both.torch.MeanSquaredTD
    monkeypatch.setattr(both.torch, "MeanSquaredTD", lambda soft=False: right(soft=soft, factor=0.99))
    rows = {r.name: r for r in compare({"torch": both.torch, "equinox": both.equinox}, "float64", cases=1)}
    assert [name for name, row in rows.items() if not row.agrees] == ["mean_squared", "sac"]
    assert "torch" in rows["mean_squared"].worst


def test_learners_side_by_side(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffac.testing import parts

    monkeypatch.setattr(parts, "LEARNERS", {"sac": parts.LEARNERS["sac"]})
    (curve,) = compare_learners({backend.name: backend}, steps=30)
    assert curve == Curve("sac", f"{backend.name} - reference", 30, None, curve.values)
    assert curve.agrees
    assert curve.values < 1e-9


def test_curves_that_part_early_disagree() -> None:
    assert not Curve("sac", "torch - equinox", 1000, 3, 1.0).agrees
    assert Curve("sac", "torch - equinox", 1000, 700, 1e-6).agrees


def row(name: str = "ddpm", values: float = 1e-12, gradients: float | None = None, precision: str = "float64") -> Row:
    return Row("sampler", name, precision, "cpu", 4, values, gradients, "torch - equinox", 1e-9)


def run(monkeypatch: pytest.MonkeyPatch, used: list[str], results: list[Any], *flags: str) -> int:
    monkeypatch.setattr(validation, "_run", lambda names, config: (used, results))
    return main(["validate", *flags])


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(), row("ddim", 3e-12), row(precision="float32", values=2e-10)]
    assert run(monkeypatch, ["torch", "equinox"], rows) == 0
    said = capsys.readouterr().out
    assert "Compared: torch and equinox with each other and with the NumPy reference." in said
    assert "Everything agrees" in said
    assert "…" not in said, "80 columns are enough"
    assert max(map(len, said.splitlines())) <= 80


def test_disagreement_is_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, ["torch", "equinox"], [row(), row("ddim", 1e-3)]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 comparisons disagree" in said
    assert "sampler ddim in float64: torch - equinox" in said


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, ["torch"], [row()]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Compared: torch with the NumPy reference only. equinox is not installed." in said
    assert run(monkeypatch, [], []) == 2
    assert "no backend is installed" in capsys.readouterr().err


def dying(precision: str, names: Any, config: Any, results: Any) -> None:
    """What becomes of a process that the system kills, in place of `_work`."""
    results.send(["torch"])
    if precision == "float32":
        os._exit(3)
    time.sleep(60)


def test_a_process_that_dies(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named at once, and the other one is not waited for."""
    monkeypatch.setattr(validation, "_work", dying)
    begin = time.monotonic()
    assert main(["validate"]) == 1
    assert "error: the process that validates in float32 died with exit code 3\n" in capsys.readouterr().err
    assert time.monotonic() - begin < 50
    for child in multiprocessing.active_children():  # killed, perhaps a moment ago
        child.join(10)
    assert multiprocessing.active_children() == []


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, ["torch"], [row(values=np.inf)], "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["agree"] is False
    assert report["not_installed"] == ["equinox"]
    assert report["components"][0]["name"] == "ddpm"
    assert "numpy" in report["versions"]


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [({"backends": ("touch",)}, "did you mean 'torch'"), ({"cases": 0}, "cases"), ({"steps": -1}, "steps")],
)
def test_impossible_arguments(flags: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UsageError, match=mentions):
        ValidateArguments(**flags)
