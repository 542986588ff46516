"""Which arrays of a network are trained, how slow copies follow them, and the mode in which networks run."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.errors import UsageError

Tree = TypeVar("Tree")


@jax.tree_util.register_pytree_with_keys_class
class Frozen(Generic[Tree]):
    """An array of a network that is kept, copied, saved and moved, and never trained.

    What `register_buffer`, or a parameter with `requires_grad=False`, is in torch. In a checkpoint it has the name of
    the field that holds it, as it would there: `self.scale = Frozen(scale)` is "scale", and is read as
    `self.scale.value`.

    Args:
        value: an array, or a module or other tree of arrays: then none of them is trained. NumPy's become JAX's.
    """

    def __init__(self, value: Tree) -> None:
        self.value: Tree = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, value)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[str, Tree]], None]:
        """For JAX. The key is empty, so that names are those of a network without this wrapper."""
        return (("", self.value),), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Tree]) -> Frozen[Tree]:
        """For JAX, which puts all kinds of things in place of arrays."""
        frozen = object.__new__(cls)
        (frozen.value,) = children
        return frozen

    def __repr__(self) -> str:
        return f"Frozen({eqx.tree_pformat(self.value)})"


def divided(module: Tree) -> tuple[Tree, Tree]:
    """The parameters that are trained, and everything else; `equinox.combine` puts them together again."""

    def is_trained(node: Any) -> bool:
        return not isinstance(node, Frozen) and eqx.is_inexact_array(node)

    trained = jax.tree.map(is_trained, module, is_leaf=lambda node: isinstance(node, Frozen))
    return eqx.partition(module, trained)


def parameters(module: Tree) -> Tree:
    """The parameters that are trained, None in place of everything else."""
    return divided(module)[0]


def parameter_dtype(name: str, module: Any) -> Any:
    """The type of a network's parameters.

    Raises:
        UsageError: it has none that is trained.
    """
    leaves = jax.tree.leaves(parameters(module))
    if not isinstance(module, eqx.Module) or not leaves:
        raise UsageError(f"{name} must be an equinox.Module with parameters, got {type(module).__name__}")
    return leaves[0].dtype


def in_evaluation_mode(module: Tree) -> Tree:
    """The network with its dropout and the like switched off."""
    return eqx.nn.inference_mode(module)


def towards(slow: Tree, fast: Tree, tau: Any) -> Tree:
    """(1 - tau) slow + tau fast for every parameter that is trained; that of `fast` for all else."""
    trained, rest = divided(fast)
    return eqx.combine(jax.tree.map(lambda s, f: (1 - tau) * s + tau * f, divided(slow)[0], trained), rest)
