"""`normalise_obs`: the loop gathers moments of the observations that are acted on, and gives them to the learner."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from conftest import load_backend

import diffac.runs.recipes
from diffac.agent import Agent
from diffac.data.stepper import VectorStepper
from diffac.errors import DamagedError, UsageError
from diffac.runs.engine import start_engine
from diffac.testing.parts import changed
from diffac.training.loop import Loop, train
from diffac.training.snapshot import check_host
from diffac_recipes import sac

TINY: dict[str, Any] = {
    "env_id": "fakes:Random-v0", "backend": "torch", "normalise_obs": True, "total_timesteps": 80, "num_envs": 4,
    "learning_starts": 20, "batch_size": 8, "buffer_size": 100, "updates_per_env_step": 0.5, "eval_interval": 1000,
    "eval_episodes": 1, "hidden_sizes": (8, 8),
}  # fmt: skip


@pytest.fixture(autouse=True)
def torch_backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    return load_backend("torch")


def a_loop(**fields: Any) -> Loop:
    config = sac.Config(**{**TINY, **fields})
    return Loop(*start_engine(sac, config, 3, 1), config)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_moments_are_those_of_what_was_acted_on(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All observations, random steps too, each once; replay holds them as they are."""
    acted_on: list[np.ndarray] = []
    start = VectorStepper.start

    def recorded(self: VectorStepper, action: np.ndarray) -> None:
        acted_on.append(self.obs.copy())
        start(self, action)

    with a_loop(asynchronous=asynchronous) as loop:
        monkeypatch.setattr(VectorStepper, "start", recorded)
        for env_step in (4, 8, 48):
            loop.advance(env_step)
            seen = np.concatenate(acted_on).astype(np.float64)
            mean, var, count = (loop.state.obs_moments[name].numpy() for name in ("mean", "var", "count"))
            assert count == len(seen) == env_step
            np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-9)
            np.testing.assert_allclose(var, seen.var(0), rtol=1e-9)
        buffer: Any = loop.buffer
        rows = buffer.chunk(0, 48)
        np.testing.assert_array_equal(np.sort(rows.obs, 0), np.sort(seen, 0))


def test_evaluation_and_updates_use_them(torch_backend: Any) -> None:
    """A run whose observations are shifted and scaled acts as the one without, but for the rounding of observations."""
    returns = {}
    for name, wrappers in {"as it is": (), "shifted": ("test_normalise_obs:shifted",)}.items():
        config = sac.Config(**TINY, wrappers=wrappers)
        engine, state = start_engine(sac, config, 3, 1)
        engine = changed(torch_backend, engine, obs_normaliser=torch_backend.Standardiser(3, eps=1e-12))
        result = train(engine, state, config)
        returns[name] = torch_backend.to_arrays(result.state)
    for array, expected in returns["as it is"].items():
        if not array.startswith("obs_moments"):
            np.testing.assert_allclose(returns["shifted"][array], expected, rtol=2e-2, atol=2e-3, err_msg=array)
    moved = [returns[name]["obs_moments.mean"] for name in returns]
    np.testing.assert_allclose(moved[1], 3 + 5 * moved[0], rtol=1e-4)


def shifted(env: Any) -> Any:
    import gymnasium as gym

    return gym.wrappers.TransformObservation(env, lambda obs: 3 + 5 * obs, env.observation_space)


def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    """From a saved agent, and from a copy; and an agent that begins with the weights goes on from their moments."""
    config = {name: value for name, value in TINY.items() if name != "env_id"}
    whole = Agent.from_recipe("sac", TINY["env_id"], **config)
    whole.learn(80)
    parts = Agent.from_recipe("sac", TINY["env_id"], **config)
    parts.learn(40)
    parts.save(tmp_path / "agent")
    expected = whole._arrays()
    assert expected["obs_moments.count"] == 80
    for agent in (Agent.load(tmp_path / "agent"), parts):
        agent.learn(40)
        for name, array in agent._arrays().items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    whole.save(tmp_path / "weights", replay=False)
    fresh = Agent.load(tmp_path / "weights")
    obs = np.array([[0.5, 1.0, -2.0]], np.float32)
    np.testing.assert_array_equal(fresh.predict(obs, deterministic=True)[0], whole.predict(obs, deterministic=True)[0])
    fresh.learn(8)
    assert fresh._arrays()["obs_moments.count"] == 88


def test_what_does_not_fit_is_refused(torch_backend: Any) -> None:
    with pytest.raises(UsageError, match=r"normalise_obs needs a learner with a field obs_normaliser, .*FakeEngine"):
        Agent.from_recipe("fake", "fakes:Random-v0", normalise_obs=True)
    config = sac.Config(**TINY)
    engine, state = start_engine(sac, config, 3, 1)
    with pytest.raises(UsageError, match="the learner has an obs_normaliser, and normalise_obs is False"):
        train(engine, state, dataclasses.replace(config, normalise_obs=False))
    fake: Any = fakes.FakeEngine()
    with pytest.raises(UsageError, match="the learner has no obs_normaliser, and normalise_obs is True"):
        train(fake, fakes.FakeState(3, 1), fakes.config(normalise_obs=True))


DAMAGED: dict[str, tuple[Any, str]] = {
    "absent": (None, "obs_moments"),
    "count": ({"count": -1, "mean": np.zeros(3), "squares": np.zeros(3)}, "obs_moments: count"),
    "mean": ({"count": 1, "mean": np.zeros(2), "squares": np.zeros(2)}, "obs_moments: mean"),
    "nan": ({"count": 1, "mean": np.full(3, np.nan), "squares": np.zeros(3)}, "obs_moments: mean"),
    "squares": ({"count": 1, "mean": np.zeros(3), "squares": np.full(3, -1.0)}, "obs_moments: squares"),
}


def test_moments_of_strangers() -> None:
    with a_loop() as loop:
        loop.advance(40)
        host = loop.snapshot().host
    options: dict[str, Any] = {"num_envs": 4, "obs_dim": 3}
    check_host(host, "run.json", **options, normalise_obs=True)
    for damaged, message in DAMAGED.values():
        with pytest.raises(DamagedError, match=message):
            check_host({**host, "obs_moments": damaged}, "run.json", **options, normalise_obs=True)
    with pytest.raises(DamagedError, match="must be null in a run without normalise_obs"):
        check_host(host, "run.json", **options)
