"""TD3: a deterministic policy, the smaller of two critics, smoothed targets; the other yardstick (arXiv 1802.09477)."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffac.backend import get_backend
from diffac.parts.initialisers import Law
from diffac.protocols import Activation, Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of TD3; the numbers are those of the authors' code, for 1M environment steps."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    initialiser: Law = "uniform"
    reward_scale: float = 1.0
    num_envs: int = 1
    """Environments stepped together."""
    learning_starts: int = 25_000
    """Environment steps with uniformly random actions before the first update."""
    updates_per_env_step: float = 1.0
    """Updates for each environment step."""
    noise_scale: float = 0.1
    """Standard deviation of the exploration noise."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target's actions."""
    target_noise_clip: float = 0.5
    """Bound of that noise."""


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""TD3 uses one set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "stable_baselines3": {
        "hidden_sizes": (400, 300),
        "learning_rate": 1e-3,
        "learning_starts": 100,
        "noise_scale": 0.0,
    },
    "cpu": {
        "total_timesteps": 150_000,
        "learning_starts": 5_000,
        "num_envs": 5,
        "updates_per_env_step": 0.2,
        "eval_interval": 7_500,
        "eval_episodes": 10,
        "learning_rate": 1e-3,
        "tau": 0.01,
        "reward_scale": 1.0,
    },
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "hidden_sizes": (128, 128),
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
    actor = b.DeterministicActor(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin")

    policy = b.DeterministicSampler()
    learner = b.Learner(
        sampler=b.AdditiveNoise(policy, config.noise_scale, config.clip_action),
        target_sampler=b.AdditiveNoise(policy, config.target_noise, noise_clip=config.target_noise_clip),
        target_actor="ema",
        actor_objective=b.ValueThroughSampler(policy, ensemble="first"),
        critic_objective=critic_objective,
        temperature=b.FixedTemperature(1.0),
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        first_actor_update=config.actor_delay - 1,
        reward_scale=config.reward_scale,
        critic_steps_before_actor=1,
    )
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("td3")
