"""MaxEntDP: soft actor-critic with a diffusion policy, whose log-probability is a sum of errors (arXiv 2502.11612)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffac.backend import get_backend
from diffac.parts.schedules import cosine_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of MaxEntDP; see docs/results/recipes/maxentdp.md for where they are not the authors'."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    actor_delay: int = 1
    """Critic updates for each actor update."""
    reward_scale: float = 1.0
    num_envs: int = 1
    """Environments stepped together."""
    learning_starts: int = 10_000
    """Environment steps with uniformly random actions before the first update."""
    updates_per_env_step: float = 1.0
    """Updates for each environment step."""
    num_diffusion_steps: int = 20
    """T, the times of the chain, of the regression, and of the log-probability's sum."""
    num_particles: int = 64
    """K, guesses of the clean action behind each noised one (500 in the official code)."""
    num_noises: int = 10
    """Noises at each time in the log-probability (50 in the official code)."""
    evaluation_candidates: int = 10
    """Chains of which evaluations take the best, by the target critics; 1: as acting."""
    temperature: float = 0.05
    """Entropy coefficient, fixed; what is good depends on the task (ENV_CONSTANTS)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("temperature", 0 < self.temperature < math.inf, "must be greater than 0 and finite")


ENV_CONSTANTS: dict[str, dict[str, Any]] = {
    name: {"temperature": value}
    for name, value in {
        "HalfCheetah": 0.2, "Ant": 0.05, "Humanoid": 0.02, "Walker2d": 0.01, "Hopper": 0.05, "Swimmer": 0.01,
    }.items()
}  # fmt: skip
"""Per-environment values, by prefix of the id (official code)."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"num_particles": 500, "num_noises": 50},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "num_diffusion_steps": 10,
        "num_particles": 32,
        "num_noises": 4,
        "hidden_sizes": (128, 128),
        "batch_size": 128,
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
    actor = b.MLPDenoiser(obs_dim, action_dim, **config.actor_arguments)
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin", soft=True, activation="relu")

    schedule = cosine_schedule(config.num_diffusion_steps, start=0.001, end=0.9946)
    chain = b.DDPMSampler(schedule, variance="forward")
    proposal = b.ReverseProposal(
        chain, config.num_particles, value_scale=1.0, ensemble=config.ensemble, source="replay"
    )
    learner = b.Learner(
        sampler=chain,
        target_sampler=b.LogProbability(chain, schedule, config.num_noises),
        evaluation_sampler=b.BestOf(chain, config.evaluation_candidates, config.ensemble),
        evaluation_ranking="target",
        actor_objective=b.Sum((1 / action_dim, b.ReweightedScoreMatching(schedule, proposal))),
        critic_objective=critic_objective,
        temperature=b.FixedTemperature(config.temperature),
        actor_optimiser=b.Adam(config.learning_rate),
        critic_optimiser=b.Adam(config.learning_rate),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        critic_steps_before_actor=1,
    )
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("maxentdp")
