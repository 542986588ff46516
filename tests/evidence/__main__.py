"""All that the results need, in the order of the protocol: `nox -s results`; broken off, it goes on where it was.

python -m tests.evidence                # every sweep, about 50 core-hours
python -m tests.evidence halfcheetah    # one of them
"""

from __future__ import annotations

import subprocess
import sys

from . import page, peers
from .collect import collect
from .data import FOLDER

ORDER = ("search", "search_second", "halfcheetah", "ablations", "ant", "humanoid", "hopper", "walker2d")
"""Of the sweeps; a file that does not exist yet is passed over."""


def main(names: list[str]) -> int:
    """Trains what is missing, and writes data and page; returns how many runs could not be completed."""
    missing = 0
    for name in names or [name for name in ORDER if (FOLDER / f"{name}.yaml").exists()]:
        subprocess.run([sys.executable, "-m", "diffac", "sweep", str(FOLDER / f"{name}.yaml")], check=False)
        missing += collect(name)
        peers.main([name])
        page.main()
    return missing


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
