"""Steps along a gradient."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from diffac.parts import optimisers as declared
from diffac.protocols import Metrics
from diffac_equinox.parameters import divided, parameters
from diffac_equinox.parts.coefficients import value_at


class AdamState(eqx.Module):
    """First and second moments of the gradient (shaped as the parameters), and the number of steps done."""

    m: PyTree
    v: PyTree
    count: Array


def adam_direction(state: AdamState, gradient: Any, b1: float, b2: float, eps: float) -> tuple[Any, AdamState]:
    """What Adam adds at learning rate -1, with bias correction (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)."""
    moments = optax.ScaleByAdamState(count=state.count, mu=state.m, nu=state.v)
    direction, new = optax.scale_by_adam(b1, b2, eps).update(gradient, moments)
    return direction, AdamState(new.mu, new.nu, new.count)  # type: ignore[attr-defined]


def _norm(grads: Any) -> Array:
    return jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))


class _Steps:
    """What both do; in neither of them, because Equinox warns of a module that inherits a module and a dataclass."""

    learning_rate: Any
    max_grad_norm: Any
    b1: Any
    b2: Any
    eps: Any

    def init(self, module: Any) -> AdamState:
        """The state before the first step."""
        m, v = (jax.tree.map(jnp.zeros_like, parameters(module)) for _ in range(2))
        return AdamState(m, v, jnp.zeros((), jnp.int32))

    def step(self, opt_state: AdamState, module: Any, grads: Any) -> tuple[Any, AdamState, Metrics]:
        """The module after one step, the new state, and {"grad_norm"}, the norm before the clip."""
        norm = _norm(grads)
        if self.max_grad_norm is not None:
            factor = jnp.minimum(1, self.max_grad_norm / norm)
            grads = jax.tree.map(lambda g: g * factor, grads)
        rate = value_at(self.learning_rate, opt_state.count, norm.dtype)
        direction, opt_state = adam_direction(opt_state, grads, self.b1, self.b2, self.eps)
        change = jax.tree.map(lambda d: -rate * d, direction)
        return eqx.apply_updates(self._decayed(module, rate), change), opt_state, {"grad_norm": norm}

    def _decayed(self, module: Any, rate: Array | float) -> Any:
        return module


class Adam(_Steps, eqx.Module, declared.Adam):
    pass


class AdamW(_Steps, eqx.Module, declared.AdamW):
    def _decayed(self, module: Any, rate: Array | float) -> Any:
        kept = 1 - rate * self.weight_decay
        trained, others = divided(module)
        return eqx.combine(jax.tree.map(lambda x: kept * x, trained), others)


class OptaxOptimiser(eqx.Module):
    """A transformation of optax as it is; its numbers mean nothing in another backend.

    Args:
        transformation: such as `optax.rmsprop(1e-3)`.
    """

    transformation: optax.GradientTransformation

    def init(self, module: Any) -> Any:
        """The state before the first step."""
        return self.transformation.init(parameters(module))

    def step(self, opt_state: Any, module: Any, grads: Any) -> tuple[Any, Any, Metrics]:
        """One step, as `Optimiser` says."""
        change, opt_state = self.transformation.update(grads, opt_state, parameters(module))
        return eqx.apply_updates(module, change), opt_state, {"grad_norm": _norm(grads)}


def as_optimiser(given: Any) -> Any:
    """What a learner steps with: a part as it is, a transformation of optax in an `OptaxOptimiser`."""
    return OptaxOptimiser(given) if isinstance(given, optax.GradientTransformation) else given
