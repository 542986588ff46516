"""SDAC: score matching, reweighted by the value of reverse samples of noisy actions (arXiv 2502.00361)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from diffac.backend import get_backend
from diffac.parts.schedules import cosine_schedule, linear_beta_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of SDAC; corrected where the official code clips, its loss does not (docs/results/recipes/sdac.md)."""

    num_diffusion_steps: int = 20
    """T, the number of denoising steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule: linear with scale 0.8 (official code) or cosine."""
    num_candidates: int = 32
    """N, actions sampled wherever one is needed; the critic picks the best."""
    num_particles: int = 64
    """K, reverse samples for each noisy action in the actor loss."""
    truncated: bool = True
    """Draw reverse samples from the normal law truncated to the action box; False: clip them and keep their noise."""
    start_scale: float = 1.0
    """Standard deviation of the chain's start (0.5 in the official code)."""
    mean_loss: bool = False
    """Mean over reverse samples and action entries, as in the official code, in place of the sum: weakens no gradient,
    but Adam's eps counts num_particles * action_dim times as much."""
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
"""SDAC uses one set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "camera_ready": {
        "start_scale": 0.5,
        "clip_action": False,
        "truncated": False,
        "mean_loss": True,
        "total_timesteps": 1_030_000,  # the official 1,000,000 do not count the random ones: 200,000 updates
        "eval_episodes": 20,
    },
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
    best = b.BestOf(b.DDPMSampler(schedule, config.start_scale), config.num_candidates, config.ensemble)
    policy = b.AdditiveNoise(best, config.noise_scale, config.clip_action)
    proposal = b.ReverseProposal(
        policy, config.num_particles, 1 / config.reward_scale, config.truncated, config.ensemble
    )
    loss = b.ReweightedScoreMatching(schedule, proposal)
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.Sum((1 / (config.num_particles * action_dim), loss)) if config.mean_loss else loss,
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

    recipe_main("sdac")
