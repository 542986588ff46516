"""Recordings of which only the inputs exist: random parameters, batches and draws in any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from official.recording import Array, Recording

TIME = 16
"""Entries of the embedding of time."""


class Sizes(NamedTuple):
    """Of everything in a recording."""

    obs: int = 3
    action: int = 2
    hidden: tuple[int, ...] = (8, 6)
    batch: int = 5
    T: int = 4
    N: int = 3
    K: int = 4
    interval: int = 3
    delay: int = 2
    updates: int = 4
    acting: int = 4
    """Observations for which actions are asked."""


GENERAL = {"gamma": 0.99, "tau": 0.005}
SDAC = {
    "lr_critic": 3e-4, "lr_actor": 3e-4, "lr_temperature": 7e-3, "reward_scale": 0.2, "schedule": "linear",
    "chain_start_scale": 0.5, "noise_scale": 0.1, "initial_temperature": 5.0, "activation": "mish",
}  # fmt: skip
CONSTANTS: dict[str, dict[str, Any]] = {
    "sdac": SDAC,
    "dpmd": SDAC,
    "idem": SDAC,
    "dacer": SDAC
    | {
        "lr_critic": 1e-4, "lr_actor": 1e-4, "lr_temperature": 0.03, "schedule": "vp", "chain_start_scale": 1.0,
        "noise_scale": 0.15, "initial_temperature": 3.0, "omega_rate": 0.005,
    },
    "sac_dacer": {
        "lr_critic": 1e-4, "lr_actor": 1e-4, "lr_temperature": 3e-4, "reward_scale": 1.0,
        "initial_temperature": math.e, "log_std_clip": [-20, 0.5], "activation": "gelu",
    },
    "sb3_sac": {
        "lr_critic": 3e-4, "lr_actor": 3e-4, "lr_temperature": 3e-4, "reward_scale": 1.0,
        "initial_temperature": 0.7, "log_std_clip": [-20, 2], "log_prob_epsilon": 1e-6, "activation": "relu",
    },
    "sb3_td3": {
        "lr_critic": 1e-3, "lr_actor": 1e-3, "reward_scale": 1.0, "initial_temperature": 1.0, "activation": "relu",
        "target_policy_noise": 0.2, "target_noise_clip": 0.5,
    },
}  # fmt: skip
"""By algorithm, numbers as in the files."""


def invent(algorithm: str, rng: np.random.Generator, sizes: Sizes) -> Recording:
    """Random inputs for an algorithm. Every copy of a network differs from its original."""
    constants = GENERAL | CONSTANTS[algorithm] | {"algorithm": algorithm, "hidden": list(sizes.hidden)}
    is_diffusion, has_candidates = "schedule" in constants, algorithm in ("sdac", "dpmd", "idem")
    if is_diffusion:
        constants |= {"T": sizes.T, "temperature_interval": sizes.interval, "actor_delay": sizes.delay}
    if has_candidates:
        constants["num_particles_N"] = sizes.N
    if algorithm in ("sdac", "idem"):
        constants["num_reverse_samples_K"] = sizes.K
    if algorithm == "sb3_td3":
        constants["policy_delay"] = sizes.delay
    if algorithm == "dacer":
        constants["target_entropy"] = -0.9 * sizes.action
    arrays: dict[str, Array] = {"init/temperature/log": np.array(math.log(constants["initial_temperature"]))}
    normal = rng.standard_normal

    def add_network(name: str, widths: Sequence[int], layer: str = "layer") -> None:
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            arrays[f"init/{name}/{layer}{i}/weight"] = normal((n_in, n_out)) / math.sqrt(n_in)
            arrays[f"init/{name}/{layer}{i}/bias"] = 0.3 * normal(n_out)

    if is_diffusion:
        for name in ("actor", "actor_ema") if has_candidates else ("actor",):
            add_network(name, (TIME, 2 * TIME, TIME), "time")
            add_network(name, (sizes.obs + sizes.action + TIME, *sizes.hidden, sizes.action))
    elif algorithm == "sb3_td3":
        for name in ("actor", "actor_target"):
            add_network(name, (sizes.obs, *sizes.hidden, sizes.action))
    elif algorithm == "sb3_sac":
        add_network("actor", (sizes.obs, *sizes.hidden))
        for head in ("mean", "log_std"):
            add_network("actor", (sizes.hidden[-1], sizes.action), head)
            for kind in ("weight", "bias"):
                arrays[f"init/actor/{head}/{kind}"] = arrays.pop(f"init/actor/{head}0/{kind}")
    else:
        add_network("actor", (sizes.obs, *sizes.hidden, 2 * sizes.action))
        # around the upper bound of the log standard deviation
        arrays[f"init/actor/layer{len(sizes.hidden)}/bias"][sizes.action :] = constants["log_std_clip"][1]
    for name in (f"critic{i}{suffix}" for i in (0, 1) for suffix in ("", "_target")):
        add_network(name, (sizes.obs + sizes.action, *sizes.hidden, 2 if algorithm == "dacer" else 1))
        if algorithm == "dpmd":  # so that the clip of the weights shows
            arrays[f"init/{name}/layer{len(sizes.hidden)}/weight"] *= 12
    if algorithm in ("sdac", "dpmd"):
        arrays |= {"init/running_mean": np.array(0.3), "init/running_std": np.array(0.6)}
    if algorithm == "dacer":
        arrays |= {"init/omega0": np.array(-1.0), "init/omega1": np.array(-1.0)}

    def add_policy(prefix: str, lead: tuple[int, ...], exploration: bool = True) -> None:
        batch, *shape = lead[-1], sizes.action
        if not is_diffusion:
            if algorithm == "sb3_td3":  # wide, so that its clip shows
                arrays[f"{prefix}/noise"] = 3 * normal((batch, *shape))
            else:
                arrays[f"{prefix}/z"] = normal((batch, *shape))
            return
        candidates = (sizes.N,) if has_candidates else lead[:-1]
        arrays[f"{prefix}/chain_start"] = normal((*candidates, batch, *shape))
        arrays[f"{prefix}/step_noise"] = normal((*candidates, sizes.T, batch, *shape))
        if exploration:
            arrays[f"{prefix}/exploration"] = normal((*lead, *shape))

    batch = sizes.batch
    for u in range(sizes.updates):
        for name in ("obs", "next_obs"):
            arrays[f"u{u}/batch/{name}"] = normal((batch, sizes.obs))
        arrays[f"u{u}/batch/action"] = rng.uniform(-1, 1, (batch, sizes.action))
        arrays[f"u{u}/batch/reward"] = 3 * normal(batch)
        arrays[f"u{u}/batch/done"] = 1.0 * (rng.random(batch) < 0.3)
        add_policy(f"u{u}/next_policy", (batch,))
        if algorithm not in ("dpmd", "sb3_td3"):
            add_policy(f"u{u}/policy", (batch,))
        if has_candidates:
            arrays[f"u{u}/actor/t"] = rng.integers(sizes.T, size=batch)
        if algorithm in ("sdac", "idem"):
            arrays[f"u{u}/actor/xi"] = normal((batch, sizes.action))
            arrays[f"u{u}/actor/eps_k"] = normal((batch, sizes.K, sizes.action))
        elif algorithm == "dpmd":
            arrays[f"u{u}/actor/eps"] = normal((batch, sizes.action))
        elif algorithm == "dacer":
            arrays |= {f"u{u}/critic/z{i}": 2 * normal(batch) for i in (0, 1)}
            if u % sizes.interval == 0:
                add_policy(f"u{u}/entropy", (7, batch))
                arrays[f"u{u}/mid/entropy_per_state"] = normal(batch)  # what a fit would say
    arrays["act/obs"] = normal((sizes.acting, sizes.obs))
    if algorithm != "sb3_td3":
        add_policy("act/stochastic", (sizes.acting,))
    if is_diffusion:
        add_policy("act/evaluation", (sizes.acting,), exploration=False)
        for name in ("chain_start", "step_noise"):  # one observation after the other
            arrays[f"act/evaluation/{name}"] = np.moveaxis(arrays[f"act/evaluation/{name}"], -2, 0)
    return Recording(constants, arrays)
