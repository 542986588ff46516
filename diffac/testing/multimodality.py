"""How many of several equally good ways to act does a policy keep? Measures over rollouts, and over samples.

The environments of `diffac.envs` say in `info["mode"]` which goal or route an episode ended with. `measure` plays
rollouts of a policy from a place, counts the modes, closes the one that was taken most, and plays again. `act` is
whatever maps observations [n obs_dim] to actions [n action_dim], in the environment's own range:

    agent = diffac.Agent.load(folder)
    act = lambda obs: agent.predict(obs)[0]

All measures here are ours: the papers show a few trajectories and a density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffac.data.environments import make_env
from diffac.errors import UsageError, check_count, check_number

Act = Callable[[np.ndarray], np.ndarray]
"""Observations [n obs_dim], float32 -> actions [n action_dim] in the environment's own range."""

MODES = {"diffac/MultiGoal-v0": 4, "diffac/TwoRoutes-v0": 2, "diffac/FourModes-v0": 4}
"""Environment -> how many modes it has."""


class Rollouts(NamedTuple):
    """Whole episodes of a policy."""

    modes: np.ndarray
    """[n], the mode that each episode ended with; -1: none."""
    returns: np.ndarray
    """[n], undiscounted."""
    paths: list[np.ndarray]
    """Of each episode its observations [length + 1, obs_dim], the first one included."""


class Multimodality(NamedTuple):
    """What `measure` found."""

    counts: np.ndarray
    """[k], rollouts that ended with each mode."""
    missed: int
    """Rollouts that ended with none."""
    reached: int
    """Modes that at least one rollout ended with."""
    entropy: float
    """Of the distribution over modes, in nats: from 0 to log k; NaN where all rollouts missed."""
    total_variation: float
    """Distance of that distribution to the uniform one: from 0 to 1 - 1/k; NaN where all rollouts missed."""
    mean_return: float
    blocked: int
    """The mode that was taken most, which was then closed; -1: none, as all rollouts missed or it cannot be closed."""
    blocked_return: float
    """Mean return when it is closed, of the same policy, which is not told; NaN where none was."""
    blocked_share: float
    """Share of those rollouts that end with another mode; NaN where none was closed."""


def ring(radius: float, count: int = 8) -> np.ndarray:
    """Places [count 2] on a circle around the origin at equal angles, the first one on the positive x axis.

    Raises:
        UsageError: a radius that is not above 0, or a count below 1.
    """
    check_number("radius", radius, "(0, inf)")
    check_count("count", count)
    angles = 2 * np.pi * np.arange(count) / count
    return radius * np.stack([np.cos(angles), np.sin(angles)], -1)


def roll(
    act: Act,
    env_id: str,
    *,
    num_rollouts: int = 200,
    seed: int,
    starts: Sequence[Sequence[float]] | np.ndarray | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Rollouts:
    """Plays episodes, each in an environment of its own, all at once: `act` always gets all of their observations.

    Args:
        act: the policy.
        env_id: a gymnasium id.
        num_rollouts: n, at least 1.
        seed: of the environments; the policy has its own.
        starts: places [m 2], rollout i starts near place i mod m (argument `starts` of the environment); None: where
            the environment itself starts.
        env_kwargs: arguments of the environment.

    Raises:
        UsageError: no rollouts or places, arguments that the environment refuses, or actions of another shape or that
            are not finite.
    """
    check_count("num_rollouts", num_rollouts)
    check_count("seed", seed, 0)
    if starts is not None and len(starts) == 0:
        raise UsageError("starts must hold at least one place, or be None")
    envs = []
    for i in range(num_rollouts):
        place = {} if starts is None else {"starts": [np.asarray(starts[i % len(starts)], float).tolist()]}
        envs.append(make_env(env_id, {**(env_kwargs or {}), **place}))
    seeds = np.random.SeedSequence(seed).generate_state(num_rollouts)
    obs = np.stack([env.reset(seed=int(s) % 2**31)[0] for env, s in zip(envs, seeds, strict=True)])
    modes, returns, paths = np.full(num_rollouts, -1), np.zeros(num_rollouts), [[row] for row in obs.copy()]
    running = np.ones(num_rollouts, bool)
    while running.any():
        actions = _checked(act(obs.copy()), (num_rollouts, *(envs[0].action_space.shape or ())))
        for i in np.flatnonzero(running):
            obs[i], reward, terminated, truncated, info = envs[i].step(actions[i])
            paths[i].append(obs[i].copy())
            returns[i] += float(reward)
            modes[i] = info.get("mode", -1)
            running[i] = not (terminated or truncated)
    for env in envs:
        env.close()
    return Rollouts(modes, returns, [np.stack(path) for path in paths])


def _checked(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    actions = np.asarray(actions)
    if actions.shape != shape or not np.isfinite(actions).all():
        what = f"shape {actions.shape}" if actions.shape != shape else "entries that are not finite"
        raise UsageError(f"act must return finite actions of shape {shape}, got {what}")
    return actions


def measure(
    act: Act,
    env_id: str,
    *,
    num_rollouts: int = 200,
    seed: int,
    starts: Sequence[Sequence[float]] | np.ndarray | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Multimodality, Rollouts]:
    """What modes a policy ends with, and what becomes of it when the one that it prefers is closed.

    Where an environment starts at random, that alone can lead a deterministic policy to every mode: `start_std=0` has
    all rollouts begin at the same place, so that only the policy's own choice is counted.

    Args:
        act: the policy.
        env_id: one of `MODES`; the bandit's modes cannot be closed.
        num_rollouts: before and again after.
        seed: of the environments, the same before and after.
        starts: as for `roll`.
        env_kwargs: likewise.

    Returns:
        The measures, and the rollouts before anything was closed.

    Raises:
        UsageError: an environment without modes, or no rollouts.
    """
    if env_id not in MODES:
        raise UsageError(f"modes are known of {', '.join(MODES)}, got {env_id!r}")
    options: Any = {"num_rollouts": num_rollouts, "seed": seed, "starts": starts}
    env_kwargs = dict(env_kwargs or {})
    rollouts = roll(act, env_id, env_kwargs=env_kwargs, **options)
    counts = histogram(rollouts.modes, MODES[env_id])
    blocked, after = -1, None
    if counts.any() and env_id != "diffac/FourModes-v0":
        blocked = int(counts.argmax())
        after = roll(act, env_id, env_kwargs={**env_kwargs, "blocked": [blocked]}, **options)
    return Multimodality(
        counts=counts,
        missed=num_rollouts - int(counts.sum()),
        reached=int((counts > 0).sum()),
        entropy=entropy(counts),
        total_variation=total_variation(counts),
        mean_return=float(rollouts.returns.mean()),
        blocked=blocked,
        blocked_return=math.nan if after is None else float(after.returns.mean()),
        blocked_share=math.nan if after is None else float((after.modes >= 0).mean()),
    ), rollouts


def histogram(modes: np.ndarray, count: int) -> np.ndarray:
    """How many of the modes [n] are 0, 1, ..., count - 1: [count], whole numbers; -1 counts for none.

    Raises:
        UsageError: a mode that is not among them.
    """
    modes = np.asarray(modes)
    if modes.size and not (modes.min() >= -1 and modes.max() < count):
        raise UsageError(f"modes must be from -1 to {count - 1}, got {modes.min()} to {modes.max()}")
    return np.bincount(modes[modes >= 0], minlength=count)


def entropy(counts: np.ndarray) -> float:
    """-sum p log p in nats, for p = counts / sum(counts); NaN where all counts [k] are 0."""
    p = _shares(counts)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum() + 0.0) if p.size else math.nan


def total_variation(counts: np.ndarray) -> float:
    """sum |p - 1/k| / 2, for p = counts / sum(counts), the distance to uniform; NaN where all counts [k] are 0."""
    p = _shares(counts)
    return float(np.abs(p - 1 / len(p)).sum() / 2) if p.size else math.nan


def _shares(counts: np.ndarray) -> np.ndarray:
    """[k]; [0] where there is nothing to share."""
    counts = np.asarray(counts, float)
    return counts / counts.sum() if counts.sum() else np.empty(0)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| of samples (Szekely and Rizzo, 2013), a distance between their laws, squared.

    Unbiased: zero on average, so just as often below, for equal laws.

    Args:
        x: samples [n d], at least two.
        y: samples [m d], at least two.

    Raises:
        UsageError: other shapes.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise UsageError(f"samples must have shapes [n d] and [m d] with n, m >= 2, got {x.shape} and {y.shape}")
    within = [_distances(z, z) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return 2 * _distances(x, y) / (len(x) * len(y)) - sum(within)


def _distances(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of all distances between a row of x and a row of y."""
    return sum(float(np.sqrt(((row - y) ** 2).sum(-1)).sum()) for row in x)
