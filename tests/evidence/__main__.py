"""All that the results need, in the order of the protocol: `nox -s results`; broken off, it goes on where it was.

python -m tests.evidence                # every sweep, about 50 core-hours
python -m tests.evidence halfcheetah    # one of them
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from argparse import RawDescriptionHelpFormatter as Raw
from pathlib import Path

import yaml

from diffac.scale.journal import Journal
from diffac.scale.plan import read_plan
from diffac.values import plain

from . import choose, claims, measured, memory, multimodality, page, peers
from .collect import collect, key_of
from .data import FOLDER, read

MODES = {
    "multigoal": multimodality.DATA,
    "tworoutes": multimodality.DATA,
    "fourmodes": multimodality.DATA,
    multimodality.ABLATIONS: multimodality.DATA.with_name(f"{multimodality.ABLATIONS}.csv"),
}
"""Sweeps whose runs are measured by `multimodality`, and where."""
ORDER = ("search", "halfcheetah", *MODES, "ablations", "ant", "humanoid", "hopper", "walker2d", "halfcheetah_long")
"""Of the sweeps; a file that does not exist yet is passed over."""
SWEEPS = Path("sweeps")


def missing(name: str, folder: Path = FOLDER) -> str:
    """A file that asks for those runs of a sweep whose rows are not in the data; empty: all are there.

    So nobody needs the folders of runs that others have trained.
    """
    jobs = read_plan(folder / f"{name}.yaml", SWEEPS / name)
    if name in MODES:
        have = {row.run for row in measured.read(folder / MODES[name].name)}
        left = [job for job in jobs if job.name not in have]
    else:
        known = {row.run for row in read(name, folder)}
        left = [job for job in jobs if key_of(job, jobs) not in known]
    runs = [plain({"recipe": job.recipe, **job.values}) for job in left]  # copies: YAML would have aliases else
    return yaml.safe_dump({"runs": runs}) if left else ""


def train(name: str, asked: str) -> None:
    """Has the runs of a file trained."""
    SWEEPS.mkdir(exist_ok=True)
    file = SWEEPS / f"{name}.yaml"
    file.write_text(asked)
    command = [sys.executable, "-m", "diffac", "sweep", str(file), "--root", str(SWEEPS / name)]
    subprocess.run(command, check=False)


def main(names: list[str]) -> int:
    """Trains what is missing, and writes data and pages; returns how many runs could not be completed."""
    left = 0
    for name in names or [name for name in ORDER if (FOLDER / f"{name}.yaml").exists()]:
        if asked := missing(name):
            train(name, asked)
            left += measure(name) if name in MODES else collect(name, SWEEPS / name)
        peers.main([name])
        page.main()
        claims.main()
        choose.main()
    if not names:
        memory.main()
        claims.main()
    return left


def measure(name: str) -> int:
    """Measures the complete runs of a sweep that are not in the data; returns how many are missing."""
    jobs = read_plan(SWEEPS / f"{name}.yaml", SWEEPS / name)
    journal = Journal(SWEEPS / name)
    done = [job for job in jobs if journal.is_complete(job)]
    points = multimodality.POINTS if MODES[name] == multimodality.DATA else None
    for line in multimodality.session((job.folder for job in done), MODES[name], points):
        print(line, flush=True)
    multimodality.publish()
    return len(jobs) - len(done)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.evidence", description=__doc__, formatter_class=Raw)
    known = [name for name in ORDER if (FOLDER / f"{name}.yaml").exists()]
    parser.add_argument("sweep", nargs="*", help=f"{', '.join(known)}; none: all of them, in this order")
    names = parser.parse_args().sweep
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no sweep {', '.join(unknown)}; there are {', '.join(known)}")
    sys.exit(1 if main(names) else 0)
