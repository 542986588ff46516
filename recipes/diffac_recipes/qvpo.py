"""QVPO: the best of the policy's own actions, weighted by their advantage, and uniform ones (arXiv 2405.16173)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffac.backend import get_backend
from diffac.parts.schedules import LinearSchedule, cosine_schedule
from diffac.protocols import Critic, Learner
from diffac.training.config import ActorCriticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of QVPO, see docs/results/recipes/qvpo.md."""

    learning_rate: float = 1e-4
    """Adam's learning rate for the actor."""
    critic_learning_rate: float = 3e-4
    """Adam's learning rate for the critics."""
    adam_eps: float = 1e-5
    """Adam's eps, for both."""
    max_grad_norm: float = 2.0
    """Norm that the gradient of the actor, and of both critics together, is clipped to."""
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
    """T, the number of denoising steps."""
    num_candidates: int = 4
    """Actions sampled where one acts and for the critic's target; the critic picks the best, there the slow one."""
    evaluation_candidates: int = 32
    """The same, where the policy is evaluated or exported."""
    training_candidates: int = 64
    """M, actions sampled for each state that the actor learns from; it learns the best."""
    num_uniform: int = 10
    """Uniform actions for each state that the actor learns from."""
    uniform_weight: float = 0.02
    """Weight of each of them at first, in units of that of the best action."""
    final_uniform_weight: float = 0.002
    """The same from nine tenths of training on, linear between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("uniform_weight", "final_uniform_weight"):
            self._require(name, 0 < getattr(self, name) < math.inf, "must be greater than 0 and finite")


ENV_CONSTANTS: dict[str, dict[str, Any]] = {}
"""One set of numbers for all environments."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "total_timesteps": 28_000,
        "learning_starts": 1_000,
        "num_envs": 4,
        "num_diffusion_steps": 5,
        "training_candidates": 16,
        "hidden_sizes": (128, 128),
        "batch_size": 128,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
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
    critic, critic_objective = config.make_critic(b, obs_dim, action_dim, "twin")

    schedule = cosine_schedule(config.num_diffusion_steps)
    chain = b.DDPMSampler(schedule, start_scale=1.0)
    falling = LinearSchedule(
        config.uniform_weight, config.final_uniform_weight, 0, max(1, config.total_updates * 9 // 10)
    )
    proposal = b.QWeightedProposal(chain, config.training_candidates, config.num_uniform, falling, config.ensemble)
    optimiser = {"max_grad_norm": config.max_grad_norm, "eps": config.adam_eps}
    learner = b.Learner(
        sampler=b.BestOf(chain, config.num_candidates, config.ensemble),
        evaluation_sampler=b.BestOf(chain, config.evaluation_candidates, config.ensemble),
        # a mean over action entries, as in the paper's code: the clip of the gradient sees its size
        actor_objective=b.Sum((1 / action_dim, b.ReweightedScoreMatching(schedule, proposal))),
        critic_objective=critic_objective,
        temperature=b.FixedTemperature(1.0),
        actor_optimiser=b.Adam(config.learning_rate, **optimiser),
        critic_optimiser=b.Adam(config.critic_learning_rate, **optimiser),
        tau=config.tau,
        actor_delay=config.actor_delay,
        reward_scale=config.reward_scale,
        target_actor="ema",
        target_ranking="target",
        critic_steps_before_actor=1,
    )
    return learner, actor, critic


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("qvpo")
