"""The learner: everything that happens in one update, put together from parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from diffac.errors import UsageError
from diffac.noise import Noise, NoiseSpec, Shape
from diffac.parts.contracts import check_actor
from diffac.parts.declaration import Count, Part, PositiveCoefficient, RateCoefficient, Whole, declared, part_of
from diffac.protocols import (
    ActorObjective,
    Array,
    Batch,
    CriticObjective,
    Metrics,
    ObsNormaliser,
    Optimiser,
    Policy,
    Sampler,
    State,
    Temperature,
)

__all__ = ["Learner"]

Copy = Literal["online", "ema"]
"""Which copy of the actor: the one that is trained, or its exponential moving average."""

CriticCopy = Literal["online", "target"]
"""Which copy of the critic: the one that is trained, or the slow one in its own target."""

OptimiserLike = Annotated[Any, part_of(Optimiser)]
"""An `Optimiser`, or what the framework calls one."""


@declared(kw_only=True)
class Learner(Part):
    """Everything that happens in one update; holds no parameters.

    Update number u, counted from 0 over the whole training:

    1. The reward is scaled and observations are normalised; the target's sampler draws the next actions with its copy
       of the actor.
    2. Critic loss and gradient; `critic_steps_before_actor` optimiser steps of the critic.
    3. If u is first_actor_update or a multiple of actor_delay later: actor loss and gradient, with the critic as it is
       now. They are not computed otherwise; a `TrackingObjective` still sees the batch.
    4. If u is a multiple of the temperature's interval: its step, with the actor as it is now and the log-probabilities
       of the actor's loss.
    5. Optimiser step of the actor, and those of the critic that are left.
    6. If the actor was updated: target critic and slow actor move by tau towards their originals.

    What of a network is not trained is kept, saved, moved between backends, and stays as it is: in torch buffers and
    parameters without `requires_grad`, in Equinox whole numbers and what is in a `diffac_equinox.Frozen`. In step 6 the
    slow copies take it over, and do not average it: a mean of two permutations or masks is none, and statistics of
    observations belong to the weights that have seen them.

    Networks run in evaluation mode everywhere, in losses too; `init` switches it on. Dropout would draw numbers that
    are not part of the noise, so no update could be repeated, and statistics of batches would change a network in a
    call that returns only its output.

    Metrics: critic_loss, actor_loss, temperature, critic_grad_norm, actor_grad_norm, critic_nonfinite and
    actor_nonfinite (1 if loss or gradient is NaN or infinite, else 0), and those of the parts with the prefix critic_,
    actor_ or temperature_. Those of a part that was not due are NaN in Equinox and absent in torch; an engine gives the
    same names in every update.

    Args:
        sampler: draws actions, for acting and, unless others are given, for the critic's target and evaluations.
        actor_objective: loss of the actor.
        critic_objective: loss of the critic.
        temperature: the entropy coefficient and its rule.
        actor_optimiser: of the actor: `Adam`, `AdamW`, or one of the framework as it is, in torch a class of
            `torch.optim` or a function from parameters to one of its objects, in Equinox a transformation of optax.
        critic_optimiser: of the critic, likewise.
        tau: rate of the slow copies, in (0, 1]; may be a schedule over updates.
        actor_delay: updates of the critic for one of the actor.
        reward_scale: factor of the reward, applied here and nowhere else; may be a schedule over updates.
        acting_actor: which copy of the actor acts, the "online" one or its exponential moving average, "ema".
        target_sampler: draws the actions of the critic's target; None: as `sampler`.
        target_actor: which copy of the actor it draws them with.
        target_ranking: which copy of the critic ranks candidates there (`BestOf`), "online" or "target".
        evaluation_sampler: draws actions where one acts `deterministic`: in evaluations, in `Agent.predict` unless it
            is told otherwise, in exported policies; None: as `sampler`. Either is without exploration noise there.
        evaluation_ranking: which copy of the critic ranks candidates there.
        first_actor_update: the update in which the actor first moves, below actor_delay; then every actor_delay-th.
        critic_steps: optimiser steps with one critic gradient; 1, except to reproduce the official DPMD code (2).
        critic_steps_before_actor: how many of them come before the actor's loss, in 0..critic_steps. 0: the actor sees
            the critic of the update before, as in the codes of DACER and SDAC; 1: the new one, as in SAC (arXiv
            1812.05905, algorithm 1) and DPMD.
        obs_normaliser: what the networks see of observations; None: as they are. Its moments are in the state; whoever
            steps environments sets them (`Engine.set_obs_moments`), nothing trains them.

    Raises:
        UsageError: a number is out of range.
    """

    sampler: Sampler
    actor_objective: ActorObjective
    critic_objective: CriticObjective
    temperature: Temperature
    actor_optimiser: OptimiserLike
    critic_optimiser: OptimiserLike
    tau: RateCoefficient = 0.005
    actor_delay: Count = 2
    reward_scale: PositiveCoefficient = 1.0
    acting_actor: Copy = "online"
    target_sampler: Sampler | None = None
    target_actor: Copy = "online"
    target_ranking: CriticCopy = "online"
    evaluation_sampler: Sampler | None = None
    evaluation_ranking: CriticCopy = "online"
    first_actor_update: Whole = 0
    critic_steps: Count = 1
    critic_steps_before_actor: Whole = 0
    obs_normaliser: ObsNormaliser | None = None

    def check(self) -> None:
        """As every part's, and what must hold between the numbers."""
        for name in ("actor_optimiser", "critic_optimiser"):
            object.__setattr__(self, name, self._as_optimiser(getattr(self, name)))
        super().check()
        if self.critic_steps_before_actor > self.critic_steps:
            raise UsageError(
                f"critic_steps_before_actor must be at most {self.critic_steps}, the critic_steps, got "
                f"{self.critic_steps_before_actor!r}"
            )
        if self.first_actor_update >= self.actor_delay:
            raise UsageError(
                f"first_actor_update must be less than {self.actor_delay}, the actor_delay, got "
                f"{self.first_actor_update!r}"
            )

    def check_actor(self, actor: Any) -> None:
        """Refuses an actor that one of the parts could not call.

        Raises:
            UsageError: it takes other arguments.
        """
        for part in self.parts():
            check_actor(part, actor)

    @staticmethod
    def _as_optimiser(given: Any) -> Any:
        """An `Optimiser` of what a framework calls one."""
        return given

    @property
    def of_target(self) -> Sampler:
        """What draws the actions of the critic's target."""
        return self.sampler if self.target_sampler is None else self.target_sampler

    def acting(self, deterministic: bool) -> Sampler:
        """What acts; deterministic: in evaluations."""
        return self.evaluation_sampler if deterministic and self.evaluation_sampler is not None else self.sampler

    @property
    def evaluates_apart(self) -> bool:
        """Whether the sampler or the critic of evaluations is another one than that of acting."""
        return self.evaluation_sampler is not None or self.evaluation_ranking != "online"

    @property
    def has_ema(self) -> bool:
        """Whether a policy has the moving average of the actor."""
        return "ema" in (self.acting_actor, self.target_actor)

    @property
    def temperature_sees_log_prob(self) -> bool:
        """Whether every step of the temperature's rule falls into an update of the actor."""
        return self.first_actor_update == 0 and self.temperature.interval % self.actor_delay == 0

    def seen(self, obs: Array, moments: State) -> Array:
        """What the networks see of observations [*batch obs_dim]; moments: those of the state."""
        return obs if self.obs_normaliser is None else self.obs_normaliser(obs, moments)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise of one `step` for actions (batch, action_dim): "next_action", "critic", "actor", "temperature"."""
        return {
            "next_action": self.of_target.noise_spec(shape),
            "critic": self.critic_objective.noise_spec(shape),
            "actor": self.actor_objective.noise_spec(shape),
            "temperature": self.temperature.noise_spec(shape),
        }

    def init(self, actor: Any, critic: Any) -> Any:
        """The state before the first update; takes ownership of both networks.

        Raises:
            UsageError: actor or critic is no network of the backend with parameters, or a part cannot call the actor.
        """
        raise NotImplementedError

    def policy(self, state: Any, *, deterministic: bool = False) -> Policy:
        """What acts: the copy of the actor that does, the critic that ranks its candidates, and the temperature.

        Args:
            state: the learner's.
            deterministic: in evaluations.
        """
        raise NotImplementedError

    def step(self, state: Any, batch: Batch, noise: Noise) -> tuple[Any, Metrics]:
        """One update. It consumes the state it is given, and returns the next and the metrics.

        Args:
            state: is consumed: torch changes it in place.
            batch: arrays of the backend with one batch axis, floats of the parameters' type.
            noise: as `noise_spec` says; an entry is read only where its part is due.
        """
        raise NotImplementedError
