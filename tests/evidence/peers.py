"""SAC and TD3 of Stable-Baselines3 under the protocol: `python -m tests.evidence.peers SWEEP`, of `PEERS`.

One run after the other, on one core; each is written to docs/data/results as it ends, and passed over from then on.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import search
from .data import Row, add, read
from .origin import origin

SWEEPS = {"search": ("HalfCheetah-v5", 75_000), "halfcheetah": ("HalfCheetah-v5", 150_000)}
"""Environment and steps of a run, for each sweep that has peers."""
ENVS = 5
START, EVERY, EPISODES = 5_000, 7_500, 10
"""Random steps; steps between evaluations; episodes of one."""
NOISE = 0.1
"""Standard deviation of TD3's exploration noise."""


class Run(NamedTuple):
    """A run of a peer."""

    algorithm: str
    env_id: str
    seed: int
    settings: Mapping[str, Any]
    steps: int

    def key(self, *, named: bool) -> tuple[str, str, str, str, int]:
        """As `Row.run`; `named`: with its settings."""
        settings = json.dumps(self.settings, sort_keys=True) if named else ""
        return (self.env_id, f"sb3_{self.algorithm}", "torch", settings, self.seed)


def runs(sweep: str) -> Iterator[Run]:
    """What a sweep asks of the peers, as far as it is known: the search decides what comes after it."""
    if sweep not in SWEEPS:
        return
    env_id, steps = SWEEPS[sweep]
    for algorithm in ("sac", "td3"):
        name = f"sb3_{algorithm}"
        if sweep == "search":
            for rate, (layers, tau) in itertools.product((3e-4, 1e-3), ((3, 0.005), (2, 0.005), (2, 0.01))):
                settings = {"learning_rate": rate, "net_arch": [256] * layers, "tau": tau}
                yield Run(algorithm, env_id, search.FIRST, settings, steps)
        found = search.scores(read("search"))  # not before the runs above are in it
        if sweep == "search":
            for best, seed in itertools.product(search.going_on(found, name), search.OTHERS):
                yield Run(algorithm, env_id, seed, json.loads(best), steps)
        elif settings := search.chosen(found, name):
            for seed in range(100, 105):
                yield Run(algorithm, env_id, seed, settings, steps)


def train(run: Run) -> list[tuple[int, int, float, float, float, float]]:
    """(step, updates, mean, std, seconds, core-seconds) of every evaluation."""
    import torch
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.noise import NormalActionNoise

    torch.set_num_threads(1)
    begin, used = time.perf_counter(), time.process_time()
    results = []
    envs, others = make_vec_env(run.env_id, ENVS, run.seed), make_vec_env(run.env_id, EPISODES, run.seed + 1_000_000)

    class Evaluations(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % EVERY == 0:
                now, cores = time.perf_counter() - begin, time.process_time() - used
                returns, _ = evaluate_policy(self.model, others, EPISODES, return_episode_rewards=True)
                updates = self.model._n_updates
                results.append((self.num_timesteps, updates, np.mean(returns), np.std(returns), now, cores))
            return True

    settings = dict(run.settings)
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": settings.pop("net_arch")}, **settings}
    if run.algorithm == "td3":
        (size,) = np.shape(envs.action_space.sample())
        options["action_noise"] = NormalActionNoise(np.zeros(size), NOISE * np.ones(size))
    model = {"sac": SAC, "td3": TD3}[run.algorithm](
        "MlpPolicy", envs, learning_starts=START, batch_size=256, train_freq=1, gradient_steps=1, seed=run.seed,
        device="cpu", **options,
    )  # fmt: skip
    model.learn(run.steps, callback=Evaluations())
    return results


def main(sweeps: Sequence[str]) -> None:
    """Trains what is missing."""
    for sweep in sweeps:
        for run in runs(sweep):
            key = run.key(named=sweep == "search")
            if any(row.run == key for row in read(sweep)):
                continue
            made_by = origin("stable_baselines3", "torch")
            rows = [Row(*key, *result) for result in train(run)]
            add(sweep, rows, made_by)
            print(*key, f"{np.mean([row.return_ for row in rows[-3:]]):.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
