"""Optimiser and learner: one gradient step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffac.errors import UsageError, check_critic_steps, check_positive
from diffac.noise import draw, without_exploration
from diffac.protocols import Transition
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
    if not isinstance(learning_rate, LinearSchedule):
        check_positive("learning_rate", learning_rate)
    if max_grad_norm is not None:
        check_positive("max_grad_norm", max_grad_norm)
    return reference.Adam(learning_rate, max_grad_norm, b1, b2, eps)


class Learner:
    """The reference's learner, which also acts and draws its own noise. Arguments as in every backend."""

    def __init__(
        self,
        *,
        tau: float = 0.005,
        actor_delay: int = 2,
        critic_steps: int = 1,
        critic_steps_before_actor: int = 0,
        **parts: Any,
    ) -> None:
        check_positive("actor_delay", actor_delay)
        check_positive("critic_steps", critic_steps)
        if not 0 < tau <= 1:
            raise UsageError(f"tau must be in (0, 1], got {tau!r}")
        check_critic_steps(critic_steps_before_actor, critic_steps)
        self.sampler, self.temperature = parts["sampler"], parts["temperature"]
        parts = {name: bare(part) for name, part in parts.items()}
        steps = {"critic_steps": critic_steps, "critic_steps_before_actor": critic_steps_before_actor}
        self.bare = reference.Learner(tau=tau, actor_delay=actor_delay, **steps, **parts)
        self.noise_spec, self.measure, self.fetch = self.bare.noise_spec, self.bare.measure, self.bare.fetch

    def init(self, actor: Any, critic: Any) -> reference.LearnerState:
        return self.bare.init(lifted(actor), lifted(critic))

    def step(self, state: Any, batch: Transition, noise: Any) -> tuple[Any, dict[str, Any]]:
        check(batch)
        return self.bare.step(state, batch, noise)

    def draw_noise(self, key: int, index: int, shape: tuple[int, ...]) -> Any:
        return draw(np.random.default_rng([key, index]), self.noise_spec(shape), np.float64)

    def update(self, state: Any, batches: Transition, key: int) -> tuple[Any, dict[str, Any]]:
        seen: dict[str, list[Any]] = {}
        for index in range(len(batches.action)):
            batch = Transition(*[None if entry is None else entry[index] for entry in batches])
            state, metrics = self.step(state, batch, self.draw_noise(key, index, batch.action.shape))
            for name, value in metrics.items():
                seen.setdefault(name, []).append(value)
        return state, {name: np.mean(values) for name, values in seen.items()}

    def act_noise_spec(self, shape: tuple[int, ...], *, deterministic: bool = False) -> Any:
        spec = self.sampler.noise_spec(shape)
        return without_exploration(spec) if deterministic else spec

    def act(self, state: Any, obs: np.ndarray, noise: Any) -> np.ndarray:
        actor = state.actor if state.ema_actor is None else state.ema_actor
        temperature = self.temperature.value(state.temperature)
        return self.sampler(actor, obs, noise, critic=state.critic, temperature=temperature).astype(np.float32)

    def compile_act(self, state: Any, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """There is nothing to compile."""


def check(batch: Transition) -> None:
    """Refuses what would broadcast to something else."""
    if batch.obs.dtype.kind != "f":
        raise UsageError(f"obs must be a floating array [batch obs_dim], got {batch.obs.dtype}")
    size = len(batch.obs)
    wanted = {
        "action": (size, batch.action.shape[-1]),
        "reward": (size,),
        "next_obs": batch.obs.shape,
        "terminated": (size,),
    }
    for name, shape in wanted.items():
        given = getattr(batch, name).shape
        if given != shape:
            raise UsageError(f"{name} has shape {given}, expected {shape} beside obs of shape {batch.obs.shape}")
