"""ValueThroughSampler: the gradient equals central differences of the value, for every parameter of a tiny network.

The value is a function of the parameters through all steps of the chain, its clips and the choice among candidates; a
step that is detached, or a gradient that passes a clip, changes some entry by much more than the bound.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffac.testing.parts import ACTORS, DIMS, SAMPLERS, make_batch, make_critic, make_noise, randomise

pytestmark = pytest.mark.theory

SMALL = DIMS._replace(hidden=(4, 4), batch=20)
STEP = 1e-6
BOUND = 1e-7
"""Of the difference, relative to the largest entry of the gradient. Measured: at most 1e-8."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_is_that_of_central_differences(backend: ModuleType, name: str) -> None:
    for seed in range(5):
        objective, actor, arguments = a_problem(backend, name, seed)
        loss, gradient = backend.testing.value_and_grad(objective, actor, *arguments)
        scale = max(np.abs(g).max() for g in gradient.values())
        small = np.mean([abs(slope) < 1e-3 * scale for slopes in gradient.values() for slope in slopes.flat])
        if small < 0.4:  # else too many actions are clipped, and nothing depends on the parameters
            break
    assert small < 0.4
    assert scale > 0.01
    parameters = backend.to_arrays(actor)

    def value(entry: str, place: int, shift: float) -> float:
        moved = parameters[entry].copy()
        moved.flat[place] += shift
        other = backend.from_arrays(actor, {**parameters, entry: moved})
        return float(backend.testing.value_and_grad(objective, other, *arguments)[0].value)

    differences = {
        entry: [(value(entry, i, STEP) - value(entry, i, -STEP)) / (2 * STEP) for i in range(slopes.size)]
        for entry, slopes in gradient.items()
    }
    worst = max(np.abs(differences[entry] - slopes.ravel()).max() for entry, slopes in gradient.items()) / scale
    clipped = float(loss.metrics["clipped_fraction"])
    print(
        f"{backend.name}, {name}: {worst:.1e} of {scale:.3f}; {small:.0%} small, {clipped:.0%} of the actions clipped"
    )
    assert worst < BOUND


def a_problem(backend: ModuleType, name: str, seed: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """The objective, a random actor of the row, and the objective's further arguments."""
    part, rng = SAMPLERS[name], np.random.default_rng(seed)
    objective = backend.ValueThroughSampler(part.make(backend, SMALL))
    tiny = {"time_dim": 2} if part.actor == "denoiser" else {}
    actor = randomise(backend, ACTORS[part.actor](backend, SMALL, 0, **tiny), rng)
    critic = randomise(backend, make_critic(backend, part), rng)
    batch, noise = make_batch(rng, SMALL), make_noise(rng, objective, SMALL)
    return objective, actor, (critic, *backend.testing.to_backend((batch, noise, np.array(0.7), {})))
