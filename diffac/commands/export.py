"""`diffac export`: the policy of a run in one file that runs without diffac."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro

from diffac.agent import Agent
from diffac.backend import get_backend
from diffac.commands.parsing import parse
from diffac.data.spaces import action_scaler
from diffac.errors import RunError, UsageError
from diffac.files.paths import absolute
from diffac.files.untrusted import create, inside, write_atomically
from diffac.messages import note, say
from diffac.noise import Integers
from diffac.parts.export import BATCH, NoiseEntry, Signature, signature
from diffac.runs.checkpoints import Checkpoint
from diffac.runs.find import find_checkpoint
from diffac.runs.manifest import manifest
from diffac.system.compiling import compiling
from diffac.system.signals import undisturbed

TOLERANCE = 1e-5
"""Largest difference between an exported action and the run's own, relative to the action's largest size."""
BATCHES = (1, 32)
"""Numbers of observations with which an export is checked."""


class Format(NamedTuple):
    """A kind of file."""

    backend: str
    """Whose networks and samplers are traced."""
    suffix: str
    packages: tuple[str, ...]
    """What it needs beside the backend: the extra `export`."""


FORMATS = {
    "onnx": Format("torch", ".onnx", ("onnx", "onnxruntime", "onnxscript")),
    "torch": Format("torch", ".pt2", ()),
    "jax": Format("equinox", ".jax", ("flatbuffers",)),
}


class Check(NamedTuple):
    """How an exported policy compares with the run's own."""

    difference: float
    """The largest, relative to the action's largest size."""
    ties: int
    """Observations for which another candidate was chosen, of equal value."""
    observations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Writes the policy of a run to a file that runs without diffac, and compares it with the run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, runs/.../seed0__..., or of a saved agent."""
    format: Literal["onnx", "torch", "jax"]
    """ONNX, torch.export or jax.export, whatever the backend."""
    out: Path | None = None
    """The file; None: in RUN/exports/."""
    checkpoint: Literal["best", "last"] | None = None
    """Which policy of a run; None: the best, if there is one."""


def main(argv: Sequence[str], recipe: ModuleType | None = None) -> Path:
    """Exports, checks the file, prints a summary.

    Args:
        argv: arguments of the command.
        recipe: the module of a recipe that is run as a script; None: the registered one.

    Returns:
        The file.

    Raises:
        UsageError: impossible arguments, a missing package, or there is nothing to export.
        RunError: the checkpoint is damaged, the file cannot be written, or it computes other actions.
        SystemExit: after `--help`.
    """
    chosen = parse(ExportArguments, argv, "diffac export")
    target = FORMATS[chosen.format]
    for package in target.packages:
        if find_spec(package) is None:
            raise UsageError(
                f"format {chosen.format!r} needs the package {package!r}, which is not installed; "
                f"run: python -m pip install 'diffac[export]'"
            )
    folder, out = absolute(chosen.run), absolute(chosen.out) if chosen.out is not None else None
    checkpoint = find_checkpoint(folder, chosen.checkpoint, note)
    best = "mean_reward" in checkpoint.manifest
    path = _free_path(out, folder, chosen.format, f"{'best_' if best else ''}step{checkpoint.env_step}")
    own, other = _agents(checkpoint, target.backend, recipe)
    config, space = own.config, own.action_space
    say(
        f"{own.recipe} on {config.env_id}, backend {config.backend}",
        f"{'best policy' if best else 'policy'} of step {checkpoint.env_step:,}, {checkpoint.folder}",
    )
    sign = signature(own.engine, gym.spaces.flatdim(own.observation_space), space.low, space.high)
    about = _about(own, sign, checkpoint, chosen.format)
    description = json.dumps(about, indent=2)
    backend: Any = get_backend(target.backend)
    exporter = importlib.import_module(f"{backend.__name__}.engine.export")
    try:
        with compiling("the policy"):
            content = exporter.export_policy(other.engine.learner, other.state, sign, chosen.format, description)
    except Exception as error:  # whatever a part of somebody else does that cannot be traced
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise RunError(f"the policy cannot be exported to format {chosen.format!r}: {reason}") from error
    load = _load_onnx if chosen.format == "onnx" else exporter.load_policy

    beside = path.with_name(f"new-{path.name}")
    try:
        if out is None:
            path.parent.mkdir(exist_ok=True)
        try:
            with create(beside) as file:
                file.write(content)
            check = _check(
                load(beside), own, sign, lambda *pair: exporter.critic_values(other.engine.learner, other.state, *pair)
            )
            if not check.difference <= TOLERANCE:  # NaN is no success
                raise RunError(
                    f"the exported policy differs from backend {config.backend} by {check.difference:.1e} of the "
                    f"largest action, more than {TOLERANCE:g}; nothing was written"
                )
            with undisturbed():
                write_atomically(description_path(path), description.encode())
                beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    say(*_summary(about, check, config.backend), path)
    return path


def description_path(path: Path) -> Path:
    """Where the description of an exported policy is."""
    return path.with_name(path.name + ".json")


def _free_path(out: Path | None, folder: Path, target: str, name: str) -> Path:
    """The file to write, which does not exist."""
    suffix = FORMATS[target].suffix
    path = inside(folder, "exports") / f"{name}{suffix}" if out is None else out
    if path.suffix != suffix:
        raise UsageError(f"a file of format {target!r} must end in {suffix}, got --out {path}")
    if out is not None and not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for --out {path}")
    for existing in (path, description_path(path)):
        if os.path.lexists(existing):
            raise UsageError(f"{existing} exists and is not overwritten; remove it, or choose another name with --out")
    return path


def _agents(checkpoint: Checkpoint, backend: str, recipe: ModuleType | None) -> tuple[Agent, Agent]:
    """The agent in the backend it was trained with, and in the one that exports it."""
    own = checkpoint.manifest["config"]["backend"]
    names = sorted({own, backend}, key=lambda name: name != "torch")  # which must be imported before jax
    agents = {name: Agent.from_checkpoint(checkpoint, backend=name, device="cpu", recipe=recipe) for name in names}
    engine: Any = agents[backend].engine
    if not isinstance(getattr(engine, "learner", None), get_backend(backend).Learner):
        raise UsageError(
            f"{agents[own].recipe} builds a {type(engine).__name__}; only the Learner of a backend can be exported"
        )
    return agents[own], agents[backend]


def _about(agent: Agent, sign: Signature, checkpoint: Checkpoint, target: str) -> dict[str, Any]:
    """The description that goes with the file."""
    obs = gym.spaces.flatten_space(agent.observation_space)
    assert isinstance(obs, gym.spaces.Box)
    return {
        "format": target,
        "recipe": agent.recipe,
        "env_id": agent.config.env_id,
        "run_id": checkpoint.manifest["run_id"],
        "trained_with": agent.config.backend,
        "env_step": checkpoint.env_step,
        "updates": checkpoint.manifest["updates"],
        "inputs": [
            {"name": "obs", "dtype": "float32", "shape": [BATCH, sign.obs_dim], **_bounds(obs.low, obs.high)},
            *map(_about_noise, sign.inputs),
        ],
        "outputs": [
            {"name": "action", "dtype": "float32", "shape": [BATCH, len(sign.low)], **_bounds(sign.low, sign.high)}
        ],
        "observation_space": str(agent.observation_space),
        "action_space": str(agent.action_space),
        "exported": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": manifest()["versions"],
    }


def _about_noise(entry: NoiseEntry) -> dict[str, Any]:
    law = entry.law
    about: dict[str, Any] = {"name": entry.name, "dtype": "float32", "shape": list(entry.shape)}
    if isinstance(law, Integers):
        return about | {"dtype": "int32", "law": "integers", "low": law.low, "high": law.high}
    return about | {"law": type(law).__name__.lower()}


def _bounds(low: np.ndarray, high: np.ndarray) -> dict[str, list[float | None]]:
    """As JSON has them: None for infinity."""
    bounds = {"low": low.ravel().tolist(), "high": high.ravel().tolist()}
    return {name: [x if np.isfinite(x) else None for x in values] for name, values in bounds.items()}


def _load_onnx(path: Path) -> Callable[..., np.ndarray]:
    """The function of NumPy arrays (obs, *noise) -> action that an ONNX file holds."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*arrays: np.ndarray) -> np.ndarray:
        (action,) = session.run(["action"], dict(zip(names, arrays, strict=True)))
        return np.asarray(action)

    return call


def _check(
    call: Callable[..., np.ndarray],
    agent: Agent,
    sign: Signature,
    values: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Check:
    """Compares an exported function with the agent's own backend, on random observations and noise.

    Where a critic chooses among candidates, two of them may have values that are equal but for rounding, and either
    is right. So all candidates are first made equal, and every action must agree; then they differ, and an action may
    be another one if the critic values it alike.

    Args:
        call: (obs, *noise) -> actions in the environment's units.
        agent: in the backend of the run.
        sign: of the function.
        values: of obs [batch obs] and actions [batch act] in [-1, 1] by the critic.
    """
    rng, scale = np.random.default_rng(0), action_scaler(agent.action_space)
    half_range, centre = sign.scale
    size = np.maximum(np.maximum(abs(sign.low), abs(sign.high)), np.finfo(np.float32).tiny)
    has_candidates = any(map(_is_of_candidates, sign.inputs))
    largest, ties, observations = 0.0, 0, 0
    for batch in BATCHES:
        obs = rng.standard_normal((batch, sign.obs_dim), np.float32)
        drawn = sign.draw(rng, batch)
        for noise in (_equal_candidates(sign, drawn), drawn) if has_candidates else (drawn,):
            nested = sign.nest(noise, lambda shape: np.zeros(shape, np.float32), batch)
            expected = agent.engine.act(agent.state, obs, nested, deterministic=True).clip(-1, 1)
            found = call(obs, *noise)
            differences = (abs(found - scale(expected)) / size).max(-1)
            if has_candidates and noise is drawn:
                one, other = values(obs, expected), values(obs, (found - centre) / half_range)
                is_tie = (differences > TOLERANCE) & (abs(one - other) <= TOLERANCE * abs(one).max())
                ties += int(is_tie.sum())
                differences[is_tie] = 0
            largest = np.maximum(largest, differences.max())  # NaN stays
            observations += batch
    return Check(float(largest), ties, observations)


def _is_of_candidates(entry: NoiseEntry) -> bool:
    """Whether `BestOf` draws several actions with it."""
    return "candidates" in entry.name.split(".") and BATCH in entry.shape


def _equal_candidates(sign: Signature, noise: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same noise for all candidates: they are along the axis before the batch."""
    equal = []
    for entry, array in zip(sign.inputs, noise, strict=True):
        if _is_of_candidates(entry):
            axis = entry.shape.index(BATCH) - 1
            array = np.repeat(array.take([0], axis), array.shape[axis], axis)
        equal.append(array)
    return equal


def _summary(about: dict[str, Any], check: Check, backend: str) -> list[str]:
    def shown(entry: dict[str, Any]) -> str:
        law = f" {entry['law']}" if "law" in entry else ""
        return f"{entry['name']} [{' '.join(map(str, entry['shape']))}]{law}"

    ties = f"; for {check.ties} another candidate of equal value was chosen" if check.ties else ""
    return [
        f"inputs: {', '.join(map(shown, about['inputs']))}",
        f"output: {shown(about['outputs'][0])}",
        f"largest difference from backend {backend}: {check.difference:.1e} of the largest action, over "
        f"{check.observations} observations{ties}",
    ]
