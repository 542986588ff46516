"""The folder of a run: what was asked for, on which machine with which versions, and what came out."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from diffac.training import EvaluationRecord, TrainConfig

PACKAGES = ("diffac", "numpy", "gymnasium", "mujoco", "torch", "jax", "jaxlib", "equinox", "optax")
"""Packages whose versions a manifest holds, where they are installed."""


def create_run(config: TrainConfig, recipe_name: str, command: Sequence[str] | None = None) -> Path:
    """Makes `{run_root}/{env_id}/{recipe}/{backend}/seed{N}__{time}/` with `config.yaml` and `manifest.json`.

    Args:
        config: all arguments of the run.
        recipe_name: the recipe, which `config.yaml` names too.
        command: what was typed, for the manifest; None: this process' arguments.

    Returns:
        The folder; a number is added to its name where one of that name exists.
    """
    parent = Path(config.run_root).joinpath(*map(_file_name, (config.env_id, recipe_name, config.backend)))
    parent.mkdir(parents=True, exist_ok=True)
    name = f"seed{config.seed}__{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder, number = parent / name, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
            folder = parent / f"{name}_{number}"
    write_atomically(
        folder / "config.yaml", yaml.safe_dump(_plain({"recipe": recipe_name, **vars_of(config)})).encode()
    )
    write_atomically(folder / "manifest.json", json.dumps(manifest(command), indent=2).encode())
    return folder


def vars_of(config: Any) -> dict[str, Any]:
    """All fields of a configuration, in their order."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def manifest(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, machine and command of this process. Imports none of the packages whose versions it states."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "git_revision": git_revision(Path(__file__).parent.parent),
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


def save_evaluations(path: Path, evaluations: Sequence[EvaluationRecord]) -> None:
    """Writes all evaluations, under the names of Stable-Baselines3's `EvalCallback` plus `updates`.

    `timesteps` [n], `updates` [n], `results` [n, episodes], `ep_lengths` [n, episodes]. Nobody sees half a file.
    """
    beside = path.with_name("new-" + path.name)
    np.savez(
        beside,
        timesteps=np.array([record.env_step for record in evaluations]),
        updates=np.array([record.updates for record in evaluations]),
        results=np.array([record.returns for record in evaluations]),
        ep_lengths=np.array([record.lengths for record in evaluations]),
    )
    beside.replace(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file beside its place and renames it."""
    beside = path.with_name("new-" + path.name)
    beside.write_bytes(data)
    beside.replace(path)


def _file_name(text: str) -> str:
    """The text with everything replaced that a file name had better not contain."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def _plain(value: Any) -> Any:
    """Tuples to lists, as YAML knows them."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value
