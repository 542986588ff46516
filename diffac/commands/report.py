"""`diffac report`: curves, tables and comparisons of runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from diffac.errors import UsageError
from diffac.messages import say
from diffac.reports import make_report


def main(argv: Sequence[str]) -> None:
    """The command `diffac report`."""
    tyro.cli(_command, args=list(argv), prog="diffac report", description=DESCRIPTION)


DESCRIPTION = """Curves, tables and comparisons of runs on one page.

Reads folders of diffac (runs/), CSV files with columns step, return, seed (and perhaps env_id, recipe, backend,
seconds), and Stable-Baselines3's evaluations.npz and monitor.csv. "NAME=PATH" gives a method's name:

  diffac report runs/ "SB3 SAC=logs/sac" --out report/"""


def _command(
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH [PATH ...]")],
    out: Annotated[Path, tyro.conf.arg(help="Folder to write to.")] = Path("report"),
    env_id: Annotated[str | None, tyro.conf.arg(help="Environment of data that do not name theirs.")] = None,
    unfinished: Annotated[bool, tyro.conf.arg(help="Take unfinished runs, too.")] = False,
) -> None:
    if not paths:
        raise UsageError("which runs? diffac report PATH [PATH ...] [--out FOLDER], for example: diffac report runs/")
    say(make_report(paths, out, env_id=env_id, unfinished=unfinished))
