"""`diffac report`: curves, tables and comparisons of runs on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from diffac.commands.parsing import parse
from diffac.messages import say
from diffac.reports import make_report


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Curves, tables and comparisons of runs on one page: diffac report runs/ "SB3 SAC=logs/sac" --out report/"""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH [PATH ...]")]
    """Folders of diffac (runs/), CSV files with columns step, return, seed (and perhaps env_id, recipe, backend,
    settings, seconds), and Stable-Baselines3's evaluations.npz and monitor.csv. "NAME=PATH" gives a method's name."""
    out: Path = Path("report")
    """Folder to write to."""
    env_id: str | None = None
    """Environment of data that do not name theirs."""
    unfinished: bool = False
    """Take unfinished runs, too."""


def main(argv: Sequence[str]) -> None:
    """Makes the report."""
    chosen = parse(ReportArguments, argv, "diffac report")
    say(make_report(chosen.paths, chosen.out, env_id=chosen.env_id, unfinished=chosen.unfinished))
