"""DSAC-T: SAC with distributions of returns and a slow policy in the target (arXiv 2310.05858)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffac.backend import get_backend
from diffac.protocols import Activation, Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of DSAC-T, for 1M environment steps unless the preset says otherwise."""

    activation: Activation = "gelu"
    learning_rate: float = 1e-4
    initial_temperature: float = math.e
    """Temperature before the first adaptation; its logarithm starts at 1."""
    target_entropy_per_dim: float = -1.0
    """Entropy that the temperature steers to, per action dimension, in nats."""
    temperature_learning_rate: float = 3e-4
    """Adam's learning rate for the logarithm of the temperature."""
    log_std_max: float = 0.5
    """Upper bound of the policy's log standard deviation before the tanh."""
    huber_delta: float | None = None
    """Where Huber's loss becomes linear in the authors' later form of the critics' loss; None: the paper's form."""


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""DSAC-T uses one set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "official": {"huber_delta": 50.0},
    "paper": {
        "total_timesteps": 30_000_000,
        "num_envs": 20,
        "updates_per_env_step": 0.05,
    },
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 1.0,
        "hidden_sizes": (128, 128),
        "learning_rate": 1e-3,
        "temperature_learning_rate": 1e-3,
        "tau": 0.01,
        "reward_scale": 1.0,
        "initial_temperature": 1.0,
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
        b, obs_dim, action_dim, "gaussian", soft=True, huber_delta=config.huber_delta
    )

    policy = b.TanhGaussianSampler()
    learner = b.Learner(
        sampler=policy,
        target_actor="ema",
        actor_objective=b.EntropyRegularisedValue(policy, config.ensemble),
        critic_objective=critic_objective,
        temperature=b.TargetEntropyTemperature(
            action_dim, config.initial_temperature, config.target_entropy_per_dim, config.actor_delay,
            config.temperature_learning_rate,
        ),
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
    )  # fmt: skip
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("dsact")
