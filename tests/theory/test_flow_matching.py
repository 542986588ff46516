"""ReweightedScoreMatching in the denoiser's output: the minimiser on a flow is the velocity field of the data."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from diffac.noise import draw
from diffac.parts.schedules import LinearSchedule, flow_schedule
from diffac.protocols import Batch, Rollout
from theory.exact import Mixture
from theory.fitting import HIDDEN, predict

pytestmark = pytest.mark.theory

TABLE = flow_schedule(5)
DATA = Mixture(np.array([0.3, 0.7]), np.array([[-0.6, 0.2], [0.5, -0.4]]), np.array([0.15, 0.25]))
BATCH, UPDATES = 2048, 3000


def flat(obs: object, action: object) -> object:
    """A critic without preference, so that every action has the same weight."""
    return 0 * action[..., 0][None]  # type: ignore[index]


def test_minimiser_is_the_velocity_field(backend: ModuleType) -> None:
    """E[eps - a | a_t] at every time, of a mixture in two dimensions; where no signal is left it is a_t - E[a]."""
    proposal = backend.PolicyProposal(centred=False, tempered=False)
    objective = backend.ReweightedScoreMatching(TABLE, proposal, space="output")
    actor = backend.MLPDenoiser(1, 2, key=0, hidden_sizes=HIDDEN, prediction="velocity")
    rng, obs, zeros = np.random.default_rng(0), np.zeros((BATCH, 1)), np.zeros(BATCH)

    def data() -> object:
        for _ in range(UPDATES):
            batch = Batch(obs, np.zeros((BATCH, 2)), zeros, obs, zeros, next_rollout=Rollout(DATA.sample(rng, BATCH)))
            yield batch, draw(rng, objective.noise_spec((BATCH, 2)), np.float64)

    rate = backend.Adam(LinearSchedule(3e-3, 1e-5, UPDATES // 4, UPDATES))
    actor = backend.testing.minimise(objective, actor, flat, data(), 1.0, rate)
    errors = []
    for t in range(TABLE.num_steps):
        alpha, sigma = TABLE.alphas[t], TABLE.sigmas[t]
        noisy = alpha * DATA.sample(rng, 1000) + sigma * rng.standard_normal((1000, 2))
        noise = DATA.noise(noisy, alpha, sigma)
        action = (noisy - sigma * noise) / alpha if alpha > 0 else np.broadcast_to(DATA.mean(), noisy.shape)
        error = predict(backend, actor, 0.0, noisy, np.full(len(noisy), t)) - (noise - action)
        errors.append(np.sqrt((error**2).mean() / ((noise - action) ** 2).mean()))
    print(f"{backend.name}: relative errors at t = 0, 1, ... {np.round(errors, 3)}")
    assert max(errors) < 0.08
