"""Evaluation: how good is the policy, measured without touching its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from diffac.data.environments import make_envs
from diffac.data.own_stepper import OwnStepper
from diffac.data.stepper import Stepper, VectorStepper
from diffac.errors import UsageError
from diffac.noise import draw
from diffac.protocols import Engine
from diffac.system.signals import Stop
from diffac.values import natural

MAX_ENVS = 10
"""Environments that an evaluation steps together unless it is told otherwise."""
MAX_STEPS = 10_000
"""Steps at which an episode is cut where neither its environment nor anybody else sets a limit."""


class Bounded(gym.Wrapper):
    """An environment whose episodes end: one that lasts too long is cut (truncated).

    Args:
        max_steps: steps of an episode, at least 1; None: the limit that the environment was registered with, or
            `MAX_STEPS` where it has none.
        env: the environment.

    Raises:
        UsageError: max_steps is below 1.
    """

    cut = False
    """Whether the episode of the last step was cut in it."""

    def __init__(self, max_steps: int | None, env: gym.Env) -> None:
        if max_steps is not None and max_steps < 1:
            raise UsageError(f"max_steps must be at least 1, or None, got {max_steps}")
        super().__init__(env)
        spec = env.spec
        self.max_steps = max_steps or (spec.max_episode_steps if spec else None) or MAX_STEPS
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        self.cut = self._steps >= self.max_steps and not (terminated or truncated)
        return obs, reward, terminated, truncated or self.cut, info


class Evaluation(NamedTuple):
    """Complete episodes of one policy."""

    returns: np.ndarray
    """[num_episodes], undiscounted sums of the rewards as the environment gave them."""
    lengths: np.ndarray
    """[num_episodes], numbers of steps."""
    cut: int = 0
    """How many of them had no end, and were cut after the last step that `Bounded` allows."""

    @property
    def cut_note(self) -> str | None:
        """The sentence that tells of episodes that were cut, where there are any."""
        if not self.cut:
            return None
        return (
            f"{self.cut} of {len(self.lengths)} episodes had no end after {self.lengths.max():,} steps and were cut "
            f"there; their returns are those until then"
        )


class EvaluationRecord(NamedTuple):
    """An evaluation and when it took place."""

    env_step: int
    updates: int
    returns: np.ndarray
    """[eval_episodes]"""
    lengths: np.ndarray
    """[eval_episodes]"""


def records(host: Mapping[str, Any]) -> list[EvaluationRecord]:
    """The evaluations of a `Snapshot.host`."""
    fields = EvaluationRecord._fields
    return [EvaluationRecord(*(record[name] for name in fields)) for record in host["evaluations"]]


class Evaluator:
    """Evaluates policies in environments of its own, which it keeps between calls.

    Every call starts from the same seeds and the same noise, so two calls differ by the policy alone. How many episodes
    an environment contributes is fixed beforehand: taking the first `num_episodes` that end would favour short ones.

    Args:
        env: the environment's name, as in `make_envs`; or a `Stepper`, which is closed here.
        num_episodes: episodes of an evaluation.
        seed: of the environments and of the policy's noise; never shared with training.
        num_envs: environments stepped together; None: at most 10, or as many as the stepper has.
        deterministic: the learner's sampler of evaluations acts, without exploration noise (`Engine.act`).
        env_kwargs: as in `make_envs`; a stepper has its own.
        wrappers: likewise.
        max_steps: steps after which an episode is cut; None: as `Bounded`, and of a stepper after `MAX_STEPS`.
    """

    def __init__(
        self,
        env: str | Stepper,
        *,
        num_episodes: int = 10,
        seed: int,
        num_envs: int | None = None,
        deterministic: bool = True,
        env_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[str] = (),
        max_steps: int | None = None,
    ) -> None:
        num_episodes, seed, num_envs = natural([num_episodes, seed, num_envs])
        if num_episodes < 1:
            raise UsageError(f"num_episodes must be at least 1, got {num_episodes}")
        self.num_episodes = num_episodes
        self.seed = seed
        self.deterministic = deterministic
        if isinstance(env, str):
            count = min(num_episodes, MAX_ENVS if num_envs is None else num_envs)
            bound = partial(Bounded, max_steps)
            envs = make_envs(env, count, env_kwargs=env_kwargs, wrappers=wrappers, wrap=bound)
            self._stepper: VectorStepper | OwnStepper = VectorStepper(envs)
        else:
            count = getattr(env, "num_envs", 1) if num_envs is None else num_envs
            self._stepper = OwnStepper(env, count, max_steps or MAX_STEPS)
        share, more = divmod(num_episodes, count)
        self._quota = np.array([share + (i < more) for i in range(count)])

    @property
    def dims(self) -> tuple[int, int]:
        """(obs_dim, action_dim) of its environments."""
        return self._stepper.obs_dim, self._stepper.action_dim

    @property
    def env_of_episode(self) -> np.ndarray:
        """[num_episodes], the environment that plays each of them; it is seeded before its first one only."""
        return np.repeat(np.arange(len(self._quota)), self._quota)

    @property
    def env_seeds(self) -> list[int]:
        """The seed of each environment."""
        return self._seeds()[0]

    def _seeds(self) -> tuple[list[int], np.random.SeedSequence]:
        """Those of the environments and of the policy's noise."""
        envs, noise = np.random.SeedSequence(self.seed).spawn(2)
        # below 2**31 like those of training: some simulators take no more
        return [int(seed) % 2**31 for seed in envs.generate_state(self._stepper.num_envs)], noise

    def __call__(self, engine: Engine, state: Any, stop: Stop | None = None) -> Evaluation:
        """Plays the episodes; returns them ordered by environment, then time.

        Args:
            engine: whose policy acts.
            state: the learner's.
            stop: looked at in every step; None: nobody asks for a stop.

        Raises:
            Interrupted: a stop was asked for; the evaluation has left no trace.
        """
        stepper = self._stepper
        env_seeds, noise_seed = self._seeds()
        rng = np.random.default_rng(noise_seed)
        spec = engine.act_noise_spec((stepper.num_envs, stepper.action_dim), deterministic=self.deterministic)
        played: list[list[tuple[float, int]]] = [[] for _ in range(stepper.num_envs)]
        obs, cut = stepper.reset(env_seeds), 0
        while any(len(episodes) < quota for episodes, quota in zip(played, self._quota, strict=True)):
            if stop is not None:
                stop.raise_if_requested()
            stepper.start(engine.act(state, obs, draw(rng, spec), deterministic=self.deterministic))
            result = stepper.finish()
            for episode in result.episodes:
                if len(played[episode.env]) < self._quota[episode.env]:
                    played[episode.env].append((episode.ret, episode.length))
                    cut += stepper.attribute("cut")[episode.env]
            obs = result.obs
        returns, lengths = zip(*(episode for episodes in played for episode in episodes), strict=True)
        return Evaluation(np.array(returns), np.array(lengths), cut)

    def close(self) -> None:
        """Closes the environments."""
        self._stepper.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def evaluate(
    engine: Engine,
    state: Any,
    env_id: str,
    *,
    num_episodes: int = 10,
    seed: int,
    num_envs: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
    max_steps: int | None = None,
) -> Evaluation:
    """One evaluation in environments made for it; arguments as for `Evaluator`, which is cheaper for several."""
    options: Any = {"num_envs": num_envs, "max_steps": max_steps, "env_kwargs": env_kwargs, "wrappers": wrappers}
    with Evaluator(env_id, num_episodes=num_episodes, seed=seed, **options) as evaluator:
        return evaluator(engine, state)
