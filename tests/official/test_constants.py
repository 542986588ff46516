"""What a replay takes from the recording, since recordings are small and start anywhere: the official numbers."""

from __future__ import annotations

import math

import pytest

from official.replay import configuration

SDAC = {
    "num_diffusion_steps": 20, "num_candidates": 32, "hidden_sizes": (256, 256, 256), "batch_size": 256,
    "temperature_interval": 250, "actor_delay": 2, "initial_temperature": 5.0, "final_actor_learning_rate": 3e-5,
    "total_updates": 200_000,
}  # fmt: skip
OFFICIAL = {
    "sdac": SDAC | {"num_particles": 64},
    "dpmd": SDAC,
    "idem": SDAC | {"num_particles": 64},
    "dacer": {
        "num_diffusion_steps": 20, "hidden_sizes": (256, 256, 256), "batch_size": 256, "temperature_interval": 10_000,
        "actor_delay": 2, "initial_temperature": 3.0,
    },
    "sac_dacer": {"hidden_sizes": (256, 256, 256), "batch_size": 256, "actor_delay": 1, "initial_temperature": math.e},
    "sb3_sac": {"hidden_sizes": (256, 256), "batch_size": 256, "actor_delay": 1, "initial_temperature": 1.0},
    "sb3_td3": {"hidden_sizes": (400, 300), "batch_size": 256, "actor_delay": 2, "target_noise": 0.2},
}  # fmt: skip
"""By algorithm: ALGORITHMS.md, sections 1, 3, 4 and 5."""


@pytest.mark.parametrize("algorithm", OFFICIAL)
def test_numbers(algorithm: str) -> None:
    _, config = configuration(algorithm)
    assert {field: getattr(config, field) for field in OFFICIAL[algorithm]} == OFFICIAL[algorithm]


@pytest.mark.parametrize("algorithm", ["sdac", "dpmd", "idem"])
def test_decay(algorithm: str) -> None:
    _, config = configuration(algorithm)
    rate = config.actor_learning_rate(config.final_actor_learning_rate)
    assert (rate.begin, rate.end) == (25_000, 75_000)  # actor steps
