"""What made a run: commit and versions."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import Any

from .data import ROOT


def origin(*packages: str) -> dict[str, Any]:
    """Commit of the working tree, Python, and versions of packages beside those of the environments."""
    names = ("gymnasium", "mujoco", "numpy", *packages)
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    versions = {name: version(name) for name in names}
    return {"commit": commit, "python": ".".join(map(str, sys.version_info[:3])), "versions": versions}
