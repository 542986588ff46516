"""DACER: the critic's value, back-propagated through the whole reverse diffusion chain (arXiv 2405.15177)."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffac.backend import get_backend
from diffac.parts.schedules import vp_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of DACER; the numbers are the paper's, for 1M environment steps unless the preset says otherwise."""

    learning_rate: float = 1e-4
    num_diffusion_steps: int = 20
    """T, the number of denoising steps."""
    noise_scale: float = 0.1
    """Factor of the additive exploration noise; its standard deviation is noise_scale * temperature."""
    initial_temperature: float = 3.0
    """Temperature before the first adaptation."""
    target_entropy_per_dim: float = -0.9
    """Entropy that the temperature steers to, per action dimension, in nats."""
    temperature_learning_rate: float = 0.03
    """Adam's learning rate for the logarithm of the temperature."""
    temperature_interval: int | None = None
    """Updates between two adaptations; None: max(250, total updates // 150). The paper's 10,000 fit 1.5M updates."""


ENV_CONSTANTS = {"Humanoid": {"noise_scale": 0.15}, "HalfCheetah": {"noise_scale": 0.15}}
"""Per-environment values, by prefix of the id (paper's appendix)."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "total_timesteps": 30_000_000,
        "num_envs": 20,
        "updates_per_env_step": 0.05,
        "temperature_interval": 10_000,
    },
    "quick": {
        "total_timesteps": 16_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 2.0,
        "num_diffusion_steps": 10,
        "hidden_sizes": (64, 64),
        "learning_rate": 1e-3,
        "actor_delay": 4,  # with fewer critic steps and slower targets the actor saturates before Q means anything
        "tau": 0.1,
        "reward_scale": 1.0,
        "initial_temperature": 1.0,
        "gamma": 0.98,
        "eval_interval": 4_000,
        "buffer_size": 200_000,
    },
}


def build(config: Config, obs_dim: int, action_dim: int) -> tuple[Learner, Any, Critic]:
    """The learner and its initial actor and critic."""
    b = get_backend(config.backend)
    actor = b.MLPDenoiser(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "gaussian")

    schedule = vp_schedule(config.num_diffusion_steps)
    policy = b.AdditiveNoise(b.DDPMSampler(schedule, start_scale=1.0), config.noise_scale, config.clip_action)
    temperature = b.MixtureEntropyTemperature(
        policy, config.initial_temperature, config.target_entropy_per_dim,
        config.temperature_interval or max(250, config.total_updates // 150), config.temperature_learning_rate,
    )  # fmt: skip
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.ValueThroughSampler(policy, ensemble=config.ensemble),
        critic_objective=critic_objective,
        temperature=temperature,
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
    )
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("dacer")
