"""A training between two steps as data: what is saved of it, by whom, and whether another one can go on from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from diffac.data.replay import NumberedReplay
from diffac.errors import DamagedError
from diffac.files import checks
from diffac.system.signals import Stop
from diffac.training.streams import Streams


class Snapshot(NamedTuple):
    """A run between two steps."""

    state: Any
    """The learner's."""
    buffer: NumberedReplay
    host: dict[str, Any]
    """The rest: a nest of dictionaries, lists, numbers, texts and NumPy arrays."""


class Saver(Protocol):
    """What keeps a training on disk while it goes on, so that it can go on from there."""

    stop: Stop | None
    """Whether somebody wants the run to end; looked at after every save."""
    say: Callable[[str], None]
    """Told what a person should know."""

    def restore(self, state: Any, buffer: NumberedReplay) -> tuple[Any, dict[str, Any] | None]:
        """Fills the buffer; the learner's state and `Snapshot.host` to go on from, (state, None) at the beginning."""
        ...

    def due(self, before: int, env_step: int, last: bool) -> bool:
        """Whether the training is to be saved now.

        Args:
            before: environment steps before the last step.
            env_step: environment steps after it.
            last: whether the training ends here.
        """
        ...

    def is_at(self, env_step: int) -> bool:
        """Whether what was saved last is of that step."""
        ...

    def save(self, snapshot: Snapshot) -> None:
        """Saves the training.

        Raises:
            RunError: it could not.
            KeyboardInterrupt: it did, and somebody wants the run to stop.
        """
        ...

    def after_evaluation(self, env_step: int, updates: int, mean_reward: float, state: Any) -> None:
        """Keeps the policy where it is the best so far."""
        ...


def check_host(
    host: Any, where: str, *, num_envs: int, obs_dim: int | None = None, normalise_obs: bool = False
) -> None:
    """Looks at everything that `Training` takes from a `Snapshot.host`, before anything is made of it.

    The environments' own states are looked at where they are restored (`diffac.data.env_states`): environments that
    cannot be restored begin new episodes.

    Args:
        host: as `Checkpoint.host` returns it.
        where: it comes from, for messages.
        num_envs: environments of the run.
        obs_dim: entries of an observation; None: not known yet.
        normalise_obs: whether the run normalises observations.

    Raises:
        DamagedError: it is anything else.
    """
    names = ("env_step", "updates", "evaluations", "evaluation_due", "streams", "log", "environments", "obs_moments")
    host = checks.mapping(host, where, *names)
    env_step, updates = (checks.whole(host[name], f"{where}: {name}") for name in ("env_step", "updates"))
    before = 0
    for record in checks.items(host["evaluations"], f"{where}: evaluations"):
        record = checks.mapping(record, f"{where}: an evaluation", "env_step", "updates", "returns", "lengths")
        before = checks.whole(record["env_step"], f"{where}: step of an evaluation", before, env_step)
        checks.whole(record["updates"], f"{where}: updates of an evaluation", 0, updates)
        returns = checks.array(record["returns"], f"{where}: returns of an evaluation", (None,))
        checks.whole(len(returns), f"{where}: episodes of an evaluation", 1)
        checks.array(record["lengths"], f"{where}: lengths of an evaluation", returns.shape, "iu", least=0)
    if not isinstance(host["evaluation_due"], bool):
        raise DamagedError(f"{where}: evaluation_due must be true or false, got {checks.shown(host['evaluation_due'])}")
    states = checks.mapping(host["streams"], f"{where}: streams", *Streams._fields)
    for name in Streams._fields:
        checks.bit_generator(states[name], f"{where}: random stream {name}", "PCG64")
    _check_log(host["log"], f"{where}: log", env_step, updates, num_envs)
    _check_environments(host["environments"], f"{where}: environments", num_envs, obs_dim)
    _check_moments(host["obs_moments"], f"{where}: obs_moments", obs_dim, normalise_obs)


def _check_log(log: Any, where: str, env_step: int, updates: int, num_envs: int) -> None:
    """What `IntervalLog.restore` takes."""
    names = ("episodes", "metrics", "when", "sums", "seconds", "last", "elapsed", "interval_elapsed", "core_seconds")
    log = checks.mapping(log, where, *names)
    for episode in checks.items(log["episodes"], f"{where}: episodes"):
        env, ret, length = checks.items(episode, f"{where}: an episode", 3)
        checks.whole(env, f"{where}: environment of an episode", 0, num_envs - 1)
        checks.number(ret, f"{where}: return of an episode")
        checks.whole(length, f"{where}: length of an episode", 1)
    last = _mark(log["last"], f"{where}: last", env_step, updates)
    when = checks.items(log["when"], f"{where}: when")
    for entry in when:
        _mark(entry, f"{where}: an entry of when", env_step, updates, last)
    for name, column in checks.mapping(log["metrics"], f"{where}: metrics").items():
        checks.array(column, f"{where}: metric {name}", (len(when),), "bfiu", finite=False)
    for name, sums in checks.mapping(log["sums"], f"{where}: sums").items():
        for value in checks.items(sums, f"{where}: sums of {name}", 2):
            checks.number(value, f"{where}: sums of {name}")
        checks.number(sums[1], f"{where}: sums of {name}", 1)
    for name, value in checks.mapping(log["seconds"], f"{where}: seconds").items():
        checks.number(value, f"{where}: seconds of {name}", 0)
    for name in ("elapsed", "interval_elapsed", "core_seconds"):
        checks.number(log[name], f"{where}: {name}", 0)


def _mark(value: Any, where: str, env_step: int, updates: int, least: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """[environment steps, updates] at some time of the run."""
    step, count = checks.items(value, where, 2)
    return checks.whole(step, where, least[0], env_step), checks.whole(count, where, least[1], updates)


def _check_moments(moments: Any, where: str, obs_dim: int | None, normalise_obs: bool) -> None:
    """What `RunningMoments.restore` takes; None in a run that does not normalise observations."""
    if not normalise_obs:
        if moments is not None:
            raise DamagedError(f"{where} must be null in a run without normalise_obs, got {checks.shown(moments)}")
        return
    moments = checks.mapping(moments, where, "count", "mean", "squares")
    checks.whole(moments["count"], f"{where}: count")
    mean = checks.array(moments["mean"], f"{where}: mean", (obs_dim,))
    checks.array(moments["squares"], f"{where}: squares", mean.shape, least=0)


def _check_environments(saved: Any, where: str, num_envs: int, obs_dim: int | None) -> None:
    """What `VectorStepper.restore` takes."""
    saved = checks.mapping(saved, where, "restart", "envs", "obs", "returns", "lengths", "steps")
    if saved["restart"] is not None:
        checks.text(saved["restart"], f"{where}: restart")
    envs = checks.items(saved["envs"], f"{where}: envs", num_envs if saved["restart"] is None else None)
    for env in envs:
        checks.mapping(env, f"{where}: an environment")
    checks.array(saved["obs"], f"{where}: obs", (num_envs, obs_dim))
    checks.array(saved["returns"], f"{where}: returns", (num_envs,))
    checks.array(saved["lengths"], f"{where}: lengths", (num_envs,), "iu", least=0)
    checks.whole(saved["steps"], f"{where}: steps")
