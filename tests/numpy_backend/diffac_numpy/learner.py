"""Optimiser and learner: one gradient step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffac.arguments import check_arguments
from diffac.batches import check_batch, entry
from diffac.noise import draw, without_exploration
from diffac.protocols import Batch, Policy
from diffac.schedules import LinearSchedule
from diffac.testing import reference
from diffac_numpy.networks import lifted
from diffac_numpy.parts import bare


def Adam(
    learning_rate: float | LinearSchedule = 3e-4,
    max_grad_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> reference.Adam:
    """The reference's, with checked arguments."""
    check_arguments("Adam", locals())
    return reference.Adam(learning_rate, max_grad_norm, b1, b2, eps)


class Learner:
    """The reference's learner, which also acts and draws its own noise. Arguments as in every backend."""

    def __init__(
        self,
        *,
        sampler: Any,
        actor_objective: Any,
        critic_objective: Any,
        temperature: Any,
        actor_optimiser: Any,
        critic_optimiser: Any,
        tau: float = 0.005,
        actor_delay: int = 2,
        reward_scale: float = 1.0,
        acting_actor: str = "online",
        target_sampler: Any = None,
        target_actor: str = "online",
        first_actor_update: int = 0,
        critic_steps: int = 1,
        critic_steps_before_actor: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        check_arguments("Learner", given)
        self.bare = reference.Learner(**{name: bare(value) for name, value in given.items()})
        self.sampler, self.temperature = sampler, temperature
        self.actor_delay, self.first_actor_update, self.acting_actor = actor_delay, first_actor_update, acting_actor
        self.noise_spec, self.measure, self.fetch = self.bare.noise_spec, self.bare.measure, self.bare.fetch

    def init(self, actor: Any, critic: Any) -> reference.LearnerState:
        return self.bare.init(lifted(actor), lifted(critic))

    def step(self, state: Any, batch: Batch, noise: Any) -> tuple[Any, Any]:
        check_batch(batch, ("batch",))
        return self.bare.step(state, batch, noise)

    def draw_noise(self, key: int, index: int, shape: tuple[int, ...]) -> Any:
        return draw(np.random.default_rng([key, index]), self.noise_spec(shape), np.float64)

    def update(self, state: Any, batches: Batch, key: int) -> tuple[Any, dict[str, Any]]:
        seen: dict[str, list[Any]] = {}
        for index in range(len(batches.action)):
            batch = entry(batches, index)
            state, metrics = self.step(state, batch, self.draw_noise(key, index, batch.action.shape))
            for name, value in metrics.items():
                seen.setdefault(name, []).append(value)
        return state, {name: np.mean(values) for name, values in seen.items()}

    def act_noise_spec(self, shape: tuple[int, ...], *, deterministic: bool = False) -> Any:
        spec = self.sampler.noise_spec(shape)
        return without_exploration(spec) if deterministic else spec

    def act(self, state: Any, obs: np.ndarray, noise: Any) -> np.ndarray:
        actor = state.ema_actor if self.acting_actor == "ema" else state.actor
        temperature = self.temperature.value(state.temperature)
        return self.sampler(Policy(actor, state.critic, temperature), obs, noise).astype(np.float32)

    def compile_act(self, state: Any, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """There is nothing to compile."""
