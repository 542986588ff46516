"""One update of actor, critic, temperature and slow copies, put together from parts that `diffac.parts` declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from diffac.noise import Noise
from diffac.parts import learner as declared
from diffac.parts.outputs import checked_metrics, checked_state, initial_state
from diffac.protocols import Array, Batch, Loss, Metrics, Policy, Rollout, State, TrackingObjective
from diffac_equinox.gradients import loss_and_gradient, without_gradient
from diffac_equinox.parameters import divided, in_evaluation_mode, parameter_dtype
from diffac_equinox.parts.coefficients import at_update
from diffac_equinox.parts.optimisers import as_optimiser

Tree = TypeVar("Tree")


class LearnerState(eqx.Module):
    """Everything that training changes; `Learner.step` returns the next one."""

    actor: Any
    critic: Any
    target_critic: Any
    ema_actor: Any
    """None where no copy of the learner's policies is "ema"."""
    actor_optimiser: Any
    critic_optimiser: Any
    temperature: State
    actor_objective: State
    critic_objective: State
    obs_moments: State
    """Of all observations so far; {} without a normaliser."""
    updates: Array
    """Number of updates done, int32."""


class Learner(eqx.Module, declared.Learner):
    _as_optimiser = staticmethod(as_optimiser)

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The state before the first update. It holds copies: the networks given stay valid."""
        dtype, critic_dtype = parameter_dtype("actor", actor), parameter_dtype("critic", critic)
        actor, critic = in_evaluation_mode(actor), in_evaluation_mode(critic)
        state = LearnerState(
            actor=actor,
            critic=critic,
            target_critic=critic,
            ema_actor=actor if self.has_ema else None,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            temperature=_first_state(self.temperature, dtype),
            actor_objective=_first_state(self.actor_objective, dtype),
            critic_objective=_first_state(self.critic_objective, critic_dtype, critic),
            obs_moments={} if self.obs_normaliser is None else _first_state(self.obs_normaliser, dtype),
            updates=jnp.zeros((), jnp.int32),
        )
        # Every leaf gets an array of its own: who consumes the state may use its memory for the next one.
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, state)

    def policy(self, state: LearnerState) -> Policy:
        """What `sampler` acts with: the copy of the actor that acts, the critic, and the temperature."""
        return Policy(self._copy(self.acting_actor, state), state.critic, self.temperature.value(state.temperature))

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, Metrics]:
        """One update; metrics of parts that are not due are NaN."""
        self = at_update(self, state.updates, batch.reward.dtype)
        temperature = without_gradient(self.temperature.value(state.temperature), batch.reward)
        target_policy = Policy(self._copy(self.target_actor, state), state.critic, temperature)
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
        metrics = {"temperature": temperature, **_of_loss("critic", loss), **_of_step("critic", loss.value, of_step)}
        update, actor_before = state.updates, state.actor
        state = dataclasses.replace(
            state,
            critic=critics[-1],
            critic_optimiser=critic_optimiser,
            critic_objective=loss.state,
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
                actor_objective=loss.state,
                target_critic=_towards(state.target_critic, state.critic, self.tau),
                ema_actor=_towards(state.ema_actor, actor, self.tau) if self.has_ema else None,
            )
            return state, ({**_of_loss("actor", loss), **_of_step("actor", loss.value, of_step)}, loss.log_prob)

        def leave_actor(state: LearnerState) -> LearnerState:
            if not isinstance(self.actor_objective, TrackingObjective):
                return state
            new = self.actor_objective.track(seen, batch, state.actor_objective)
            new = checked_state(self.actor_objective, new, state.actor_objective, without_gradient)
            return dataclasses.replace(state, actor_objective=new)

        actor_is_due = _is_multiple(update - self.first_actor_update, self.actor_delay)
        state, (of_actor, log_prob) = _run_if(actor_is_due, update_actor, leave_actor, state)

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
            return dataclasses.replace(state, temperature=new), _prefixed("temperature", of_rule)

        of_rule: Metrics = {}
        if self.temperature.interval:
            is_due = _is_multiple(update, self.temperature.interval)
            state, of_rule = _run_if(is_due, update_temperature, lambda state: state, state)
        return state, {**metrics, **of_actor, **of_rule}

    def _copy(self, which: declared.Copy, state: LearnerState) -> Any:
        return state.ema_actor if which == "ema" else state.actor


def _is_multiple(number: Array, of: int) -> Array | bool:
    """Known beforehand for 1: then there is no branch."""
    return of == 1 or number % of == 0


def _run_if(
    due: Array | bool,
    part: Callable[[LearnerState], tuple[LearnerState, Tree]],
    otherwise: Callable[[LearnerState], LearnerState],
    state: LearnerState,
) -> tuple[LearnerState, Tree]:
    """part(state) where it is due; else otherwise(state) and NaN for what the part returns beside the state."""
    if due is True:
        return part(state)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def run(dynamic: Any) -> tuple[Any, Tree]:
        new, results = part(eqx.combine(dynamic, static))
        return eqx.filter(new, eqx.is_array), results

    def skip(dynamic: Any) -> tuple[Any, Tree]:
        _, results = jax.eval_shape(run, dynamic)
        new = otherwise(eqx.combine(dynamic, static))
        return eqx.filter(new, eqx.is_array), jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), results)

    dynamic, results = jax.lax.cond(due, run, skip, dynamic)
    return eqx.combine(dynamic, static), results


def _towards(slow: Tree, fast: Tree, tau: Array | float) -> Tree:
    """(1 - tau) slow + tau fast for every parameter that is trained; that of `fast` for all else."""
    trained, rest = divided(fast)
    return eqx.combine(jax.tree.map(lambda s, f: (1 - tau) * s + tau * f, divided(slow)[0], trained), rest)


def _of_loss(network: str, loss: Loss) -> dict[str, Array]:
    """What is logged of a network's loss."""
    return {f"{network}_loss": loss.value, **_prefixed(network, loss.metrics)}


def _of_step(network: str, loss: Array, step_metrics: Metrics) -> dict[str, Array]:
    """What is logged of an optimiser's step, and whether loss or gradient was NaN or infinite."""
    finite = jnp.isfinite(loss + step_metrics["grad_norm"])
    return _prefixed(network, {**step_metrics, "nonfinite": (~finite).astype(loss.dtype)})


def _prefixed(prefix: str, metrics: Metrics) -> dict[str, Array]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def _first_state(part: Any, dtype: Any, *args: Any) -> State:
    """What a part remembers before the first batch, floats in that type."""
    return initial_state(part, part.init_state(*args), lambda value: cast(jnp.asarray(value), dtype))


def cast(tree: Tree, dtype: Any) -> Tree:
    """Arrays of the device; floating ones get the type."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), tree)
