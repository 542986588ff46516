"""A training between two steps, with everything that it needs to go on."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from diffac.backend import codec_of, get_backend
from diffac.data.environments import make_envs, of_statistics
from diffac.data.normalisation import RunningMoments
from diffac.data.own_stepper import OwnStepper
from diffac.data.replay import NumberedReplay, Replay, ReplayBuffer
from diffac.data.stepper import Episode, Stepper, VectorStepper
from diffac.errors import UsageError, told_as
from diffac.protocols import REPLAY_NUMBER, Engine, provides
from diffac.training.config import TrainConfig
from diffac.training.evaluation import EvaluationRecord, Evaluator, records
from diffac.training.interval_log import IntervalLog
from diffac.training.snapshot import Snapshot, check_host
from diffac.training.streams import Streams, integer

Purpose = Literal["training", "evaluation"]
MakeStepper = Callable[[TrainConfig, Purpose], Stepper]
"""Makes the environments for one of both."""


class Training:
    """What a callback sees and a checkpoint holds: counters, evaluations, the learner's state, environments, replay.

    A context manager that closes the environments.

    Args:
        engine: runs the learner, `backend.Engine(learner)`.
        state: the learner's; must not be used afterwards.
        config: arguments.
        replay: makes the replay memory from (capacity, obs_dim, action_dim) and, by keyword, gamma, n_step and
            num_envs.
        stepper: makes the environments from the configuration and "training" or "evaluation"; None: those of
            gymnasium that the configuration names.
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
        stepper: MakeStepper | None = None,
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
        self._moments: RunningMoments | None = None
        """Of the observations that the policy has acted on, where its networks see them normalised."""
        self._compiled: set[str] = set()
        """Methods of the engine that were called: their programs are compiled."""
        with contextlib.ExitStack() as stack:
            self._stepper = _training_stepper(config, stepper)
            stack.callback(self._stepper.close)
            self._evaluator = stack.enter_context(
                Evaluator(
                    config.env_id if stepper is None else _made(stepper, config, "evaluation"),
                    num_episodes=config.eval_episodes,
                    seed=integer(self._streams.evaluation),
                    max_steps=config.eval_max_steps,
                    **({} if stepper is not None else config.env_arguments),
                )
            )
            sizes = self._checked_sizes()
            options = {"gamma": config.gamma, "n_step": config.n_step, "num_envs": config.num_envs}
            with told_as("what makes the replay memory"):
                self.buffer = _on_device(replay, config)(config.buffer_size, *sizes, **options)
            """The replay memory."""
            self._begin(restore, say)
            self._resources = stack.pop_all()

    def _checked_sizes(self) -> tuple[int, int]:
        """(obs_dim, action_dim) of the environments.

        Raises:
            UsageError: those of the evaluation, or those that the actor was made for, are others.
        """
        sizes = self._stepper.obs_dim, self._stepper.action_dim
        actor = getattr(self.state, "actor", None)
        made_for = tuple(getattr(actor, name, own) for name, own in zip(("obs_dim", "action_dim"), sizes, strict=True))
        for whose, others in (("those of the evaluation have", self._evaluator.dims), ("the actor is for", made_for)):
            if others != sizes:
                raise UsageError(
                    f"the environments of the training have observations of {sizes[0]} entries and actions of "
                    f"{sizes[1]}, and {whose} {others[0]} and {others[1]}"
                )
        return sizes

    def _make_moments(self) -> RunningMoments | None:
        """Goes on from those of the learner's state, which may be that of an agent that has learned before.

        Raises:
            UsageError: configuration and learner do not agree on whether observations are normalised.
        """
        normaliser = getattr(getattr(self.engine, "learner", None), "obs_normaliser", None)
        if self.config.normalise_obs != (normaliser is not None):
            has, want = ("no", "give it one") if normaliser is None else ("an", "set normalise_obs")
            raise UsageError(f"the learner has {has} obs_normaliser, and normalise_obs is {normaliser is None}; {want}")
        if normaliser is None:
            return None
        moments, prefix = RunningMoments(self._stepper.obs_dim), "obs_moments."
        arrays = codec_of(self.engine, self.config.backend).to_arrays(self.state)
        moments.go_on({name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)})
        return moments

    def _begin(self, restore: Callable[..., tuple[Any, dict[str, Any] | None]] | None, say: Callable[..., Any]) -> None:
        """Starts at the first step, or goes on where the snapshot was taken."""
        saved = None
        if isinstance(self._stepper, VectorStepper) and (found := self._stepper.statistics):
            say(of_statistics(self.config.env_id, found))
        self._moments = self._make_moments()
        if restore is not None:
            self.state, saved = restore(self.state, _numbered(self.buffer))
        if saved is not None:
            check_host(
                saved,
                "the state to go on from",
                num_envs=self.config.num_envs,
                obs_dim=self._stepper.obs_dim,
                normalise_obs=self.config.normalise_obs,
            )
            if self._moments is not None:
                self._moments.restore(saved["obs_moments"])
            self.env_step, self.updates = saved["env_step"], saved["updates"]
            self.evaluations += records(saved)
            self.evaluation_due = saved["evaluation_due"]
            for name, stream in self._streams._asdict().items():
                stream.bit_generator.state = saved["streams"][name]
            self._log.restore(saved["log"])
        if saved is None:
            self._forget_numbers()
            self._stepper.reset(self._new_seeds())
        elif (problem := self._stepper.restore(saved["environments"], self._new_seeds())) is not None:
            say(f"the environments begin new episodes, because they could not be saved: {problem}")

    def _forget_numbers(self) -> None:
        """Takes numbers of transitions out of the learner's state, which an earlier training may have left there."""
        if any(name.endswith(REPLAY_NUMBER) for name in getattr(self.state, "actor_objective", ())):
            codec = codec_of(self.engine, self.config.backend)
            arrays = dict(codec.to_arrays(self.state))
            for name in arrays:
                if name.endswith(REPLAY_NUMBER):
                    arrays[name] = np.full_like(arrays[name], -1)
            self.state = codec.from_arrays(self.state, arrays)

    def _new_seeds(self) -> list[int]:
        """Seeds for new episodes of all environments."""
        return [integer(self._streams.envs) for _ in range(self.config.num_envs)]

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
            "obs_moments": None if self._moments is None else self._moments.save(),
        }
        return Snapshot(self.state, _numbered(self.buffer), host)

    def _refuse_if_advancing(self, what: str) -> None:
        if self._advancing:
            raise UsageError(f"{what} was called while training advances; a callback ends that by returning False")

    def close(self) -> None:
        """Closes the environments; may be called twice.

        Raises:
            UsageError: it is advancing.
        """
        self._refuse_if_advancing("close")
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _made(make: MakeStepper, config: TrainConfig, purpose: Purpose) -> Stepper:
    with told_as(f"what makes the environments for {purpose}"):
        return make(config, purpose)


def _training_stepper(config: TrainConfig, make: MakeStepper | None) -> VectorStepper | OwnStepper:
    """The environments that are learned from."""
    if make is not None:
        made = _made(make, config, "training")
        own = OwnStepper(made, config.num_envs)
        return made if isinstance(made, VectorStepper) else own  # which can do it all
    envs = make_envs(
        config.env_id,
        config.num_envs,
        asynchronous=config.asynchronous,
        clip_action=config.clip_action,
        **config.env_arguments,
    )
    return VectorStepper(envs, timeout=config.step_timeout)


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
    if not provides(buffer, NumberedReplay):
        raise UsageError(f"checkpoints cannot hold a {type(buffer).__name__}; it must offer what NumberedReplay says")
    return buffer
