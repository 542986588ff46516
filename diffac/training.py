"""The training loop, the only one: act, step, store, update, log, evaluate."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffac.environments import Episode, Stepper, close, dims, make_envs
from diffac.errors import RunError, UsageError
from diffac.evaluation import Evaluation, Evaluator
from diffac.logging import Writer, Writers
from diffac.noise import draw
from diffac.protocols import Activation, Learner
from diffac.replay import Replay, ReplayBuffer

EPISODE_WINDOW = 100
"""Episodes over which `rollout/...` is averaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Arguments of a run that do not depend on the algorithm. A *step* is one step of one environment."""

    env_id: str = "HalfCheetah-v5"
    """Gymnasium id of the environment, or module:id."""
    backend: str = "equinox"
    """Framework that runs the networks: equinox or torch (or a third party's)."""
    seed: int = 0
    """Seed of everything random."""
    total_timesteps: int = 1_000_000
    """Environment steps, all environments together."""
    num_envs: int = 5
    """Environments stepped together."""
    asynchronous: bool = False
    """A process for each environment; pays off where a step costs more than about 0.1 ms."""
    learning_starts: int = 30_000
    """Environment steps with uniformly random actions before the first update."""
    buffer_size: int = 1_000_000
    """Transitions kept for replay."""
    batch_size: int = 256
    """Transitions of an update."""
    updates_per_env_step: float = 0.2
    """Updates for each environment step after learning_starts."""
    updates_per_call: int | None = None
    """Updates fused into one call of the backend; None: what one step of all environments earns, at least 1."""
    eval_interval: int = 50_000
    """Environment steps between two evaluations; there is one at the end too."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    log_interval: int = 1_000
    """Environment steps between two lines of metrics."""
    run_root: str = "runs"
    """Folder that holds the runs."""
    progress: bool = True
    """Progress bar in the terminal; plain lines otherwise."""

    def __post_init__(self) -> None:
        counts = ("total_timesteps", "num_envs", "buffer_size", "batch_size", "eval_interval", "eval_episodes")
        for name in (*counts, "log_interval"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        self._require("seed", self.seed >= 0, "must be at least 0")
        self._require("learning_starts", self.learning_starts >= 0, "must be at least 0")
        rate = self.updates_per_env_step
        self._require("updates_per_env_step", 0 < rate < float("inf"), "must be greater than 0 and finite")
        if self.updates_per_call is not None:
            self._require("updates_per_call", self.updates_per_call >= 1, "must be at least 1, or None")
        self._require(
            "batch_size", self.batch_size <= self.buffer_size, f"must be at most buffer_size ({self.buffer_size})"
        )
        self._require(
            "num_envs", self.num_envs <= self.buffer_size, f"must be at most buffer_size ({self.buffer_size})"
        )
        self._require(
            "learning_starts",
            self.learning_starts < self.total_timesteps,
            f"must be less than total_timesteps ({self.total_timesteps}), or nothing is ever learned",
        )
        self._require(
            "batch_size",
            self.batch_size < self.total_timesteps,
            f"must be less than total_timesteps ({self.total_timesteps}), or nothing is ever learned",
        )

    def _require(self, name: str, fulfilled: bool, what: str) -> None:
        if not fulfilled:
            raise UsageError(f"{name} {what}, got {getattr(self, name)!r}")

    @property
    def first_update(self) -> int:
        """Environment steps before updates are earned: learning_starts, or a whole batch where that is more."""
        return max(self.learning_starts, self.batch_size)

    @property
    def fused_updates(self) -> int:
        """K, updates in one call of the backend."""
        return self.updates_per_call or max(1, int(self.num_envs * self.updates_per_env_step + 1e-9))

    @property
    def total_updates(self) -> int:
        """Updates of the whole run, a multiple of `fused_updates`."""
        return self.updates_earned(self.total_timesteps) // self.fused_updates * self.fused_updates

    def updates_earned(self, env_step: int) -> int:
        """Updates that this many environment steps pay for."""
        paid = min(env_step, self.total_timesteps) - self.first_update
        return max(0, int(paid * self.updates_per_env_step + 1e-9))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(TrainConfig):
    """Arguments that all actor-critic recipes share; a recipe inherits them and sets its own defaults."""

    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of actor and critic."""
    activation: Activation = "mish"
    """Activation of both networks."""
    learning_rate: float = 3e-4
    """Adam's learning rate."""
    gamma: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Rate at which the slowly moving copies (target critics, EMA actor) follow."""
    actor_delay: int = 2
    """Critic updates for each actor update."""
    reward_scale: float = 0.2
    """Factor of the reward in the critic's target; logged returns are unscaled."""

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What actor and critic take beside their dimensions and keys."""
        return {"hidden_sizes": self.hidden_sizes, "activation": self.activation}

    @property
    def network_keys(self) -> tuple[int, int]:
        """Seeds of the initial actor and critic."""
        actor, critic = np.random.SeedSequence(self.seed).generate_state(2)
        return int(actor), int(critic)


class EvaluationRecord(NamedTuple):
    """An evaluation and when it took place."""

    env_step: int
    updates: int
    returns: np.ndarray
    """[eval_episodes]"""
    lengths: np.ndarray
    """[eval_episodes]"""


class TrainResult(NamedTuple):
    """What `train` returns."""

    state: Any
    """The learner's state after the last update."""
    evaluations: list[EvaluationRecord]
    """In the order in which they took place; the last one is at the end."""


class Streams(NamedTuple):
    """The random numbers of a run, one independent stream for each purpose, so that no purpose disturbs another."""

    envs: np.random.Generator
    random_actions: np.random.Generator
    acting: np.random.Generator
    replay: np.random.Generator
    updates: np.random.Generator
    evaluation: np.random.Generator

    @classmethod
    def from_seed(cls, seed: int) -> Streams:
        """The streams that belong to a seed."""
        children = np.random.SeedSequence(seed).spawn(len(cls._fields))
        return cls(*map(np.random.default_rng, children))


def integer(rng: np.random.Generator) -> int:
    """A seed or key: uniform in {0, ..., 2^31 - 1}."""
    return int(rng.integers(2**31))


def train(
    learner: Learner,
    state: Any,
    config: TrainConfig,
    *,
    writer: Writer | None = None,
    replay: Callable[[int, int, int], Replay] = ReplayBuffer,
    on_evaluation: Callable[[list[EvaluationRecord]], None] | None = None,
) -> TrainResult:
    """Trains until `config.total_timesteps`.

    Updates run between the two halves of an environment step: while asynchronous environments work, and, with a backend
    that computes asynchronously, while synchronous ones do. So an action never waits for the update that its own step
    earned, and synchronous and asynchronous environments give the same run. Updates that do not fill a last call of
    `config.fused_updates` are left out.

    Args:
        learner: the algorithm.
        state: the learner's; must not be used afterwards.
        config: arguments.
        writer: receives metrics, and is not closed; None: nobody does.
        replay: makes the replay memory from (capacity, obs_dim, action_dim).
        on_evaluation: called with all evaluations so far after each of them.

    Raises:
        RunError: an environment broke its contract, or a loss is not finite.
        UsageError: an environment that does not exist or that diffac cannot use.
    """
    return _Run(learner, config, writer or Writers(), replay, on_evaluation).train(state)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        learner: Learner,
        config: TrainConfig,
        writer: Writer,
        replay: Callable[[int, int, int], Replay],
        on_evaluation: Callable[[list[EvaluationRecord]], None] | None,
    ) -> None:
        self.learner, self.config, self.writer, self.on_evaluation = learner, config, writer, on_evaluation
        self.streams = Streams.from_seed(config.seed)
        self.make_replay = replay
        self.evaluations: list[EvaluationRecord] = []
        self.env_step = 0
        self.updates = 0
        self.log = _Log()

    def train(self, state: Any) -> TrainResult:
        config = self.config
        envs = make_envs(config.env_id, config.num_envs, asynchronous=config.asynchronous)
        try:
            with Evaluator(
                config.env_id, num_episodes=config.eval_episodes, seed=integer(self.streams.evaluation)
            ) as evaluator:
                state = self._loop(state, Stepper(envs), evaluator)
        finally:
            close(envs)
        return TrainResult(state, self.evaluations)

    def _loop(self, state: Any, stepper: Stepper, evaluator: Evaluator) -> Any:
        config, log = self.config, self.log
        buffer = self.make_replay(config.buffer_size, *dims(stepper.envs))
        noise_spec = self.learner.act_noise_spec((config.num_envs, stepper.action_dim))
        stepper.reset([integer(self.streams.envs) for _ in range(config.num_envs)])
        while self.env_step < config.total_timesteps:
            with log.timed("act"):
                if self.env_step < config.learning_starts:
                    shape = (config.num_envs, stepper.action_dim)
                    action = self.streams.random_actions.uniform(-1, 1, shape).astype(np.float32)
                else:
                    action = self.learner.act(state, stepper.obs, draw(self.streams.acting, noise_spec))
            with log.timed("env"):
                stepper.start(action)
            state = self._update(state, buffer)
            with log.timed("env"):
                result = stepper.finish()
            buffer.add(result.transition)
            log.episodes.extend(result.episodes)
            before, self.env_step = self.env_step, self.env_step + config.num_envs
            last = self.env_step >= config.total_timesteps
            if last:
                state = self._update(state, buffer)
            if last or _crossed(before, self.env_step, config.log_interval):
                self.writer.write(self.env_step, log.flush(self.env_step, self.updates))
            if last or _crossed(before, self.env_step, config.eval_interval):
                begin = time.perf_counter()
                self._evaluate(evaluator(self.learner, state))
                log.skip(time.perf_counter() - begin)
        return state

    def _update(self, state: Any, buffer: Replay) -> Any:
        """As many calls of `config.fused_updates` updates as have been earned."""
        config = self.config
        count = config.fused_updates
        while config.updates_earned(self.env_step) - self.updates >= count:
            with self.log.timed("update"):
                batches = buffer.sample(self.streams.replay, count, config.batch_size)
                state, metrics = self.learner.update(state, batches, key=integer(self.streams.updates))
            self.updates += count
            self.log.keep(metrics)
        return state

    def _evaluate(self, evaluation: Evaluation) -> None:
        self.evaluations.append(EvaluationRecord(self.env_step, self.updates, *evaluation))
        self.writer.write(
            self.env_step,
            {
                "eval/mean_reward": float(evaluation.returns.mean()),
                "eval/std_reward": float(evaluation.returns.std()),
                "eval/mean_ep_length": float(evaluation.lengths.mean()),
            },
        )
        if self.on_evaluation is not None:
            self.on_evaluation(self.evaluations)


def _crossed(before: int, now: int, interval: int) -> bool:
    """Whether a multiple of the interval lies in (before, now]."""
    return now // interval > before // interval


class _Timer:
    """Adds the wall time of a block to an entry of a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self.table, self.name = table, name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] += time.perf_counter() - self.begin


class _Log:
    """Collects what is logged at the end of an interval. The learner's metrics stay on the device until then."""

    def __init__(self) -> None:
        self.episodes: collections.deque[Episode] = collections.deque(maxlen=EPISODE_WINDOW)
        self.begin = self.interval_begin = time.perf_counter()
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._metrics: dict[str, list[Any]] = collections.defaultdict(list)
        self._last = (0, 0)

    def timed(self, name: str) -> _Timer:
        """A context whose wall time counts for `time/{name}_fraction`."""
        return _Timer(self._seconds, name)

    def keep(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the device scalars of one call."""
        for name, value in metrics.items():
            self._metrics[name].append(value)

    def skip(self, seconds: float) -> None:
        """Leaves that much time, just spent on an evaluation, out of the interval's rates."""
        self.interval_begin += seconds

    def flush(self, env_step: int, updates: int) -> dict[str, float]:
        """The metrics of the interval that ends now.

        Raises:
            RunError: a loss is not finite.
        """
        now = time.perf_counter()
        values = {name: np.array([float(value) for value in kept]) for name, kept in self._metrics.items()}
        self._metrics.clear()
        check_losses(values, updates)
        elapsed, (last_step, last_updates) = now - self.interval_begin, self._last
        metrics: dict[str, float] = {}
        if self.episodes:
            metrics["rollout/ep_rew_mean"] = float(np.mean([episode.ret for episode in self.episodes]))
            metrics["rollout/ep_len_mean"] = float(np.mean([episode.length for episode in self.episodes]))
        metrics |= {
            f"train/{name}": float(np.nanmean(kept)) for name, kept in values.items() if not np.isnan(kept).all()
        }
        metrics |= {
            "train/updates": updates,
            "time/total_timesteps": env_step,
            "time/time_elapsed": now - self.begin,
            "time/fps": (env_step - last_step) / elapsed,
            "time/updates_per_second": (updates - last_updates) / elapsed,
            **{f"time/{name}_fraction": self._seconds[name] / elapsed for name in ("act", "env", "update")},
        }
        self._last = (env_step, updates)
        self._seconds.clear()
        self.interval_begin = now
        return metrics


def check_losses(values: Mapping[str, np.ndarray], updates: int) -> None:
    """Refuses losses that are not finite.

    NaN stands for a part that did not run, which is legal but for the critic: that runs in every update.

    Args:
        values: name -> values of the interval; names that end in "loss" are looked at.
        updates: updates so far, for the message.
    """
    for name, kept in values.items():
        bad = ~np.isfinite(kept) if name == "critic_loss" else np.isinf(kept)
        if name.endswith("loss") and bad.any():
            raise RunError(
                f"training diverged: {name} is {kept[bad][0]} in the last {len(kept)} calls before update {updates}; "
                f"lower the learning rate or the reward scale, or try another seed"
            )
