"""Where numbers come from: machine, versions, commit, command."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .protocol import ROOT

PACKAGES = ("torch", "jax", "equinox", "optax", "numpy", "gymnasium", "mujoco")
PEERS = ("stable_baselines3", "sbx-rl", "torch", "jax")


def machine() -> str:
    """The kind of machine whose ratios are comparable."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = "with GPU" if shutil.which("nvidia-smi") else "no GPU"
    vectors = " with AVX-512" if "avx512f" in _cpuinfo("flags") else ""
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{platform.machine()}{vectors}, {cores} cores, {gpu}" + (f", OMP_NUM_THREADS={threads}" if threads else "")


def origin(command: str, peers: str | None) -> dict[str, Any]:
    """Everything that must stand beside a number."""
    return {
        "machine": machine(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "peers": {} if peers is None else _versions_of(peers),
        "commit": _commit(),
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; empty elsewhere."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _versions_of(python: str) -> dict[str, str]:
    code = f"from importlib.metadata import version\nfor name in {PEERS!r}: print(version(name))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(PEERS, done.stdout.split(), strict=True))


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "diffac", "backends", "recipes")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def command() -> str:
    """What was typed, without paths of this machine."""
    words, session = list(sys.argv[1:]), "python -m tests.benchmarks"
    for name in ("--peers", "--output"):
        if name in words:
            at = words.index(name)
            del words[at : at + 2]
            session = "nox -s bench --" if name == "--peers" else session
    return " ".join([session, *words]).removesuffix(" --")
