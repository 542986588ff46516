"""DACER2: the value through a short reverse chain, plus a time-weighted Q-gradient for the score (arXiv 2505.23426)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from diffac.backend import get_backend
from diffac.parts.schedules import vp_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of DACER2. What the paper (no public code) leaves open is a field (docs/results/recipes/dacer2.md)."""

    learning_rate: float = 1e-4
    num_diffusion_steps: int = 5
    """T, the number of denoising steps; the paper's 5 suffice because every step is supervised."""
    eta: float = 0.01
    """Weight of the Q-gradient term beside the value term; the paper uses 1.0 or 0.01, unknown for which task."""
    weight_slope: float = 0.4
    """c in the target's weight w(t) = exp(c t + d)."""
    weight_intercept: float = -1.8
    """d in the target's weight w(t) = exp(c t + d)."""
    time_offset: int = 1
    """Added to t before it is weighted: 1 counts the times 1..T as the paper writes them."""
    target_space: Literal["score", "eps"] = "score"
    """Whether the target is a score or a predicted noise."""
    target_source: Literal["chain", "forward", "replay"] = "chain"
    """Where the noisy actions come from: the policy's own chain, its noised actions, or noised replay actions."""
    contractive_step: float | None = None
    """Ours: size of a step up Q from the predicted action, towards which the score points; None: the paper's target."""
    relative_eta: bool = False
    """Ours: the value term is divided by the mean of |Q|, so that eta means the same on every task."""
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
"""Per-environment values, by prefix of the id (DACER, appendix; DACER2 keeps them)."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "total_timesteps": 30_000_000,
        "num_envs": 20,
        "updates_per_env_step": 0.05,
        "temperature_interval": 10_000,
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
        "noise_scale": 0.1,
    },
    "quick": {
        "total_timesteps": 16_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "updates_per_env_step": 1.0,
        "hidden_sizes": (128, 128),
        "learning_rate": 1e-3,
        "tau": 0.01,
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
    q_gradient = b.TimeWeightedQGradient(
        policy, schedule, slope=config.weight_slope, intercept=config.weight_intercept,
        space=config.target_space, source=config.target_source, time_offset=config.time_offset,
        contractive_step=config.contractive_step, ensemble=config.ensemble,
    )  # fmt: skip
    temperature = b.MixtureEntropyTemperature(
        policy, config.initial_temperature, config.target_entropy_per_dim,
        config.temperature_interval or max(250, config.total_updates // 150), config.temperature_learning_rate,
    )  # fmt: skip
    value = b.ValueThroughSampler(policy, config.relative_eta, config.ensemble)
    learner = b.Learner(
        sampler=policy,
        actor_objective=b.Sum((1.0, value), (config.eta, q_gradient), rollout_of=policy),
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

    recipe_main("dacer2")
