"""Networks of a user with everything that is not trained, in Equinox."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac_equinox import Frozen


def linear(layer: Any, x: Any) -> Any:
    return x @ layer.weight.T + layer.bias


class Features(eqx.Module):
    """Observations in another order, scaled, and through a layer that is not trained."""

    order: jax.Array
    scale: Frozen
    embed: Frozen
    offset: Frozen

    def __init__(self, obs_dim: int, width: int) -> None:
        self.order = jnp.arange(obs_dim)[::-1]
        self.scale = Frozen(np.linspace(0.5, 2, obs_dim))
        self.embed = Frozen(eqx.nn.Linear(obs_dim, width, key=jax.random.key(0)))
        self.offset = Frozen(jnp.full((obs_dim,), -0.25))

    def __call__(self, obs: Any) -> Any:
        x = obs[..., self.order] * self.scale.value + self.offset.value
        return jax.nn.relu(linear(self.embed.value, x))


class Actor(eqx.Module):
    features: Features
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, obs_dim: int, action_dim: int, width: int = 8) -> None:
        self.features = Features(obs_dim, width)
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(width, action_dim, key=jax.random.key(1))

    def __call__(self, obs: Any) -> Any:
        return jnp.tanh(linear(self.last, self.dropout(self.features(obs))))


class Critic(eqx.Module):
    features: Features
    dropout: eqx.nn.Dropout
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, obs_dim: int, action_dim: int, width: int = 8) -> None:
        self.features = Features(obs_dim, width)
        self.dropout = eqx.nn.Dropout(0.5)
        self.hidden = eqx.nn.Linear(width + action_dim, width, key=jax.random.key(2))
        self.last = eqx.nn.Linear(width, 2, key=jax.random.key(3))

    def __call__(self, obs: Any, action: Any) -> Any:
        obs = self.features(obs)
        x = jnp.concatenate([jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1])), action], -1)
        return jnp.moveaxis(linear(self.last, jax.nn.relu(linear(self.hidden, self.dropout(x)))), -1, 0)
