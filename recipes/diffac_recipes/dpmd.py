"""DPMD: score matching on the old policy's actions, reweighted by their value: mirror descent (arXiv 2502.00361)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from diffac.backend import get_backend
from diffac.parts.schedules import cosine_schedule, linear_beta_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of DPMD (version 1 of the paper called it SDAC); corrected, see docs/results/recipes/dpmd.md."""

    num_diffusion_steps: int = 20
    """T, the number of denoising steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule: linear with scale 0.8 (camera-ready code) or cosine (code of the submission)."""
    num_candidates: int = 32
    """N, actions sampled wherever one is needed; the critic picks the best."""
    statistics_rate: float = 0.001
    """Rate of the running mean and standard deviation that normalise the value inside the weight."""
    faithful_normalisation: bool = False
    """Normalise as the official code does (an operator-precedence bug that makes nearly all weights equal)."""
    critic_steps: int = 1
    """Optimiser steps with each critic gradient, of which one comes before the actor's loss (2 in the official code, a
    bug)."""
    mean_loss: bool = False
    """Mean over action entries, as in the official code, in place of the sum: weakens no gradient, but Adam's eps
    counts action_dim times as much."""
    start_scale: float = 1.0
    """Standard deviation of the chain's start (0.5 in the official code)."""
    final_actor_learning_rate: float = 3e-5
    """The actor's learning rate from three quarters of training on; learning_rate up to a quarter, linear between."""
    noise_scale: float = 0.1
    """Factor of the additive exploration noise; its standard deviation is noise_scale * temperature."""
    initial_temperature: float = 5.0
    """Temperature before the first adaptation."""
    target_entropy_per_dim: float = -0.9
    """Entropy of the exploration noise that the temperature steers to, per action dimension, in nats."""
    temperature_learning_rate: float = 7e-3
    """Adam's learning rate for the logarithm of the temperature."""
    temperature_interval: int = 250
    """Updates between two adaptations."""


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""DPMD uses one set of numbers for all environments."""

OFFICIAL: dict[str, Any] = {
    "start_scale": 0.5,
    "clip_action": False,
    "faithful_normalisation": True,
    "critic_steps": 2,
    "mean_loss": True,
    "total_timesteps": 1_030_000,  # the official 1,000,000 do not count the random ones: 200,000 updates
    "eval_episodes": 20,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "camera_ready": OFFICIAL,
    "submission": OFFICIAL | {"schedule": "cosine", "target_entropy_per_dim": -1.5},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 1.0,
        "num_diffusion_steps": 5,
        "num_candidates": 8,
        "hidden_sizes": (128, 128),
        "batch_size": 128,
        "learning_rate": 1e-3,
        "final_actor_learning_rate": 1e-3,  # no decay: it would end a short run's learning before the task is solved
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
    actor = b.MLPDenoiser(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin")

    make = {"linear": linear_beta_schedule, "cosine": cosine_schedule}[config.schedule]
    schedule = make(config.num_diffusion_steps)
    best = b.BestOf(b.DDPMSampler(schedule, config.start_scale), config.num_candidates, config.ensemble)
    policy = b.AdditiveNoise(best, config.noise_scale, config.clip_action)
    proposal = b.PolicyProposal(config.statistics_rate, config.faithful_normalisation, config.ensemble)
    loss = b.ReweightedScoreMatching(schedule, proposal)
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.Sum((1 / action_dim, loss)) if config.mean_loss else loss,
        critic_objective=critic_objective,
        temperature=b.NoiseEntropyTemperature(
            action_dim, policy, config.initial_temperature, config.target_entropy_per_dim,
            config.temperature_interval, config.temperature_learning_rate,
        ),
        actor_optimiser=b.Adam(config.actor_learning_rate(config.final_actor_learning_rate)),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        acting_actor="ema",
        critic_steps=config.critic_steps,
        critic_steps_before_actor=1,
    )  # fmt: skip
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("dpmd")
