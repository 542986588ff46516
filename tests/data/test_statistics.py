"""Wrappers of gymnasium: their state is saved, running statistics too, and of those a warning says who has others."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

import fakes
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers as w
from numpy.testing import assert_array_equal

import diffac.runs.recipes
from diffac.agent import Agent
from diffac.data.env_states import restore_env, save_env
from diffac.data.environments import make_envs
from diffac.data.stepper import VectorStepper
from diffac.data.vectors import close
from diffac.training.loop import Loop, train

NORMALISERS = ("gymnasium.wrappers:NormalizeObservation", "gymnasium.wrappers:NormalizeReward")
LAYERS: dict[str, Any] = {
    "NormalizeObservation": w.NormalizeObservation,
    "NormalizeReward": w.NormalizeReward,
    "ClipAction": w.ClipAction,
    "ClipReward": lambda env: w.ClipReward(env, -1, 1),
    "DelayObservation": lambda env: w.DelayObservation(env, 2),
    "FlattenObservation": w.FlattenObservation,
    "FrameStackObservation": lambda env: w.FrameStackObservation(env, 3),
    "MaxAndSkipObservation": w.MaxAndSkipObservation,
    "RecordEpisodeStatistics": w.RecordEpisodeStatistics,
    "RescaleAction": lambda env: w.RescaleAction(env, np.float32(-2), np.float32(2)),
    "StickyAction": lambda env: w.StickyAction(env, 0.3),
    "TimeAwareObservation": w.TimeAwareObservation,
    "TimeLimit": lambda env: w.TimeLimit(env, 20),
    "TransformReward": lambda env: w.TransformReward(env, abs),
}


def play(env: gym.Env, steps: int) -> list[Any]:
    seen = []
    for i in range(steps):
        obs, reward, terminated, truncated, _ = env.step(np.float32([np.sin(i)]))
        seen.append((np.array(obs), reward))
        if terminated or truncated:
            env.reset()
    return seen


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_saved(name: str) -> None:
    """A normaliser among them: what follows is the same to the last bit, and nothing else than arrays is kept of it."""

    def make() -> gym.Env:
        return LAYERS[name](gym.make("Pendulum-v1", max_episode_steps=17))

    env, other = make(), make()
    env.reset(seed=1)
    play(env, 30)
    state = save_env(env)
    expected = play(env, 30)
    other.reset(seed=2)
    play(other, 3)
    restore_env(other, state)
    for one, two in zip(expected, play(other, 30), strict=True):
        assert_array_equal(one[0], two[0])
        assert one[1] == two[1]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_statistics_go_on(asynchronous: bool) -> None:
    def make() -> VectorStepper:
        return VectorStepper(make_envs("fakes:Random-v0", 2, wrappers=NORMALISERS, asynchronous=asynchronous))

    first, second = make(), make()
    try:
        assert first.statistics == ["NormalizeReward.return_rms", "NormalizeObservation.obs_rms"]
        first.reset([1, 2])
        for _ in range(20):
            first.step(np.zeros((2, 1)))
        saved = first.save()
        assert saved["restart"] is None
        assert second.restore(saved, [3, 4]) is None
        for _ in range(20):
            one, two = (stepper.step(np.ones((2, 1))) for stepper in (first, second))
            assert_array_equal(one.obs, two.obs)
            assert_array_equal(one.transition.reward, two.transition.reward)
    finally:
        close(first.envs)
        close(second.envs)


def test_a_run_with_statistics_is_saved_and_says_who_has_others() -> None:
    said: list[str] = []
    config = fakes.config(wrappers=NORMALISERS)
    with Loop(fakes.FakeEngine(), fakes.FakeState(), config, say=said.append) as training:
        training.advance(60)
        assert training.snapshot().host["environments"]["restart"] is None
    (text,) = said
    assert "environment 'fakes:Random-v0' keeps running statistics (NormalizeReward.return_rms, " in text
    assert "evaluations, videos and loaded policies begin with other statistics than those of training" in text


def test_a_loaded_agent_says_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    agent = Agent.from_recipe("fake", "fakes:Random-v0", wrappers=NORMALISERS)
    agent.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="loaded policies begin with other statistics"):
        Agent.load(tmp_path / "agent")


def test_a_run_without_statistics_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(fakes.FakeEngine(), fakes.FakeState(), fakes.config())


def test_other_objects_are_no_statistics() -> None:
    """Nor does a stranger's file make them of anything else: three arrays are what is restored."""
    env = fakes.Opaque()
    with pytest.raises(Exception, match=r"Opaque\.engine is a object, which is not data"):
        save_env(env)
