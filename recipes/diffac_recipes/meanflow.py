"""FPMD-M: a flow policy of one step, its mean velocity regressed on reweighted actions (arXiv 2507.23675)."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffac.backend import get_backend
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of FPMD with mean velocities (MeanFlow); corrected, see docs/results/recipes/meanflow.md."""

    num_diffusion_steps: int = 1
    """K, steps of the sampler; one is what mean velocities are for."""
    equal_fraction: float = 0.25
    """Share of the pairs of times (t, r) with r = t, in which the velocity itself is learnt (0 in FPMD)."""
    num_candidates: int = 32
    """N, actions sampled wherever one is needed, each with its exploration noise; the critic picks the best."""
    value_scale: float = 1 / 3
    """Factor of the value, over its running standard deviation, in the weight's exponent."""
    statistics_rate: float = 0.001
    """Rate of the running standard deviation of the value."""
    critic_steps: int = 1
    """Optimiser steps with each critic gradient, of which one comes before the actor's loss (2 in the official code, a
    bug)."""
    mean_loss: bool = False
    """Mean over action entries, as in the official code, in place of the sum: weakens no gradient, but Adam's eps
    counts action_dim times as much."""
    start_scale: float = 1.0
    """Standard deviation of the flow's start (0.5 in the official code)."""
    final_actor_learning_rate: float = 3e-5
    """The actor's learning rate from three quarters of training on; learning_rate up to a quarter, linear between."""
    noise_scale: float = 0.1
    """Factor of the additive exploration noise; its standard deviation is noise_scale * temperature."""
    initial_temperature: float = 5.0
    """Temperature, of the exploration noise alone, before the first adaptation."""
    target_entropy_per_dim: float = -1.5
    """Entropy of the exploration noise that the temperature steers to, per action dimension, in nats."""
    temperature_learning_rate: float = 7e-3
    """Adam's learning rate for the logarithm of the temperature."""
    temperature_interval: int = 250
    """Updates between two adaptations."""


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""One set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"equal_fraction": 0.0, "start_scale": 0.5, "critic_steps": 2, "mean_loss": True},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 1.0,
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
    actor = b.MeanFlowActor(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin")

    flow = b.MeanFlowSampler(config.num_diffusion_steps, config.start_scale)
    noisy = b.AdditiveNoise(flow, config.noise_scale, config.clip_action)
    proposal = b.PolicyProposal(
        config.statistics_rate, ensemble=config.ensemble, centred=False, value_scale=config.value_scale, tempered=False
    )
    loss = b.MeanFlowMatching(proposal, config.equal_fraction)
    learner = b.Learner(
        sampler=b.BestOf(noisy, config.num_candidates, config.ensemble),
        actor_objective=b.Sum((1 / action_dim, loss)) if config.mean_loss else loss,
        critic_objective=critic_objective,
        temperature=b.NoiseEntropyTemperature(
            action_dim, noisy, config.initial_temperature, config.target_entropy_per_dim,
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

    recipe_main("meanflow")
