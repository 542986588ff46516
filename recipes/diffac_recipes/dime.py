"""DIME: maximum entropy with a Langevin policy, whose entropy is bounded in path space (arXiv 2502.02316)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from diffac.backend import get_backend
from diffac.protocols import Activation, Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of DIME; see docs/results/recipes/dime.md for where they are not the authors'."""

    activation: Activation = "gelu"
    """Activation of the drift; critics have ReLU."""
    projection: Literal["hl_gauss", "c51"] = "c51"
    value_range: float = 1600.0
    actor_delay: int = 3
    reward_scale: float = 1.0
    num_envs: int = 1
    """Environments stepped together."""
    learning_starts: int = 5_000
    """Environment steps with uniformly random actions before the first update."""
    updates_per_env_step: float = 2.0
    """Updates for each environment step."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers; None: hidden_sizes."""
    critic_adam_b1: float = 0.5
    """Decay of the first moment in the critics' Adam."""
    num_diffusion_steps: int = 16
    """N, Langevin steps from the prior to the action."""
    prior_std: float = 2.5
    """Standard deviation of the prior, before the tanh."""
    initial_temperature: float = 1.0
    """Temperature before the first adaptation."""
    target_entropy_per_dim: float = round(math.log(2.5) + 0.5 * math.log(2 * math.pi * math.e) - 4, 4)
    """What the temperature steers the bound on the entropy to, per action dimension, in nats: minus 4, in which the
    official code leaves out the prior, plus the prior's entropy."""
    temperature_learning_rate: float = 1e-3
    """Adam's learning rate for the logarithm of the temperature."""


ENV_CONSTANTS: dict[str, dict[str, Any]] = {"dm_control": {"value_range": 200.0}}
"""Per-environment values, by prefix of the id (official code, where Ant and Humanoid have 1600)."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"critic_hidden_sizes": (2048, 2048)},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 1.0,
        "actor_delay": 2,
        "num_diffusion_steps": 8,
        "hidden_sizes": (128, 128),
        "batch_size": 128,
        "learning_rate": 1e-3,
        "value_range": 60.0,
        "tau": 0.01,
        "gamma": 0.98,
        "eval_interval": 4_000,
        "buffer_size": 200_000,
    },
}


def build(config: Config, obs_dim: int, action_dim: int) -> tuple[Learner, Any, Critic]:
    """The learner and its initial actor and critics."""
    b = get_backend(config.backend)
    actor = b.LangevinActor(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(
        b, obs_dim, action_dim, "categorical", soft=True, ensemble="mean", activation="relu",
        hidden_sizes=config.critic_hidden_sizes or config.hidden_sizes,
    )  # fmt: skip

    policy = b.LangevinSampler(config.num_diffusion_steps, config.prior_std)
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.EntropyRegularisedValue(policy, ensemble="mean"),
        critic_objective=critic_objective,
        temperature=b.TargetEntropyTemperature(
            action_dim, config.initial_temperature, config.target_entropy_per_dim, config.actor_delay,
            config.temperature_learning_rate,
        ),
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate, b1=config.critic_adam_b1),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        critic_steps_before_actor=1,
    )  # fmt: skip
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("dime")
