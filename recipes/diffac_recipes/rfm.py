"""RFM: SDAC's score matching with the estimate of least variance, from values and gradients (arXiv 2601.08136)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from diffac.backend import get_backend
from diffac.parts.schedules import cosine_schedule, linear_beta_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of reverse flow matching; the paper's numbers are not known to us (docs/results/recipes/rfm.md)."""

    num_diffusion_steps: int = 20
    """T, the number of denoising steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule: linear with scale 0.8 or cosine."""
    num_candidates: int = 32
    """N, actions sampled wherever one is needed; the critic picks the best."""
    num_particles: int = 64
    """K, reverse samples for each noisy action in the actor loss."""
    outside_std: float | None = 0.2
    """How far outside the action box the policy aimed at reaches; None: to infinity, with Q as at the box's face."""
    statistics_rate: float = 0.01
    """Rate of the moving averages that the weight of the Q-gradient is made of, one pair for each time."""
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
"""One set of numbers for all environments, that of SDAC."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 1.0,
        "num_diffusion_steps": 5,
        "num_candidates": 8,
        "num_particles": 16,
        "hidden_sizes": (128, 128),
        "batch_size": 128,
        "learning_rate": 1e-3,
        "final_actor_learning_rate": 1e-4,
        "tau": 0.01,
        "reward_scale": 1.0,
        "noise_scale": 1.0,
        "initial_temperature": 0.1,
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
    best = b.BestOf(b.DDPMSampler(schedule, start_scale=1.0), config.num_candidates, config.ensemble)
    policy = b.AdditiveNoise(best, config.noise_scale, config.clip_action)
    proposal = b.ReverseProposal(
        policy, config.num_particles, 1 / config.reward_scale, truncated=False, ensemble=config.ensemble,
        gradient_weight="minimum_variance", rate=config.statistics_rate, outside_std=config.outside_std,
    )  # fmt: skip
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.ReweightedScoreMatching(schedule, proposal),
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
    )  # fmt: skip
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("rfm")
