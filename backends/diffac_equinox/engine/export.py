"""The acting policy as a program that runs without diffac: `jax.export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from diffac.noise import Integers
from diffac.parts.export import BATCH, Signature
from diffac_equinox.engine.convert import check_alive
from diffac_equinox.learner import Learner
from diffac_equinox.state import LearnerState

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Where the program can run, whatever machine it was exported on."""


def export_policy(learner: Learner, state: LearnerState, signature: Signature, target: str, description: str) -> bytes:
    """The content of a file that holds a learner's policy, without exploration, in float32.

    Args:
        learner: whose sampler of evaluations acts.
        state: its parameters.
        signature: of the function.
        target: "jax" (`jax.export.deserialize` reads it).
        description: not used, as this format has no place for it.
    """
    check_alive(state)
    acting, moments = _float32((learner.policy(state, deterministic=True), state.obs_moments))
    half_range, centre = signature.scale
    low, high = signature.bounds

    def policy(obs: jax.Array, *noise: jax.Array) -> jax.Array:
        nested = signature.nest(noise, lambda shape: jnp.zeros(shape, obs.dtype), obs.shape[0])
        action = learner.acting(True)(acting, learner.seen(obs, moments), nested)
        return jnp.clip(jnp.clip(action, -1, 1) * half_range + centre, low, high).astype(obs.dtype)

    (batch,) = jax.export.symbolic_shape(BATCH)
    inputs = [jax.ShapeDtypeStruct((batch, signature.obs_dim), np.float32)]
    for entry in signature.inputs:
        dtype = np.int32 if isinstance(entry.law, Integers) else np.float32
        inputs.append(jax.ShapeDtypeStruct(entry.sizes(batch), dtype))
    return bytes(jax.export.export(jax.jit(policy), platforms=_PLATFORMS)(*inputs).serialize())


def load_policy(path: Path) -> Callable[..., np.ndarray]:
    """The function of NumPy arrays (obs, *noise) -> action that a file of the target "jax" holds."""
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda *arrays: np.asarray(program.call(*arrays))


def critic_values(learner: Learner, state: LearnerState, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The smallest value of the ensemble that ranks candidates, [batch], for obs [batch obs] and action [batch act]."""
    critic = eqx.filter_jit(learner.policy(state, deterministic=True).critic)
    return np.asarray(critic(learner.seen(jnp.asarray(obs), state.obs_moments), action).min(0))


def _float32(tree: Any) -> Any:
    """The same tree with its floating arrays in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if eqx.is_inexact_array(leaf) else leaf, tree)
