"""Where the tables of problems do not reach: each backend against the NumPy reference at chosen numbers.

`test_conformance.py` compares every row with the reference; `test_reference_gradients.py` checks the reference itself.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest

from diffac.parts.critics import next_rollout
from diffac.testing import reference as ref
from diffac.testing.conformance import assert_close
from diffac.testing.problems import bind_networks, make_problem, solve, solve_by_reference


def test_time_embedding(backend: ModuleType) -> None:
    t = np.array([[0, 1, 2], [7, 19, 99]])
    actual = backend.testing.to_numpy(backend.time_embedding(backend.testing.to_backend(t), 16))
    np.testing.assert_allclose(actual, ref.time_embedding(t, 16), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["policy", "policy_faithful"])
def test_running_moments_of_the_policy_proposal(backend: ModuleType, name: str) -> None:
    """Observations that grow from batch to batch reach both ends of the clip of the advantage."""
    rng = np.random.default_rng(3)
    problems = [make_problem("actor objective", name, rng, magnitude=m) for m in (3, 1, 30, 300, 300)]
    problem = dataclasses.replace(
        problems[0],
        batches=[batch for p in problems for batch in p.batches],
        noises=[noise for p in problems for noise in p.noises],
    )
    expected = solve_by_reference(problem)
    assert expected.values["9.state.count"] == 10
    assert_close(solve(backend, problem), expected)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_loose", "gaussian_tight"])
def test_the_smaller_critic_differs_from_sample_to_sample(name: str) -> None:
    """The problems must tell the minimum for each sample from a minimum over the batch."""
    problem = make_problem("critic objective", name, np.random.default_rng(20), spread=0.6)
    _, _, target = bind_networks(problem)
    smaller = {
        int(i) for b in problem.batches for i in target(b.next_obs, next_rollout(problem.part, b).action)[0].argmin(0)
    }
    assert smaller == {0, 1}
