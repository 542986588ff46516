"""How many processors a process may keep busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = ("max", "-1")


def usable_processors() -> int:
    """Processors that this process sees and may keep busy, at least 1."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(seen, granted_processors() or seen)


def shares(threads: int) -> dict[str, str]:
    """Variables by which one of several processes on a machine keeps to so many threads, and to its part of a GPU."""
    return {
        "OMP_NUM_THREADS": str(threads),  # PyTorch, and NumPy's products
        "NPROC": str(threads),  # JAX
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the first would take three quarters of a GPU's memory
    }


def granted_processors(root: Path | str = "/") -> int | None:
    """Processors whose time the control groups of Linux grant this process, rounded down, at least 1.

    Containers and batch systems limit time in this way (Docker's --cpus, the limits of Kubernetes), and all processors
    stay visible. With a thread for each of those the time of a period is soon used up, and every thread waits for the
    next one.

    Args:
        root: of the file system.

    Returns:
        None where nothing limits time, or on another system.
    """
    shares = [share for share in map(_share, _groups(Path(root))) if share is not None]
    return max(1, int(min(shares))) if shares else None


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's groups and of those around them, in both versions of control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / name.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _share(group: Path) -> float | None:
    """Seconds of processors for each second; None: no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in _UNLIMITED else int(quota) / int(period)
    except (OSError, ValueError):
        return None
