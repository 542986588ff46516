"""`diffac report`: curves, tables and comparisons of runs on one page, with everything beside it as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from diffac.errors import UsageError
from diffac.files.paths import expanded
from diffac.messages import note, say

SAID = 20
"""What is left out and said in the terminal, too; the page lists all."""


def make_report(
    paths: Sequence[str | Path], out: str | Path = "report", *, env_id: str | None = None, unfinished: bool = False
) -> Path:
    """Writes `report.html`, `pictures/` (PNG and SVG) and `data/` (CSV of everything that is drawn).

    What looks like a run but cannot be used, whatever is wrong with it, is left out: the page lists it with the reason,
    and so does standard error.

    Args:
        paths: folders and files to read (see `diffac.reports.reading.read_runs`); "NAME=PATH" gives the method's name.
        out: folder to write to.
        env_id: environment of data that do not name theirs.
        unfinished: take unfinished runs, too.

    Returns:
        The page.

    Raises:
        UsageError: there are no usable runs, the folder cannot be written, or a package is missing.
    """
    try:
        import scipy.stats  # noqa: F401 (the statistics need it, later)

        from diffac.reports.report import write_report
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a report needs the package {error.name!r}; run: python -m pip install 'diffac[plot]'"
        ) from error
    page, left_out = write_report([str(path) for path in paths], expanded(out), env_id=env_id, unfinished=unfinished)
    for entry in left_out[:SAID]:
        note(f"left out: {entry.source}: {entry.reason}")
    if len(left_out) > SAID:
        note(f"left out: {len(left_out) - SAID:,} more; the page lists them")
    return page


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
