"""Floating-point operations that one update needs, from the layer shapes: 2 for each multiply-add of a matrix product.

Only what the mathematics needs is counted: no gradient in steps that do not apply it, the observation's and the time's
share of a first layer once for all particles and denoising steps, the denoiser once for each noised action.
Activations, optimisers and random numbers are not counted. Averaged over `actor_delay`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

TIME_DIM = 16
ATOMS = 101


class Network(NamedTuple):
    """An ensemble of multilayer perceptrons of (obs, action, time).

    Counts are of multiply-adds; `rows` are evaluations, `states` different observations and `times` different times
    among them.
    """

    obs: int
    action: int
    hidden: Sequence[int]
    out: int
    time: int = 0
    members: int = 1
    times: int = 1
    """Times that are embedded, each with `time` entries; a mean velocity has two."""

    @property
    def _rest(self) -> int:
        sizes = (*self.hidden, self.out)
        return self.members * sum(a * b for a, b in itertools.pairwise(sizes))

    def _first(self, entries: int) -> int:
        return self.members * entries * self.hidden[0]

    def _shares(self, states: int, times: int) -> int:
        """What does not depend on the action: the shares of obs and time, and the layers before the latter."""
        time_layers = 2 * self.time * self.time * (self.times + 1)
        return states * self._first(self.obs) + times * (self._first(self.time) + time_layers)

    def forward(self, rows: int, states: int, times: int = 0) -> int:
        """Evaluations."""
        return rows * (self._first(self.action) + self._rest) + self._shares(states, times)

    def parameters(self, rows: int, states: int, times: int = 0, *, through: int = 0) -> int:
        """The gradient in the parameters; in `through` of the rows it goes on to the action."""
        weights = self.forward(rows, states, times)
        to_time = times * (self._first(self.time) + 2 * self.time * self.time)
        return weights + rows * self._rest + through * self._first(self.action) + to_time

    def to_action(self, rows: int) -> int:
        """The gradient in the action alone."""
        return rows * (self._rest + self._first(self.action))


def update_flops(learner: Any, config: Any, obs_dim: int, action_dim: int) -> float:
    """Operations of one update of a recipe, from its learner's parts and its configuration."""
    hidden, batch = tuple(config.hidden_sizes), config.batch_size
    outputs = {"GaussianTD": 2, "CategoricalTD": ATOMS}.get(type(learner.critic_objective).__name__, 1)
    critic = Network(obs_dim, action_dim, hidden, outputs, members=2)
    temporal_difference = critic.forward(batch, batch) * 2 + critic.parameters(batch, batch)
    if type(learner.sampler).__name__ == "TanhGaussianSampler":
        return 2 * (temporal_difference + _sac(critic, obs_dim, action_dim, hidden, batch, config.actor_delay))

    mean_flow = type(objective_of(learner)).__name__ == "MeanFlowMatching"
    actor = Network(obs_dim, action_dim, hidden, action_dim, time=TIME_DIM, times=1 + mean_flow)
    steps = config.num_diffusion_steps
    candidates = getattr(config, "num_candidates", None)
    ranking = critic.forward(batch * candidates, batch) if candidates else 0
    sampling = actor.forward(batch * steps * (candidates or 1), batch, steps) + ranking
    objective = objective_of(learner)
    kind = type(objective).__name__
    if mean_flow:  # every row has times of its own, and a derivative along them
        actor_step = actor.forward(batch, batch, batch) + actor.forward(batch, 0, batch)
        actor_step += actor.parameters(batch, batch, batch) + critic.forward(batch, batch)
    elif kind == "ReweightedScoreMatching" and type(objective.proposal).__name__ == "ImprovedReplayProposal":
        ascent = critic.forward(batch, 0) + critic.to_action(batch)
        actor_step = critic.forward(batch, batch) + config.improvement_steps * ascent
        actor_step += actor.forward(batch, batch, steps) + actor.parameters(batch, batch, steps)
    elif kind == "ReweightedScoreMatching" and type(objective.proposal).__name__ == "QWeightedProposal":
        drawn, rows = batch * config.training_candidates, batch * (1 + config.num_uniform)
        actor_step = actor.forward(drawn * steps, batch, steps) + critic.forward(drawn, batch)
        actor_step += actor.forward(rows, batch, steps) + actor.parameters(rows, batch, steps)
    elif kind == "ReweightedScoreMatching":
        times = min(batch, steps)
        regression = actor.forward(batch, batch, times) + actor.parameters(batch, batch, times)
        reverse = type(objective.proposal).__name__ == "ReverseProposal"
        particles = config.num_particles if reverse else 1
        actor_step = (
            regression
            + critic.forward(batch * particles, batch)
            + (sampling if reverse and objective.proposal.source == "policy" else 0)
        )
        if reverse and objective.proposal.uses_gradient:
            actor_step += critic.to_action(batch * particles)
    elif kind == "TimeWeightedQGradient":  # of replayed actions, at all times
        actor_step = actor.forward(0, batch, steps) + critic.forward(0, batch)
        actor_step += q_gradient(actor, critic, batch, steps, steps)
    else:
        chain = batch * steps
        actor_step = actor.forward(chain, batch, steps)
        actor_step += actor.parameters(chain, batch, steps, through=chain - batch)
        actor_step += critic.forward(batch, batch) + critic.to_action(batch)
        if kind == "Sum":
            actor_step += q_gradient(actor, critic, batch, steps, steps)
    target = sampling
    if type(learner.of_target).__name__ == "LogProbability":  # whose observation shares the chain has
        target += actor.forward(batch * steps * learner.of_target.num_noises, 0)
    return 2 * (target + temporal_difference + actor_step / config.actor_delay)


def objective_of(learner: Any) -> Any:
    """The actor's, without a factor."""
    objective = learner.actor_objective
    if type(objective).__name__ == "Sum" and len(objective.terms) == 1:
        ((_, objective),) = objective.terms
    return objective


def q_gradient(actor: Network, critic: Network, batch: int, steps: int, times: int) -> int:
    """DACER2's second term with so many noisy actions for each state; their observation shares exist already."""
    rows = batch * times
    values = critic.forward(rows, 0) + critic.to_action(rows)
    return values + actor.forward(rows, 0) + actor.parameters(rows, batch, steps)


def _sac(critic: Network, obs_dim: int, action_dim: int, hidden: tuple[int, ...], batch: int, delay: int) -> float:
    """Sampling for target and temperature, and the actor's loss and gradient."""
    actor = Network(obs_dim, 0, hidden, 2 * action_dim)
    one = actor.forward(batch, batch)
    actor_step = one + actor.parameters(batch, batch) + critic.forward(batch, batch) + critic.to_action(batch)
    return 2 * one + actor_step / delay
