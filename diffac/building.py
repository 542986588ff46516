"""From a recipe to a learner that is ready to train or act."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from diffac.checkpoints import codec_of
from diffac.errors import UsageError
from diffac.system.memory import keep_freed_memory
from diffac.training import TrainConfig


def start_learner(module: ModuleType, config: TrainConfig, obs_dim: int, action_dim: int) -> tuple[Any, Any]:
    """What a recipe builds: its learner, and the learner's first state, on the device that the configuration names.

    From then on the process keeps the memory that it frees (`diffac.system.memory`).

    Raises:
        UsageError: the device is missing, or a backend of a third party leaves no choice of it.
    """
    keep_freed_memory()
    learner, *networks = module.build(config, obs_dim, action_dim)
    b: Any = codec_of(learner, config.backend)
    if hasattr(b, "to_device"):
        b.set_matmul_precision(config.matmul_precision)
        networks = [b.to_device(network, config.device) for network in networks]
    elif config.device not in ("auto", "cpu") or config.matmul_precision != "float32":
        raise UsageError(
            f"backend {config.backend!r} offers no choice of device or precision; leave device at 'auto' and "
            f"matmul_precision at 'float32', got {config.device!r} and {config.matmul_precision!r}"
        )
    return learner, learner.init(*networks)
