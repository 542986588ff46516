"""A bandit with two actions, four equal modes and a known Q: does an objective reach the law that its theory promises?

`python -m tests.learning.bandit --out bandit.png` trains on both backends and draws what they learned. The optimum of
`ReweightedScoreMatching` with `ReverseProposal` is the density exp(Q/temperature) on the action box (SDAC), or on all
of space, with Q outside as at the box's face (iDEM) or falling from there (RFM); the energy distance between samples of
the policy and exact samples says how close it came. `ValueThroughSampler` has no entropy term and should reach a
maximum; DACER2 adds the Q-gradient, QSM follows it alone, and how many of the four modes they keep is reported, not
promised.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from diffac.envs.four_modes import CENTRES, WIDTH, exact_samples
from diffac.envs.four_modes import RADIUS as MODE_RADIUS
from diffac.envs.four_modes import value as q_value
from diffac.noise import NoiseSpec, draw
from diffac.parts.schedules import LinearSchedule, TabularSchedule, vp_schedule
from diffac.protocols import Batch, Policy, Rollout
from diffac.testing.multimodality import energy_distance

TEMPERATURE = 0.2
"""Of the target density: peaks are exp(1/.2) = 148 times as dense as the plain; 9 in 10 samples belong to a mode."""
BATCH = 256
MODE_SHARE = 0.05
"""A mode counts as covered when at least this share of the samples lies within MODE_RADIUS of its centre."""


def critic(backend: str) -> Any:
    """The same Q as an ensemble of one, a function of the backend's arrays."""
    if backend == "torch":
        import torch

        def torch_critic(obs: Any, action: Any) -> Any:
            square = (action[..., None, :] - torch.as_tensor(CENTRES, dtype=action.dtype)).square().sum(-1)
            return torch.exp(-square / (2 * WIDTH**2)).sum(-1)[None]

        return torch_critic
    import jax.numpy as jnp

    def jax_critic(obs: Any, action: Any) -> Any:
        square = jnp.square(action[..., None, :] - jnp.asarray(CENTRES, action.dtype)).sum(-1)
        return jnp.exp(-square / (2 * WIDTH**2)).sum(-1)[None]

    return jax_critic


def mode_shares(samples: np.ndarray) -> np.ndarray:
    """Share of the samples [n 2] within MODE_RADIUS of each centre."""
    return (cdist(samples, CENTRES) < MODE_RADIUS).mean(0)


def modes_covered(samples: np.ndarray) -> int:
    """How many of the four modes hold at least MODE_SHARE of the samples."""
    return int((mode_shares(samples) >= MODE_SHARE).sum())


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained actor with the sampler that turns it into actions."""

    backend: str
    actor: Any
    sampler: Any

    def sample(self, count: int = 2000, seed: int = 1) -> np.ndarray:
        """Actions [count 2]."""
        module, testing = modules(self.backend)
        dtype = float_dtype(module, self.actor)
        noise = draw(np.random.default_rng(seed), self.sampler.noise_spec((count, 2)), dtype)
        obs = testing.to_backend(np.zeros((count, 1), dtype))
        return np.asarray(testing.to_numpy(self.sampler(Policy(self.actor), obs, testing.to_backend(noise))))


def modules(backend: str) -> tuple[Any, Any]:
    """The backend and its testing module."""
    return importlib.import_module(f"diffac_{backend}"), importlib.import_module(f"diffac_{backend}.testing")


def float_dtype(module: Any, actor: Any) -> Any:
    """The dtype of an actor's parameters."""
    return next(iter(module.to_arrays(actor).values())).dtype


def batches(spec: NoiseSpec, count: int, seed: int, dtype: Any) -> Iterator[tuple[Batch, Any]]:
    """`count` batches of the bandit (its observation is always 0) with their noise."""
    rng, of_replay = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    obs, zeros = np.zeros((BATCH, 1), dtype), np.zeros(BATCH, dtype)
    for _ in range(count):
        action = of_replay.uniform(-1, 1, (BATCH, 2)).astype(dtype)
        yield Batch(obs, action, zeros, obs, zeros, next_rollout=Rollout(0 * action)), draw(rng, spec, dtype)


def train(backend: str, objective: Any, sampler: Any, *, updates: int, seed: int, rate: Any) -> Trained:
    """Minimises an actor objective with the bandit's Q as fixed critic."""
    module, testing = modules(backend)
    actor = module.MLPDenoiser(1, 2, key=seed, hidden_sizes=(64, 64, 64))
    data = batches(objective.noise_spec((BATCH, 2)), updates, seed, float_dtype(module, actor))
    actor = testing.minimise(objective, actor, critic(backend), data, TEMPERATURE, module.Adam(rate))
    return Trained(backend, actor, sampler)


def boltzmann(
    backend: str,
    *,
    truncated: bool = True,
    gradient_weight: Any = 0.0,
    outside_std: float | None = None,
    updates: int = 1500,
    num_steps: int = 20,
    seed: int = 0,
) -> Trained:
    """SDAC's objective (arXiv 2502.00361), iDEM's (2402.06121) or RFM's (2601.08136) for exp(Q/temperature)."""
    module, _ = modules(backend)
    schedule = vp_schedule(num_steps)
    sampler = module.DDPMSampler(schedule)
    proposal = module.ReverseProposal(
        sampler, 64, 1.0, truncated, gradient_weight=gradient_weight, outside_std=outside_std
    )
    objective = module.ReweightedScoreMatching(schedule, proposal)
    rate = LinearSchedule(3e-3, 1e-4, updates // 2, updates)
    return train(backend, objective, sampler, updates=updates, seed=seed, rate=rate)


def qsm(backend: str, *, updates: int = 1500, num_steps: int = 5, seed: int = 0) -> Trained:
    """QSM's objective (arXiv 2312.11752) with M = 1 / temperature, at actions uniform in the box."""
    module, _ = modules(backend)
    schedule = vp_schedule(num_steps)
    sampler = module.DDPMSampler(schedule, start_scale=1.0, clip="state", variance="forward")
    objective = module.TimeWeightedQGradient(
        sampler, schedule, slope=0.0, intercept=-float(np.log(TEMPERATURE)), space="eps", source="replay",
        normalised=False, target="eps",
    )  # fmt: skip
    rate = LinearSchedule(3e-3, 1e-4, updates // 2, updates)
    return train(backend, objective, sampler, updates=updates, seed=seed, rate=rate)


def value(
    backend: str,
    *,
    eta: float | None = None,
    contractive_step: float | None = None,
    updates: int = 600,
    num_steps: int = 5,
    seed: int = 0,
) -> Trained:
    """DACER's objective (arXiv 2405.15177) or, with eta, DACER2's (2505.23426)."""
    module, _ = modules(backend)
    schedule = vp_schedule(num_steps)
    sampler = module.DDPMSampler(schedule)
    objective = module.ValueThroughSampler(sampler)
    if eta is not None:
        q_gradient = module.TimeWeightedQGradient(sampler, schedule, contractive_step=contractive_step)
        objective = module.Sum((1.0, objective), (eta, q_gradient), rollout_of=sampler)
    return train(backend, objective, sampler, updates=updates, seed=seed, rate=1e-3)


def best_possible(table: TabularSchedule, count: int = 2000, seed: int = 1, cells: int = 60) -> np.ndarray:
    """Samples [count 2] of the DDPM chain with the exact denoiser: what T steps can reach with perfect training."""
    rng = np.random.default_rng(seed)
    middle = (np.arange(cells) + 0.5) / cells * 2 - 1
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2)
    log_density = q_value(grid) / TEMPERATURE
    noisy = rng.standard_normal((count, 2))
    for t in reversed(range(table.num_steps)):
        log_weight = log_density - cdist(noisy, table.alphas[t] * grid, "sqeuclidean") / (2 * table.sigmas[t] ** 2)
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        action = weight @ grid / weight.sum(1, keepdims=True)
        mean = table.posterior_action[t] * action + table.posterior_noisy[t] * noisy
        noisy = mean + table.posterior_std[t] * rng.standard_normal(noisy.shape)
    return noisy


def untrained(backend: str, *, num_steps: int = 20, seed: int = 0) -> Trained:
    """What training starts from."""
    module, _ = modules(backend)
    sampler = module.DDPMSampler(vp_schedule(num_steps), start_scale=1.0)
    return Trained(backend, module.MLPDenoiser(1, 2, key=seed, hidden_sizes=(64, 64, 64)), sampler)


def picture(path: Path, backends: tuple[str, ...] = ("torch", "equinox"), eta: float = 0.01) -> None:
    """Draws, one row a backend: the density exp(Q/temperature), SDAC's samples and DACER2's samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    exact = exact_samples(2000)
    floor = energy_distance(best_possible(vp_schedule(20)), exact)
    print(f"the chain of 20 steps with the exact denoiser: energy distance {floor:.4f}")
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 200)] * 2), -1)
    figure, axes = plt.subplots(len(backends), 6, figsize=(20, 3.6 * len(backends)), squeeze=False)
    for row, backend in zip(axes, backends, strict=True):
        started = time.perf_counter()
        density = np.exp((q_value(grid) - 1) / TEMPERATURE)
        row[0].imshow(density, extent=(-1, 1, -1, 1), origin="lower", cmap="magma")
        row[0].set_title(f"{backend}: exp(Q / {TEMPERATURE})")
        methods = {
            "SDAC": boltzmann(backend),
            "iDEM": boltzmann(backend, truncated=False, gradient_weight=1.0),
            "RFM": boltzmann(backend, truncated=False, gradient_weight="minimum_variance", outside_std=0.2),
            "QSM": qsm(backend),
            "DACER2": value(backend, eta=eta),
        }
        for axis, (title, method) in zip(row[1:], methods.items(), strict=True):
            samples = method.sample()
            axis.scatter(*samples.T, s=3, alpha=0.4, linewidths=0)
            axis.scatter(*CENTRES.T, marker="+", color="black")
            distance, covered = energy_distance(samples, exact), modes_covered(samples)
            family = title in ("SDAC", "iDEM", "RFM")
            axis.set_title(f"{title}: energy distance {distance:.4f}" if family else f"{title}: {covered} of 4 modes")
            axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            print(f"{backend:8} {title:7} energy distance {distance:.4f}, "
                  f"modes {covered} of 4, mean Q {q_value(samples).mean():.3f}", flush=True)  # fmt: skip
        print(f"{backend:8} trained and sampled in {time.perf_counter() - started:.0f} s")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where to write the picture (png)")
    parser.add_argument("--eta", type=float, default=0.01, help="weight of DACER2's Q-gradient term")
    arguments = parser.parse_args()
    import torch  # noqa: F401  (before jax)

    picture(arguments.out, eta=arguments.eta)


if __name__ == "__main__":
    main()
