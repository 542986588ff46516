"""MeanFlowMatching and MeanFlowSampler where the mean velocity is known, and the derivative of networks in both.

The flow of N(m, c^2 I) has the paths x_s = (1 - s) m + std(s) z, std(s)^2 = (1 - s)^2 c^2 + s^2, so the mean velocity
is affine in x: u(x, t, r) = ((x_t - x_r) / (t - r)), and a start z ends in m + c z. With c = 0 all paths are straight.
"""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffac.noise import draw
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Batch, Policy, Rollout
from diffac.testing import reference
from diffac.testing.parts import ACTIVATIONS, ACTORS, DIMS, SHAPES, random_parameters

pytestmark = pytest.mark.theory

CENTRE, STD = np.array([0.3, -0.2]), 0.25


def affine(t: Any, r: Any, std: float, sqrt: Any) -> tuple[Any, Any]:
    """(A, b) with u(x, t, r) = A x + b m; where r = t the mean velocity is the velocity itself.

    From x_r = (1 - r) m + (s_r / s_t) (x - (1 - t) m), in a form that divides by no t - r: s_t^2 - s_r^2 is
    (t - r) ((t + r) (1 + c^2) - 2 c^2).
    """
    s_t, s_r = (sqrt((1 - time) ** 2 * std**2 + time**2) for time in (t, r))
    slope = ((t + r) * (1 + std**2) - 2 * std**2) / (s_t * (s_t + s_r))
    return slope, -1 - (1 - t) * slope


def actor_of(backend: ModuleType, std: float) -> Any:
    """The exact mean velocity, plus offset + slope x with the two parameters at 0."""
    if backend.name == "torch":
        import torch

        class Exact(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.offset, self.slope = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))

            def forward(self, obs: Any, noisy: Any, t: Any, r: Any) -> Any:
                t, r = torch.as_tensor(t)[..., None], torch.as_tensor(r)[..., None]
                slope, centre = affine(t, r, std, torch.sqrt)
                return slope * noisy + centre * torch.as_tensor(CENTRE) + self.offset + self.slope * noisy

        return Exact()
    import equinox as eqx
    import jax.numpy as jnp

    class Other(eqx.Module):
        offset: Any
        slope: Any

        def __call__(self, obs: Any, noisy: Any, t: Any, r: Any) -> Any:
            slope, centre = affine(jnp.asarray(t)[..., None], jnp.asarray(r)[..., None], std, jnp.sqrt)
            return slope * noisy + centre * CENTRE + self.offset + self.slope * noisy

    return Other(jnp.zeros(2), jnp.zeros(2))


def flat(obs: Any, action: Any) -> Any:
    """A critic without preference, so that every action has the same weight."""
    return 0 * action[..., 0][None]


def objective_of(backend: ModuleType, equal_fraction: float = 0.25) -> Any:
    return backend.MeanFlowMatching(backend.PolicyProposal(centred=False, tempered=False), equal_fraction)


def loss_and_slopes(
    backend: ModuleType, std: float, action: np.ndarray, eps: np.ndarray, times: np.ndarray, equal: float = 0.0
) -> Any:
    """Of the exact actor on rows (action, eps, times)."""
    rows, zeros = len(action), np.zeros(len(action))
    obs = np.zeros((rows, 1))
    batch = Batch(obs, action, zeros, obs, zeros, next_rollout=Rollout(action))
    noise = {"proposal": {"t": np.zeros(rows, np.int32), "eps": eps}, "times": times, "equal": np.full(rows, 0.5)}
    objective = objective_of(backend, equal)
    arguments = (flat, batch, noise, np.array(1.0), objective.init_state())
    return backend.testing.value_and_grad(objective, actor_of(backend, std), *arguments)


@pytest.mark.parametrize("equal", [0.0, 1.0])
def test_residual_of_straight_paths_is_zero(backend: ModuleType, equal: float) -> None:
    """All actions are one point: the velocity on a path is constant, and the identity holds row by row."""
    rng = np.random.default_rng(0)
    action, eps = np.broadcast_to(CENTRE, (500, 2)).copy(), rng.standard_normal((500, 2))
    times = rng.uniform(0.05, 1, (2, 500))
    loss, slopes = loss_and_slopes(backend, 0.0, action, eps, times, equal)
    print(f"{backend.name}: loss {loss.value:.1e}")
    assert loss.value < 1e-24
    assert max(np.abs(slope).max() for slope in slopes.values()) < 1e-12


@pytest.mark.parametrize(("t", "r"), [(1.0, 0.0), (0.9, 0.2), (0.6, 0.5), (0.3, 0.0), (0.7, 0.7)])
def test_residual_of_a_gaussian_has_no_mean(backend: ModuleType, t: float, r: float) -> None:
    """Given a_t: the target is affine in (action, noise), so it suffices that it is orthogonal to 1 and to a_t.

    Moments of second order are exact with noises +-1 and actions m +- c, in all combinations.
    """
    signs = np.array([[a, e] for a in (-1.0, 1.0) for e in (-1.0, 1.0)])
    action, eps = CENTRE + STD * signs[:, :1] * np.ones(2), signs[:, 1:] * np.ones(2)
    times = np.broadcast_to([[r], [t]], (2, 4)).copy()
    loss, slopes = loss_and_slopes(backend, STD, action, eps, times)
    assert loss.value > 1e-3, "paths of a Gaussian cross, so a row's residual is none of the mean's"
    assert max(np.abs(slope).max() for slope in slopes.values()) < 1e-12
    if t < 1:  # where the velocity is the same for every c
        _, wrong = loss_and_slopes(backend, 2 * STD, action, eps, times)
        assert max(np.abs(slope).max() for slope in wrong.values()) > 1e-2


def test_one_step_is_the_whole_flow(backend: ModuleType) -> None:
    """With the exact mean velocity any number of steps ends in m + c z: the sampler carries its dt."""
    tools, start = backend.testing, np.random.default_rng(0).uniform(-1.5, 1.5, (50, 2))
    noise, obs = tools.to_backend(({"start": start}, np.zeros((50, 1))))
    for steps in (1, 2, 3, 10):
        action = backend.MeanFlowSampler(steps)(Policy(actor_of(backend, STD)), obs, noise)
        np.testing.assert_allclose(tools.to_numpy(action), CENTRE + STD * start, rtol=1e-12, atol=1e-14)


def test_minimiser_leads_in_one_step(backend: ModuleType) -> None:
    """A network, trained from nothing, sends a start z to m + c z, in one step as in four.

    One step by the velocity alone would end in m: an error of 1.
    """
    objective, rows, updates, centre = objective_of(backend), 512, 3000, CENTRE[:1]
    actor = backend.MeanFlowActor(1, 1, key=0, hidden_sizes=(32, 32))
    rng, obs, zeros = np.random.default_rng(0), np.zeros((rows, 1)), np.zeros(rows)

    def data() -> Any:
        for _ in range(updates):
            action = centre + STD * rng.standard_normal((rows, 1))
            yield (
                Batch(obs, action, zeros, obs, zeros, next_rollout=Rollout(action)),
                draw(rng, objective.noise_spec((rows, 1)), np.float64),
            )

    rate = backend.Adam(LinearSchedule(5e-3, 1e-5, updates // 4, updates))
    actor = backend.testing.minimise(objective, actor, flat, data(), 1.0, rate)
    tools, start = backend.testing, rng.standard_normal((2000, 1))
    exact = centre + STD * start
    inside = np.abs(exact).max(-1) < 0.95
    noise, obs = tools.to_backend(({"start": start}, np.zeros((len(start), 1))))
    errors = []
    for steps in (1, 2, 4):
        action = tools.to_numpy(backend.MeanFlowSampler(steps)(Policy(actor), obs, noise))
        errors.append(np.sqrt(((action - exact)[inside] ** 2).mean()) / STD)
    print(f"{backend.name}: errors of 1, 2 and 4 steps in standard deviations {np.round(errors, 3)}")
    assert errors[0] < 0.12
    assert max(errors) < 0.2


@pytest.mark.parametrize("act", [name for name in ACTIVATIONS if name != "relu"])
def test_derivatives_of_networks(both: SimpleNamespace, act: str) -> None:
    """Along (velocity, 1) in (noisy, t): both backends, the chain rule by hand, and differences of order 8."""
    rng = np.random.default_rng(1)
    parameters = random_parameters(rng, SHAPES["actor mean_velocity"](DIMS))
    obs, noisy, velocity = (rng.standard_normal((7, size)) for size in (DIMS.obs, DIMS.action, DIMS.action))
    r, t = np.sort(rng.random((2, 7)), axis=0)
    network = reference.MeanFlowActor(parameters, act)
    by_hand = network.derivative(obs, noisy, t, r, velocity, np.ones(7))

    h, weights = 4e-3, {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    differences = np.zeros_like(by_hand)
    for k, weight in weights.items():
        up, down = (network(obs, noisy + s * k * h * velocity, t + s * k * h, r)[0] for s in (1, -1))
        differences += weight * (up - down) / h

    found = {"differences": differences}
    for B in (both.torch, both.equinox):
        actor = B.from_arrays(ACTORS["mean_velocity"](B, DIMS, 0, activation=act), parameters)
        o, n, v, one, then = map(B.testing.to_backend, (obs, noisy, velocity, t, r))
        derivative = importlib.import_module(f"{B.__name__}.parts.derivatives").value_and_derivative
        value, slope = derivative(
            lambda a, s, actor=actor, o=o, then=then: actor(o, a, s, then), (n, one), (v, one * 0 + 1)
        )
        np.testing.assert_allclose(B.testing.to_numpy(value), network(obs, noisy, t, r)[0], rtol=1e-11, atol=1e-12)
        found[B.name] = B.testing.to_numpy(slope)
    scale = np.abs(by_hand).max()
    errors = {name: float(np.abs(slope - by_hand).max() / scale) for name, slope in found.items()}
    print(f"{act}: {errors}")
    assert max(errors.values()) < 1e-9
