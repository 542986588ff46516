"""Reports of runs: curves, tables and comparisons on one page with everything beside it as files, and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffac.errors import UsageError
from diffac.files.paths import expanded
from diffac.messages import note

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
