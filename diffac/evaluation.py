"""Evaluation: how good is the policy, measured without touching its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from diffac.configs import natural
from diffac.environments import Stepper, close, make_envs
from diffac.errors import UsageError
from diffac.noise import draw
from diffac.protocols import Learner

MAX_ENVS = 10
"""Environments that an evaluation steps together unless it is told otherwise."""


class Evaluation(NamedTuple):
    """Complete episodes of one policy."""

    returns: np.ndarray
    """[num_episodes], undiscounted sums of the rewards as the environment gave them."""
    lengths: np.ndarray
    """[num_episodes], numbers of steps."""


class Evaluator:
    """Evaluates policies in environments of its own, which it keeps between calls.

    Every call starts from the same seeds and the same noise, so two calls differ by the policy alone. How many episodes
    an environment contributes is fixed beforehand: taking the first `num_episodes` that end would favour short ones.

    Args:
        env_id: as in `make_envs`.
        num_episodes: episodes of an evaluation.
        seed: of the environments and of the policy's noise; never shared with training.
        num_envs: environments stepped together; None: at most 10.
        deterministic: exploration noise is off (`Learner.act_noise_spec(..., deterministic=True)`).
        env_kwargs: as in `make_envs`.
        wrappers: as in `make_envs`.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_episodes: int = 10,
        seed: int,
        num_envs: int | None = None,
        deterministic: bool = True,
        env_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[str] = (),
    ) -> None:
        num_episodes, seed, num_envs = natural([num_episodes, seed, num_envs])
        if num_episodes < 1:
            raise UsageError(f"num_episodes must be at least 1, got {num_episodes}")
        num_envs = min(num_episodes, MAX_ENVS if num_envs is None else num_envs)
        self.num_episodes = num_episodes
        self.seed = seed
        self.deterministic = deterministic
        self._stepper = Stepper(make_envs(env_id, num_envs, env_kwargs=env_kwargs, wrappers=wrappers))
        share, more = divmod(num_episodes, num_envs)
        self._quota = np.array([share + (i < more) for i in range(num_envs)])

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

    def __call__(self, learner: Learner, state: Any) -> Evaluation:
        """Plays the episodes; returns them ordered by environment, then time."""
        stepper = self._stepper
        env_seeds, noise_seed = self._seeds()
        rng = np.random.default_rng(noise_seed)
        spec = learner.act_noise_spec((stepper.num_envs, stepper.action_dim), deterministic=self.deterministic)
        played: list[list[tuple[float, int]]] = [[] for _ in range(stepper.num_envs)]
        obs = stepper.reset(env_seeds)
        while any(len(episodes) < quota for episodes, quota in zip(played, self._quota, strict=True)):
            result = stepper.step(learner.act(state, obs, draw(rng, spec)))
            for episode in result.episodes:
                if len(played[episode.env]) < self._quota[episode.env]:
                    played[episode.env].append((episode.ret, episode.length))
            obs = result.obs
        returns, lengths = zip(*(episode for episodes in played for episode in episodes), strict=True)
        return Evaluation(np.array(returns), np.array(lengths))

    def close(self) -> None:
        """Closes the environments."""
        close(self._stepper.envs)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def evaluate(
    learner: Learner,
    state: Any,
    env_id: str,
    *,
    num_episodes: int = 10,
    seed: int,
    num_envs: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str] = (),
) -> Evaluation:
    """One evaluation in environments made for it; arguments as for `Evaluator`, which is cheaper for several."""
    options: Any = {"num_envs": num_envs, "env_kwargs": env_kwargs, "wrappers": wrappers}
    with Evaluator(env_id, num_episodes=num_episodes, seed=seed, **options) as evaluator:
        return evaluator(learner, state)
