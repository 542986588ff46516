"""DIPO: replayed actions climb Q and are kept where they arrive, and the denoiser learns them (arXiv 2305.13122)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffac.backend import get_backend
from diffac.parts.schedules import cosine_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of DIPO, see docs/results/recipes/dipo.md."""

    adam_eps: float = 1e-5
    """Adam's eps, for both networks and for the steps of actions."""
    max_grad_norm: float = 2.0
    """Norm that the gradient of the actor, and of both critics together, is clipped to."""
    actor_delay: int = 1
    """Critic updates for each actor update."""
    reward_scale: float = 1.0
    num_envs: int = 1
    """Environments stepped together."""
    learning_starts: int = 10_000
    """Environment steps with uniformly random actions before the first update."""
    updates_per_env_step: float = 1.0
    """Updates for each environment step."""
    num_diffusion_steps: int = 100
    """T, the number of denoising steps."""
    improvement_steps: int = 20
    """Steps of Adam up the gradient of Q that the actions of each batch take."""
    improvement_rate: float = 0.03
    """Adam's learning rate in these steps."""
    improvement_grad_norm: float = 0.1
    """Norm that the gradient at all actions of a batch is clipped to, for each entry of an action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("improvement_steps", self.improvement_steps >= 1, "must be at least 1")
        for name in ("adam_eps", "max_grad_norm", "improvement_rate", "improvement_grad_norm"):
            self._require(name, 0 < getattr(self, name) < math.inf, "must be greater than 0 and finite")


ENV_CONSTANTS: dict[str, dict[str, Any]] = {
    "Hopper": {"improvement_grad_norm": 0.3, "max_grad_norm": 1.0},
    "Walker2d": {"improvement_grad_norm": 0.08},
    "HalfCheetah": {"improvement_grad_norm": 0.08, "improvement_steps": 40},
    "Ant": {"improvement_grad_norm": 0.1, "max_grad_norm": 0.8},
    "Humanoid": {"improvement_grad_norm": 0.1},
}
"""Per-environment values, by prefix of the id (official code)."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "num_diffusion_steps": 10,
        "hidden_sizes": (128, 128),
        "batch_size": 128,
        "learning_rate": 1e-3,
        "tau": 0.01,
        "gamma": 0.98,
        "eval_interval": 4_000,
        "buffer_size": 200_000,
    },
}


def build(config: Config, obs_dim: int, action_dim: int) -> tuple[Learner, Any, Critic]:
    """The learner and its initial actor and critics."""
    b = get_backend(config.backend)
    actor = b.MLPDenoiser(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin")

    schedule = cosine_schedule(config.num_diffusion_steps)
    proposal = b.ImprovedReplayProposal(
        config.buffer_size,  # as long as the replay memory, so that it keeps every improved action
        action_dim,
        num_steps=config.improvement_steps,
        learning_rate=config.improvement_rate,
        eps=config.adam_eps,
        max_grad_norm=config.improvement_grad_norm * action_dim,
        ensemble=config.ensemble,
    )
    optimiser = b.Adam(config.learning_rate, max_grad_norm=config.max_grad_norm, eps=config.adam_eps)
    learner = b.Learner(
        sampler=b.DDPMSampler(schedule, start_scale=1.0),
        evaluation_sampler=b.DDPMSampler(schedule, start_scale=1.0, variance="zero"),
        # a mean over action entries, as in the paper's code: the clip of the gradient sees its size
        actor_objective=b.Sum((1 / action_dim, b.ReweightedScoreMatching(schedule, proposal))),
        critic_objective=critic_objective,
        temperature=b.FixedTemperature(1.0),
        actor_optimiser=optimiser,
        critic_optimiser=optimiser,
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        target_actor="ema",
        critic_steps_before_actor=1,
    )
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("dipo")
