"""The training loop, the only one: act, step, store, update, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np

from diffac.backend import get_backend
from diffac.data.environments import Episode, Stepper, check_env_arguments, dims, make_envs, of_statistics
from diffac.data.replay import NumberedReplay, Replay, ReplayBuffer
from diffac.errors import UsageError
from diffac.logging import Writer, Writers
from diffac.noise import draw
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Activation, Engine
from diffac.runs.checkpoints import Checkpointer, Snapshot, codec_of
from diffac.runs.configs import check_fields
from diffac.system.compiling import compiling
from diffac.system.signals import Interrupted, Stop
from diffac.training.callbacks import Asking, Callback, Callbacks, Moment, check_callback
from diffac.training.evaluation import Evaluator
from diffac.training.interval_log import IntervalLog
from diffac.training.nonfinite import DivergenceError, diverged
from diffac.training.snapshot import check_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Arguments of a run that do not depend on the algorithm. A *step* is one step of one environment."""

    env_id: str = "HalfCheetah-v5"
    """Gymnasium id of the environment, or module:id."""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the environment and of gymnasium.make: max_episode_steps=200 healthy_reward=0.5."""
    wrappers: tuple[str, ...] = ()
    """What each environment is wrapped in, the innermost first: module:function, which takes and returns one."""
    backend: str = "equinox"
    """Framework that runs the networks: equinox or torch (or a third party's)."""
    device: str = "auto"
    """Where the networks live: cpu, cuda, cuda:1...; auto: the first GPU, or else the CPU."""
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Numbers inside matrix products: less exact is faster where the hardware has it, and other numbers come out."""
    seed: int = 0
    """Seed of everything random."""
    clip_action: bool = True
    """Clip actions to [-1, 1] after exploration noise, before they reach environment, replay and targets."""
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
    replay_on_device: bool = False
    """Keeps them on the device of the networks, so that batches need not travel to a GPU."""
    batch_size: int = 256
    """Samples of an update."""
    gamma: float = 0.99
    """Discount factor."""
    n_step: int = 1
    """Rewards in a row, at most, before a target bootstraps; fewer at the end of an episode."""
    updates_per_env_step: float = 0.2
    """Updates for each environment step after learning_starts."""
    updates_per_call: int | None = None
    """Updates fused into one call of the backend; None: what one step of all environments earns, at least 1."""
    eval_interval: int = 50_000
    """Environment steps between two evaluations; there is one at the end too."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    eval_max_steps: int | None = None
    """Steps after which an episode of an evaluation is cut; None: the environment's own limit, 10,000 without one."""
    log_interval: int = 1_000
    """Environment steps between two lines of metrics."""
    checkpoint_interval: int = 50_000
    """Environment steps between two checkpoints, from which `diffac resume` goes on; there is one at the end too."""
    step_timeout: float = 300.0
    """Seconds that asynchronous environments may take for a step or reset before the run stops."""
    run_root: str = "runs"
    """Folder that holds the runs."""
    progress: bool = True
    """Progress bar in the terminal; plain lines otherwise."""
    track: Literal["wandb", "trackio"] | None = None
    """Experiment tracker that gets all metrics too; needs the extra of that name."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_env_arguments(self.env_kwargs, self.wrappers)
        counts = ("total_timesteps", "num_envs", "buffer_size", "batch_size", "eval_interval", "eval_episodes")
        for name in (*counts, "n_step", "log_interval", "checkpoint_interval"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        self._require("step_timeout", self.step_timeout > 0, "must be greater than 0")
        self._require("gamma", 0 <= self.gamma <= 1, "must be in [0, 1]")
        self._require("seed", self.seed >= 0, "must be at least 0")
        self._require("learning_starts", self.learning_starts >= 0, "must be at least 0")
        rate = self.updates_per_env_step
        self._require("updates_per_env_step", 0 < rate < float("inf"), "must be greater than 0 and finite")
        for name in ("updates_per_call", "eval_max_steps"):
            if getattr(self, name) is not None:
                self._require(name, getattr(self, name) >= 1, "must be at least 1, or None")
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
    def env_arguments(self) -> dict[str, Any]:
        """What `make_envs` takes beside the id."""
        return {"env_kwargs": self.env_kwargs, "wrappers": self.wrappers}

    @property
    def names(self) -> tuple[str, ...]:
        """Texts that name code."""
        return (self.env_id, *self.wrappers)

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

    def actor_learning_rate(self, final: float) -> LinearSchedule:
        """The schedule of the official SDAC code: learning_rate up to a quarter of the actor's steps, `final` from
        three quarters on, linear between."""
        steps = -(-self.total_updates // self.actor_delay)
        return LinearSchedule(self.learning_rate, final, steps // 4, max(steps // 4 + 1, steps * 3 // 4))

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


def host_form(config: TrainConfig) -> dict[str, Any]:
    """What `check_host` asks about a run."""
    return {"num_envs": config.num_envs, "streams": Streams._fields}


def records(host: Mapping[str, Any]) -> list[EvaluationRecord]:
    """The evaluations of a `Snapshot.host`."""
    fields = EvaluationRecord._fields
    return [EvaluationRecord(*(record[name] for name in fields)) for record in host["evaluations"]]


def integer(rng: np.random.Generator) -> int:
    """A seed or key: uniform in {0, ..., 2^31 - 1}."""
    return int(rng.integers(2**31))


def train(
    engine: Engine,
    state: Any,
    config: TrainConfig,
    *,
    writer: Writer | None = None,
    replay: Callable[..., Replay] = ReplayBuffer,
    callback: Callback | None = None,
    checkpointer: Checkpointer | None = None,
) -> TrainResult:
    """Trains until `config.total_timesteps`.

    Updates run between the two halves of an environment step: while asynchronous environments work, and, on a device
    that computes asynchronously, while synchronous ones do. So an action never waits for the update that its own step
    earned, and synchronous and asynchronous environments give the same run. Updates that do not fill a last call of
    `config.fused_updates` are left out.

    Args:
        engine: runs the learner, `backend.Engine(learner)`.
        state: the learner's; must not be used afterwards.
        config: arguments.
        writer: receives metrics, and is not closed; None: nobody does.
        replay: makes the replay memory from (capacity, obs_dim, action_dim) and, by keyword, gamma, n_step and
            num_envs.
        callback: looks on and can stop training; `Callbacks` makes one of several. None: nobody does.
        checkpointer: keeps the run on disk, and says where it goes on; needs a `NumberedReplay`. None: nothing is kept.

    Raises:
        DivergenceError: a loss, a gradient, an action or a parameter is not finite; losses and parameters are looked at
            when metrics are logged.
        CallbackError: the callback raised an error; the step under way and its checkpoint were completed.
        RunError: an environment broke its contract, or a checkpoint could not be written.
        UsageError: an environment that does not exist or that diffac cannot use.
    """
    if callback is not None:
        check_callback(callback)
    saved: dict[str, Any] = {}
    if checkpointer is not None:
        saved = {"restore": checkpointer.restore, "say": checkpointer.say}
    with Training(engine, state, config, replay=replay, **saved) as training:
        training.advance(config.total_timesteps, writer=writer, callback=callback, checkpointer=checkpointer)
        return TrainResult(training.state, training.evaluations)


class Training:
    """A run between two steps, with everything that it needs to go on: what `train` advances to its end at once.

    A context manager that closes the environments.

    Args:
        engine: runs the learner, `backend.Engine(learner)`.
        state: the learner's; must not be used afterwards.
        config: arguments.
        replay: makes the replay memory from (capacity, obs_dim, action_dim) and, by keyword, gamma, n_step and
            num_envs.
        restore: fills the replay memory, which must be a `NumberedReplay`, and returns the learner's state and
            `Snapshot.host` to go on from, or None in place of the latter at the beginning; None: begins.
        say: told what a person should know.
        updating: held during each call of `Engine.update`, which may consume the state it is given: who holds it may
            use `state` in another thread. None: a lock of its own.

    Raises:
        RunError: an environment broke its contract.
        UsageError: an environment that does not exist or that diffac cannot use.
    """

    def __init__(
        self,
        engine: Engine,
        state: Any,
        config: TrainConfig,
        *,
        replay: Callable[..., Replay] = ReplayBuffer,
        restore: Callable[[Any, NumberedReplay], tuple[Any, dict[str, Any] | None]] | None = None,
        say: Callable[[str], None] = warnings.warn,
        updating: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        self.engine = engine
        self.state = state
        """The learner's, after `updates` updates."""
        self.config = config
        self.env_step = 0
        """Environment steps so far, all environments together."""
        self.updates = 0
        """Updates of the learner so far."""
        self.episodes: list[Episode] = []
        """Training episodes that ended in the last step."""
        self.evaluations: list[EvaluationRecord] = []
        """All evaluations so far."""
        self.asking_thread: int | None = None
        """In which a callback or writer looks on just now, and everything is whole; None: none does."""
        self._advancing = False
        self._updating = threading.Lock() if updating is None else updating
        self._say, self._said_cut = say, False
        self.evaluation_due = False
        """Whether the last step is one after which the policy is evaluated, and has not been yet."""
        self._streams = Streams.from_seed(config.seed)
        self._log = IntervalLog(engine.fetch)
        self._compiled: set[str] = set()
        """Methods of the engine that were called: their programs are compiled."""
        with contextlib.ExitStack() as stack:
            envs = make_envs(
                config.env_id,
                config.num_envs,
                asynchronous=config.asynchronous,
                clip_action=config.clip_action,
                **config.env_arguments,
            )
            self._stepper = Stepper(envs, timeout=config.step_timeout)
            stack.callback(self._stepper.close)
            seed = integer(self._streams.evaluation)
            self._evaluator = stack.enter_context(
                Evaluator(
                    config.env_id,
                    num_episodes=config.eval_episodes,
                    seed=seed,
                    max_steps=config.eval_max_steps,
                    **config.env_arguments,
                )
            )
            self.buffer = _on_device(replay, config)(
                config.buffer_size,
                *dims(envs),
                gamma=config.gamma,
                n_step=config.n_step,
                num_envs=config.num_envs,
            )
            """The replay memory."""
            self._begin(restore, say)
            self._resources = stack.pop_all()

    def _begin(self, restore: Callable[..., tuple[Any, dict[str, Any] | None]] | None, say: Callable[..., Any]) -> None:
        """Starts at the first step, or goes on where the snapshot was taken."""
        saved = None
        if found := self._stepper.statistics:
            say(of_statistics(self.config.env_id, found))
        if restore is not None:
            self.state, saved = restore(self.state, _numbered(self.buffer))
        if saved is not None:
            check_host(saved, "the state to go on from", **host_form(self.config), obs_dim=dims(self._stepper.envs)[0])
            self.env_step, self.updates = saved["env_step"], saved["updates"]
            self.evaluations += records(saved)
            self.evaluation_due = saved["evaluation_due"]
            for name, stream in self._streams._asdict().items():
                stream.bit_generator.state = saved["streams"][name]
            self._log.restore(saved["log"])
        if saved is None:
            self._stepper.reset(self._new_seeds())
        elif (problem := self._stepper.restore(saved["environments"], self._new_seeds())) is not None:
            say(f"the environments begin new episodes, because they could not be saved: {problem}")

    def _new_seeds(self) -> list[int]:
        """Seeds for new episodes of all environments."""
        return [integer(self._streams.envs) for _ in range(self.config.num_envs)]

    def advance(
        self,
        env_step: int,
        *,
        writer: Writer | None = None,
        callback: Callback | None = None,
        checkpointer: Checkpointer | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Trains until that many environment steps are done, or a callback stops it.

        The run is complete at `config.total_timesteps`: then the last updates take place, and an evaluation. It can be
        stopped before that and go on, in any pieces, with the same result to the last bit. An `env_step` beyond moves
        the end of the run.

        A checkpoint that is due after the same step as an evaluation is written before it. An evaluation that a stop
        has cut short is played again by the next call, or by the run that goes on from the checkpoint.

        After an error it can go on. Where the error came from an environment, all of them are made anew and begin new
        episodes; the step that broke off is not counted.

        Args:
            env_step: environment steps since the beginning of the run.
            writer: as for `train`.
            callback: as for `train`.
            checkpointer: keeps the run on disk from here on.
            stop: looked at after every step, and in every step of an evaluation. None: that of the checkpointer.

        Raises:
            CallbackError: as for `train`.
            RunError: as for `train`.
            UsageError: the callback is none, environments that are made anew cannot be made, or it is advancing.
            Interrupted: a stop was asked for, and the checkpointer has saved the run. Without one, training just ends.
        """
        callback = Callbacks() if callback is None else check_callback(callback)
        self._refuse_if_advancing("advance")
        if env_step > self.config.total_timesteps:
            self.config = dataclasses.replace(self.config, total_timesteps=env_step)
        if stop is None and checkpointer is not None:
            stop = checkpointer.stop
        if not self._stepper.whole:
            self._stepper.reset(self._new_seeds())
        self._log.go_on()
        self._advancing = True
        try:
            with Asking() as asking:
                ask = partial(self._ask, asking, callback)
                self._advance(env_step, writer or Writers(), ask, checkpointer, stop)
                ask("on_end")
        finally:
            self._advancing = False
            self._log.pause()

    def _ask(self, asking: Asking, callback: Callback, moment: Moment) -> bool:
        with self._handing_over():
            return asking(callback, moment, self)

    @contextlib.contextmanager
    def _handing_over(self) -> Iterator[None]:
        """A context in which a callback or writer looks on, between two steps."""
        self.asking_thread = threading.get_ident()
        try:
            yield
        finally:
            self.asking_thread = None

    def _refuse_if_advancing(self, what: str) -> None:
        if self._advancing:
            raise UsageError(f"{what} was called while training advances; a callback ends that by returning False")

    def _advance(
        self,
        env_step: int,
        writer: Writer,
        ask: Callable[[Moment], bool],
        checkpointer: Checkpointer | None,
        stop: Stop | None,
    ) -> None:
        """Steps until there, or until somebody who is asked says no."""
        config = self.config
        going, stopping = True, False
        while not stopping:
            if self.evaluation_due:
                try:
                    going = self._evaluate(writer, ask, checkpointer, stop) and going
                except Interrupted:
                    stopping = True
                    if checkpointer is not None and checkpointer.is_at(self.env_step):
                        raise
                if checkpointer is not None and (stopping or not going or self.env_step >= config.total_timesteps):
                    self._save(checkpointer)
            if stopping or not going or self.env_step >= env_step:
                break
            before = self.env_step
            self._step()
            last = self.env_step >= config.total_timesteps
            if last:
                self._update()
            self.evaluation_due = last or _crossed(before, self.env_step, config.eval_interval)
            going = ask("on_step")
            if last or _crossed(before, self.env_step, config.log_interval):
                self._write_metrics(writer)
            stopping = stop is not None and stop.requested
            if checkpointer is not None and checkpointer.due(before, self.env_step, last or stopping or not going):
                self._save(checkpointer)

    def _step(self) -> None:
        """A step of all environments, and the updates that the steps before it have earned."""
        config, stepper, log = self.config, self._stepper, self._log
        shape = (config.num_envs, stepper.action_dim)
        if self.env_step < config.learning_starts:
            with log.timed("act"):
                action = self._streams.random_actions.uniform(-1, 1, shape).astype(np.float32)
        else:
            with self._calling("act"):
                noise = draw(self._streams.acting, self.engine.act_noise_spec(shape))
                action = self.engine.act(self.state, stepper.obs, noise)
                log.average("rollout/clipped_fraction", np.abs(action) >= 1)
                if not np.isfinite(action).all():
                    raise self._diverged(f"an action was NaN or infinite at environment step {self.env_step:,}")
        with log.timed("env"):
            stepper.start(action)
        self._update()
        with log.timed("env"):
            result = stepper.finish()
        self.buffer.add(result.transition)
        self.episodes = result.episodes
        log.episodes.extend(result.episodes)
        self.env_step += config.num_envs

    def _calling(self, name: Literal["act", "update"]) -> contextlib.AbstractContextManager[Any]:
        """A context that times a call of the learner. The first one compiles: that is said, and measured apart."""
        if name in self._compiled:
            return self._log.timed(name)
        self._compiled.add(name)
        stack = contextlib.ExitStack()
        stack.enter_context(compiling({"act": "the policy", "update": "the update"}[name]))
        stack.enter_context(self._log.compiling())
        return stack

    def _update(self) -> None:
        """As many calls of `config.fused_updates` updates as have been earned."""
        config = self.config
        count = config.fused_updates
        while config.updates_earned(self.env_step) - self.updates >= count:
            with self._updating, self._calling("update"):
                batches = self.buffer.sample(self._streams.replay, count, config.batch_size)
                self.state, metrics = self.engine.update(self.state, batches, key=integer(self._streams.updates))
            self.updates += count
            self._log.keep(metrics, self.env_step, self.updates)
            self._log.average("train/replay_age", self.buffer.sampled_age)

    def _write_metrics(self, writer: Writer) -> None:
        """Logs the interval that ends now, if all its numbers are numbers."""
        self._log.keep(self.engine.measure(self.state), self.env_step, self.updates)
        if (what := self._log.nonfinite()) is not None:
            raise self._diverged(what)
        self._log.average("train/replay_size", len(self.buffer))
        metrics = self._log.flush(self.env_step, self.updates)
        with self._handing_over():
            writer.write(self.env_step, metrics)

    def _diverged(self, what: str) -> DivergenceError:
        """The error for a number that is not finite; the first one that is known is what it tells of."""
        codec = codec_of(self.engine, self.config.backend)
        return diverged(self._log.nonfinite() or what, codec.to_arrays(self.state))

    def _save(self, checkpointer: Checkpointer) -> None:
        """Writes a checkpoint, in time that does not count."""
        begin = time.perf_counter()
        checkpointer.save(self.snapshot())
        self._log.skip(time.perf_counter() - begin)

    def _evaluate(
        self, writer: Writer, ask: Callable[[Moment], bool], checkpointer: Checkpointer | None, stop: Stop | None
    ) -> bool:
        """Evaluates, in time that does not count; whether training goes on."""
        begin = time.perf_counter()
        evaluation = self._evaluator(self.engine, self.state, stop)
        mean = float(evaluation.returns.mean())
        self.evaluations.append(EvaluationRecord(self.env_step, self.updates, evaluation.returns, evaluation.lengths))
        self.evaluation_due = False
        if evaluation.cut_note and not self._said_cut:
            self._say(f"{evaluation.cut_note} (eval_max_steps sets how many)")
            self._said_cut = True
        metrics = {
            "eval/mean_reward": mean,
            "eval/std_reward": float(evaluation.returns.std()),
            "eval/mean_ep_length": float(evaluation.lengths.mean()),
        }
        with self._handing_over():
            writer.write(self.env_step, metrics)
        going = ask("on_evaluation")
        if checkpointer is not None:
            checkpointer.after_evaluation(self.env_step, self.updates, mean, self.state)
        self._log.skip(time.perf_counter() - begin)
        return going

    def snapshot(self) -> Snapshot:
        """Everything that `restore` gives back."""
        host = {
            "env_step": self.env_step,
            "updates": self.updates,
            "evaluations": [record._asdict() for record in self.evaluations],
            "evaluation_due": self.evaluation_due,
            "streams": {name: stream.bit_generator.state for name, stream in self._streams._asdict().items()},
            "log": self._log.save(),
            "environments": self._stepper.save(),
        }
        return Snapshot(self.state, _numbered(self.buffer), host)

    def close(self) -> None:
        """Closes the environments; may be called twice.

        Raises:
            UsageError: it is advancing.
        """
        self._refuse_if_advancing("close")
        self._resources.close()

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _on_device(replay: Callable[..., Replay], config: TrainConfig) -> Callable[..., Replay]:
    """What makes the replay memory, with `config.replay_on_device` that of the backend."""
    if not config.replay_on_device:
        return replay
    if replay is not ReplayBuffer:
        raise UsageError("replay_on_device moves a ReplayBuffer; give your own replay memory the device yourself")
    backend: Any = get_backend(config.backend)
    if not hasattr(backend, "DeviceStorage"):
        raise UsageError(f"backend {config.backend!r} offers no DeviceStorage; leave out replay_on_device")
    return partial(ReplayBuffer, storage=partial(backend.DeviceStorage, config.device))


def _numbered(buffer: Replay) -> NumberedReplay:
    if not isinstance(buffer, NumberedReplay):
        raise UsageError(f"checkpoints cannot hold a {type(buffer).__name__}; it must offer what NumberedReplay says")
    return buffer


def _crossed(before: int, now: int, interval: int) -> bool:
    """Whether a multiple of the interval lies in (before, now]."""
    return now // interval > before // interval
