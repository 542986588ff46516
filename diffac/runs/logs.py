"""What a run has logged into its folder: evaluations are written, and lines after a checkpoint taken out again."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffac.files.untrusted import inside, read_bytes, write_atomically
from diffac.logging.files import csv_row
from diffac.messages import note
from diffac.training.evaluation import EvaluationRecord

EVALUATED = "eval/mean_reward"
"""What every line of an evaluation has."""


def rewind(folder: Path, env_step: int, evaluations: Sequence[EvaluationRecord]) -> None:
    """Takes out of a run what was logged after a step, because it is about to happen again.

    Lines of `metrics.csv` and `metrics.jsonl` with a greater step go, a line that was not finished, and that of an
    evaluation which the step is still to get; `evaluations.npz` is written anew.

    Raises:
        DamagedError: one of the first two is no file.
    """
    evaluated = bool(evaluations) and evaluations[-1].env_step == env_step

    def stays(line: Mapping[str, Any]) -> bool:
        if not math.isfinite(step := float(line["step"])):
            raise ValueError(step)
        return step < env_step or (step == env_step and (evaluated or not line.get(EVALUATED)))

    _rewind(inside(folder, "metrics.jsonl"), lambda line, _: stays(json.loads(line)))
    _rewind(inside(folder, "metrics.csv"), lambda line, first: stays(_csv_line(line, first)), has_header=True)
    if evaluations:
        save_evaluations(folder / "evaluations.npz", evaluations)
    else:
        (folder / "evaluations.npz").unlink(missing_ok=True)


def _rewind(path: Path, stays: Callable[[str, str], bool], has_header: bool = False) -> None:
    """Keeps some lines of a log.

    What is no line of it (a power failure leaves NUL bytes) is left out; where such a thing stands, the file as it was
    is kept beside it.

    Args:
        path: of the log; need not exist.
        stays: whether a line does, given it and the first one; raises an error for what is no line.
        has_header: whether the first line is no entry.
    """
    if not path.exists():
        return
    data = read_bytes(path)
    lines = [line.decode(errors="replace") for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]]
    kept, damaged = [], False
    for number, line in enumerate(lines):
        try:
            if has_header and number == 0:
                kept.append(_header(line))
            elif stays(line, lines[0]):
                kept.append(f"{line}\n")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, StopIteration, csv.Error):
            damaged = True
    if damaged:
        aside = path.with_name(f"damaged-{path.name}")
        write_atomically(aside, data)
        note(f"{path} held lines that are none of its own; as it was, it is now {aside}")
    write_atomically(path, "".join(kept).encode())


def _header(line: str) -> str:
    """The first line of a table: names, without what a spreadsheet would calculate."""
    if "step" not in (names := next(csv.reader([line]))):
        raise ValueError(line)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(csv_row(names))
    return text.getvalue()


def _csv_line(line: str, first: str) -> dict[str, str]:
    """A line of numbers in a table, by the names in its first one."""
    cells = next(csv.reader([line]))
    for cell in filter(None, cells):
        float(cell)
    return dict(zip(next(csv.reader([first])), cells, strict=False))


def save_evaluations(path: Path, evaluations: Sequence[EvaluationRecord]) -> None:
    """Writes all evaluations, under the names of Stable-Baselines3's `EvalCallback` plus `updates`.

    `timesteps` [n], `updates` [n], `results` [n, episodes], `ep_lengths` [n, episodes]. Nobody sees half a file.
    """
    content = io.BytesIO()
    np.savez(
        content,
        timesteps=np.array([record.env_step for record in evaluations]),
        updates=np.array([record.updates for record in evaluations]),
        results=np.array([record.returns for record in evaluations]),
        ep_lengths=np.array([record.lengths for record in evaluations]),
    )
    write_atomically(path, content.getvalue())
