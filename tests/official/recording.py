"""Recorded updates: their names, which are those of the files, and their arrays by ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = Any
TOLERANCE = 1e-8
"""Relative to the largest entry of an array, in float64."""
CRITICS = (0, 1)
"""Every official code here has two."""


class Recording(NamedTuple):
    """Some updates of one algorithm; all arrays are float64 or int64."""

    constants: Mapping[str, Any]
    """Hyperparameters, "algorithm" and "activation" among them."""
    arrays: Mapping[str, Array]
    """By names such as "init/actor/layer0/weight", "u3/batch/obs", "u3/after/critic0/layer1/bias"."""

    @property
    def updates(self) -> int:
        """Number of updates."""
        return 1 + max(int(name[1 : name.index("/")]) for name in self.arrays if re.match(r"u\d+/", name))

    @property
    def obs_dim(self) -> int:
        """Entries of an observation."""
        return self.arrays["u0/batch/obs"].shape[-1]

    @property
    def action_shape(self) -> tuple[int, int]:
        """(batch, action_dim)"""
        return self.arrays["u0/batch/action"].shape

    def under(self, prefix: str) -> dict[str, Array]:
        """What stands under "prefix/", by the rest of the name."""
        prefix += "/"
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def draws(self, prefix: str) -> dict[str, dict[str, Array]]:
        """Role -> name -> random draw."""
        roles: dict[str, dict[str, Array]] = {}
        for name, array in self.under(prefix).items():
            role, _, draw = name.partition("/")
            roles.setdefault(role, {})[draw] = array
        return roles


def load(path: Path) -> Recording:
    """A recording from its file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return Recording(json.loads(str(arrays.pop("constants.json"))), arrays)


def difference(ours: Array, recorded: Array) -> float:
    """The largest error of an array over its largest entry; infinite where a shape differs or a number is missing."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
        return np.inf
    error, scale = np.abs(ours - recorded).max(initial=0), np.abs(recorded).max(initial=0)
    return np.inf if np.isnan(error) else float(error / (scale or 1))


UNREAD = {"sdac": {"running_mean", "running_std"}}
"""By algorithm, what the official code keeps in its state and never reads; ours has no such thing."""

SCALARS = {
    "temperature/log": "temperature.log_temperature",
    **{f"adam/temperature/{name}": f"temperature.{name}" for name in ("m", "v", "count")},
    "adam/actor/count": "actor_optimiser.count",
    "running_mean": "actor_objective.q_mean_ema",
    "running_std": "actor_objective.q_std_ema",
}


def learner_arrays(recording: Recording, when: str) -> dict[str, Array]:
    """What is recorded of the learner's state, by the names of `to_arrays`, but for the names of terms of a sum.

    Args:
        recording: all of it.
        when: "init" or "u3/after".

    Raises:
        ValueError: something is recorded that has no name of ours.
    """
    rest = recording.under(when)
    for name in UNREAD.get(recording.constants["algorithm"], ()):
        rest.pop(name, None)

    def network(prefix: str) -> dict[str, Array]:
        names = [name for name in rest if name.startswith(f"{prefix}/")]
        return parameters({name.removeprefix(f"{prefix}/"): rest.pop(name) for name in names})

    def ensemble(prefix: str, suffix: str = "") -> dict[str, Array]:
        members = [network(f"{prefix}{i}{suffix}") for i in CRITICS]
        return {name: np.stack([member[name] for member in members]) for name in members[0]}

    named = {ours: rest.pop(name) for name, ours in SCALARS.items() if name in rest}
    counts = [rest.pop(f"adam/critic{i}/count") for i in CRITICS if f"adam/critic{i}/count" in rest]
    if counts:  # each critic has an optimiser of its own, ours share one
        named["critic_optimiser.count"] = counts[0] if len(set(map(int, counts))) == 1 else np.array(-1)
    omega = np.array([rest.pop(f"omega{i}") for i in CRITICS if f"omega{i}" in rest])
    if omega.size:
        named["critic_objective.omega"] = np.where(omega == -1, 0.0, omega)  # -1, and 0 of ours: not yet set
    networks = {"actor": network("actor"), "ema_actor": network("actor_ema") | network("actor_target")}
    networks |= {"critic": ensemble("critic"), "target_critic": ensemble("critic", "_target")}
    for moment in "mv":
        networks[f"actor_optimiser.{moment}"] = network(f"adam/actor/{moment}")
        networks[f"critic_optimiser.{moment}"] = ensemble("adam/critic", f"/{moment}")
    named |= {f"{prefix}.{name}": array for prefix, arrays in networks.items() for name, array in arrays.items()}
    if rest:
        raise ValueError(f"recorded, and without a name of ours: {when}/{sorted(rest)}")
    return named


def parameters(layers: Mapping[str, Array]) -> dict[str, Array]:
    """A recorded network, or its Adam moments, by our names: weights are [out in], two heads are one last layer."""
    layers, depth = dict(layers), sum(re.fullmatch(r"layer\d+/weight", name) is not None for name in layers)
    for kind in ("weight", "bias"):
        if f"mean/{kind}" in layers:
            heads = [layers.pop(f"{head}/{kind}") for head in ("mean", "log_std")]
            layers[f"layer{depth}/{kind}"] = np.concatenate(heads, -1)
    return {re.sub(r"(time|layer)(\d+)/", our_layer, name): array.T for name, array in layers.items()}


def our_layer(recorded: re.Match[str]) -> str:
    """The name of a layer."""
    kind, number = recorded.groups()
    return f"{'time_layers' if kind == 'time' else 'layers'}.{number}."
