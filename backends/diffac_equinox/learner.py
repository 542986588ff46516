"""One update of actor, critic, temperature and slow copies, assembled from parts and compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.arguments import check_arguments
from diffac.batches import check_batch, check_obs
from diffac.errors import UsageError, check_count
from diffac.metrics import scatter
from diffac.noise import Noise, NoiseSpec, Shape, without_exploration
from diffac.noise import draw as draw_on_host
from diffac.protocols import (
    ActorObjective,
    Array,
    Batch,
    Critic,
    CriticObjective,
    Metrics,
    Policy,
    Rollout,
    Sampler,
    State,
    Temperature,
    TrackingObjective,
)
from diffac.returned import checked_metrics, checked_state, initial_state
from diffac_equinox.convert import check_alive
from diffac_equinox.optimisers import Adam, AdamState, loss_and_gradient, without_gradient
from diffac_equinox.programs import (
    _at_hand,
    _compiler_options,
    _Identity,
    _Kept,
    _PlainMethod,
    _put_together,
    _take_apart,
)
from diffac_equinox.random import draw, key_data, stream

Tree = TypeVar("Tree")

_ENTRIES = ("next_action", "critic", "actor", "temperature")
"""Names of the noise of one step; the position tells the random streams apart."""


_states, _policies = _Kept(), _Kept()
"""By state: all of it, and what acts."""


class PackedMetrics(eqx.Module, Mapping[str, Array]):
    """Metrics in one array: a program with few results starts sooner, and they travel together."""

    names: tuple[str, ...] = eqx.field(static=True)
    numbers: Array
    """[names]"""

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise KeyError(name)
        return self.numbers[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _pack(metrics: Metrics) -> PackedMetrics:
    return PackedMetrics(tuple(metrics), jnp.stack([jnp.asarray(number) for number in metrics.values()]))


class LearnerState(eqx.Module):
    """Everything that training changes. `update` and `step` consume the state they are given and return the next."""

    actor: Any
    critic: Any
    target_critic: Any
    ema_actor: Any
    """None where no copy of the learner's policies is "ema"."""
    actor_optimiser: AdamState
    critic_optimiser: AdamState
    temperature: State
    actor_objective: State
    critic_objective: State
    updates: Array
    """Number of updates done, int32."""


class Learner(eqx.Module):
    """Everything that happens in one update; holds no parameters.

    Update number u, counted from 0 over the whole training:

    1. The reward is scaled; the target's sampler draws the next actions with its copy of the actor.
    2. Critic loss and gradient; `critic_steps_before_actor` optimiser steps of the critic.
    3. If u is first_actor_update or a multiple of actor_delay later: actor loss and gradient, with the critic as it is
       now. They are not computed otherwise; a `TrackingObjective` still sees the batch.
    4. If u is a multiple of the temperature's interval: its step, with the actor as it is now and the log-probabilities
       of the actor's loss.
    5. Optimiser step of the actor, and those of the critic that are left.
    6. If the actor was updated: target critic and slow actor move by tau towards their originals.

    Metrics: critic_loss, actor_loss, temperature, critic_grad_norm, actor_grad_norm, critic_nonfinite and
    actor_nonfinite (1 if loss or gradient is NaN or infinite, else 0), and those of the parts with the prefix critic_,
    actor_ or temperature_; NaN for a part that was not due.

    The first call with new batch shapes compiles; other keys, values or update counts do not.

    Args:
        sampler: draws actions, for acting and, without a target_sampler, for the critic's target.
        actor_objective: loss of the actor.
        critic_objective: loss of the critic.
        temperature: the entropy coefficient and its rule.
        actor_optimiser: of the actor.
        critic_optimiser: of the critic.
        tau: rate of the slow copies, in (0, 1].
        actor_delay: updates of the critic for one of the actor.
        reward_scale: factor of the reward, applied here and nowhere else.
        acting_actor: which copy of the actor acts, the "online" one or its exponential moving average, "ema".
        target_sampler: draws the actions of the critic's target; None: as `sampler`.
        target_actor: which copy of the actor it draws them with.
        first_actor_update: the update in which the actor first moves, below actor_delay; then every actor_delay-th.
        critic_steps: optimiser steps with one critic gradient; 1, except to reproduce the official DPMD code (2).
        critic_steps_before_actor: how many of them come before the actor's loss, in 0..critic_steps. 0: the actor sees
            the critic of the update before, as in the codes of DACER and SDAC; 1: the new one, as in SAC (arXiv
            1812.05905, algorithm 1) and DPMD.

    Raises:
        UsageError: a number is out of range.
    """

    _: dataclasses.KW_ONLY
    sampler: Sampler
    actor_objective: ActorObjective
    critic_objective: CriticObjective
    temperature: Temperature
    actor_optimiser: Adam
    critic_optimiser: Adam
    tau: float = 0.005
    actor_delay: int = 2
    reward_scale: float = 1.0
    acting_actor: Literal["online", "ema"] = "online"
    target_sampler: Sampler | None = None
    target_actor: Literal["online", "ema"] = "online"
    first_actor_update: int = 0
    critic_steps: int = 1
    critic_steps_before_actor: int = 0

    def __check_init__(self) -> None:
        check_arguments("Learner", vars(self))

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The state before the first update. It holds copies: the networks given stay valid.

        Raises:
            UsageError: actor or critic is not an `equinox.Module` with parameters.
        """
        dtype = _parameter_dtype("actor", actor)
        state = LearnerState(
            actor=actor,
            critic=critic,
            target_critic=critic,
            ema_actor=actor if self.has_ema else None,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            temperature=_first_state(self.temperature, dtype),
            actor_objective=_first_state(self.actor_objective, dtype),
            critic_objective=_first_state(self.critic_objective, _parameter_dtype("critic", critic), critic),
            updates=jnp.zeros((), jnp.int32),
        )
        # Every leaf gets a buffer of its own, because a buffer can be donated only once.
        return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, state)

    @property
    def of_target(self) -> Sampler:
        """What draws the actions of the critic's target."""
        return self.sampler if self.target_sampler is None else self.target_sampler

    @property
    def has_ema(self) -> bool:
        """Whether a policy has the moving average of the actor."""
        return "ema" in (self.acting_actor, self.target_actor)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise of one `step` for actions (batch, action_dim): "next_action", "critic", "actor", "temperature"."""
        return {
            "next_action": self.of_target.noise_spec(shape),
            "critic": self.critic_objective.noise_spec(shape),
            "actor": self.actor_objective.noise_spec(shape),
            "temperature": self.temperature.noise_spec(shape),
        }

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, PackedMetrics]:
        """One update with explicit noise.

        Args:
            state: is consumed.
            batch: arrays with one batch axis; NumPy's are fine.
            noise: as `noise_spec` says; an entry without noise may be absent.

        Raises:
            UsageError: shapes or types of the batch are wrong, or noise is missing.
        """
        check_batch(batch, ("batch",), state.actor)
        missing = [name for name, spec in self.noise_spec(batch.action.shape).items() if spec and name not in noise]
        if missing:
            raise UsageError(f"noise lacks {', '.join(missing)}; noise_spec says what a step needs")
        check_alive(state)
        return _compiled_step((self, batch, noise), state)

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        """The noise that `update` with this key uses for its update number `index` (counted from 0 in each call)."""
        return _compiled_draw(self, key_data(key), np.int32(index), shape)

    @_PlainMethod
    def update(self, state: LearnerState, batches: Batch, key: int) -> tuple[LearnerState, PackedMetrics]:
        """K updates in one compiled call.

        Args:
            state: is consumed.
            batches: arrays with two leading axes [K batch]; NumPy's are fine.
            key: seed of all noise, not negative; use another one for each call.

        Returns:
            The new state, and means of the metrics over those of the K updates that computed them (NaN: none did).

        Raises:
            UsageError: shapes or types of the batches are wrong.
        """
        check_count("key", key, 0)
        check_batch(batches, ("updates", "batch"), state.actor)
        arrays, structure, others = _states.get(state, lambda: state)
        check_alive(arrays[:1])  # all go at once
        program = _update_program(_Identity(self), structure, others)
        arrays, metrics = program(arrays, _at_hand(batches._replace(next_rollout=None)), key_data(key))
        state = _put_together(structure, others, arrays)
        _states.put(state, (arrays, structure, others))
        return state, metrics

    def measure(self, state: LearnerState) -> PackedMetrics:
        """ "actor_param_norm", "critic_param_norm"; "state_nonfinite", 1 if any number is NaN or infinite, else 0."""
        check_alive(state)
        return _compiled_measure(state)

    def fetch(self, metrics: Sequence[PackedMetrics]) -> dict[str, np.ndarray]:
        """The metrics of several calls on the host: name -> [calls] of float64, NaN for a call without that name."""
        numbers = jax.device_get([row.numbers for row in metrics])
        return scatter([row.names for row in metrics], np.concatenate(numbers) if numbers else ())

    @_PlainMethod
    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        """The noise of `act` for actions (num_envs, action_dim); deterministic: what only explores is off."""
        return _act_noise_spec(_Identity(self.sampler), shape, deterministic)

    @_PlainMethod
    def act(self, state: LearnerState, obs: np.ndarray, noise: Noise) -> np.ndarray:
        """Float32 actions [num_envs action_dim] from the slow copy of the actor if there is one, else from the actor.

        Raises:
            UsageError: obs is not a floating array [num_envs obs_dim].
        """
        check_obs(obs, ("num_envs",), state.actor)
        arrays, structure, others = _policies.get(state, lambda: self._acting(state))
        check_alive(arrays[:1])  # all go at once
        return np.asarray(_act_program(_Identity(self), structure, others)(arrays, obs, noise), np.float32)

    @_PlainMethod
    def compile_act(self, state: LearnerState, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """Compiles `act` for these numbers of observations, by calling it: later calls do not wait for the compiler.

        Args:
            state: where the networks are.
            obs_dim: length of an observation.
            action_dim: length of an action.
            batch_sizes: numbers of observations. For others `act` is compiled when it is first called.
        """
        for batch in batch_sizes:
            noise = draw_on_host(np.random.default_rng(0), self.act_noise_spec((batch, action_dim)))
            self.act(state, np.zeros((batch, obs_dim), np.float32), noise)

    def _acting(self, state: LearnerState) -> tuple[Any, Critic, State]:
        """What a policy needs of the state."""
        actor = state.ema_actor if self.acting_actor == "ema" else state.actor
        return actor, state.critic, state.temperature

    def _draw(self, key: Array, index: Array, shape: Shape, name: str) -> Noise:
        """One entry of the noise of an update, from a stream of its own."""
        entry = stream(key, index, _ENTRIES.index(name))
        return draw(entry, self.noise_spec(shape)[name], jnp.zeros(()).dtype)

    def _update(self, state: LearnerState, batch: Batch, noise: Callable[[str], Noise]) -> tuple[LearnerState, Metrics]:
        """One update; noise(name) is asked for only where it is needed."""
        dtype = _parameter_dtype("actor", state.actor)
        batch = _cast(batch, dtype)
        temperature = without_gradient(self.temperature.value(state.temperature), batch.reward)
        target_actor = state.ema_actor if self.target_actor == "ema" else state.actor
        rollout = self.of_target.rollout(
            Policy(target_actor, state.critic, temperature), batch.next_obs, _cast(noise("next_action"), dtype)
        )
        batch = batch._replace(
            reward=self.reward_scale * batch.reward,
            next_rollout=Rollout(rollout.action, log_prob=rollout.log_prob),
        )
        loss, gradient = loss_and_gradient(
            self.critic_objective,
            state.critic,
            state.target_critic,
            batch,
            _cast(noise("critic"), dtype),
            temperature,
            state.critic_objective,
        )
        critics, critic_optimiser = [state.critic], state.critic_optimiser
        for _ in range(self.critic_steps):
            critic, critic_optimiser, step_metrics = self.critic_optimiser.step(critic_optimiser, critics[-1], gradient)
            critics.append(critic)
        seen = critics[self.critic_steps_before_actor]
        metrics = {"critic_loss": loss.value, "temperature": temperature}
        metrics |= _prefixed("critic", {**_checked(loss.value, step_metrics), **loss.metrics})
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
                _cast(noise("actor"), dtype),
                temperature,
                state.actor_objective,
            )
            actor, actor_optimiser, step_metrics = self.actor_optimiser.step(
                state.actor_optimiser, state.actor, gradient
            )
            state = dataclasses.replace(
                state,
                actor=actor,
                actor_optimiser=actor_optimiser,
                actor_objective=loss.state,
                target_critic=_towards(state.target_critic, state.critic, self.tau),
                ema_actor=_towards(state.ema_actor, actor, self.tau) if self.has_ema else None,
            )
            step_metrics = _checked(loss.value, step_metrics)
            metrics = {"actor_loss": loss.value} | _prefixed("actor", {**step_metrics, **loss.metrics})
            return state, (metrics, loss.log_prob)

        def leave_actor(state: LearnerState) -> LearnerState:
            if not isinstance(self.actor_objective, TrackingObjective):
                return state
            new = self.actor_objective.track(seen, batch, state.actor_objective)
            new = checked_state(self.actor_objective, new, state.actor_objective, without_gradient)
            return dataclasses.replace(state, actor_objective=new)

        def update_temperature(state: LearnerState) -> tuple[LearnerState, Metrics]:
            new, metrics = self.temperature.update(
                state.temperature,
                Policy(actor_before, seen, temperature),
                batch.obs,
                _cast(noise("temperature"), dtype),
                log_prob,
            )
            new = checked_state(self.temperature, new, state.temperature, without_gradient)
            metrics = checked_metrics(self.temperature, metrics, temperature, without_gradient)
            return dataclasses.replace(state, temperature=new), _prefixed("temperature", metrics)

        actor_is_due = _is_multiple(update - self.first_actor_update, self.actor_delay)
        state, (actor_metrics, log_prob) = _run_if(actor_is_due, update_actor, leave_actor, state)
        metrics |= actor_metrics
        if self.temperature.interval:
            if self.temperature.interval % self.actor_delay != 0:
                log_prob = None  # not in every step of this rule, so in none
            is_due = _is_multiple(update, self.temperature.interval)
            state, temperature_metrics = _run_if(is_due, update_temperature, lambda state: state, state)
            metrics |= temperature_metrics
        return state, metrics


# What is not donated travels in the first argument.


@eqx.filter_jit(donate="all-except-first")
def _compiled_step(inputs: tuple[Learner, Batch, Noise], state: LearnerState) -> tuple[LearnerState, PackedMetrics]:
    learner, batch, noise = inputs
    state, metrics = learner._update(state, batch, lambda name: noise.get(name, {}))
    return state, _pack(metrics)


def _fused_updates(
    learner: Learner, state: LearnerState, batches: Batch, key: Array
) -> tuple[LearnerState, PackedMetrics]:
    """An update for each entry of the leading axis of the batches; not compiled."""
    num_updates, *shape = batches.action.shape
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, index_and_batch: tuple[Array, Batch]) -> tuple[Any, Metrics]:
        index, batch = index_and_batch
        noise = partial(learner._draw, key, index, tuple(shape))
        state, metrics = learner._update(eqx.combine(dynamic, static), batch, noise)
        return eqx.filter(state, eqx.is_array), metrics

    if num_updates == 1:
        dynamic, metrics = body(dynamic, (jnp.int32(0), jax.tree.map(lambda x: x[0], batches)))
    else:
        dynamic, metrics = jax.lax.scan(body, dynamic, (jnp.arange(num_updates, dtype=jnp.int32), batches))
        metrics = {name: jnp.nanmean(values) for name, values in metrics.items()}
    return eqx.combine(dynamic, static), _pack(metrics)


@eqx.filter_jit
def _compiled_measure(state: LearnerState) -> PackedMetrics:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))]
    norms = {
        f"{name}_param_norm": _norm(network) for name, network in {"actor": state.actor, "critic": state.critic}.items()
    }
    return _pack(norms | {"state_nonfinite": ~jnp.stack(finite).all()})


@eqx.filter_jit
def _compiled_draw(learner: Learner, key: Array, index: Array, shape: Shape) -> Noise:
    return {name: learner._draw(key, index, shape, name) for name in _ENTRIES}


@functools.lru_cache(maxsize=64)
def _update_program(learner: _Identity, structure: Any, others: tuple[Any, ...]) -> Callable[..., Any]:
    """(arrays of the state, which are consumed, batches, key) -> (arrays of the new state, metrics)."""

    @partial(jax.jit, donate_argnums=0, compiler_options=_compiler_options())
    def update(arrays: tuple[Array, ...], batches: Batch, key: Array) -> tuple[tuple[Array, ...], PackedMetrics]:
        state = _put_together(structure, others, arrays)
        state, metrics = _fused_updates(learner.held, state, batches, key)
        return _take_apart(state)[0], metrics

    return update


@functools.lru_cache(maxsize=64)
def _act_noise_spec(sampler: _Identity, shape: Shape, deterministic: bool) -> NoiseSpec:
    spec = sampler.held.noise_spec(shape)
    return without_exploration(spec) if deterministic else spec


@functools.lru_cache(maxsize=64)
def _act_program(learner: _Identity, structure: Any, others: tuple[Any, ...]) -> Callable[..., Array]:
    """(arrays of (actor, critic, temperature), obs, noise) -> action."""

    @partial(jax.jit, compiler_options=_compiler_options())
    def act(arrays: tuple[Array, ...], obs: Array, noise: Noise) -> Array:
        actor, critic, temperature = _put_together(structure, others, arrays)
        return _policy(learner.held, actor, critic, temperature, obs, noise)

    return act


def _policy(learner: Learner, actor: Any, critic: Critic, temperature: State, obs: Array, noise: Noise) -> Array:
    """Actions; not compiled."""
    dtype = _parameter_dtype("actor", actor)
    value = learner.temperature.value(temperature)
    return learner.sampler(Policy(actor, critic, value), _cast(obs, dtype), _cast(noise, dtype))


def _is_multiple(number: Array, of: int) -> Array | bool:
    """Known beforehand for 1: then the compiler sees no branch, and computes actor and critic side by side."""
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


def _towards(slow: Tree, fast: Tree, tau: float) -> Tree:
    """(1 - tau) slow + tau fast for every parameter."""
    return jax.tree.map(lambda s, f: (1 - tau) * s + tau * f if eqx.is_inexact_array(s) else s, slow, fast)


def _cast(tree: Tree, dtype: Any) -> Tree:
    """Arrays of the device; floating ones get the type."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), tree)


def _first_state(part: Any, dtype: Any, *args: Any) -> State:
    """What a part remembers before the first batch, floats in that type."""
    return initial_state(part, part.init_state(*args), lambda value: _cast(jnp.asarray(value), dtype))


def _checked(loss: Array, metrics: Metrics) -> Metrics:
    """The metrics of an optimiser's step, and whether loss or gradient was NaN or infinite."""
    return {**metrics, "nonfinite": (~jnp.isfinite(loss + metrics["grad_norm"])).astype(loss.dtype)}


def _norm(module: Any) -> Array:
    """The joint norm of all parameters."""
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array))))


def _prefixed(prefix: str, metrics: Metrics) -> dict[str, Array]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def _parameter_dtype(name: str, module: Any) -> Any:
    leaves = jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array))
    if not isinstance(module, eqx.Module) or not leaves:
        raise UsageError(f"{name} must be an equinox.Module with parameters, got {type(module).__name__}")
    return leaves[0].dtype
