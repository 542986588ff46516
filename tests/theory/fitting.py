"""A small denoiser, trained to convergence on an objective with a critic that is known in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from diffac.noise import Noise, NoiseSpec, Uniform, draw
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Batch, Critic, Policy, Rollout

OBSERVATIONS = (-0.5, 0.5)
"""The two states of the problem; they shift Q."""
BATCH = 256
HIDDEN = (64, 64)


class UniformSampler:
    """A policy without a network: actions uniform in the box. Cheap, and covers every state."""

    def noise_spec(self, shape: tuple[int, ...]) -> NoiseSpec:
        return {"uniform": Uniform(shape)}

    def rollout(self, policy: Policy, obs: Any, noise: Noise) -> Rollout:
        return Rollout(2 * noise["uniform"] - 1)

    def __call__(self, policy: Policy, obs: Any, noise: Noise) -> Any:
        return self.rollout(policy, obs, noise).action


def batches(spec: NoiseSpec, action_dim: int, count: int) -> Iterator[tuple[Batch, Noise]]:
    """Batches with a random state, an action uniform in the box, and noise; the same ones for every backend."""
    rng = np.random.default_rng(0)
    zeros = np.zeros(BATCH)
    for _ in range(count):
        obs, action = rng.choice(OBSERVATIONS, (BATCH, 1)), rng.uniform(-1, 1, (BATCH, action_dim))
        yield Batch(obs, action, zeros, obs, zeros), draw(rng, spec, np.float64)


def fit(
    backend: ModuleType, objective: Any, critic: Critic, action_dim: int, *, updates: int, temperature: float = 1.0
) -> Any:
    """The minimiser of the objective, as a compiled function of observations, noisy actions and times."""
    actor = backend.MLPDenoiser(1, action_dim, key=0, hidden_sizes=HIDDEN)
    data = batches(objective.noise_spec((BATCH, action_dim)), action_dim, updates)
    optimiser = backend.Adam(LinearSchedule(5e-3, 1e-5, updates // 4, updates))
    return backend.testing.minimise(objective, actor, critic, data, temperature, optimiser)


def predict(backend: ModuleType, actor: Any, obs: float, noisy: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Predicted noises [batch act] for one observation, noisy actions [batch act] and times [batch]."""
    arguments = map(backend.testing.to_backend, (np.full((len(noisy), 1), obs), noisy, t))
    return backend.testing.to_numpy(backend.testing.compiled(actor)(*arguments))
