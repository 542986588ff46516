"""Small environments and a learner without a framework. `fakes:NAME-v0` is importable by environment processes too."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from diffac.noise import Normal, without_exploration
from diffac.parts.metrics import columns
from diffac.protocols import Batch
from diffac.training.config import TrainConfig


class Counter(gym.Env):
    """Observes [marker of the episode, steps in it, last action]; returns one array that it changes in place.

    Args:
        length: steps of an episode; None: 2 to 9 at random.
        end: "terminated", "truncated" or "both".
        broken: "obs", "reward" or "reset": what is NaN, from the third step (or second reset) on.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(np.float32([-1.0]), np.float32([3.0]))

    def __init__(self, length: int | None = 5, end: str = "terminated", broken: str = "") -> None:
        self.length, self.end, self.broken = length, end, broken
        self.buffer = np.zeros(3)
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        self.this_length = self.length or int(self.np_random.integers(2, 10))
        self.buffer[:] = self.np_random.random(), 0.0, 0.0
        if self.broken == "reset" and self.episode > 1:
            self.buffer[0] = np.nan
        return self.buffer, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        self.buffer[1:] = self.t, action[0]
        broken = self.t >= 3
        if broken and self.broken == "obs":
            self.buffer[0] = np.inf
        reward = np.nan if broken and self.broken == "reward" else 10.0 * self.t
        over = self.t >= self.this_length
        return (
            self.buffer,
            reward,
            over and self.end in ("terminated", "both"),
            over and self.end in ("truncated", "both"),
            {},
        )


class DictObs(gym.Env):
    """Observes a dictionary of a box [2 3], a tuple and a number among four: 6 + 1 + 4 entries."""

    observation_space = gym.spaces.Dict(
        {
            "a": gym.spaces.Box(-1, 1, (2, 3)),
            "b": gym.spaces.Tuple((gym.spaces.Box(-1, 1, (1,)),)),
            "c": gym.spaces.Discrete(4),
        }
    )
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        return {"a": np.full((2, 3), 0.5, np.float32), "b": (np.float32([0.25]),), "c": 2}, {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        return self.reset()[0], 0.0, False, False, {}


class Named(Counter):
    """`Counter` with a dictionary of a box [2] and the number of steps, up to 3, as observation."""

    observation_space = gym.spaces.Dict(
        {"marker": gym.spaces.Box(-10, 10, (2,), np.float32), "steps": gym.spaces.Discrete(4)}
    )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return self.named(super().reset(seed=seed)[0]), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, *rest = super().step(action)
        return self.named(obs), reward * float(action[0]), *rest

    @staticmethod
    def named(obs: np.ndarray) -> dict[str, Any]:
        return {"marker": np.float32([obs[0], obs[2]]), "steps": int(min(obs[1], 3))}


class Strange(Counter):
    """`Counter` with spaces that diffac cannot use."""

    def __init__(self, action_space: gym.Space | None = None, observation_space: gym.Space | None = None) -> None:
        super().__init__()
        self.action_space = self.action_space if action_space is None else action_space
        self.observation_space = self.observation_space if observation_space is None else observation_space


class Opaque(Counter):
    """`Counter` with a part that nobody can save."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = object()


class Saving(Opaque):
    """`Opaque` that says how it is saved; the part counts the steps since it was seeded, and the reward tells."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self.engine = iter(range(10**9))
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, _, *rest = super().step(action)
        self.total = next(self.engine)
        return obs, float(self.total), *rest

    def get_checkpoint_state(self) -> dict[str, Any]:
        names = ("episode", "t", "this_length", "buffer", "total")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.engine = iter(range(state["total"] + 1, 10**9))


class Unheard(BaseException):
    """An error that `except Exception` does not catch."""


class Closing(Counter):
    """`Counter` whose `close` raises what it is told."""

    closed: ClassVar[list[str]] = []
    """The errors of all that were closed."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__(length=None)
        self.error = error

    def close(self) -> None:
        self.closed.append(self.error.__name__)
        raise self.error("the door is stuck")


def unmade(error: type[BaseException]) -> gym.Env:
    """A constructor that raises a long error."""
    raise error("the engine\nis missing\n" + "at this place\n" * 100)


class Failing(Counter):
    """`Counter` that raises or hangs in its 30th step, or kills its process."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.total = how, 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.total += 1
        if self.total == 30:
            if self.how == "raise":
                raise ValueError("the gears are stuck")
            if self.how == "exit":
                sys.exit("the gears are stuck")
            if self.how == "base":
                raise Unheard("the gears are stuck")
            if self.how == "interrupt":
                raise KeyboardInterrupt("the gears are stuck")
            if self.how == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Busy(Counter):
    """`Counter` that never comes back, where it is asynchronous: from its third step, or another call.

    Args:
        how: "python": a loop of it; "sleep": a call in C; "locked": one that holds the interpreter's lock.
        when: "make", "reset" or "step".
    """

    def __init__(self, how: str = "python", when: str = "step") -> None:
        super().__init__()
        self.how, self.when, self.steps = how, when, 0
        self.work("make")

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        self.work("reset")
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        if self.steps == 3:
            self.work("step")
        return super().step(action)

    def work(self, when: str) -> None:
        if when != self.when or multiprocessing.parent_process() is None:
            return
        print("hard at work", flush=True)
        while self.how == "python":
            pass
        if self.how == "sleep":
            time.sleep(1000)
        ctypes.PyDLL(None).sleep(1000)


class Wandering(Counter):
    """`Counter` that changes the current folder, and is at a loss when it is not there afterwards.

    Args:
        folder: where it goes.
        when: "make", "reset" or "step".
    """

    moved: ClassVar[set[int]] = set()
    """Those that have done it; no attribute, as that would be saved and restored."""

    def __init__(self, folder: str, when: str) -> None:
        super().__init__(length=None)
        self.folder, self.when = folder, when
        self.moved.discard(id(self))
        self.work("make")

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        self.work("reset")
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.work("step")
        return super().step(action)

    def work(self, when: str) -> None:
        assert id(self) not in self.moved or os.getcwd() == self.folder
        if when == self.when:
            os.chdir(self.folder)
            self.moved.add(id(self))

    def close(self) -> None:
        self.work("close")


class Chatty(Counter):
    """`Counter` that talks, without a buffer in between."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        print("hello", "x" * 100, flush=True)
        print("hello", file=sys.stderr, flush=True)
        return super().reset(**kwargs)


def missing(**kwargs: Any) -> gym.Env:
    """Fails like a MuJoCo environment without mujoco."""
    raise gym.error.DependencyNotInstalled(
        'MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`'
    ) from ModuleNotFoundError("No module named 'mujoco'", name="mujoco")


def register(name: str, entry_point: Any, **kwargs: Any) -> None:
    if f"{name}-v0" not in gym.registry:
        gym.register(f"{name}-v0", entry_point, kwargs=kwargs)


register("Terminates", Counter)
register("Truncates", Counter, length=7, end="truncated")
register("Both", Counter, length=3, end="both")
register("Endless", Counter, length=10**9)
register("Random", Counter, length=None)
register("Opaque", Opaque, length=None)
register("Chatty", Chatty, length=None)
register("Busy", Busy)
register("Wandering", Wandering)
register("Saving", Saving, length=None)
for how in ("raise", "hang", "die", "exit", "base", "interrupt"):
    register(f"Failing{how}", Failing, how=how)
for thing in ("obs", "reward", "reset"):
    register(f"Broken{thing}", Counter, broken=thing)
for error in (ValueError, SystemExit, Unheard):
    register(f"Closing{error.__name__}", Closing, error=error)
    register(f"Unmade{error.__name__}", unmade, error=error)
register("DictObs", DictObs)
register("Named", Named, length=None)
register("Missing", missing)
register("Unbounded", Strange, action_space=gym.spaces.Box(-np.inf, np.inf, (2,)))
register("Matrix", Strange, action_space=gym.spaces.Box(-1, 1, (2, 2)))
register("Whole", Strange, action_space=gym.spaces.Box(0, 3, (2,), np.int64))
register("Sequence", Strange, observation_space=gym.spaces.Sequence(gym.spaces.Box(-1, 1, (1,))))


@dataclasses.dataclass
class FakeState:
    """What a fake learner was given."""

    actor: Any = None
    critic: Any = None
    updates: int = 0
    batches: list[Batch] = dataclasses.field(default_factory=list)
    keys: list[int] = dataclasses.field(default_factory=list)
    weight: float = 0.1


class FakeEngine:
    """An engine in NumPy whose actions depend on the observation, the noise and everything it has learned from."""

    def __init__(self, losses: dict[int, dict[str, float]] | None = None) -> None:
        self.losses = losses or {}
        self.acted: list[np.ndarray] = []
        self.explored: list[bool] = []

    def init(self, actor: Any, critic: Any) -> FakeState:
        return FakeState(actor, critic)

    def update(self, state: FakeState, batches: Batch, key: int) -> tuple[FakeState, dict[str, Any]]:
        count = len(batches.reward)
        weight = state.weight + 1e-3 * float(np.mean(batches.obs)) + 1e-3 * (key % 7) * count
        state = FakeState(
            state.actor, state.critic, state.updates + count, [*state.batches, batches], [*state.keys, key], weight
        )
        metrics = {"critic_loss": np.float32(0.5), "actor_loss": np.float32(np.nan), "weight": np.float32(weight)}
        losses = self.losses.get(state.updates, {})
        for part in ("critic", "actor"):
            if f"{part}_loss" in losses:
                metrics[f"{part}_nonfinite"] = not np.isfinite(losses[f"{part}_loss"])
        return state, metrics | losses

    def measure(self, state: FakeState) -> dict[str, Any]:
        return {"actor_param_norm": abs(state.weight), "state_nonfinite": not np.isfinite(state.weight)}

    def fetch(self, metrics: Any) -> dict[str, np.ndarray]:
        return columns(metrics)

    def to_arrays(self, state: FakeState) -> dict[str, np.ndarray]:
        return {
            "updates": np.array(state.updates, np.int32),
            "weight": np.array(state.weight),
            "keys": np.array(state.keys, np.int64),
        }

    def from_arrays(self, state: FakeState, arrays: dict[str, np.ndarray]) -> FakeState:
        updates, weight, keys = int(arrays["updates"]), float(arrays["weight"]), arrays["keys"].tolist()
        return FakeState(state.actor, state.critic, updates, [], keys, weight)

    def act_noise_spec(self, shape: tuple[int, ...], *, deterministic: bool = False) -> dict[str, Any]:
        spec = {"start": Normal(shape), "exploration": Normal(shape)}
        return without_exploration(spec) if deterministic else spec

    def act(self, state: FakeState, obs: np.ndarray, noise: Any, **_: Any) -> np.ndarray:
        self.explored.append(bool(np.any(noise["exploration"])))
        action = np.tanh(state.weight * obs[:, :2][:, -1:] + noise["start"] + noise["exploration"])
        self.acted.append(action)
        return action


class ListWriter:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, metrics: Any) -> None:
        self.lines.append((step, dict(metrics)))

    def close(self) -> None: ...

    def column(self, name: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was written."""
        return [(step, metrics[name]) for step, metrics in self.lines if name in metrics]


def config(**fields: Any) -> TrainConfig:
    """A configuration of a run of milliseconds."""
    small = {
        "env_id": "fakes:Random-v0",
        "total_timesteps": 120,
        "num_envs": 4,
        "learning_starts": 40,
        "batch_size": 8,
        "buffer_size": 500,
        "updates_per_env_step": 0.5,
        "eval_interval": 60,
        "eval_episodes": 3,
        "log_interval": 20,
    }
    return TrainConfig(**{**small, **fields})
