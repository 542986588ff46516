"""Memory that an update needs, of every recipe and peer at equal batch and width: `python -m tests.evidence.memory`.

Each is measured in a process of its own, after another one that has filled the caches of the compilers: those need
more than the update itself, and not the same twice. Each is written as it ends, and passed over from then on.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffac_recipes import RECIPES
from tests.benchmarks.protocol import memory

from . import table
from .data import FOLDER
from .origin import origin

PEERS = ("sb3_sac", "sb3_td3")
ENV = "HalfCheetah"
BATCH, WIDTHS = 256, (256, 256, 256)
CAPACITY, UPDATES = 5_000, 10
"""Rows of the replay memory, which is small beside what is measured; updates until the peak is read."""
SIZES = {"num_diffusion_steps": "T", "num_candidates": "N", "num_particles": "K"}


class Row(NamedTuple):
    """What a method needs, in bytes."""

    recipe: str
    backend: str
    sizes: str
    """T, N and K as far as it has them."""
    peak: int
    """Of the process, above what it held before the learner was built; its programs were compiled before."""
    temporary: float
    """Of the compiled update, by its compiler; NaN where there is none that says it, as in the next."""
    arguments: float


def ours(recipe: str, backend: str) -> Row:
    """A recipe with its paper's sizes."""
    from diffac.backend import get_backend
    from diffac.runs.recipes import load_recipe, preset_values
    from diffac.system import configure
    from tests.benchmarks.cases import SIZES as SPACES
    from tests.benchmarks.cases import filled_replay
    from tests.benchmarks.devices import wait

    module, engines = load_recipe(recipe), get_backend(backend)
    configure(engines)
    preset = preset_values(module, recipe, "default", f"{ENV}-v5")
    config = module.Config(**{**preset, "backend": backend, "hidden_sizes": WIDTHS})
    buffer, (obs_dim, action_dim) = filled_replay(ENV, CAPACITY), SPACES[ENV]
    rng = np.random.default_rng(0)
    before = _held()
    learner, actor, critic = module.build(config, obs_dim, action_dim)
    engine = engines.Engine(learner)
    state = engine.init(actor, critic)
    for key in range(UPDATES):
        state, metrics = engine.update(state, buffer.sample(rng, 1, BATCH), key)
        wait(backend, metrics)
    _, most = memory()
    stated = _stated(engine, state, buffer.sample(rng, 1, BATCH)) if backend == "equinox" else (math.nan, math.nan)
    sizes = ", ".join(f"{short}={getattr(config, name)}" for name, short in SIZES.items() if hasattr(config, name))
    return Row(recipe, backend, sizes, most - before, *stated)


def _stated(engine: Any, state: Any, batches: Any) -> tuple[float, float]:
    """Bytes of temporaries and of arguments of the compiled update."""
    from diffac_equinox.engine.programs import _take_apart
    from diffac_equinox.engine.random import key_data

    arrays, structure, others = _take_apart(state)
    program = engine._update_program(structure, others)  # compiled as training compiles it
    analysis = program.lower(arrays, batches, key_data(0)).compile().memory_analysis()
    return analysis.temp_size_in_bytes, analysis.argument_size_in_bytes


def peer(name: str) -> Row:
    """SAC or TD3 of Stable-Baselines3."""
    import stable_baselines3
    from stable_baselines3.common.logger import Logger

    from tests.benchmarks.cases import SIZES as SPACES
    from tests.benchmarks.peers import Space

    algorithm = getattr(stable_baselines3, name.removeprefix("sb3_").upper())
    space = Space(*SPACES[ENV])
    before = _held()
    model = algorithm(
        "MlpPolicy", space, batch_size=BATCH, buffer_size=CAPACITY, policy_kwargs={"net_arch": list(WIDTHS)},
        device="cpu",
    )  # fmt: skip
    model.set_logger(Logger(None, []))
    model.replay_buffer.pos = CAPACITY  # as if it were full
    model.train(gradient_steps=UPDATES, batch_size=BATCH)
    _, most = memory()
    return Row(name, "torch", "", most - before, math.nan, math.nan)


def _held() -> int:
    """Bytes that this process holds now; from now on they are its peak."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory()[0]


def read_memory(folder: Path = FOLDER) -> list[Row]:
    """All rows, in the order of the protocol."""
    rows = {row[:2]: row for row in table.read(Row, folder / "memory.csv")}
    return [rows[key] for key in methods() if key in rows]


def methods() -> list[tuple[str, str]]:
    """Recipe and backend of all that is measured."""
    return [*itertools.product(RECIPES, ("torch", "equinox")), *((name, "torch") for name in PEERS)]


def measured(name: str, framework: str) -> Row:
    """What a recipe or a peer needs, in a process of its own."""
    command = [sys.executable, "-m", "tests.evidence.memory", name, framework]
    for _ in range(2):  # the second finds its programs compiled
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    return Row(*json.loads(answer))


def main() -> None:
    """Measures what is missing, one after the other."""
    for method in methods():
        if any(row[:2] == method for row in read_memory()):
            continue
        row = measured(*method)
        table.write(Row, FOLDER / "memory.csv", sorted([*read_memory(), row]))
        made_by = origin("torch", "jax", "equinox", "optax", "stable_baselines3")
        table.replace(FOLDER / "memory.json", json.dumps(made_by, indent=1) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        name, framework = sys.argv[1:]
        print(json.dumps(peer(name) if name in PEERS else ours(name, framework)))
