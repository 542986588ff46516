"""One update of actor, critic, temperature and slow copies, put together from parts that `diffac.parts` declares."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from diffac.noise import Noise
from diffac.parts import learner as declared
from diffac.parts.outputs import checked_metrics, checked_state, of_loss, prefixed
from diffac.protocols import Array, Batch, Metrics, Policy, Rollout
from diffac_equinox.gradients import loss_and_gradient, without_gradient
from diffac_equinox.kernels.branches import is_multiple, run_if
from diffac_equinox.parameters import in_evaluation_mode, parameter_dtype, towards
from diffac_equinox.parts.coefficients import at_update
from diffac_equinox.parts.optimisers import as_optimiser
from diffac_equinox.state import LearnerState, first_state, written

Tree = TypeVar("Tree")


class Learner(eqx.Module, declared.Learner):
    _as_optimiser = staticmethod(as_optimiser)

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The state before the first update. It holds copies: the networks given stay valid."""
        dtype, critic_dtype = parameter_dtype("actor", actor), parameter_dtype("critic", critic)
        self.check_actor(actor)
        actor, critic = in_evaluation_mode(actor), in_evaluation_mode(critic)
        state = LearnerState(
            actor=actor,
            critic=critic,
            target_critic=critic,
            ema_actor=actor if self.has_ema else None,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            temperature=first_state(self.temperature, dtype),
            actor_objective=first_state(self.actor_objective, dtype),
            critic_objective=first_state(self.critic_objective, critic_dtype, critic),
            obs_moments={} if self.obs_normaliser is None else first_state(self.obs_normaliser, dtype),
            updates=jnp.zeros((), jnp.int32),
        )
        # Every leaf gets an array of its own: who consumes the state may use its memory for the next one.
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, state)

    def policy(self, state: LearnerState, *, deterministic: bool = False) -> Policy:
        """What acts: the copy of the actor that does, the critic that ranks its candidates, and the temperature."""
        ranking = _critic(self.evaluation_ranking if deterministic else "online", state)
        return Policy(self._copy(self.acting_actor, state), ranking, self.temperature.value(state.temperature))

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, Metrics]:
        """One update; metrics of parts that are not due are NaN."""
        self = at_update(self, state.updates, batch.reward.dtype)
        temperature = without_gradient(self.temperature.value(state.temperature), batch.reward)
        target_policy = Policy(self._copy(self.target_actor, state), _critic(self.target_ranking, state), temperature)
        batch = batch._replace(
            reward=self.reward_scale * batch.reward,
            obs=self.seen(batch.obs, state.obs_moments),
            next_obs=self.seen(batch.next_obs, state.obs_moments),
        )
        rollout = self.of_target.rollout(target_policy, batch.next_obs, noise.get("next_action", {}))
        batch = batch._replace(next_rollout=Rollout(rollout.action, log_prob=rollout.log_prob))
        loss, gradient = loss_and_gradient(
            self.critic_objective,
            state.critic,
            state.target_critic,
            batch,
            noise.get("critic", {}),
            temperature,
            state.critic_objective,
        )
        critics, critic_optimiser = [state.critic], state.critic_optimiser
        for _ in range(self.critic_steps):
            critic, critic_optimiser, of_step = self.critic_optimiser.step(critic_optimiser, critics[-1], gradient)
            critics.append(critic)
        seen = critics[self.critic_steps_before_actor]
        metrics = {"temperature": temperature, **of_loss("critic", loss), **_of_step("critic", loss.value, of_step)}
        update, actor_before = state.updates, state.actor
        state = dataclasses.replace(
            state,
            critic=critics[-1],
            critic_optimiser=critic_optimiser,
            critic_objective=written(state.critic_objective, loss.state),
            updates=update + 1,
        )

        def update_actor(state: LearnerState) -> tuple[LearnerState, tuple[Metrics, Array | None]]:
            loss, gradient = loss_and_gradient(
                self.actor_objective,
                state.actor,
                seen,
                batch,
                noise.get("actor", {}),
                temperature,
                state.actor_objective,
            )
            actor, actor_optimiser, of_step = self.actor_optimiser.step(state.actor_optimiser, state.actor, gradient)
            state = dataclasses.replace(
                state,
                actor=actor,
                actor_optimiser=actor_optimiser,
                actor_objective=written(state.actor_objective, loss.state),
                target_critic=towards(state.target_critic, state.critic, self.tau),
                ema_actor=towards(state.ema_actor, actor, self.tau) if self.has_ema else None,
            )
            return state, ({**of_loss("actor", loss), **_of_step("actor", loss.value, of_step)}, loss.log_prob)

        def leave_actor(state: LearnerState) -> LearnerState:
            if (track := getattr(self.actor_objective, "track", None)) is None:  # no TrackingObjective
                return state
            new = track(seen, batch, state.actor_objective)
            new = checked_state(self.actor_objective, new, state.actor_objective, without_gradient)
            return dataclasses.replace(state, actor_objective=new)

        actor_is_due = is_multiple(update - self.first_actor_update, self.actor_delay)
        state, (of_actor, log_prob) = run_if(actor_is_due, update_actor, leave_actor, state)

        def update_temperature(state: LearnerState) -> tuple[LearnerState, Metrics]:
            new, of_rule = self.temperature.update(
                state.temperature,
                Policy(actor_before, seen, temperature),
                batch.obs,
                noise.get("temperature", {}),
                log_prob if self.temperature_sees_log_prob else None,
            )
            new = checked_state(self.temperature, new, state.temperature, without_gradient)
            of_rule = checked_metrics(self.temperature, of_rule, temperature, without_gradient)
            return dataclasses.replace(state, temperature=new), prefixed("temperature", of_rule)

        of_rule: Metrics = {}
        if self.temperature.interval:
            is_due = is_multiple(update, self.temperature.interval)
            state, of_rule = run_if(is_due, update_temperature, lambda state: state, state)
        return state, {**metrics, **of_actor, **of_rule}

    def _copy(self, which: declared.Copy, state: LearnerState) -> Any:
        return state.ema_actor if which == "ema" else state.actor


def _critic(which: declared.CriticCopy, state: LearnerState) -> Any:
    return state.target_critic if which == "target" else state.critic


def _of_step(network: str, loss: Array, step_metrics: Metrics) -> dict[str, Array]:
    """What is logged of an optimiser's step, and whether loss or gradient was NaN or infinite."""
    finite = jnp.isfinite(loss + step_metrics["grad_norm"])
    return prefixed(network, {**step_metrics, "nonfinite": (~finite).astype(loss.dtype)})
