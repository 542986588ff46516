"""QSM: the denoiser is regressed on the action gradient of Q itself, at noised replay actions (arXiv 2312.11752)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffac.backend import get_backend
from diffac.parts.schedules import vp_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of Q-score matching; numbers are the authors' for DeepMind Control (docs/results/recipes/qsm.md)."""

    hidden_sizes: tuple[int, ...] = (512, 512)
    actor_delay: int = 1
    """Critic updates for each actor update."""
    reward_scale: float = 1.0
    num_envs: int = 1
    """Environments stepped together."""
    learning_starts: int = 10_000
    """Environment steps with uniformly random actions before the first update."""
    updates_per_env_step: float = 1.0
    """Updates for each environment step."""
    num_diffusion_steps: int = 5
    """T, the number of denoising steps."""
    gradient_scale: float = 50.0
    """M, how many times the gradient of Q the score is; the authors have 120 on hard tasks."""
    noise_scale: float = 0.1
    """Standard deviation of the exploration noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("gradient_scale", 0 < self.gradient_scale < math.inf, "must be greater than 0 and finite")


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""One set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "hidden_sizes": (128, 128),
        "tau": 0.01,
        "gradient_scale": 1.0,
        "gamma": 0.98,
        "eval_interval": 4_000,
        "buffer_size": 200_000,
    },
}


def build(config: Config, obs_dim: int, action_dim: int) -> tuple[Learner, Any, Critic]:
    """The learner and its initial actor and critics."""
    b = get_backend(config.backend)
    actor = b.MLPDenoiser(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin", activation="relu")

    schedule = vp_schedule(config.num_diffusion_steps)
    chain = b.DDPMSampler(schedule, start_scale=1.0, clip="state", variance="forward")
    loss = b.TimeWeightedQGradient(
        chain, schedule, slope=0.0, intercept=math.log(config.gradient_scale), space="eps", source="replay",
        ensemble="mean", normalised=False, target="eps",
    )  # fmt: skip
    learner = b.Learner(
        sampler=b.AdditiveNoise(chain, config.noise_scale, config.clip_action),
        actor_objective=b.Sum((1 / action_dim, loss)),
        critic_objective=critic_objective,
        temperature=b.FixedTemperature(1.0),
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        critic_steps_before_actor=1,
    )
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("qsm")
