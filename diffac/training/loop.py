"""The training loop, the only one: act, step, store, update, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from diffac.backend import codec_of
from diffac.data.replay import Replay, ReplayBuffer
from diffac.logging import Writer, Writers
from diffac.noise import draw
from diffac.protocols import Engine
from diffac.system.compiling import compiling
from diffac.system.signals import Interrupted, Stop
from diffac.training.callbacks import Asking, Callback, Callbacks, Moment, check_callback
from diffac.training.config import TrainConfig
from diffac.training.evaluation import EvaluationRecord
from diffac.training.nonfinite import DivergenceError, diverged
from diffac.training.snapshot import Saver
from diffac.training.state import MakeStepper, Training
from diffac.training.streams import integer


class TrainResult(NamedTuple):
    """What `train` returns."""

    state: Any
    """The learner's state after the last update."""
    evaluations: list[EvaluationRecord]
    """In the order in which they took place; the last one is at the end."""


def train(
    engine: Engine,
    state: Any,
    config: TrainConfig,
    *,
    writer: Writer | None = None,
    replay: Callable[..., Replay] = ReplayBuffer,
    stepper: MakeStepper | None = None,
    callback: Callback | None = None,
    checkpointer: Saver | None = None,
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
        stepper: makes the environments from the configuration and "training" or "evaluation", in both cases with
            observations and actions of equal sizes; None: those of gymnasium that the configuration names.
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
    with Loop(engine, state, config, replay=replay, stepper=stepper, **saved) as training:
        training.advance(config.total_timesteps, writer=writer, callback=callback, checkpointer=checkpointer)
        return TrainResult(training.state, training.evaluations)


class Loop(Training):
    """Steps, updates, evaluates and saves a training: what `train` advances to its end at once."""

    def advance(
        self,
        env_step: int,
        *,
        writer: Writer | None = None,
        callback: Callback | None = None,
        checkpointer: Saver | None = None,
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
        writer = Writers() if writer is None else writer
        if stop is None and checkpointer is not None:
            stop = checkpointer.stop
        with self._advancing_to(env_step), Asking() as asking:
            ask = partial(self._ask, asking, callback)
            going, stopping = True, False
            while not stopping:
                if self.evaluation_due:
                    try:
                        going = self._evaluate(writer, ask, checkpointer, stop) and going
                    except Interrupted:
                        stopping = True
                        if checkpointer is not None and checkpointer.is_at(self.env_step):
                            raise
                    over = self.env_step >= self.config.total_timesteps
                    if checkpointer is not None and (stopping or not going or over):
                        self._save(checkpointer)
                if stopping or not going or self.env_step >= env_step:
                    break
                before = self.env_step
                self._start_step()
                self._update()
                self._finish_step()
                last = self.env_step >= self.config.total_timesteps
                if last:
                    self._update()
                self.evaluation_due = last or _crossed(before, self.env_step, self.config.eval_interval)
                going = ask("on_step")
                if last or _crossed(before, self.env_step, self.config.log_interval):
                    self._write_metrics(writer)
                stopping = stop is not None and stop.requested
                if checkpointer is not None and checkpointer.due(before, self.env_step, last or stopping or not going):
                    self._save(checkpointer)
            ask("on_end")

    @contextlib.contextmanager
    def _advancing_to(self, env_step: int) -> Iterator[None]:
        """A context in which time counts, and nothing else may advance the training or close it."""
        self._refuse_if_advancing("advance")
        if env_step > self.config.total_timesteps:
            self.config = dataclasses.replace(self.config, total_timesteps=env_step)
        if not self._stepper.whole:
            self._stepper.reset(self._new_seeds())
        self._log.go_on()
        self._advancing = True
        try:
            yield
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

    def _start_step(self) -> None:
        """Acts, and has all environments begin their step."""
        config, stepper, log = self.config, self._stepper, self._log
        shape = (config.num_envs, stepper.action_dim)
        self._observe()
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

    def _observe(self) -> None:
        """Takes the observations that are acted on now into their moments."""
        if self._moments is not None:
            with self._log.timed("act"), self._updating:
                self._moments.update(self._stepper.obs)
                self.state = self.engine.set_obs_moments(self.state, self._moments.state())

    def _finish_step(self) -> None:
        """Waits for the environments, and stores what they return."""
        with self._log.timed("env"):
            result = self._stepper.finish()
        self.buffer.add(result.transition)
        self.episodes = result.episodes
        self._log.episodes.extend(result.episodes)
        self.env_step += self.config.num_envs

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

    def _save(self, checkpointer: Saver) -> None:
        """Writes a checkpoint, in time that does not count."""
        begin = time.perf_counter()
        checkpointer.save(self.snapshot())
        self._log.skip(time.perf_counter() - begin)

    def _evaluate(
        self, writer: Writer, ask: Callable[[Moment], bool], checkpointer: Saver | None, stop: Stop | None
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


def _crossed(before: int, now: int, interval: int) -> bool:
    """Whether a multiple of the interval lies in (before, now]."""
    return now // interval > before // interval
