"""QWeightedProposal: its weights on a known Q, and the law that is learned from them: the best action and a uniform."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from diffac.noise import Noise, NoiseSpec, Uniform, draw
from diffac.parts.schedules import TabularSchedule, cosine_schedule
from diffac.protocols import Batch, Policy, Rollout
from theory.fitting import OBSERVATIONS, UniformSampler, fit, predict

pytestmark = pytest.mark.theory

TABLE = cosine_schedule(10)
BEST, NUM_UNIFORM, UNIFORM_WEIGHT = 0.5, 4, 0.125
SHARE = NUM_UNIFORM * UNIFORM_WEIGHT / (1 + NUM_UNIFORM * UNIFORM_WEIGHT)


class EitherSide:
    """A policy with two actions."""

    def noise_spec(self, shape: tuple[int, ...]) -> NoiseSpec:
        return {"side": Uniform(shape)}

    def rollout(self, policy: Policy, obs: Any, noise: Noise) -> Rollout:
        return Rollout(2 * BEST * (1.0 * (noise["side"] > 0.5) - 0.5))

    def __call__(self, policy: Policy, obs: Any, noise: Noise) -> Any:
        return self.rollout(policy, obs, noise).action


def critic(backend: ModuleType) -> Any:
    """Two values, steeper in the one state than in the other; the second is the smaller one everywhere."""
    stack = importlib.import_module({"torch": "torch", "equinox": "jax.numpy"}[backend.name]).stack
    return lambda obs, action: stack([(2 + obs[..., 0]) * action[..., 0] - below for below in (0.0, 3.0)])


def exact_noise(noisy: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[eps | noisy] where the action is BEST, or uniform on [-1, 1] with probability SHARE; by their posterior."""
    low, high = (noisy - alpha) / sigma, (noisy + alpha) / sigma
    mass = norm.cdf(high) - norm.cdf(low)
    of_best = (noisy - alpha * BEST) / sigma
    best, uniform = (1 - SHARE) * norm.pdf(of_best) / sigma, SHARE * mass / (2 * alpha)
    return (best * of_best + SHARE / (2 * alpha) * (norm.pdf(low) - norm.pdf(high))) / (best + uniform)


def test_weights_on_a_known_value(backend: ModuleType) -> None:
    """Two states, four candidates each, by hand: Q = (2 + s) a - 3 is the smaller of the two."""
    actions = np.array([[-1.0, 0.25], [0.5, -0.75], [0.0, 0.75], [-0.5, 0.5]])[..., None]
    obs, zeros = np.array([[-0.5], [0.5]]), np.zeros(2)
    batch = Batch(obs, np.zeros((2, 1)), zeros, obs, zeros)
    proposal = backend.QWeightedProposal(UniformSampler(), 4, num_uniform=2, uniform_weight=0.25)
    noise = draw(np.random.default_rng(0), proposal.noise_spec((2, 1), TABLE.num_steps), np.float64)
    noise["candidates"]["uniform"] = (actions + 1) / 2
    given = backend.testing.to_backend((batch, noise, np.float64(1.0), {}))
    data = backend.testing.to_numpy(proposal(None, critic(backend), *given, TABLE))
    weight = np.array([1.5 * (0.5 + 0.25), 2.5 * (0.75 - 0.1875)])
    np.testing.assert_allclose(data.weight, [weight, weight / 4, weight / 4], rtol=1e-12)
    uniform = 2 * noise["uniform"] - 1
    np.testing.assert_allclose(data.action, np.concatenate([[[[0.5], [0.75]]], uniform]), rtol=1e-12)
    alpha, sigma = (array[noise["t"]][..., None] for array in (TABLE.alphas, TABLE.sigmas))
    np.testing.assert_allclose(data.noisy, alpha * data.action + sigma * noise["eps"], rtol=1e-12)
    np.testing.assert_allclose(data.metrics["q_mean"], np.mean([1.5 * -0.25 - 3, 2.5 * 0.1875 - 3]), rtol=1e-12)


def exact_chain(table: TabularSchedule, noise: Noise) -> np.ndarray:
    """What the DDPM chain with the exact denoiser ends in."""
    alpha, sigma, noisy = table.alphas, table.sigmas, noise["start"]
    for t in range(table.num_steps - 1, 0, -1):
        action = np.clip((noisy - sigma[t] * exact_noise(noisy, alpha[t], sigma[t])) / alpha[t], -1, 1)
        ratio = alpha[t] / alpha[t - 1]
        kept = (ratio * sigma[t - 1] / sigma[t]) ** 2  # of what the state's noise is, how much was there a step before
        noisy = alpha[t - 1] * (1 - kept) * action + kept / ratio * noisy
        noisy = noisy + np.sqrt(1 - kept) * sigma[t - 1] * noise["steps"][t - 1]
    return np.clip((noisy - sigma[0] * exact_noise(noisy, alpha[0], sigma[0])) / alpha[0], -1, 1)


def share(actions: np.ndarray) -> float:
    """How much of a uniform law there is, by what lies far from BEST."""
    return float(np.mean(np.abs(actions - BEST) > 0.25) / 0.75)


def test_a_chain_of_many_steps_has_the_uniform_share() -> None:
    """u / (1 + u); with few steps there is less of it."""
    rng, found = np.random.default_rng(0), []
    for steps in (10, 40, 160):
        noise = {"start": rng.standard_normal((40_000, 1)), "steps": rng.standard_normal((steps - 1, 40_000, 1))}
        found.append(share(exact_chain(cosine_schedule(steps), noise)))
    print(f"shares with 10, 40, 160 steps {np.round(found, 3)} of {SHARE:.3f}")
    assert found[0] < found[1] < found[2]
    np.testing.assert_allclose(found[2], SHARE, atol=0.02)


def test_the_law_that_is_learned(backend: ModuleType) -> None:
    """The best action and a uniform share, the same in every state whatever the scale of Q there."""
    proposal = backend.QWeightedProposal(EitherSide(), 4, NUM_UNIFORM, UNIFORM_WEIGHT)
    actor = fit(backend, backend.ReweightedScoreMatching(TABLE, proposal), critic(backend), 1, updates=2000)
    rng, errors = np.random.default_rng(1), np.zeros((TABLE.num_steps, 2))
    sampler = backend.DDPMSampler(TABLE, start_scale=1.0)
    noise = draw(rng, sampler.noise_spec((4000, 1)), np.float64)
    exact, shares = share(exact_chain(TABLE, noise)), []
    for i, obs in enumerate(OBSERVATIONS):
        for t in range(TABLE.num_steps):
            clean = np.where(rng.random((2000, 1)) < SHARE, rng.uniform(-1, 1, (2000, 1)), BEST)
            noisy = TABLE.alphas[t] * clean + TABLE.sigmas[t] * rng.standard_normal(clean.shape)
            found = predict(backend, actor, obs, noisy, np.full(len(noisy), t))
            errors[t, i] = np.sqrt(((found - exact_noise(noisy, TABLE.alphas[t], TABLE.sigmas[t])) ** 2).mean())
        given = backend.testing.to_backend((np.full((4000, 1), obs), noise))
        actions = backend.testing.compiled(sampler)(Policy(actor), *given)
        shares.append(share(backend.testing.to_numpy(actions)))
    print(
        f"{backend.name}: errors at t = 0, 1, ... {errors.max(1).round(3)}; shares {np.round(shares, 3)}, {exact:.3f}"
    )
    assert errors[1:].max() < 0.08
    assert errors[0].max() < 0.15  # where the noise is small, the field turns within its width around BEST
    np.testing.assert_allclose(shares, exact, atol=0.03)
