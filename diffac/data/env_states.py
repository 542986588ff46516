"""The state of an environment as plain data, so that a resumed run goes on in the middle of an episode.

An environment under its wrappers is a chain of layers. The state of a layer is

* what its method `get_checkpoint_state()` returns, where it has that and `set_checkpoint_state(state)`; otherwise
* all attributes of the object, where each of them is data: numbers, texts, NumPy arrays, random generators, nests of
  these in lists, tuples, dictionaries, sets and deques, running means and variances, and MuJoCo's `MjData`. Functions,
  classes, spaces, MuJoCo's model and the like count as constants.

A layer with any other attribute (a simulator's handle, say) is refused with its name: such environments restart.
Random generators of the base environment and of spaces are saved in both cases. Nothing is pickled.
"""

from __future__ import annotations

import collections
import types
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from diffac.errors import RunError
from diffac.files.checks import bit_generator, number
from diffac.files.untrusted import DIGITS, NUMERIC, check_nest
from diffac.messages import quoted

CONSTANTS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, np.dtype, EnvSpec)
FOREIGN_CONSTANTS = {"MjModel", "MujocoRenderer"}
"""Classes of MuJoCo and of gymnasium's bindings to it that hold no state of an episode."""
CONTAINERS: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
}
SKIPPED = {"env", "spec", "metadata"}
"""Attributes of a layer that are the next layer or constant."""
STATISTICS = {"mean", "var", "count"}
"""All attributes of what wrappers keep of observations or rewards: `RunningMeanStd` of gymnasium and of its likes."""
POINTERS = {"plugin_data"}
"""Arrays of MjData that are addresses."""


def save_env(env: gym.Env) -> dict[str, Any]:
    """The state of an environment: a nest of dictionaries, lists, numbers, texts and NumPy arrays.

    Raises:
        RunError: a layer holds something that is not data; the message names it.
    """
    state = {"layers": [_save_layer(layer) for layer in _layers(env)]}
    try:
        check_nest([[[[[[state]]]]]])  # as deep as it will be in the checkpoint
    except ValueError as error:
        raise RunError(f"the state of {type(env.unwrapped).__qualname__} cannot be written: {error}") from error
    return state


def restore_env(env: gym.Env, state: dict[str, Any]) -> None:
    """Puts an environment that was made alike, and reset once, into a saved state.

    Raises:
        RunError: the environment has other layers than the one that was saved.
    """
    layers = _layers(env)
    names = [type(layer).__qualname__ for layer in layers]
    saved = [layer["class"] for layer in state["layers"]]
    if names != saved:
        raise RunError(f"the environment is built of {', '.join(names)}, the saved one of {', '.join(saved)}")
    for layer, entry in zip(layers, state["layers"], strict=True):
        if "own" in entry:
            layer.set_checkpoint_state(restore_value(entry["own"], None))  # type: ignore[attr-defined]
        for name, node in entry["attributes"].items():
            if not _may_be_set(layer, name, node):
                raise RunError(f"{type(layer).__qualname__} has no {quoted(name)} that could hold what was saved")
            setattr(layer, name, restore_value(node, getattr(layer, name, None)))


def _may_be_set(layer: gym.Env, name: str, node: Any) -> bool:
    """Whether an attribute of a file is one of the environment's data: no method, property or other layer."""
    if name in SKIPPED or name.startswith("__") or hasattr(getattr(type(layer), name, None), "__get__"):
        return False
    return not _is_constant(vars(layer).get(name)) or node == {"kind": "constant"}


def _is_constant(value: Any) -> bool:
    return isinstance(value, CONSTANTS) or type(value).__name__ in FOREIGN_CONSTANTS


def statistics_of(env: gym.Env) -> list[str]:
    """What the layers of an environment keep running statistics in, as "NormalizeObservation.obs_rms"."""
    return [
        f"{type(layer).__qualname__}.{name}"
        for layer in _layers(env)
        for name, value in vars(layer).items()
        if name not in SKIPPED and _is_statistics(value)
    ]


def _is_statistics(value: Any) -> bool:
    return getattr(value, "__dict__", {}).keys() == STATISTICS


def _layers(env: gym.Env) -> list[gym.Env]:
    """From the outermost wrapper to the base environment, but for those of diffac, which hold nothing."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return [layer for layer in layers if not getattr(type(layer), "stateless", False)]


def _save_layer(layer: gym.Env) -> dict[str, Any]:
    name = type(layer).__qualname__
    entry: dict[str, Any] = {"class": name}
    attributes = {key: value for key, value in vars(layer).items() if key not in SKIPPED}
    own, put = (getattr(layer, f"{verb}_checkpoint_state", None) for verb in ("get", "set"))
    if callable(own) and callable(put):
        entry["own"] = save_value(own(), f"{name}.get_checkpoint_state()")
        attributes = {key: value for key, value in attributes.items() if key == "_np_random"}
    return entry | {"attributes": {key: save_value(value, f"{name}.{key}") for key, value in attributes.items()}}


def save_value(value: Any, where: str) -> Any:
    """Plain data for a value; a tag ("kind") says what it was where JSON could not."""
    if type(value) is int and len(str(abs(value))) >= DIGITS:
        raise RunError(f"{where} is a whole number of more digits than a checkpoint holds")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMERIC:
        return value.copy()
    if isinstance(value, np.generic) and value.dtype.kind in NUMERIC:
        return {"kind": "scalar", "value": np.array(value)}
    if isinstance(value, list | tuple | set | frozenset | collections.deque) and type(value) in CONTAINERS:
        entry = {"kind": CONTAINERS[type(value)], "items": [save_value(item, f"{where}[]") for item in value]}
        return entry | {"maxlen": value.maxlen} if isinstance(value, collections.deque) else entry
    if isinstance(value, dict) and type(value) is dict:
        pairs = [[save_value(key, where), save_value(item, f"{where}[{key!r}]")] for key, item in value.items()]
        return {"kind": "dict", "items": pairs}
    if isinstance(value, np.random.Generator):
        return {"kind": "generator", "state": save_value(value.bit_generator.state, where)}
    if isinstance(value, gym.Space):
        generators = {name: item for name, item in vars(value).items() if isinstance(item, np.random.Generator)}
        generators = {name: save_value(item, where) for name, item in generators.items()}
        inner = getattr(value, "spaces", {})
        inner = dict(inner) if isinstance(inner, dict) else dict(enumerate(inner))
        return {
            "kind": "space",
            "generators": generators,
            "spaces": [[key, save_value(item, where)] for key, item in inner.items()],
        }
    if type(value).__name__ == "MjData":
        return _save_mujoco(value, where)
    if _is_statistics(value):
        return {"kind": "statistics"} | {name: save_value(getattr(value, name), where) for name in sorted(STATISTICS)}
    if _is_constant(value):
        return {"kind": "constant"}
    raise RunError(f"{where} is a {type(value).__name__}, which is not data")


def _save_mujoco(data: Any, where: str) -> dict[str, Any]:
    """All arrays of MjData, not only its integration state: Ant and Humanoid read positions of the step before."""
    if data.plugin_data.size:
        raise RunError(f"{where} uses a plugin of MuJoCo, whose state is not data")
    arrays = {name: getattr(data, name) for name in dir(data) if not name.startswith("_") and name not in POINTERS}
    arrays = {name: value.copy() for name, value in arrays.items() if isinstance(value, np.ndarray) and value.size}
    return {"kind": "mjdata", "time": data.time, "arrays": arrays}


def restore_value(node: Any, current: Any) -> Any:
    """The value that `save_value` was given; what can be is changed in place, for whoever else holds it."""
    if isinstance(node, np.ndarray):
        if isinstance(current, np.ndarray) and current.shape == node.shape and current.dtype == node.dtype:
            current[...] = node
            return current
        return node.copy()
    if not isinstance(node, dict):
        return node
    match node["kind"]:
        case "scalar":
            return node["value"][()]
        case "list":
            items = _restore_items(node["items"], current)
            if type(current) is list:
                current[:] = items
                return current
            return items
        case "deque":
            return collections.deque(_restore_items(node["items"], ()), node["maxlen"])
        case "tuple" | "set" | "frozenset" as kind:
            items = _restore_items(node["items"], current if kind == "tuple" else ())
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
        case "dict":
            before = current if isinstance(current, dict) else {}
            pairs = [(restore_value(key, None), item) for key, item in node["items"]]
            items = {key: restore_value(item, before.get(key)) for key, item in pairs}
            before.clear()
            before.update(items)
            return before
        case "generator":
            found = bit_generator(restore_value(node["state"], None), "a random generator of the environment")
            if not isinstance(current, np.random.Generator):
                return np.random.Generator(found)
            current.bit_generator.state = found.state
            return current
        case "space":
            for name, generator in node["generators"].items():
                if not isinstance(own := vars(current).get(name), np.random.Generator):
                    raise RunError(f"a space has no random generator {quoted(name)}")
                restore_value(generator, own)
            for key, inner in node["spaces"]:
                restore_value(inner, current.spaces[key])
            return current
        case "statistics":
            if not _is_statistics(current):
                raise RunError("the environment keeps other statistics than the saved one")
            for name in STATISTICS:
                setattr(current, name, restore_value(node[name], None))
            return current
        case "mjdata":
            if type(current).__name__ != "MjData":
                raise RunError("the environment has no simulation by MuJoCo where the saved one has")
            current.time = number(node["time"], "the time of the simulation")
            for name, array in node["arrays"].items():
                own = None if name.startswith("_") or name in POINTERS else getattr(current, name, None)
                # arrays of constraints change their length with the contacts; the next step computes them anew
                if isinstance(own, np.ndarray) and isinstance(array, np.ndarray) and own.shape == array.shape:
                    # whole numbers are indices into MuJoCo's memory, which a file may not choose
                    if own.dtype.kind == array.dtype.kind == "f":
                        own[...] = array
                    elif name == "eq_active":
                        own[...] = array != 0
            return current
        case "constant":
            return current
        case kind:
            raise RunError(f"a saved environment holds a {kind!r}, which this version of diffac does not know")


def _restore_items(items: list[Any], current: Any) -> list[Any]:
    before = list(current) if isinstance(current, list | tuple) and len(current) == len(items) else [None] * len(items)
    return [restore_value(item, old) for item, old in zip(items, before, strict=True)]
