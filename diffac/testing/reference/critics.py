"""Critic objectives: (critic, target critic, batch, noise, temperature, state) -> (Loss, gradient of the critic)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from diffac.noise import Noise, NoiseSpec, Normal, Shape, Uniform
from diffac.protocols import Batch, Loss, State
from diffac.testing.reference.gradients import Array, Gradient, softmax

__all__ = [
    "CategoricalTD",
    "GaussianTD",
    "MeanSquaredTD",
    "c51",
    "gaussian_td_huber",
    "gaussian_td_slopes",
    "hl_gauss",
    "huber",
    "members",
    "pair_spec",
    "td_target",
    "value_metrics",
    "weights",
]


def td_target(batch: Batch, next_value: Array) -> Array:
    """r + discount * next value."""
    return batch.reward + batch.discount * next_value


def weights(batch: Batch) -> Array:
    """Of each transition [batch]."""
    return np.ones(len(batch.reward)) if batch.weight is None else np.asarray(batch.weight)


def members(ensemble: str, size: int, noise: Noise) -> list[int]:
    """Which members count in a target: all, the first, or two drawn without replacement (REDQ)."""
    if ensemble != "random_pair":
        return [0] if ensemble == "first" else list(range(size))
    left = list(range(size))
    return [left.pop(int(number * len(left))) for number in noise["pair"]]


def pair_spec(ensemble: str) -> NoiseSpec:
    """Two numbers for a whole batch, if a pair is drawn."""
    return {"pair": Uniform((2,))} if ensemble == "random_pair" else {}


def value_metrics(q: Array) -> dict[str, Any]:
    """What is logged of values [ensemble batch]; critics disagree by the distance of the outermost two."""
    distances = [max(values) - min(values) for values in q.T]
    return {
        "q_mean": q.mean(),
        "q_batch_std": np.mean([np.sqrt(np.mean((member - member.mean()) ** 2)) for member in q]),
        "q_min": q.min(),
        "q_max": q.max(),
        "q_disagreement": np.mean(distances),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class MeanSquaredTD:
    """Sum over the critics of the mean of (Q - y)^2, y from the smaller target critic (TD3).

    Soft: the target's value contains the entropy bonus -temperature * log pi (SAC, soft Bellman operator).
    """

    soft: bool = False
    factor: float = 1.0
    ensemble: str = "min"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """None, but for a random pair."""
        return pair_spec(self.ensemble)

    def init_state(self, critic: Any) -> State:
        """None."""
        return {}

    def __call__(
        self, critic: Any, target_critic: Any, batch: Batch, noise: Noise, temperature: Any, state: State
    ) -> tuple[Loss, Gradient]:
        """The target is held fixed."""
        policy: Any = batch.next_rollout
        next_values, _ = target_critic(batch.next_obs, policy.action)
        counted = next_values[members(self.ensemble, len(next_values), noise)]
        next_value = counted.mean(0) if self.ensemble == "mean" else counted.min(0)
        if self.soft:
            next_value = next_value - temperature * policy.log_prob
        y = td_target(batch, next_value)
        q, pull = critic(batch.obs, batch.action)
        w = weights(batch)
        gradient, _ = pull(self.factor * 2 * w * (q - y) / len(y))
        value = self.factor * sum(np.mean(w * (member - y) ** 2) for member in q)
        metrics = {**value_metrics(q), "target_mean": y.mean(), **soft_metrics(self.soft, batch)}
        return Loss(value, metrics, state), gradient


def soft_metrics(soft: bool, batch: Batch) -> dict[str, Any]:
    """The entropy of the policy at the next observations, estimated by its own actions."""
    policy: Any = batch.next_rollout
    return {"entropy": -np.mean(policy.log_prob)} if soft else {}


def gaussian_td_slopes(
    mean: Array, std: Array, y: Array, y_z: Array, omega: Array, clip_at: float
) -> tuple[Array, Array]:
    """Derivatives of DSAC-T's loss with respect to mean and std [ensemble batch], but for the mean over the batch.

    Args:
        mean: of the online critics at the batch's actions.
        std: likewise.
        y: target of the mean, [batch].
        y_z: target of one sampled return, [batch].
        omega: running mean of each critic's std, [ensemble].
        clip_at: how many omega y_z may be away from the mean.
    """
    mean_slopes, std_slopes = [], []
    for q, s, w in zip(mean, std, omega, strict=True):
        y_b = q + np.clip(y_z - q, -clip_at * w, clip_at * w)
        mean_slopes.append(-(w**2 + 0.1) * (y - q) / (s**2 + 0.1))
        std_slopes.append(-(w**2 + 0.1) * ((q - y_b) ** 2 - s**2) / (s**3 + 0.1))
    return np.stack(mean_slopes), np.stack(std_slopes)


def huber(x: Array, delta: float) -> Array:
    """Half the square of x up to delta, then the straight line that goes on from there."""
    return np.where(np.abs(x) <= delta, x**2 / 2, delta * np.abs(x) - delta**2 / 2)


def gaussian_td_huber(
    mean: Array, std: Array, y: Array, y_z: Array, omega: Array, clip_at: float, delta: float
) -> tuple[Array, Array, Array]:
    """DSAC-T's later loss [ensemble batch], and its derivatives with respect to mean and std; arguments as above."""
    losses, mean_slopes, std_slopes = [], [], []
    for q, s, w in zip(mean, std, omega, strict=True):
        ratio = np.minimum(np.maximum(w**2 / (s**2 + 0.1), 0.1), 10)
        y_b = q + np.clip(y_z - q, -clip_at * w, clip_at * w)
        pull = ratio * (s**2 - huber(q - y_b, delta)) / (s + 0.1)
        losses.append(ratio * huber(q - y, delta) + s * pull)
        mean_slopes.append(ratio * np.clip(q - y, -delta, delta))
        std_slopes.append(pull)
    return np.stack(losses), np.stack(mean_slopes), np.stack(std_slopes)


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianTD:
    """DSAC-T's loss, with all three of its refinements, as in DACER.

    It is the mean over the batch of (mean * slope + std * slope), summed over the critics, with the slopes held fixed:
    a value that only its gradient gives a meaning. With `huber_delta` the loss of the authors' later code.
    """

    tau: float = 0.005
    clip: float = 3.0
    soft: bool = False
    huber_delta: float | None = None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """One sampled return for each transition."""
        return {"target": Normal(shape[:-1])}

    def init_state(self, critic: Any) -> State:
        """omega [ensemble]; 0 before the first batch."""
        return {"omega": np.zeros(len(critic.parameters["layers.0.weight"]))}

    def targets(self, target_critic: Any, batch: Batch, noise: Noise, temperature: Any) -> tuple[Array, Array]:
        """y and y_z: mean and sample of the return of the critic with the smaller mean, chosen for each transition.

        Soft: both less temperature * log pi.
        """
        policy: Any = batch.next_rollout
        (mean, std), _ = target_critic.distribution(batch.next_obs, policy.action)
        smaller = mean.argmin(0)
        value = np.array([mean[i, b] for b, i in enumerate(smaller)])
        deviation = np.array([std[i, b] for b, i in enumerate(smaller)])
        sample = value + deviation * np.clip(noise["target"], -3, 3)
        cost = temperature * policy.log_prob if self.soft else 0.0
        return td_target(batch, value - cost), td_target(batch, sample - cost)

    def __call__(
        self, critic: Any, target_critic: Any, batch: Batch, noise: Noise, temperature: Any, state: State
    ) -> tuple[Loss, Gradient]:
        """The targets, the slopes and omega are held fixed."""
        y, y_z = self.targets(target_critic, batch, noise, temperature)
        (mean, std), pull = critic.distribution(batch.obs, batch.action)
        old, present = state["omega"], std.mean(-1)
        omega = np.where(old == 0, present, (1 - self.tau) * old + self.tau * present)
        if self.huber_delta is None:
            mean_slope, std_slope = gaussian_td_slopes(mean, std, y, y_z, omega, self.clip)
            loss = mean * mean_slope + std * std_slope
        else:
            loss, mean_slope, std_slope = gaussian_td_huber(mean, std, y, y_z, omega, self.clip, self.huber_delta)
        w = weights(batch)
        gradient, _ = pull(w * mean_slope / len(y), w * std_slope / len(y))
        value = (w * loss).mean(-1).sum()
        metrics = {**value_metrics(mean), "q_std": std.mean(), "target_mean": y.mean()}
        return Loss(value, metrics | soft_metrics(self.soft, batch), {"omega": omega}), gradient


def hl_gauss(y: float, atoms: Array, sigma: float) -> Array:
    """Probabilities of bins centred at the atoms under a normal law about y that is cut off outside of all bins."""
    width = atoms[1] - atoms[0]
    y = min(max(y, atoms[0]), atoms[-1])

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - y) / (sigma * width * math.sqrt(2))))

    masses = np.array([below(atom + width / 2) - below(atom - width / 2) for atom in atoms])
    return masses / masses.sum()


def c51(probabilities: Array, returns: Array, atoms: Array) -> Array:
    """Bellemare et al. 2017, algorithm 1, lines 6 to 10; a return on an atom leaves all its mass there."""
    projected, width = np.zeros(len(atoms)), atoms[1] - atoms[0]
    for p, value in zip(probabilities, returns, strict=True):
        b = (min(max(value, atoms[0]), atoms[-1]) - atoms[0]) / width
        if math.isnan(b):
            return projected * b
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            projected[low] += p
        else:
            projected[low] += p * (high - b)
            projected[min(high, len(atoms) - 1)] += p * (b - low)
    return projected


@dataclasses.dataclass(frozen=True, eq=False)
class CategoricalTD:
    """Cross-entropy with the projected target: C51, or HL-Gauss (Farebrother et al. 2024)."""

    projection: str = "hl_gauss"
    soft: bool = False
    ensemble: str = "min"
    sigma: float = 0.75

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """None, but for a random pair."""
        return pair_spec(self.ensemble)

    def init_state(self, critic: Any) -> State:
        """None."""
        return {}

    def goals(self, target_critic: Any, batch: Batch, noise: Noise, temperature: Any) -> tuple[Array, Array]:
        """y [batch], and the distributions [batch atoms] aimed at, one transition after the other."""
        policy: Any = batch.next_rollout
        logits, _ = target_critic.logits(batch.next_obs, policy.action)
        atoms, laws = target_critic.atoms(), np.moveaxis(softmax(np.moveaxis(logits, -1, 0)), 0, -1)
        ys, goals = [], []
        for b, counted in enumerate(np.moveaxis(laws[members(self.ensemble, len(laws), noise)], 1, 0)):
            means = [float(law @ atoms) for law in counted]
            law = counted.mean(0) if self.ensemble == "mean" else counted[int(np.argmin(means))]
            cost = temperature * policy.log_prob[b] if self.soft else 0.0
            y = batch.reward[b] + batch.discount[b] * (float(law @ atoms) - cost)
            returns = batch.reward[b] + batch.discount[b] * (atoms - cost)
            goals.append(hl_gauss(y, atoms, self.sigma) if self.projection == "hl_gauss" else c51(law, returns, atoms))
            ys.append(y)
        return np.array(ys), np.stack(goals)

    def __call__(
        self, critic: Any, target_critic: Any, batch: Batch, noise: Noise, temperature: Any, state: State
    ) -> tuple[Loss, Gradient]:
        """The slope of the cross-entropy in the logits is the predicted distribution minus the goal."""
        y, goals = self.goals(target_critic, batch, noise, temperature)
        logits, pull = critic.logits(batch.obs, batch.action)
        law = np.moveaxis(softmax(np.moveaxis(logits, -1, 0)), 0, -1)
        w = weights(batch)
        gradient, _ = pull(w[:, None] * (law - goals) / len(y))
        value = sum(np.mean(w * -(goals * np.log(member)).sum(-1)) for member in law)
        atoms = critic.atoms()
        q = law @ atoms
        spread = np.sqrt(law @ atoms**2 - q**2)
        metrics = {**value_metrics(q), "q_std": spread.mean(), "target_mean": y.mean()}
        return Loss(value, metrics | soft_metrics(self.soft, batch), state), gradient
