"""Observations as networks see them: in updates, when acting, in exported files; moments are data everywhere."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exported import TARGETS, check_exported

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import DIMS, make_batch, make_engine, make_noise, moments

EPS = 0.1
"""Of the row."""
OTHER = {"count": np.asarray(40.0), "mean": np.array([3.0, -1.0, 0.5]), "var": np.array([0.5, 9.0, 2.0])}


def seen(obs: np.ndarray, of: Any) -> np.ndarray:
    """What a network must see, written anew."""
    return ((obs - of["mean"]) / np.sqrt(of["var"] + EPS)).astype(obs.dtype)


def pair(B: ModuleType) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """An engine that normalises, and one that does not, with the same networks."""
    return make_engine(B, "sac_normalised"), make_engine(B, "sac")


def test_updates_see_normalised_observations(backend_also_compiled: ModuleType) -> None:
    """Equal those of a learner that is given them normalised, also with other moments, which are no constants."""
    (engine, state), (plain, other) = pair(backend_also_compiled)
    rng = np.random.default_rng(3)
    for of in (moments(), OTHER):
        state = engine.set_obs_moments(state, of)
        for _ in range(2):
            batch, noise = make_batch(rng, filled=False, magnitude=3.0), make_noise(rng, engine)
            state, _ = engine.step(state, batch, noise)
            batch = batch._replace(obs=seen(batch.obs, of), next_obs=seen(batch.next_obs, of))
            other, _ = plain.step(other, batch, noise)
    batches = make_batch(rng, leading=(2,), filled=False)
    state = engine.set_obs_moments(state, moments())
    state, _ = engine.update(state, batches, 5)
    batches = batches._replace(obs=seen(batches.obs, moments()), next_obs=seen(batches.next_obs, moments()))
    other, _ = plain.update(other, batches, 5)
    arrays, expected = backend_also_compiled.to_arrays(state), backend_also_compiled.to_arrays(other)
    assert set(arrays) - set(expected) == {"obs_moments.count", "obs_moments.mean", "obs_moments.var"}
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(arrays["obs_moments.mean"], moments()["mean"])


def test_acting_sees_normalised_observations(backend: ModuleType) -> None:
    """Also compiled beforehand, and after the moments have changed."""
    (engine, state), (plain, other) = pair(backend)
    obs = np.random.default_rng(4).standard_normal((3, DIMS.obs))
    noise = draw(np.random.default_rng(5), engine.act_noise_spec((3, DIMS.action)))
    for compiled in (False, True):
        if compiled:
            with unchecked_shapes():
                engine.compile_act(state, DIMS.obs, DIMS.action, [3])
        for of in (moments(), OTHER):
            state = engine.set_obs_moments(state, of)
            expected = plain.act(other, seen(obs, of), noise)
            np.testing.assert_allclose(engine.act(state, obs, noise), expected, rtol=1e-6, atol=1e-7)
    assert np.abs(plain.act(other, obs, noise) - expected).max() > 1e-2


@pytest.mark.parametrize("target", TARGETS)
def test_exported_policies_see_normalised_observations(both: SimpleNamespace, target: str, tmp_path: Path) -> None:
    B = both.equinox if target == "jax" else both.torch
    engine, state = make_engine(B, "sac_normalised")
    state = engine.set_obs_moments(state, OTHER)
    exporter, obs, action = check_exported(B, engine, state, target, tmp_path)
    values = exporter.critic_values(engine.learner, state, obs, action)
    plain, other = make_engine(B, "sac")
    expected = exporter.critic_values(plain.learner, other, seen(obs, OTHER), action)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


class Clipped:
    """A normaliser of a user."""

    def init_state(self) -> Any:
        return {"count": np.asarray(0.0), "mean": np.zeros(DIMS.obs), "var": np.ones(DIMS.obs)}

    def __call__(self, obs: Any, moments: Any) -> Any:
        return (obs - moments["mean"]).clip(-0.5, 0.5)


def test_a_normaliser_of_a_user(backend: ModuleType) -> None:
    """And copies of the state keep its moments."""
    engine, _ = make_engine(backend, "sac")
    engine = backend.Engine(dataclasses.replace(engine.learner, obs_normaliser=Clipped()))
    make = {"hidden_sizes": DIMS.hidden}
    state = engine.init(
        backend.GaussianActor(DIMS.obs, DIMS.action, key=1, **make),
        backend.TwinCritic(DIMS.obs, DIMS.action, key=2, **make),
    )
    state = copy.deepcopy(engine.set_obs_moments(state, OTHER))
    noise = draw(np.random.default_rng(5), engine.act_noise_spec((2, DIMS.action)))
    far, farther = (engine.act(state, np.full((2, DIMS.obs), x), noise) for x in (50.0, 70.0))
    np.testing.assert_array_equal(far, farther)


def test_moments_without_sense(backend: ModuleType) -> None:
    (engine, state), (plain, other) = pair(backend)
    with pytest.raises(UsageError, match="has no obs_normaliser"):
        plain.set_obs_moments(other, OTHER)
    with pytest.raises(UsageError, match=r"the moment 'mean' of observations must have shape \(3,\), got \(2,\)"):
        engine.set_obs_moments(state, {**OTHER, "mean": np.zeros(2)})
    with pytest.raises(UsageError, match="the moment 'var' of observations must have shape"):
        engine.set_obs_moments(state, {"count": OTHER["count"], "mean": OTHER["mean"]})
