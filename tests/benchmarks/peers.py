"""SAC of Stable-Baselines3 (torch) and of SBX (JAX): their own training step on a full replay buffer of theirs.

Runs in an environment of its own, which has them and not diffac: `nox -s bench` makes it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np

from .protocol import memory, serve

PACKAGES = {"sb3": "stable_baselines3", "sbx": "sbx"}


class Space(gym.Env):
    """An environment of which only the spaces are ever used."""

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Zeros."""
        return np.zeros(self.observation_space.shape or (), np.float32), {}


class Peer:
    """SAC with ReLU networks and batches of 256.

    Args:
        package: "sb3" or "sbx".
        obs_dim: observation entries.
        action_dim: action entries.
        hidden: widths.
        capacity: of the replay memory, filled.
    """

    def __init__(self, package: str, obs_dim: int, action_dim: int, hidden: list[int], capacity: int) -> None:
        self.sac: Any = importlib.import_module(PACKAGES[package]).SAC
        self.logger = importlib.import_module("stable_baselines3.common.logger")
        self.env, self.hidden, self.capacity, self.obs_dim = Space(obs_dim, action_dim), hidden, capacity, obs_dim

    def start(self) -> dict[str, float]:
        """As `Contender.start`; filling the replay memory is not in the time."""
        begin = time.perf_counter()
        kwargs = {"net_arch": self.hidden}
        self.model = self.sac(
            "MlpPolicy", self.env, batch_size=256, buffer_size=self.capacity, policy_kwargs=kwargs, device="cpu"
        )
        self.model.set_logger(self.logger.Logger(None, []))
        made = time.perf_counter() - begin
        rng, buffer = np.random.default_rng(0), self.model.replay_buffer
        for name in ("observations", "next_observations", "rewards"):
            array = getattr(buffer, name)
            array[:] = rng.standard_normal(array.shape, np.float32)
        buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
        buffer.full = True
        self.before, _ = memory()
        begin = time.perf_counter()
        self.update(2)
        return {"first": made + time.perf_counter() - begin, "after": self.update(20)}

    def update(self, count: int) -> float:
        """Time of an update, its batch drawn from the replay memory: the mean over so many calls."""
        begin = time.perf_counter()
        for _ in range(count):
            self.model.train(gradient_steps=1, batch_size=256)
        return (time.perf_counter() - begin) / count

    def act(self, rows: int) -> float:
        """Median time of `predict` for so many observations."""
        obs = np.random.default_rng(1).standard_normal((rows, self.obs_dim), np.float32)
        times = []
        for _ in range(300):
            begin = time.perf_counter()
            self.model.predict(obs)
            times.append(time.perf_counter() - begin)
        return float(np.median(times))


if __name__ == "__main__":
    peer = Peer(**json.loads(sys.argv[1]))
    serve({"start": peer.start, "update": peer.update, "act": peer.act})
