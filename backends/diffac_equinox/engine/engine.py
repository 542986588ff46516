"""Runs a learner: what comes in is brought to the device, noise is drawn there, and all is compiled."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.noise import Noise, Shape
from diffac.noise import draw as draw_on_host
from diffac.parts import engine as declared
from diffac.parts.metrics import PackedMetrics, columns
from diffac.protocols import Array, Batch, Metrics, State
from diffac_equinox.engine.convert import check_alive, from_arrays
from diffac_equinox.engine.programs import _at_hand, _compiler_options, _Kept, _put_together, _take_apart
from diffac_equinox.engine.random import draw, key_data, stream
from diffac_equinox.learner import Learner
from diffac_equinox.parameters import parameter_dtype, parameters
from diffac_equinox.state import LearnerState, cast

_ENTRIES = ("next_action", "critic", "actor", "temperature")
"""Names of the noise of one step; the position tells the random streams apart."""


class Engine(declared.Engine):
    learners = Learner

    def __init__(self, learner: Any) -> None:
        super().__init__(learner)
        self._update_program = functools.lru_cache(maxsize=64)(self._make_update_program)
        self._act_program = functools.lru_cache(maxsize=64)(self._make_act_program)
        self._states = _Kept()

    def _step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, PackedMetrics]:
        check_alive(state)
        return _compiled_step((self.learner, batch, noise), state)

    def _update(self, state: LearnerState, batches: Batch, key: int) -> tuple[LearnerState, PackedMetrics]:
        arrays, structure, others = self._states.get(state, lambda: state)
        check_alive(arrays[:1])  # all go at once
        program = self._update_program(structure, others)
        arrays, metrics = program(arrays, _at_hand(batches._replace(next_rollout=None)), key_data(key))
        state = _put_together(structure, others, arrays)
        self._states.put(state, (arrays, structure, others))
        return state, metrics

    def _with_moments(self, state: LearnerState, moments: State) -> LearnerState:
        check_alive(state.obs_moments)  # all go at once
        copies = {name: np.asarray(moments[name], own.dtype) for name, own in state.obs_moments.items()}
        return dataclasses.replace(state, obs_moments=from_arrays(state.obs_moments, copies))

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        return _compiled_draw(self.learner, key_data(key), np.int32(index), shape)

    def measure(self, state: LearnerState) -> PackedMetrics:
        check_alive(state)
        return _compiled_measure(state)

    def fetch(self, metrics: Sequence[PackedMetrics]) -> dict[str, np.ndarray]:
        numbers = jax.device_get([row.numbers for row in metrics])
        return columns([dict(zip(row, own.tolist(), strict=True)) for row, own in zip(metrics, numbers, strict=True)])

    def _act(self, state: LearnerState, obs: np.ndarray, noise: Noise, deterministic: bool) -> np.ndarray:
        arrays, structure, others = self._states.get(state, lambda: state)
        check_alive(arrays[:1])  # all go at once
        program = self._act_program(structure, others, deterministic)
        return np.asarray(program(arrays, obs, noise), np.float32)

    def compile_act(self, state: LearnerState, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        for batch, deterministic in itertools.product(batch_sizes, {False, self.learner.evaluates_apart}):
            spec = self.act_noise_spec((batch, action_dim), deterministic=deterministic)
            noise = draw_on_host(np.random.default_rng(0), spec)
            self.act(state, np.zeros((batch, obs_dim), np.float32), noise, deterministic=deterministic)

    def _make_act_program(self, structure: Any, others: tuple[Any, ...], deterministic: bool) -> Callable[..., Array]:
        """(arrays of the state, obs, noise) -> action."""

        @partial(jax.jit, compiler_options=_compiler_options())
        def act(arrays: tuple[Array, ...], obs: Array, noise: Noise) -> Array:
            state = _put_together(structure, others, arrays)
            policy = self.learner.policy(state, deterministic=deterministic)
            obs, noise = cast((obs, noise), parameter_dtype("actor", policy.actor))
            return self.learner.acting(deterministic)(policy, self.learner.seen(obs, state.obs_moments), noise)

        return act

    def _make_update_program(self, structure: Any, others: tuple[Any, ...]) -> Callable[..., Any]:
        """(arrays of the state, which are consumed, batches, key) -> (arrays of the new state, metrics)."""

        @partial(jax.jit, donate_argnums=0, compiler_options=_compiler_options())
        def update(arrays: tuple[Array, ...], batches: Batch, key: Array) -> tuple[tuple[Array, ...], PackedMetrics]:
            state = _put_together(structure, others, arrays)
            state, metrics = _fused_updates(self.learner, state, batches, key)
            return _take_apart(state)[0], metrics

        return update


class _Drawn(Mapping[str, Any]):
    """Noise that is drawn where it is asked for, in a branch that is not always taken, say."""

    def __init__(self, learner: Learner, key: Array, index: Array, shape: Shape, dtype: Any) -> None:
        self._spec, self._path, self._dtype = learner.noise_spec(shape), (key, index), dtype

    def __getitem__(self, name: str) -> Any:
        entry = stream(*self._path, _ENTRIES.index(name))
        return cast(draw(entry, self._spec[name], jnp.zeros(()).dtype), self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spec)

    def __len__(self) -> int:
        return len(self._spec)


jax.tree_util.register_pytree_node(
    PackedMetrics,
    lambda metrics: ((metrics.numbers,), tuple(metrics)),
    lambda names, inner: PackedMetrics(names, *inner),
)


def _pack(metrics: Metrics) -> PackedMetrics:
    return PackedMetrics(tuple(metrics), jnp.stack([jnp.asarray(number) for number in metrics.values()]))


def _fused_updates(
    learner: Learner, state: LearnerState, batches: Batch, key: Array
) -> tuple[LearnerState, PackedMetrics]:
    """An update for each entry of the leading axis of the batches; not compiled."""
    num_updates, *shape = batches.action.shape
    dtype = parameter_dtype("actor", state.actor)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, index_and_batch: tuple[Array, Batch]) -> tuple[Any, Metrics]:
        index, batch = index_and_batch
        noise = _Drawn(learner, key, index, tuple(shape), dtype)
        state, metrics = learner.step(eqx.combine(dynamic, static), cast(batch, dtype), noise)
        return eqx.filter(state, eqx.is_array), metrics

    if num_updates == 1:
        dynamic, metrics = body(dynamic, (jnp.int32(0), jax.tree.map(lambda x: x[0], batches)))
    else:
        dynamic, metrics = jax.lax.scan(body, dynamic, (jnp.arange(num_updates, dtype=jnp.int32), batches))
        metrics = {name: jnp.nanmean(values) for name, values in metrics.items()}
    return eqx.combine(dynamic, static), _pack(metrics)


# What is not donated travels in the first argument.
@eqx.filter_jit(donate="all-except-first")
def _compiled_step(inputs: tuple[Learner, Batch, Noise], state: LearnerState) -> tuple[LearnerState, PackedMetrics]:
    learner, batch, noise = inputs
    state, metrics = learner.step(state, *cast((batch, noise), parameter_dtype("actor", state.actor)))
    return state, _pack(metrics)


@eqx.filter_jit
def _compiled_measure(state: LearnerState) -> PackedMetrics:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))]
    norms = {
        f"{name}_param_norm": _norm(network) for name, network in {"actor": state.actor, "critic": state.critic}.items()
    }
    return _pack(norms | {"state_nonfinite": ~jnp.stack(finite).all()})


@eqx.filter_jit
def _compiled_draw(learner: Learner, key: Array, index: Array, shape: Shape) -> Noise:
    return dict(_Drawn(learner, key, index, shape, jnp.zeros(()).dtype))


def _norm(module: Any) -> Array:
    """The joint norm of all parameters that are trained."""
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(parameters(module))))
