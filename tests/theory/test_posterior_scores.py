"""The family of targets of ReverseProposal: one expectation for every gradient_weight h, and a variance that h decides.

Guesses are clipped to the box and keep their noises, so the policy is exp(value_scale Q(clip(a)) / temperature) on all
of space, here times exp(-|a - clip(a)|^2 / (2 OUTSIDE^2)). Expectations over the noise of one guess are integrals on a
grid; what K guesses make of them is the delta method's: the target's variance is E[w^2 |x - m|^2] / (K E[w]^2) with
x = (1 - h) eps + h b, m = E[w x] / E[w].
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.protocols import Batch
from theory.fitting import UniformSampler
from theory.test_score_matching import CRITICS, TABLE, TEMPERATURE, VALUE_SCALE, noised, target

pytestmark = pytest.mark.theory

OBS = 0.5
OUTSIDE = 0.2
TIMES = np.array([0, 2, 5, 8]).repeat(3)
"""Later ones have so few guesses in the box that 256 of them are far from the limit."""
SCALE = VALUE_SCALE / TEMPERATURE
WEIGHTS: dict[str, Any] = {
    "value": 0.0,
    "half": 0.5,
    "gradient": 1.0,
    "beyond": 1.3,
    "by time": tuple(np.linspace(1, 0, TABLE.num_steps)),
}


def grid(noisy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal noises [n grid act] and their shares [n grid], by Gauss's rule between the box's faces."""
    alpha, sigma = TABLE.alphas[TIMES, None], TABLE.sigmas[TIMES, None]
    faces = [np.clip((noisy - alpha * face) / sigma, -9, 9) for face in (1, -1)]
    ends = np.stack([np.full_like(noisy, -9), *faces, np.full_like(noisy, 9)])
    node, weight = np.polynomial.legendre.leggauss(60)
    centre, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    line = np.concatenate([c[..., None] + h[..., None] * node for c, h in zip(centre, half, strict=True)], -1)
    share = np.concatenate([h[..., None] * weight for h in half], -1) * np.exp(-0.5 * line**2)
    if noisy.shape[1] == 1:
        eps, shares = line.swapaxes(1, 2), share[:, 0]
    else:
        (x, y), (u, v) = line.swapaxes(0, 1), share.swapaxes(0, 1)
        both = np.broadcast_arrays(x[:, :, None], y[:, None])
        eps = np.stack(both, -1).reshape(len(noisy), -1, 2)
        shares = (u[:, :, None] * v[:, None]).reshape(len(noisy), -1)
    return eps, shares / shares.sum(1, keepdims=True)


def slope(action_dim: int, actions: np.ndarray) -> np.ndarray:
    """Gradient of Q by central differences, exact to 1e-9, for Q is a polynomial."""
    critic, obs, step = CRITICS[action_dim], np.full((1, 1), OBS), 1e-5
    moves = step * np.eye(action_dim)
    return np.stack([(critic(obs, actions + m)[0] - critic(obs, actions - m)[0]) / (2 * step) for m in moves], -1)


class Exact:
    """Integrals over the noise of one guess behind each noisy action."""

    def __init__(self, action_dim: int, noisy: np.ndarray) -> None:
        eps, share = grid(noisy)
        alpha, sigma = TABLE.alphas[TIMES, None, None], TABLE.sigmas[TIMES, None, None]
        free = (noisy[:, None] - sigma * eps) / alpha
        action = np.clip(free, -1, 1)
        beyond = (free - action) / OUTSIDE
        value = np.exp(SCALE * CRITICS[action_dim](np.full((1, 1), OBS), action)[0] - 0.5 * (beyond**2).sum(-1))
        b = -sigma / alpha * (SCALE * slope(action_dim, action) * (np.abs(free) < 1) - beyond / OUTSIDE)
        self.eps, self.b = eps, b
        self.w, self.squared = share * value, share * value**2
        self.normaliser = self.w.sum(1)[:, None]
        self.noise = self.mean(0.0)

    def mean(self, h: Any) -> np.ndarray:
        """E[eps | noisy] by that h, [n act]."""
        return np.einsum("bn,bna->ba", self.w, self.point(h)) / self.normaliser

    def point(self, h: Any) -> np.ndarray:
        """What one guess says, [n grid act]."""
        h = np.reshape(h, (-1, 1, 1))
        return (1 - h) * self.eps + h * self.b

    def bias(self, h: Any) -> np.ndarray:
        """K times the bias of the target, [n act]."""
        return -np.einsum("bn,bna->ba", self.squared, self.point(h) - self.noise[:, None]) / self.normaliser**2

    def variance(self, h: Any) -> np.ndarray:
        """K times the variance of the target, summed over the action, [n]."""
        error = self.point(h) - self.noise[:, None]
        return np.einsum("bn,bna->b", self.squared, error**2) / self.normaliser[:, 0] ** 2

    def best(self) -> np.ndarray:
        """The h of least variance summed over the noisy actions at a time, [n]."""
        low, middle, high = (self.variance(h).reshape(4, 3).sum(1) for h in (0.0, 0.5, 1.0))
        curvature = 2 * (low - 2 * middle + high)
        return (0.5 - (high - low) / (2 * curvature)).repeat(3)


def noisy_actions(action_dim: int) -> np.ndarray:
    return noised(np.random.default_rng(0), target(action_dim, OBS), TIMES)


def regressions(backend: ModuleType, action_dim: int, h: Any, num_particles: int, repeats: int, **more: Any) -> Any:
    """Calls the proposal at the noisy actions, each `repeats` times; what it returns, with a state for the next."""
    noisy, rng = noisy_actions(action_dim), np.random.default_rng(1)
    proposal = backend.ReverseProposal(
        UniformSampler(), num_particles, VALUE_SCALE, truncated=False, gradient_weight=h, outside_std=OUTSIDE, **more
    )
    rows = repeats * len(TIMES)
    batch = Batch(np.full((rows, 1), OBS), None, np.zeros(rows), None, np.zeros(rows))
    tools = backend.testing
    state = tools.to_backend(dict(proposal.init_state(TABLE.num_steps)))
    call = tools.compiled(proposal)
    while True:
        given = {
            "rollout": {"uniform": np.full((rows, action_dim), 0.5)},  # action 0: "eps" alone decides on a_t
            "t": np.tile(TIMES, repeats).astype(np.int32),
            "eps": np.tile(noisy / TABLE.sigmas[TIMES, None], (repeats, 1)),
            "particles": rng.standard_normal((num_particles, rows, action_dim)),
        }
        arguments = map(tools.to_backend, (batch, given, np.array(TEMPERATURE)))
        found = call(None, CRITICS[action_dim], *arguments, state, TABLE)
        state = found.state
        yield tools.to_numpy(found.target).reshape(repeats, len(TIMES), action_dim), tools.to_numpy(state)


@pytest.mark.parametrize("action_dim", [1, 2])
def test_expectation_is_the_same_for_every_weight(action_dim: int) -> None:
    """Stein's identity, which holds because directions that were clipped have no gradient."""
    exact = Exact(action_dim, noisy_actions(action_dim))
    for h in (0.5, 1.0, 1.3, TIMES / 8):
        np.testing.assert_allclose(exact.mean(h), exact.noise, atol=1e-8)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("action_dim", [1, 2])
def test_targets_have_the_predicted_mean_and_variance(backend: ModuleType, action_dim: int, name: str) -> None:
    h, num_particles, repeats = WEIGHTS[name], 512, 2048
    exact = Exact(action_dim, noisy_actions(action_dim))
    of_rows = np.array(h)[TIMES] if isinstance(h, tuple) else h
    targets, _ = next(regressions(backend, action_dim, h, num_particles, repeats))
    bias, standard_error = exact.bias(of_rows) / num_particles, targets.std(0) / np.sqrt(repeats)
    assert (np.abs(targets.mean(0) - exact.noise - bias) < 5 * standard_error + 0.2 * np.abs(bias)).all()

    predicted = exact.variance(of_rows) / num_particles
    ratio = targets.var(0).sum(-1) / predicted
    print(
        f"{backend.name}, {action_dim}-d, {name}: variance over its prediction {ratio.min():.3f} to {ratio.max():.3f}"
    )
    assert (np.abs(ratio - 1) < 0.2).all()
    assert abs(ratio.mean() - 1) < 0.05


@pytest.mark.parametrize("action_dim", [1, 2])
def test_weight_of_least_variance_is_found(backend: ModuleType, action_dim: int) -> None:
    """At every time, and the targets that follow vary less than those of its neighbours would."""
    exact = Exact(action_dim, noisy_actions(action_dim))
    best = exact.best()
    found = regressions(backend, action_dim, "minimum_variance", 256, 256, rate=0.1)
    for _ in range(60):
        targets, state = next(found)
    h = -state["gradient_covariance"][TIMES] / state["gradient_variance"][TIMES]
    print(f"{backend.name}, {action_dim}-d: h {np.round(h[::3], 3)}, exact {np.round(best[::3], 3)}")
    np.testing.assert_allclose(h, best, atol=0.03)
    assert (state["gradient_variance"][[1, 3, 19]] == 0).all()  # times that no batch had

    def spread(of: Any) -> np.ndarray:
        return exact.variance(of).reshape(4, 3).sum(1)

    assert (spread(h) <= 1.01 * np.minimum(spread(h - 0.2), spread(h + 0.2))).all()
    assert targets.var(0).sum(-1).sum() < 1.3 * exact.variance(best).sum() / 256
