"""Optimiser, learner and engine: one gradient step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffac.noise import draw
from diffac.parts import engine, optimisers
from diffac.parts import learner as declared
from diffac.parts.inputs import entry
from diffac.protocols import Batch, Policy
from diffac.testing import reference
from diffac_numpy.networks import lifted
from diffac_numpy.parts import bare


class Adam(optimisers.Adam):
    """The reference's."""

    def check(self, **others: Any) -> None:
        super().check(**others)
        self.bare = reference.Adam(self.learning_rate, self.max_grad_norm, self.b1, self.b2, self.eps)


class AdamW(optimisers.AdamW):
    """The reference's."""

    def check(self, **others: Any) -> None:
        super().check(**others)
        self.bare = reference.AdamW(**{name: getattr(self, name) for name in self.arguments})


class Learner(declared.Learner):
    """The reference's, with networks of this backend."""

    def check(self) -> None:
        super().check()
        given = {name: getattr(self, name) for name in self.arguments}
        self.bare = reference.Learner(**{name: bare(value) for name, value in given.items()})

    def init(self, actor: Any, critic: Any) -> reference.LearnerState:
        return self.bare.init(lifted(actor), lifted(critic))

    def policy(self, state: Any, *, deterministic: bool = False) -> Policy:
        actor = state.ema_actor if self.acting_actor == "ema" else state.actor
        ranks = deterministic and self.evaluation_ranking == "target"
        critic = state.target_critic if ranks else state.critic
        return Policy(actor, critic, self.temperature.value(state.temperature))

    def step(self, state: Any, batch: Batch, noise: Any) -> tuple[Any, Any]:
        return self.bare.step(state, batch, noise)


class Engine(engine.Engine):
    """Runs a learner; nothing is compiled."""

    learners = Learner

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        self.names: dict[str, Any] = {}
        self.measure, self.fetch = learner.bare.measure, learner.bare.fetch

    def _step(self, state: Any, batch: Batch, noise: Any) -> tuple[Any, Any]:
        if not self.names and (state.updates or self.learner.first_actor_update):
            for updates in (0, self.learner.first_actor_update):  # in which everything is due
                at = state._replace(updates=np.int32(updates))
                self.names |= dict.fromkeys(self.learner.step(at, batch, noise)[1], np.float64(np.nan))
        state, metrics = self.learner.step(state, batch, noise)
        self.names |= dict.fromkeys(metrics, np.float64(np.nan))
        return state, {**self.names, **metrics}

    def draw_noise(self, key: int, index: int, shape: tuple[int, ...]) -> Any:
        return draw(np.random.default_rng([key, index]), self.learner.noise_spec(shape), np.float64)

    def _update(self, state: Any, batches: Batch, key: int) -> tuple[Any, dict[str, Any]]:
        seen: dict[str, list[Any]] = {}
        for index in range(len(batches.action)):
            batch = entry(batches, index)
            state, metrics = self._step(state, batch, self.draw_noise(key, index, batch.action.shape))
            for name, value in metrics.items():
                seen.setdefault(name, []).append(value)
        return state, {name: np.nanmean(values) for name, values in seen.items()}

    def _act(self, state: Any, obs: np.ndarray, noise: Any, deterministic: bool) -> np.ndarray:
        action = self.learner.bare.act(state, obs.astype(np.float64), noise, deterministic=deterministic)
        return action.astype(np.float32)

    def _with_moments(self, state: Any, moments: Any) -> Any:
        return self.learner.bare.set_obs_moments(state, moments)

    def compile_act(self, state: Any, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """There is nothing to compile."""
