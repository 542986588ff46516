"""The benchmark compares equal mathematics, counts right and judges right. Nothing here is timed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmarks.switches import SWITCHES

from diffac.noise import draw
from diffac.protocols import Transition
from diffac.recipes import load_recipe

SMALL: dict[str, dict[str, Any]] = {
    "dacer2": {"num_diffusion_steps": 3, "eta": 0.7},
    "dacer": {"num_diffusion_steps": 3},
    "sdac": {"num_diffusion_steps": 4, "num_candidates": 3, "num_particles": 5},
    "dpmd": {"num_diffusion_steps": 4, "num_candidates": 3},
}


def small(recipe: str, backend: str) -> tuple[Any, Any, Any]:
    """A learner and its networks, for three observation and two action entries."""
    module = load_recipe(recipe)
    return module.build(module.Config(backend=backend, hidden_sizes=(8, 8), **SMALL[recipe]), 3, 2)


def batch_of(rng: np.random.Generator) -> Transition:
    """Four transitions with three observation and two action entries."""
    obs, action, reward, next_obs = (rng.uniform(-1, 1, shape) for shape in ((4, 3), (4, 2), (4,), (4, 3)))
    return Transition(obs, action, reward, next_obs, np.array([False, True, False, False]))


@pytest.mark.parametrize("recipe", SMALL)
def test_naive_is_the_same_mathematics(backend: ModuleType, recipe: str) -> None:
    """Three updates with the same noise: with the actor, without and with it again."""
    naive = importlib.import_module(f"benchmarks.naive_{backend.name}")
    learner, actor, critic = small(recipe, backend.name)
    other = naive.Naive(learner, actor, critic)
    state = learner.init(actor, critic)
    before = backend.to_arrays(state)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch, noise = batch_of(rng), draw(rng, learner.noise_spec((4, 2)), float)
        state, metrics = learner.step(state, batch, noise)
        assert float(other.step(batch, noise)) == pytest.approx(float(metrics["critic_loss"]), rel=1e-9)
    ours, theirs = backend.to_arrays(state), other.arrays()
    networks = ("actor.", "critic.", "target_critic.", "ema_actor.")
    assert set(theirs) == {name for name in ours if name.startswith(networks)}
    for name, array in theirs.items():
        assert np.abs(ours[name] - before[name]).max() > 0, name
        np.testing.assert_allclose(array, ours[name], rtol=1e-9, atol=1e-12, err_msg=name)


def after_two_updates(recipe: str, backend: ModuleType) -> dict[str, np.ndarray]:
    """The learner's state."""
    if backend.name == "equinox":
        importlib.import_module("jax").clear_caches()  # programs made of other parts
    learner, actor, critic = small(recipe, backend.name)
    state, rng = learner.init(actor, critic), np.random.default_rng(0)
    for key in range(2):
        batches = Transition(*(array[None] for array in batch_of(rng)[:5]))
        state, _ = learner.update(state, batches, key)
    return backend.to_arrays(state)


@pytest.mark.parametrize("recipe", ["dacer2", "sdac"])
def test_switched_off_is_the_same_mathematics(
    backend: ModuleType, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates with all optimisations, and without any that can be switched off."""
    expected = after_two_updates(recipe, backend)
    for name, switch in SWITCHES.items():
        if backend.name in switch.backends:
            switch.off(name, backend.name, monkeypatch.setattr)
    result = after_two_updates(recipe, backend)
    for entry, array in expected.items():
        np.testing.assert_allclose(result[entry], array, rtol=1e-9, atol=1e-12, err_msg=entry)
    monkeypatch.undo()
    if backend.name == "equinox":
        importlib.import_module("jax").clear_caches()
