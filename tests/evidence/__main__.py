"""All that the results need, in the order of the protocol: `nox -s results`; broken off, it goes on where it was.

python -m tests.evidence                # every sweep, about 50 core-hours
python -m tests.evidence halfcheetah    # one of them
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from diffac.scale.plan import read_plan

from . import claims, page, peers
from .collect import collect, key_of
from .data import FOLDER, read

ORDER = ("search", "search_second", "halfcheetah", "ablations", "ant", "humanoid", "hopper", "walker2d")
"""Of the sweeps; a file that does not exist yet is passed over."""
SWEEPS = Path("sweeps")


def missing(name: str, folder: Path = FOLDER) -> str:
    """A file that asks for those runs of a sweep whose rows are not in the data; empty: all are there.

    So nobody needs the folders of runs that others have trained.
    """
    jobs = read_plan(folder / f"{name}.yaml", SWEEPS / name)
    have = {row.run for row in read(name, folder)}
    left = [{"recipe": job.recipe, **job.values} for job in jobs if key_of(job, jobs) not in have]
    return yaml.safe_dump({"runs": left}) if left else ""


def main(names: list[str]) -> int:
    """Trains what is missing, and writes data and page; returns how many runs could not be completed."""
    left = 0
    for name in names or [name for name in ORDER if (FOLDER / f"{name}.yaml").exists()]:
        if asked := missing(name):
            SWEEPS.mkdir(exist_ok=True)
            file = SWEEPS / f"{name}.yaml"
            file.write_text(asked)
            command = [sys.executable, "-m", "diffac", "sweep", str(file), "--root", str(SWEEPS / name)]
            subprocess.run(command, check=False)
            left += collect(name, SWEEPS / name)
        peers.main([name])
        page.main()
        claims.main()
    return left


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
