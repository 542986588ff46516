"""SAC: a tanh-Gaussian policy with entropy regularisation, the yardstick (arXiv 1812.05905)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffac.backend import get_backend
from diffac.protocols import Activation, Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of SAC, with the log-determinant of the tanh and an adapted temperature."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    actor_delay: int = 1
    reward_scale: float = 1.0
    num_envs: int = 1
    """Environments stepped together."""
    learning_starts: int = 10_000
    """Environment steps with uniformly random actions before the first update."""
    updates_per_env_step: float = 1.0
    """Updates for each environment step (0.2 in the SDAC protocol)."""
    initial_temperature: float = 1.0
    """Temperature before the first adaptation."""
    target_entropy_per_dim: float = -1.0
    """Entropy that the temperature steers to, per action dimension, in nats."""
    temperature_learning_rate: float | None = None
    """Adam's learning rate for the logarithm of the temperature; None: learning_rate."""
    log_std_max: float = 2.0
    """Upper bound of the policy's log standard deviation before the tanh."""
    log_det_epsilon: float = 0.0
    """Added to 1 - tanh^2 inside the logarithm of the density; 0 is exact."""
    critic_loss_factor: float = 1.0
    """Factor of the critics' mean squared errors: changes nothing but how much Adam's eps counts."""


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""SAC uses one set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "stable_baselines3": {
        "learning_starts": 100,
        "initialiser": "uniform",
        "log_det_epsilon": 1e-6,
        "critic_loss_factor": 0.5,
    },
    "dacer_repository": {  # the SAC beside DACER's official code; sizes and steps as `dacer --preset paper`
        "total_timesteps": 30_000_000,
        "num_envs": 20,
        "updates_per_env_step": 0.05,
        "hidden_sizes": (256, 256, 256),
        "activation": "gelu",
        "learning_rate": 1e-4,
        "temperature_learning_rate": 3e-4,
        "initial_temperature": math.e,
        "log_std_max": 0.5,
    },
    "sdac_protocol": {
        "num_envs": 5,
        "learning_starts": 30_000,
        "updates_per_env_step": 0.2,
        "hidden_sizes": (256, 256, 256),
        "activation": "mish",
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
        "updates_per_env_step": 1.0,
        "hidden_sizes": (128, 128),
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "eval_interval": 4_000,
        "buffer_size": 200_000,
    },
}


def build(config: Config, obs_dim: int, action_dim: int) -> tuple[Learner, Any, Critic]:
    """The learner and its initial actor and critics."""
    b = get_backend(config.backend)
    actor = b.GaussianActor(obs_dim, action_dim, log_std_max=config.log_std_max, **config.actor_arguments)
    critic, critic_objective = config.make_critic(
        b, obs_dim, action_dim, "twin", soft=True, factor=config.critic_loss_factor
    )

    policy = b.TanhGaussianSampler(config.log_det_epsilon)
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.EntropyRegularisedValue(policy, config.ensemble),
        critic_objective=critic_objective,
        temperature=b.TargetEntropyTemperature(
            action_dim, config.initial_temperature, config.target_entropy_per_dim, config.actor_delay,
            config.temperature_learning_rate or config.learning_rate,
        ),
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        critic_steps_before_actor=1,
    )  # fmt: skip
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("sac")
