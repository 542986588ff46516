"""Optimiser, and one whole update of everything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.noise import Noise, NoiseSpec, Shape
from diffac.parts.coefficients import schedules_of, with_values
from diffac.parts.metrics import columns
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Batch, Metrics, Policy, Rollout, State
from diffac.testing.reference.convert import to_arrays
from diffac.testing.reference.gradients import Array, Gradient, Parameters, scaled, zeros
from diffac.testing.reference.networks import bound
from diffac.testing.reference.temperatures import adam


class AdamState(NamedTuple):
    """Moments by parameter name, and the number of steps done."""

    m: Parameters
    v: Parameters
    count: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Adam:
    """`adam` for all parameters, behind a clip of the gradient's joint norm (Pascanu et al. 2013, arXiv 1211.5063)."""

    learning_rate: float | LinearSchedule = 3e-4
    max_grad_norm: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def init(self, parameters: Parameters) -> AdamState:
        """Zero moments."""
        return AdamState(zeros(parameters), zeros(parameters), np.int32(0))

    def step(self, state: AdamState, parameters: Parameters, gradient: Gradient) -> tuple[Gradient, AdamState, Metrics]:
        """(parameters after the step, new state, {"grad_norm"} before the clip)"""
        norm = math.sqrt(sum(float(np.sum(g**2)) for g in gradient.values()))
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            gradient = scaled(self.max_grad_norm / norm, gradient)
        rate = self.learning_rate
        if isinstance(rate, LinearSchedule):
            rate = float(np.interp(state.count, [rate.begin, rate.end], [rate.initial, rate.final]))
        new, m, v = {}, {}, {}
        for name, g in gradient.items():
            new[name], m[name], v[name], _ = adam(
                self.decayed(parameters[name], rate),
                g,
                state.m[name],
                state.v[name],
                state.count,
                rate,
                self.b1,
                self.b2,
                self.eps,
            )
        return new, AdamState(m, v, np.int32(state.count + 1)), {"grad_norm": np.float64(norm)}

    def decayed(self, parameter: Array, rate: float) -> Array:
        """What the step starts from."""
        return parameter


@dataclasses.dataclass(frozen=True, eq=False)
class AdamW(Adam):
    """Weights decay beside the step (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    weight_decay: float = 0.01

    def decayed(self, parameter: Array, rate: float) -> Array:
        """A bit nearer to zero."""
        return parameter - rate * self.weight_decay * parameter


def polyak(slow: Parameters, fast: Parameters, tau: float) -> Gradient:
    """(1 - tau) slow + tau fast."""
    return {name: (1 - tau) * slow[name] + tau * fast[name] for name in slow}


class LearnerState(NamedTuple):
    """Everything that training changes."""

    actor: Any
    critic: Any
    target_critic: Any
    ema_actor: Any
    """None where no policy has it."""
    actor_optimiser: AdamState
    critic_optimiser: AdamState
    temperature: State
    actor_objective: State
    critic_objective: State
    obs_moments: State
    updates: Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Learner:
    """One update: critic, actor, temperature, slow copies; which critic the actor sees is a number of steps."""

    sampler: Any
    actor_objective: Any
    critic_objective: Any
    temperature: Any
    actor_optimiser: Adam
    critic_optimiser: Adam
    tau: float = 0.005
    actor_delay: int = 2
    reward_scale: float = 1.0
    acting_actor: str = "online"
    target_sampler: Any = None
    target_actor: str = "online"
    target_ranking: str = "online"
    evaluation_sampler: Any = None
    evaluation_ranking: str = "online"
    first_actor_update: int = 0
    critic_steps: int = 1
    critic_steps_before_actor: int = 0
    obs_normaliser: Any = None

    @property
    def learner(self) -> Learner:
        """Itself: it is its own engine."""
        return self

    @property
    def of_target(self) -> Any:
        """The sampler of the critic's target."""
        return self.target_sampler or self.sampler

    @property
    def has_ema(self) -> bool:
        """Whether the actor has a slow copy."""
        return "ema" in (self.acting_actor, self.target_actor)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Of one step."""
        return {
            "next_action": self.of_target.noise_spec(shape),
            "critic": self.critic_objective.noise_spec(shape),
            "actor": self.actor_objective.noise_spec(shape),
            "temperature": self.temperature.noise_spec(shape),
        }

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The state before the first update."""
        return LearnerState(
            actor=actor,
            critic=critic,
            target_critic=critic,
            ema_actor=actor if self.has_ema else None,
            actor_optimiser=self.actor_optimiser.init(actor.parameters),
            critic_optimiser=self.critic_optimiser.init(critic.parameters),
            temperature=self.temperature.init_state(),
            actor_objective=self.actor_objective.init_state(),
            critic_objective=self.critic_objective.init_state(critic),
            obs_moments={} if self.obs_normaliser is None else self.obs_normaliser.init_state(),
            updates=np.int32(0),
        )

    def set_obs_moments(self, state: LearnerState, moments: State) -> LearnerState:
        """The state with other moments of observations."""
        return state._replace(obs_moments={name: np.array(array) for name, array in moments.items()})

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, Metrics]:
        """The new state, and the metrics of the parts that were due."""
        old, now = state, float(state.updates)
        self = with_values(
            self,
            {
                path: float(np.interp(now, [s.begin, s.end], [s.initial, s.final]))
                for path, s in schedules_of(self).items()
            },
        )
        temperature = self.temperature.value(old.temperature)
        if self.obs_normaliser is not None:
            obs, next_obs = (self.obs_normaliser(x, old.obs_moments) for x in (batch.obs, batch.next_obs))
            batch = batch._replace(obs=obs, next_obs=next_obs)
        target_actor = old.ema_actor if self.target_actor == "ema" else old.actor
        ranking = old.target_critic if self.target_ranking == "target" else old.critic
        rollout, _ = self.of_target.rollout(
            Policy(target_actor, ranking, temperature), batch.next_obs, noise["next_action"]
        )
        batch = batch._replace(
            reward=self.reward_scale * batch.reward, next_rollout=Rollout(rollout.action, log_prob=rollout.log_prob)
        )
        metrics: dict[str, Any] = {"temperature": temperature}

        loss, gradient = self.critic_objective(
            *(old.critic, old.target_critic, batch, noise.get("critic", {}), temperature, old.critic_objective)
        )
        state, critics = state._replace(critic_objective=loss.state), [old.critic]
        for _ in range(self.critic_steps):
            parameters, moments, optimiser_metrics = self.critic_optimiser.step(
                state.critic_optimiser, state.critic.parameters, gradient
            )
            state = state._replace(critic=bound(old.critic, parameters), critic_optimiser=moments)
            critics.append(state.critic)
        seen = critics[self.critic_steps_before_actor]
        checked = {**optimiser_metrics, "nonfinite": nonfinite(loss.value, *gradient.values())}
        metrics |= {"critic_loss": loss.value, **prefixed("critic", {**checked, **loss.metrics})}

        actor_is_due, log_prob = old.updates % self.actor_delay == self.first_actor_update, None
        if actor_is_due:
            loss, gradient = self.actor_objective(
                *(old.actor, seen, batch, noise["actor"], temperature, old.actor_objective)
            )
            parameters, moments, optimiser_metrics = self.actor_optimiser.step(
                old.actor_optimiser, old.actor.parameters, gradient
            )
            state = state._replace(
                actor=bound(old.actor, parameters), actor_optimiser=moments, actor_objective=loss.state
            )
            checked = {**optimiser_metrics, "nonfinite": nonfinite(loss.value, *gradient.values())}
            metrics |= {"actor_loss": loss.value, **prefixed("actor", {**checked, **loss.metrics})}
            log_prob = loss.log_prob
        elif hasattr(self.actor_objective, "track"):
            state = state._replace(actor_objective=self.actor_objective.track(seen, batch, old.actor_objective))

        state = state._replace(updates=np.int32(old.updates + 1))
        if self.temperature.interval and old.updates % self.temperature.interval == 0:
            if self.first_actor_update or self.temperature.interval % self.actor_delay:
                log_prob = None  # not in every step of this rule, so in none
            adapted, rule_metrics = self.temperature.update(
                old.temperature, Policy(old.actor, seen, temperature), batch.obs, noise.get("temperature", {}), log_prob
            )
            state = state._replace(temperature=adapted)
            metrics |= prefixed("temperature", rule_metrics)

        if actor_is_due:
            state = state._replace(target_critic=self.follow(old.target_critic, state.critic))
            if self.has_ema:
                state = state._replace(ema_actor=self.follow(old.ema_actor, state.actor))
        return state, metrics

    def act(self, state: LearnerState, obs: Array, noise: Noise, *, deterministic: bool = False) -> Array:
        """What the policy does, or does in evaluations, at observations as the environment gives them."""
        actor = state.ema_actor if self.acting_actor == "ema" else state.actor
        sampler, critic = self.sampler, state.critic
        if deterministic:
            sampler = self.evaluation_sampler or sampler
            critic = state.target_critic if self.evaluation_ranking == "target" else critic
        if self.obs_normaliser is not None:
            obs = self.obs_normaliser(obs, state.obs_moments)
        return sampler.rollout(Policy(actor, critic, self.temperature.value(state.temperature)), obs, noise)[0].action

    def measure(self, state: LearnerState) -> Metrics:
        """Norms of the parameters; whether any number is not finite."""
        norms = {
            f"{name}_param_norm": np.float64(math.sqrt(sum(float(np.sum(x**2)) for x in network.parameters.values())))
            for name, network in {"actor": state.actor, "critic": state.critic}.items()
        }
        return {**norms, "state_nonfinite": nonfinite(*to_arrays(state).values())}

    def fetch(self, metrics: Sequence[Metrics]) -> dict[str, Array]:
        """A column for each name."""
        return columns(metrics)

    def follow(self, slow: Any, fast: Any) -> Any:
        """The slow copy, a bit nearer to its original."""
        return bound(slow, polyak(slow.parameters, fast.parameters, self.tau))


def nonfinite(*arrays: Any) -> np.float64:
    """1 if any number is NaN or infinite, else 0."""
    return np.float64(not all(np.isfinite(array).all() for array in arrays))


def prefixed(prefix: str, metrics: Metrics) -> dict[str, Any]:
    """The metrics of a part under its name."""
    return {f"{prefix}_{name}": number for name, number in metrics.items()}
