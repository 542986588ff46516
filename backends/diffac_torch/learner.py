"""One update of actor, critic, temperature and slow copies, put together from parts that `diffac.parts` declares."""

import copy
from typing import Any

import torch
from torch import Tensor

from diffac.noise import Noise
from diffac.parts import learner as declared
from diffac.parts.outputs import checked_metrics, checked_state, of_loss, prefixed
from diffac.protocols import Batch, Metrics, Policy
from diffac_torch.gradients import critic_loss_and_gradient, loss_and_gradient, without_gradient
from diffac_torch.parameters import first_parameters, in_evaluation_mode, towards
from diffac_torch.parts.coefficients import at_update
from diffac_torch.parts.optimisers import as_optimiser
from diffac_torch.state import LearnerState, first_state, written


class Learner(declared.Learner):
    _as_optimiser = staticmethod(as_optimiser)

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The state before the first update; takes ownership of both networks."""
        parameter, critic_parameter = first_parameters(actor, critic)
        self.check_actor(actor)
        actor, critic = in_evaluation_mode(actor), in_evaluation_mode(critic)
        return LearnerState(
            actor=actor,
            critic=critic,
            target_critic=copy.deepcopy(critic).requires_grad_(False),
            ema_actor=copy.deepcopy(actor).requires_grad_(False) if self.has_ema else None,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            temperature=first_state(self.temperature, parameter),
            actor_objective=first_state(self.actor_objective, parameter),
            critic_objective=first_state(self.critic_objective, critic_parameter, critic),
            obs_moments={} if self.obs_normaliser is None else first_state(self.obs_normaliser, parameter),
            updates=0,
        )

    def policy(self, state: LearnerState, *, deterministic: bool = False) -> Policy:
        """What acts: the copy of the actor that does, the critic that ranks its candidates, and the temperature."""
        ranking = _critic(self.evaluation_ranking if deterministic else "online", state)
        return Policy(self._copy(self.acting_actor, state), ranking, self.temperature.value(state.temperature))

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, Metrics]:
        """One update, in place."""
        self = at_update(self, state.updates, batch.reward)
        temperature = without_gradient(self.temperature.value(state.temperature), batch.reward)
        batch = batch._replace(
            reward=self.reward_scale * batch.reward,
            obs=self.seen(batch.obs, state.obs_moments),
            next_obs=self.seen(batch.next_obs, state.obs_moments),
        )

        (loss, next_rollout), critic_gradient = critic_loss_and_gradient(
            self.of_target,
            self.critic_objective,
            Policy(self._copy(self.target_actor, state), _critic(self.target_ranking, state), temperature),
            state.critic,
            state.target_critic,
            batch,
            noise.get("next_action", {}),
            noise.get("critic", {}),
            state.critic_objective,
        )
        state.critic_objective, critic_loss = written(state.critic_objective, loss.state), loss.value
        batch = batch._replace(next_rollout=next_rollout)
        metrics = {"temperature": temperature, **of_loss("critic", loss)}

        def step_critic(times: int) -> None:
            for _ in range(times):
                stepped = self.critic_optimiser.step(state.critic_optimiser, state.critic, critic_gradient)
                state.critic, state.critic_optimiser, of_step = stepped
                metrics.update(_of_step("critic", critic_loss, of_step))

        step_critic(self.critic_steps_before_actor)
        actor_is_due = state.updates % self.actor_delay == self.first_actor_update
        if actor_is_due:
            loss, actor_gradient = loss_and_gradient(
                self.actor_objective,
                state.actor,
                state.critic,
                batch,
                noise.get("actor", {}),
                temperature,
                state.actor_objective,
            )
            state.actor_objective = written(state.actor_objective, loss.state)
        elif (track := getattr(self.actor_objective, "track", None)) is not None:  # a TrackingObjective
            with torch.no_grad():
                new = track(state.critic, batch, state.actor_objective)
            state.actor_objective = checked_state(self.actor_objective, new, state.actor_objective, without_gradient)

        if self.temperature.interval and state.updates % self.temperature.interval == 0:
            new, of_rule = self.temperature.update(
                state.temperature,
                Policy(state.actor, state.critic, temperature),
                batch.obs,
                noise.get("temperature", {}),
                loss.log_prob if self.temperature_sees_log_prob else None,
            )
            state.temperature = checked_state(self.temperature, new, state.temperature, without_gradient)
            of_rule = checked_metrics(self.temperature, of_rule, temperature, without_gradient)
            metrics |= prefixed("temperature", of_rule)

        if actor_is_due:
            stepped = self.actor_optimiser.step(state.actor_optimiser, state.actor, actor_gradient)
            state.actor, state.actor_optimiser, of_step = stepped
            metrics |= {**of_loss("actor", loss), **_of_step("actor", loss.value, of_step)}
        step_critic(self.critic_steps - self.critic_steps_before_actor)

        state.updates += 1
        if actor_is_due:
            towards(state.target_critic, state.critic, self.tau)
            if state.ema_actor is not None:
                towards(state.ema_actor, state.actor, self.tau)
        return state, metrics

    def _copy(self, which: declared.Copy, state: LearnerState) -> Any:
        return state.ema_actor if which == "ema" else state.actor


def _critic(which: declared.CriticCopy, state: LearnerState) -> Any:
    return state.target_critic if which == "target" else state.critic


def _of_step(network: str, loss: Tensor, step_metrics: Metrics) -> dict[str, Tensor]:
    """What is logged of an optimiser's step, and whether loss or gradient was NaN or infinite."""
    finite = (loss + step_metrics["grad_norm"]).isfinite()
    return prefixed(network, {**step_metrics, "nonfinite": finite.logical_not().to(loss.dtype)})
