"""What a run, an evaluation or an export says of its making: versions, machine and command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffac.system.versions import installed_versions

PACKAGES = ("diffac", "numpy", "gymnasium", "mujoco", "torch", "jax", "jaxlib", "equinox", "optax")
"""Packages whose versions a manifest holds, where they are installed."""


def manifest(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, machine and command of this process. Imports none of the packages whose versions it states."""
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "python": platform.python_version(),
        "versions": installed_versions(*PACKAGES),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "git_revision": git_revision(Path(__file__).parents[2]),
    }


def git_revision(folder: Path) -> str | None:
    """The revision of a source folder, with "-dirty" after changes; None where it is no git repository."""
    if not (folder / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def manifest_json(value: Any) -> bytes:
    """Bytes of a path that are no text become question marks, as what is no text is not read."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="replace")
