"""A recipe of nothing: what a third party's module looks like.

This line is no part of the summary.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import time
from typing import Any

import fakes

from diffac.backend import get_backend
from diffac.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Arguments of nothing."""

    env_id: str = "fakes:Random-v0"
    """Environment."""
    backend: str = "none"
    """The learner is of NumPy."""
    total_timesteps: int = 80
    """Steps."""
    learning_starts: int = 20
    """Random steps."""
    batch_size: int = 4
    """Transitions."""
    eval_episodes: int = 2
    """Episodes."""
    hidden_sizes: tuple[int, ...] = (8, 8)
    """Widths of nothing."""
    gain: float = 1.0
    """Gain of nothing."""
    fail: str = ""
    """What goes wrong: backend, diverge, interrupt, native, fsync:SECONDS, seeds (other than 0 fail, each its way)."""


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "loud": {"gain": 3.0},
    "elsewhere": {"env_id": "fakes:Terminates-v0"},
}
ENV_CONSTANTS: dict[str, dict[str, Any]] = {
    "fakes:Term": {"gain": 2.0, "hidden_sizes": (4,)},
    "fakes:Terminates": {"hidden_sizes": (5,)},
}


class Interrupted(fakes.FakeEngine):
    """Somebody presses Ctrl-C at its first update."""

    def update(self, state: Any, batches: Any, key: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return super().update(state, batches, key)


class Native(fakes.FakeEngine):
    """Its third update never returns from a call in C, which signals do not end, as that of a compiler."""

    def update(self, state: Any, batches: Any, key: int) -> Any:
        if state.updates == 2:
            print("in C", flush=True)
            mutex = ctypes.create_string_buffer(256)
            for _ in range(2):  # who holds it waits for himself
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        return super().update(state, batches, key)


class Broken(fakes.FakeEngine):
    """Its program has a mistake that shows at its first update; or else its process is killed there.

    Args:
        killed: which of both.
    """

    def __init__(self, killed: bool) -> None:
        super().__init__()
        self.killed = killed

    def update(self, state: Any, batches: Any, key: int) -> Any:
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("a mistake")


def slow_disk(seconds: float) -> None:
    """From the second file on that is written to the disk, it takes that long."""
    fsync, calls = os.fsync, []

    def slow(file: Any) -> None:
        calls.append(file)
        if len(calls) > 20:
            print("a slow disk", flush=True)
            time.sleep(seconds)
        fsync(file)

    os.fsync = slow


def build(config: Config, obs_dim: int, action_dim: int) -> tuple[Any, Any, Any]:
    if config.fail == "backend":
        get_backend(config.backend)
    learner = Interrupted() if config.fail == "interrupt" else fakes.FakeEngine()
    if config.fail == "native":
        learner = Native()
    if config.fail.startswith("fsync:"):
        slow_disk(float(config.fail.removeprefix("fsync:")))
    if config.fail == "seeds" and config.seed in (2, 3):
        learner = Broken(killed=config.seed == 3)
    if config.fail == "diverge" or (config.fail, config.seed) == ("seeds", 1):
        learner.losses = {5: {"critic_loss": float("nan")}}
    return learner, (obs_dim, action_dim), config.gain


if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("fake")
