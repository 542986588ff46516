"""Where two numbers are equal a derivative is a choice: the same one in both backends and the reference.

Of equally small critics the first one counts, and a number on a bound is not clipped.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.testing import parts, problems, reference
from diffac.testing.parts import DIMS, OBJECTIVES

THROUGH_THE_MINIMUM = ["value_ddpm", "value_additive", "time_weighted_score_chain_1", "entropy_value", "sum_shared"]
"""Objectives with the derivative of the smallest critic."""


def slope_free(B: Any) -> Any:
    """The function that detaches."""
    if B.name == "torch":
        return lambda array: array.detach()
    import jax

    return jax.lax.stop_gradient


def tied_critic(B: Any, slopes: tuple[float, ...]) -> Any:
    """Critics whose values are all exactly 0 wherever they are asked, each with another slope in every action entry."""
    detached = slope_free(B)

    def critic(obs: Any, action: Any) -> Any:
        zero = (action - detached(action)).sum(-1)
        if B.name == "torch":
            import torch

            return torch.stack([slope * zero for slope in slopes])
        import jax.numpy as jnp

        return jnp.stack([slope * zero for slope in slopes])

    return critic


class TiedReference:
    """The same critics for the reference."""

    def __init__(self, slopes: tuple[float, ...]) -> None:
        self.slopes = np.array(slopes)

    def __call__(self, obs: Any, action: Any) -> Any:
        values = np.zeros((len(self.slopes), *action.shape[:-1]))
        return values, lambda d: ({}, np.einsum("e...,e->...", d, self.slopes)[..., None] * np.ones(action.shape))


def gradient(B: Any, name: str, slopes: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Of a row with these critics."""
    problem = problems.make_problem("actor objective", name, np.random.default_rng(3), spread=0.3)
    objective = problem.part.make(B, DIMS)
    batch, noise, temperature = problem.batches[0], problem.noises[0], problem.temperature
    if B is reference:
        actor, _, _ = problems.bind_networks(problem)
        rest = (TiedReference(slopes), batch, noise, temperature, objective.init_state())
        return objective(actor, *rest)[1]
    actor, _, _ = problems.make_networks(B, problem)
    rest = (tied_critic(B, slopes), batch, noise, temperature, objective.init_state())
    return B.testing.value_and_grad(objective, actor, *rest)[1]


@pytest.mark.parametrize("name", THROUGH_THE_MINIMUM)
def test_of_equally_small_critics_the_first_counts(backend: ModuleType, name: str) -> None:
    """Half of each, as of `torch.amin`, would be 1.5 times or 2.5 times as much as the first alone."""
    expected = gradient(reference, name, (1.0, 2.0))
    assert max(np.abs(array).max() for array in expected.values()) > 1e-6
    for slopes in ((1.0, 2.0), (1.0, -3.0, 2.0)):
        found = gradient(backend, name, slopes)
        assert found.keys() == expected.keys()
        for entry, array in expected.items():
            np.testing.assert_allclose(found[entry], array, rtol=1e-9, atol=1e-12, err_msg=f"{entry}, {slopes}")


def test_recorded_for_compilation_too(both: Any) -> None:
    """What torch compiles for large networks."""
    import torch

    from diffac_torch.gradients import loss_and_gradient
    from diffac_torch.kernels.programs import _take_apart, record

    actor = parts.make_actor(both.torch, OBJECTIVES["value_ddpm"])
    objective = OBJECTIVES["value_ddpm"].make(both.torch, DIMS)
    rng = np.random.default_rng(0)
    batch, noise = both.torch.testing.to_backend((parts.make_batch(rng), parts.make_noise(rng, objective)))
    gradients = []
    for slopes in ((1.0, 2.0), (1.0, 1.0)):
        arguments = (objective, actor, tied_critic(both.torch, slopes), batch, noise, torch.tensor(1.0), {})
        tensors, *_ = _take_apart(arguments)
        _, found = record(loss_and_gradient, arguments).results(tensors)
        gradients.append([array.numpy() for array in found])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nan_is_the_smallest(backend: ModuleType) -> None:
    """A critic that is not finite must not be hidden by the others."""
    from_module = __import__(f"{backend.__name__}.parts.networks", fromlist=["_smallest"])._smallest
    values = np.array([[1.0, 2.0, np.nan, -np.inf, 0.0], [0.0, np.nan, 1.0, 5.0, np.nan]])
    found = backend.testing.to_numpy(from_module(backend.testing.to_backend(values)))
    np.testing.assert_array_equal(found, [0.0, np.nan, np.nan, -np.inf, np.nan])


def test_a_number_on_a_bound_is_not_clipped(backend: ModuleType) -> None:
    """A standard deviation that starts on its bound can leave it; its whole derivative counts, not half of it."""
    rng, sampler = np.random.default_rng(0), backend.TanhGaussianSampler()
    batch = parts.make_batch(rng)

    def pushed(log_std_max: float) -> Any:
        actor = backend.GaussianActor(
            DIMS.obs, DIMS.action, key=1, hidden_sizes=(4,), log_std_min=-5.0, log_std_max=log_std_max
        )
        arrays = backend.to_arrays(actor)
        arrays["layers.1.weight"][DIMS.action :] = 0  # log_std is its bias: exactly 0
        objective = backend.EntropyRegularisedValue(sampler)
        noise = parts.make_noise(np.random.default_rng(1), objective)
        critic = tied_critic(backend, (1.0, 1.0))
        actor = backend.from_arrays(actor, arrays)
        _, found = backend.testing.value_and_grad(objective, actor, critic, batch, noise, np.array(0.5), {})
        return found["layers.1.bias"]

    np.testing.assert_allclose(pushed(0.0), pushed(2.0), rtol=1e-12)
    assert np.abs(pushed(0.0)).min() > 1e-3
