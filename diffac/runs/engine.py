"""From a recipe to an engine with a learner that is ready to train or act."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from diffac.backend import codec_of, engine_of, get_backend
from diffac.data.environments import make_envs
from diffac.data.vectors import close, dims
from diffac.errors import UsageError, told_as
from diffac.logging.trackers import load_tracker
from diffac.protocols import Engine
from diffac.system import configure
from diffac.training.callbacks import Callback, check_callback
from diffac.training.config import TrainConfig


def configure_for(config: TrainConfig) -> None:
    """Calls `diffac.system.configure` for the backend and the precision of a configuration."""
    try:
        backend = get_backend(config.backend)
    except UsageError:  # not every recipe needs one; of those that do, `build` says what is missing
        backend = None
    configure(backend, matmul_precision=config.matmul_precision)


def start_engine(module: ModuleType, config: TrainConfig, obs_dim: int, action_dim: int) -> tuple[Engine, Any]:
    """What runs a recipe's learner, and the learner's first state, on the device that the configuration names.

    Raises:
        UsageError: the device is missing, or a backend of a third party leaves no choice of it.
    """
    learner, *networks = module.build(config, obs_dim, action_dim)
    b: Any = codec_of(learner, config.backend)
    if hasattr(b, "to_device"):
        networks = [b.to_device(network, config.device) for network in networks]
    elif config.device not in ("auto", "cpu") or config.matmul_precision != "float32":
        raise UsageError(
            f"backend {config.backend!r} offers no choice of device or precision; leave device at 'auto' and "
            f"matmul_precision at 'float32', got {config.device!r} and {config.matmul_precision!r}"
        )
    engine = engine_of(_normalising(learner, config, obs_dim), config.backend)
    return engine, engine.init(*networks)


def chosen(module: ModuleType, config: TrainConfig) -> dict[str, Any]:
    """The arguments `stepper` and `replay` of `train`, as far as a recipe chooses them: `make_stepper(config, purpose)`
    and `make_replay(config, capacity, obs_dim, action_dim, **options)`."""
    makers = {"stepper": _function(module, "make_stepper"), "replay": _function(module, "make_replay")}
    if makers["replay"] is not None:
        makers["replay"] = partial(makers["replay"], config)
    return {name: make for name, make in makers.items() if make is not None}


def own_callbacks(module: ModuleType, config: TrainConfig) -> list[Callback]:
    """The recipe's, where it has a `make_callback(config)`."""
    make = _function(module, "make_callback")
    if make is None:
        return []
    with told_as("make_callback"):
        return [check_callback(make(config))]


def _function(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """A function that a recipe may have."""
    found = getattr(module, name, None)
    if found is not None and not callable(found):
        raise UsageError(f"{name} of a recipe must be a function, got {found!r:.200}")
    return found


def _normalising(learner: Any, config: TrainConfig, obs_dim: int) -> Any:
    """The learner as the configuration wants observations; a normaliser of its own stays."""
    if not config.normalise_obs or getattr(learner, "obs_normaliser", None) is not None:
        return learner
    if "obs_normaliser" not in getattr(learner, "__dataclass_fields__", ()):
        raise UsageError(
            f"normalise_obs needs a learner with a field obs_normaliser, such as a backend's Learner; "
            f"{type(learner).__name__} has none"
        )
    return dataclasses.replace(learner, obs_normaliser=get_backend(config.backend).Standardiser(obs_dim))


def build(module: ModuleType, config: TrainConfig) -> tuple[Any, Any, tuple[int, int]]:
    """The engine and the learner's first state, for the environments' dimensions; and these, (obs_dim, action_dim)."""
    importlib.import_module("tensorboardX")  # imports torch, which must come before jax
    if config.track is not None:
        load_tracker(config.track)
    probe = make_envs(config.env_id, 1, **config.env_arguments)
    try:
        sizes = dims(probe)
    finally:
        close(probe)
    configure_for(config)
    return *start_engine(module, config, *sizes), sizes
