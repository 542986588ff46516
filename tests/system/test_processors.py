"""No more threads than a container or batch system grants processors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_backend

from diffac.system.processors import granted_processors


def write(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root of a file system with these groups of the process and files of control groups."""
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


VERSION_1 = "9:name=systemd:/\n4:memory:/job\n3:cpuset:/job\n1:cpu,cpuacct:/job/step\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # less than one
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/slurm/job/step\n", {"slurm/job/cpu.max": "800000 100000\n", "slurm/job/step/cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"cpu.max": "300000 100000\n", "a/cpu.max": "900000 100000\n"}, 3),  # the narrowest counts
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None),  # somebody else's
        ("0::/../elsewhere\n", {"cpu.max": "400000 100000\n"}, 4),
        (VERSION_1, {"cpu/job/step/cpu.cfs_quota_us": "400000\n", "cpu/job/step/cpu.cfs_period_us": "100000\n"}, 4),
        (VERSION_1, {"cpu/job/cpu.cfs_quota_us": "75000\n", "cpu/job/cpu.cfs_period_us": "25000\n"}, 3),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (VERSION_1, {"memory/job/cpu.max": "100000 100000\n"}, None),
        (VERSION_1 + "0::/\n", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ("0::/\n", {"cpu.max": "\n"}, None),
    ],
)
def test_the_narrowest_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], expected: int | None) -> None:
    assert granted_processors(write(tmp_path, groups, files)) == expected


def test_no_limit_on_other_systems(tmp_path: Path) -> None:
    assert granted_processors(tmp_path) is None


PROGRAM = """
import sys
import diffac.system
import diffac_{backend}.engine.settings
diffac_{backend}.engine.settings.granted_processors = lambda: {granted}
diffac.system.configure(diffac_{backend})
if "torch" in sys.modules:
    import torch
    print(torch.get_num_threads())
else:
    import pathlib
    import jax
    jax.numpy.zeros(1).block_until_ready()
    print(sum("XLAEigen" in path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")))
"""
VARIABLES = {"torch": "OMP_NUM_THREADS", "equinox": "NPROC"}


def threads(name: str, granted: int | None, **environment: str) -> int:
    """How many threads compute in a new process that is granted so many processors."""
    load_backend(name)
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES.values()}
    program = [sys.executable, "-c", PROGRAM.format(granted=granted, backend=name)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=clean | environment)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has control groups")
@pytest.mark.parametrize("name", VARIABLES)
def test_as_many_threads_as_granted(name: str) -> None:
    alone, said = threads(name, None), {VARIABLES[name]: "2"}
    if not alone:
        pytest.skip("this version of JAX gives its threads no names to count")
    assert threads(name, 1) == 1
    assert threads(name, alone + 1) == alone  # the framework may have good reasons for fewer
    assert threads(name, 1, **said) == threads(name, None, **said)  # whoever says a number gets it
