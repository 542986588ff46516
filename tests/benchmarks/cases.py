"""What is measured: recipes with the papers' settings, for the sizes of two environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.data.replay import ReplayBuffer
from diffac.protocols import Transition
from diffac.runs.recipes import load_recipe, preset_values

SIZES = {"HalfCheetah": (17, 6), "Humanoid": (348, 17)}
"""Environment -> entries of an observation and of an action."""
ONE = ("HalfCheetah",)
BATCH_SIZE = 256


class Case(NamedTuple):
    """A recipe and what differs from its defaults, which are the paper's sizes."""

    recipe: str
    title: str
    values: Mapping[str, Any] = {}
    envs: Sequence[str] = tuple(SIZES)
    """Where it is measured unless somebody asks for another."""


CASES = {
    "dacer2": Case("dacer2", "DACER2, T=5"),
    "sdac": Case("sdac", "SDAC, T=20, N=32, K=64"),
    "sdac_small": Case("sdac", "SDAC, T=5, N=1, K=64", {"num_diffusion_steps": 5, "num_candidates": 1}),
    "dpmd": Case("dpmd", "DPMD, T=20, N=32"),
    "idem": Case("idem", "iDEM, T=20, N=32, K=64", envs=ONE),
    "rfm": Case("rfm", "RFM, T=20, N=32, K=64", envs=ONE),
    "qsm": Case("qsm", "QSM, T=5, 512x2", envs=ONE),
    "fpmd": Case("fpmd", "FPMD, T=20, N=32", envs=ONE),
    "maxentdp": Case("maxentdp", "MaxEntDP, T=20, K=64, 10 noises, 256x2", envs=ONE),
    "dipo": Case("dipo", "DIPO, T=100, 40 steps up Q", envs=ONE),
    "dime": Case("dime", "DIME, N=16, 101 atoms", envs=ONE),
    "qvpo": Case("qvpo", "QVPO, T=20, N=4, 64 to learn from", envs=ONE),
    "meanflow": Case("meanflow", "MeanFlow, one step, N=32", envs=ONE),
    "dacer": Case("dacer", "DACER, T=20"),
    "dsact": Case("dsact", "DSAC-T, 256x3", envs=ONE),
    "sac": Case("sac", "SAC, 256x2"),
    "sac3": Case("sac", "SAC, 256x3", {"hidden_sizes": (256, 256, 256)}),
}
"""Name -> case. Networks are 256x3 Mish, batches 256, unless the title says more; SAC and the critics of QSM,
MaxEntDP and DIME have ReLU, DIME's actor and DSAC-T GELU."""


def configure(name: str, env: str, backend: str, **values: Any) -> tuple[Any, Any]:
    """The recipe of a case and its configuration."""
    case = CASES[name]
    module = load_recipe(case.recipe)
    preset = preset_values(module, case.recipe, "default", f"{env}-v5")
    return module, module.Config(**{**preset, **case.values, "backend": backend, **values})


def filled_replay(env: str, capacity: int) -> ReplayBuffer:
    """A full replay memory of numbers like those of the environment."""
    obs_dim, action_dim = SIZES[env]
    buffer, rng = ReplayBuffer(capacity, obs_dim, action_dim), np.random.default_rng(0)
    for count in [5_000] * (capacity // 5_000):
        buffer.add(
            Transition(
                obs=rng.standard_normal((count, obs_dim), np.float32),
                action=rng.uniform(-1, 1, (count, action_dim)).astype(np.float32),
                reward=rng.standard_normal(count, np.float32),
                next_obs=rng.standard_normal((count, obs_dim), np.float32),
                terminated=rng.random(count) < 0.01,
                first=np.zeros(count, bool),
            )
        )
    return buffer
