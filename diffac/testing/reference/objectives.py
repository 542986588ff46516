"""Actor objectives: (actor, critic, batch, noise, temperature, state) -> (Loss, gradient of the actor)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from diffac.noise import Integers, Noise, NoiseSpec, Normal, Shape, Uniform
from diffac.parts.schedules import flow_schedule
from diffac.protocols import Batch, Loss, Metrics, NoiseSchedule, Policy, State
from diffac.testing.reference.gradients import Array, Gradient, add, best_of, clip, reduced, scaled, softmax, zeros
from diffac.testing.reference.samplers import RolloutAndPull
from diffac.testing.reference.schedules import (
    add_noise,
    coefficient,
    predicted_action,
    predicted_eps,
    remove_noise,
    score,
)
from diffac.testing.reference.temperatures import adam

__all__ = [
    "EntropyRegularisedValue",
    "ImprovedReplayProposal",
    "MeanFlowMatching",
    "PolicyProposal",
    "QWeightedProposal",
    "Regression",
    "ReverseProposal",
    "ReweightedScoreMatching",
    "Sum",
    "TimeWeightedQGradient",
    "ValueThroughSampler",
    "noise_regression",
    "normal_mass",
    "output_regression",
    "truncated_normal",
]


@dataclasses.dataclass(frozen=True, eq=False)
class ThroughSampler:
    """What the objectives share that are differentiated through a sampler."""

    sampler: Any

    @property
    def rollout_sampler(self) -> Any:
        """The sampler that `Sum` may run for this objective."""
        return self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The sampler's."""
        return {"rollout": self.sampler.noise_spec(shape)}

    def init_state(self) -> State:
        """None."""
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class ValueThroughSampler(ThroughSampler):
    """DACER: minus the mean of the smallest critic's value, differentiated through the whole sampler.

    Relative: divided by the mean of its absolute value, held fixed.
    """

    relative: bool = False
    ensemble: str = "min"

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        rollout: RolloutAndPull | None = None,
    ) -> tuple[Loss, Gradient]:
        """The chain rule: mean, min, critic, sampler."""
        (action, *_), pull_sampler = rollout or self.sampler.rollout(
            Policy(actor, critic, temperature), batch.obs, noise["rollout"]
        )
        values, pull_critic = critic(batch.obs, action)
        q, pull_min = reduced(values, self.ensemble)
        unit = self.unit(q)
        _, daction = pull_critic(pull_min(np.full(q.shape, -1 / (unit * q.size))))
        metrics = {"q_mean": q.mean(), "clipped_fraction": np.mean(np.abs(action) >= 1)}
        return Loss(-q.mean() / unit, metrics, state), pull_sampler(daction)

    def unit(self, q: Array) -> float:
        """What the loss is divided by, held fixed."""
        return np.abs(q).mean() + 1e-8 if self.relative else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class TimeWeightedQGradient:
    """DACER2's second loss: the score against the unit gradient of Q, the latter times exp(slope t + intercept).

    The states and the gradient of Q are held fixed. In "eps" space residuals are taken between noises, and a noise is
    -sigma times a score. What the paper leaves open is an argument (ALGORITHMS, section 2). Contractive: the target is
    the score of a_t given the predicted action after a step up Q, -(a_t - alpha x)/sigma^2. Not normalised: the
    gradient as it is. Target "eps": the noise taught is minus the gradient times the weight.
    """

    sampler: Any
    schedule: NoiseSchedule
    slope: float = 0.4
    intercept: float = -1.8
    space: str = "score"
    source: str = "chain"
    time_offset: int = 1
    contractive_step: float | None = None
    ensemble: str = "min"
    normalised: bool = True
    target: str = "score"

    @property
    def rollout_sampler(self) -> Any:
        """The sampler that `Sum` may run for this objective; with replayed actions there is none."""
        return None if self.source == "replay" else self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The sampler's, and the noise of the states, each where it is needed."""
        spec: dict[str, Any] = {}
        if self.source != "replay":
            spec["rollout"] = self.sampler.noise_spec(shape)
        if self.source != "chain":
            spec["eps"] = Normal((self.schedule.num_steps, *shape))
        return spec

    def init_state(self) -> State:
        """None."""
        return {}

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        rollout: RolloutAndPull | None = None,
    ) -> tuple[Loss, Gradient]:
        """Mean over times and batch of the squared residual."""
        s, t = self.schedule, np.arange(self.schedule.num_steps)[:, None]
        if self.source == "replay":
            states = add_noise(s, batch.action, noise["eps"], t)
        else:
            policy, _ = rollout or self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
            clean = policy.action if policy.noise_free is None else policy.noise_free
            states = np.asarray(policy.noisy) if self.source == "chain" else add_noise(s, clean, noise["eps"], t)

        eps, pull_eps = predicted_eps(s, actor, batch.obs, states, t)
        target, norm = self.aimed_at(actor, critic, batch.obs, states)
        residual, sigma = score(s, eps, t) - target, coefficient(s, "sigma", t)
        dresidual_deps = -1 / sigma
        if self.space == "eps":
            residual, dresidual_deps = -sigma * residual, 1.0
        value = (residual**2).sum(-1).mean()
        gradient, _ = pull_eps(2 / norm.size * residual * dresidual_deps)
        return Loss(value, {"q_gradient_norm": norm.mean(), "score_error": value}, state), gradient

    def aimed_at(self, actor: Any, critic: Any, obs: Array, states: Array) -> tuple[Array, Array]:
        """The score that is taught, held fixed, and the norm of Q's gradient, [T batch 1]."""
        s, t = self.schedule, np.arange(self.schedule.num_steps)[:, None]
        predicted, _ = clip(predicted_action(s, actor, obs, states, t)[0])
        values, pull_critic = critic(obs, states if self.contractive_step is None else predicted)
        q, pull_min = reduced(values, self.ensemble)
        _, q_gradient = pull_critic(pull_min(np.ones(q.shape)))
        norm = np.sqrt((q_gradient**2).sum(-1, keepdims=True))
        weight = np.exp(self.slope * (t + self.time_offset) + self.intercept)[..., None]
        target = weight * q_gradient
        if self.normalised:
            target = target / (norm + 1e-8)
        if self.target == "eps":
            target = target / coefficient(s, "sigma", t)
        if self.contractive_step is not None:
            improved, _ = clip(predicted + self.contractive_step * target)
            target = -(states - coefficient(s, "alpha", t) * improved) / coefficient(s, "sigma", t) ** 2
        return target, norm


class Regression(NamedTuple):
    """Data of a weighted noise regression, without gradient; with several rows for each state, [rows batch ...]."""

    obs: Array
    """[batch obs]"""
    noisy: Array
    """[batch act]"""
    t: Array
    """[batch]"""
    noises: Array
    """What the denoiser should say, [K batch act]."""
    weights: Array
    """[K batch]"""
    metrics: Metrics
    state: State
    action: Array
    """[batch act]; the clean action that belongs to the mean noise."""


def noise_regression(schedule: NoiseSchedule, actor: Any, data: Regression) -> tuple[float, Gradient]:
    """Mean over the rows of sum_k weight_k |eps - noise_k|^2, and its gradient (SDAC, DPMD, QVPO)."""
    eps, pull = predicted_eps(schedule, actor, data.obs, data.noisy, data.t)
    error, weights = eps - data.noises, data.weights[..., None]
    gradient, _ = pull((2 / data.t.size * weights * error).sum(0))
    return (weights * error**2).sum() / data.t.size, gradient


def output_regression(_: NoiseSchedule, actor: Any, data: Regression) -> tuple[float, Gradient]:
    """Mean over the rows of weight |output - what it should be|^2, in whatever the denoiser predicts."""
    output, pull = actor(data.obs, data.noisy, data.t)
    weight = data.weights.sum(0)[..., None]
    total = (data.weights[..., None] * data.noises).sum(0)
    noise = np.divide(total, weight, out=np.zeros(total.shape), where=weight != 0)  # no weight asks for nothing
    wanted = {"eps": noise, "action": data.action, "velocity": noise - data.action}[actor.prediction]
    gradient, _ = pull(2 / data.t.size * weight * (output - wanted))
    return (weight * (output - wanted) ** 2).sum() / data.t.size, gradient


@dataclasses.dataclass(frozen=True, eq=False)
class ReweightedScoreMatching:
    """Denoising score matching, reweighted by what the proposal says (SDAC and DPMD)."""

    schedule: NoiseSchedule
    proposal: Any
    space: str = "eps"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The proposal's."""
        return self.proposal.noise_spec(shape, self.schedule.num_steps)

    def init_state(self) -> State:
        """The proposal's."""
        return self.proposal.init_state(self.schedule.num_steps)

    def __call__(
        self, actor: Any, critic: Any, batch: Batch, noise: Noise, temperature: Any, state: State
    ) -> tuple[Loss, Gradient]:
        """`noise_regression` on the proposal's data."""
        data = self.proposal(actor, critic, batch, noise, temperature, state, self.schedule)
        regression = noise_regression if self.space == "eps" else output_regression
        value, gradient = regression(self.schedule, actor, data)
        return Loss(value, data.metrics, data.state), gradient

    def track(self, critic: Any, batch: Batch, state: State) -> State:
        """The proposal's."""
        return self.proposal.track(critic, batch, state) if hasattr(self.proposal, "track") else state


@dataclasses.dataclass(frozen=True, eq=False)
class MeanFlowMatching:
    """MeanFlow: the mean velocity from r to t is the velocity less (t - r) times its own rate of change in t.

    That rate, along the path a_t = (1 - t) a + t eps, is a derivative of the network in (a_t, t) along (eps - a, 1). It
    is part of the target, which is held fixed.
    """

    proposal: Any
    equal_fraction: float = 0.25

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The proposal's, two times, and which pairs are made equal."""
        batch = shape[:-1]
        return {
            "proposal": self.proposal.noise_spec(shape, 1),
            "times": Uniform((2, *batch)),
            "equal": Uniform(batch),
        }

    def init_state(self) -> State:
        """The proposal's."""
        return self.proposal.init_state(1)

    def __call__(
        self, actor: Any, critic: Any, batch: Batch, noise: Noise, temperature: Any, state: State
    ) -> tuple[Loss, Gradient]:
        """Mean over the batch of weight |u - target|^2."""
        data = self.proposal(actor, critic, batch, noise["proposal"], temperature, state, flow_schedule(1))
        (eps,), (weight,), action = data.noises, data.weights, data.action
        pairs = [sorted(pair) for pair in np.transpose(noise["times"])]
        t = np.array([later for _, later in pairs])
        share = self.equal_fraction
        r = np.array([b if e < share else a for (a, b), e in zip(pairs, noise["equal"], strict=True)])
        noisy = action + t[:, None] * (eps - action)
        u, pull = actor(data.obs, noisy, t, r)
        error = u - self.aimed_at(actor, data.obs, noisy, t, r, eps - action)
        gradient, _ = pull(2 / weight.size * weight[..., None] * error)
        return Loss((weight[..., None] * error**2).sum() / weight.size, data.metrics, data.state), gradient

    def aimed_at(self, actor: Any, obs: Array, noisy: Array, t: Array, r: Array, velocity: Array) -> Array:
        """The target, held fixed."""
        change = actor.derivative(obs, noisy, t, r, velocity, np.ones(len(t)))
        return velocity - (t - r)[:, None] * change

    def track(self, critic: Any, batch: Batch, state: State) -> State:
        """The proposal's."""
        return self.proposal.track(critic, batch, state) if hasattr(self.proposal, "track") else state


def normal_mass(a: float, b: float) -> float:
    """Probability of a < Z < b for a standard normal Z, exact in both tails."""
    if a > 0:
        return (math.erfc(a / math.sqrt(2)) - math.erfc(b / math.sqrt(2))) / 2
    if b < 0:
        return normal_mass(-b, -a)
    return (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2


def truncated_normal(u: float, low: float, high: float) -> float:
    """The z in [low, high] below which lies the share u of the standard normal's mass there, by bisection.

    From u = 1/2 on the mass above z is counted, so that nothing cancels.
    """
    total, left, right = normal_mass(low, high), low, high
    for _ in range(200):
        z = (left + right) / 2
        too_low = normal_mass(low, z) < u * total if u < 0.5 else normal_mass(z, high) > (1 - u) * total
        left, right = (z, right) if too_low else (left, z)
    return (left + right) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class ReverseProposal:
    """SDAC's reverse sampling: clean actions that may have led to a noised one, weighted by exp(Q).

    They come from a0 ~ N(noisy / alpha, (sigma / alpha)^2), and their noise is (noisy - alpha a0) / sigma. Truncated:
    that law restricted to [-1, 1]. Else (official code): a0 is clipped, and the noise is the one from before the clip.

    With h other than 0 the target is the weighted mean of (1 - h) noise + h b, b = -(sigma / alpha) times the gradient
    of log weight where a0 is not clipped (iDEM has h = 1). "minimum_variance": h of each time is minus a moving
    covariance over a moving variance, both from before the batch. With outside_std the weight falls with the squared
    distance from the box, whose gradient counts outside. Source "replay": replayed actions are noised (MaxEntDP).
    """

    sampler: Any
    num_particles: int = 64
    value_scale: float = 5.0
    truncated: bool = True
    ensemble: str = "min"
    gradient_weight: Any = 0.0
    tempered: bool = True
    rate: float = 0.01
    outside_std: float | None = None
    source: str = "policy"

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Of the policy's action if it is asked for one, of its noising, and of the clean actions."""
        particles = Uniform if self.truncated else Normal
        spec: dict[str, Any] = {"rollout": self.sampler.noise_spec(shape)} if self.source == "policy" else {}
        spec["t"] = Integers(shape[:-1], 0, num_steps)
        spec["eps"] = Normal(shape)
        spec["particles"] = particles((self.num_particles, *shape))
        return spec

    def init_state(self, num_steps: int) -> State:
        """The moving moments, where they are needed."""
        if self.gradient_weight != "minimum_variance":
            return {}
        return {name: np.zeros(num_steps) for name in ("gradient_covariance", "gradient_variance")}

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """weights = softmax_k(value_scale min Q / temperature)"""
        t = noise["t"]
        start = batch.action
        if self.source == "policy":
            policy, _ = self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
            start = policy.action
        noisy = add_noise(schedule, start, noise["eps"], t)
        if self.truncated:
            alpha, sigma = (coefficient(schedule, name, t) for name in ("alpha", "sigma"))
            mean, std = noisy / alpha, sigma / alpha
            z = np.vectorize(truncated_normal)(noise["particles"], (-1 - mean) / std, (1 - mean) / std)
            free = actions = mean + std * z
            noises = -z
        else:
            free = remove_noise(schedule, noisy, noise["particles"], t)
            actions, _ = clip(free)
            noises = noise["particles"]
        values, pull_critic = critic(batch.obs, actions)
        q, pull_ensemble = reduced(values, self.ensemble)
        scale = self.value_scale / temperature if self.tempered else self.value_scale
        log_weights, beyond = scale * q, np.zeros(free.shape)
        if self.outside_std is not None:
            beyond = np.sign(free) * np.maximum(np.abs(free) - 1, 0) / self.outside_std
            log_weights = log_weights - (beyond**2).sum(-1) / 2
        weights = softmax(log_weights)
        metrics = {"effective_particles": (1 / (weights**2).sum(0)).mean(), "q_mean": q.mean()}
        if self.gradient_weight == 0:
            mean = (weights[..., None] * noises).sum(0)
            return Regression(
                batch.obs, noisy, t, noises, weights, metrics, state, remove_noise(schedule, noisy, mean, t)
            )

        alpha, sigma = (coefficient(schedule, name, t) for name in ("alpha", "sigma"))
        _, slope = pull_critic(pull_ensemble(np.ones(q.shape)))
        slope = np.where(np.abs(free) < 1, scale * slope, 0)
        if self.outside_std is not None:
            slope = slope - beyond / self.outside_std
        by_gradient = -sigma / alpha * slope
        h, new = self.gradient_weight, state
        if isinstance(h, tuple):
            h = np.array([h[time] for time in t])[:, None]
        elif isinstance(h, str):
            h = np.array([least_variance(state, time) for time in t])[:, None]
            metrics["gradient_weight"] = h.mean()
            new = moved_moments(state, self.rate, t, weights, noises, by_gradient - noises)
        target = (weights[..., None] * ((1 - h) * noises + h * by_gradient)).sum(0, keepdims=True)
        action = remove_noise(schedule, noisy, target[0], t)
        return Regression(batch.obs, noisy, t, target, np.ones((1, len(t))), metrics, new, action)


def least_variance(state: State, time: int) -> float:
    """The h that minimises variance + 2 h covariance + h^2 variance of the difference."""
    covariance, variance = (float(state[name][time]) for name in ("gradient_covariance", "gradient_variance"))
    return -covariance / variance if variance > 1e-12 else 0.0


def moved_moments(state: State, rate: float, t: Array, weights: Array, noises: Array, differences: Array) -> State:
    """Moving averages of sum_k w_k^2 <noise_k, difference_k> and sum_k w_k^2 |difference_k|^2, centred, by time."""
    covariance, variance = (np.array(state[name], float) for name in ("gradient_covariance", "gradient_variance"))
    for time in np.unique(t):
        found = []
        for row in np.flatnonzero(t == time):
            w = weights[:, row]
            # x_k less the mean is the mean of x_k - x_j: nothing cancels where one weighs nearly all
            noise, difference = (((x[:, None] - x) * w[:, None]).sum(1) for x in (noises[:, row], differences[:, row]))
            found.append((w**2 @ (noise * difference).sum(-1), w**2 @ (difference**2).sum(-1)))
        for old, new in zip((covariance, variance), np.mean(found, axis=0), strict=True):
            old[time] += rate * (new - old[time])
    return {"gradient_covariance": covariance, "gradient_variance": variance}


def next_action(batch: Batch) -> Array:
    """The policy's at the next observations."""
    policy: Any = batch.next_rollout
    return policy.action


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyProposal:
    """DPMD: the policy's own actions, weighted by exp(advantage / temperature).

    The advantage is (q - mean) / std with running moments up to this batch; they start at 0, hence the bias correction
    (as in Adam). Faithful: `q - mean / std` with the moments from before the batch, as the official code computes it.
    Not centred (FPMD): (q - the batch's largest) / std, not clipped.
    """

    rate: float = 0.001
    faithful_normalisation: bool = False
    ensemble: str = "min"
    centred: bool = True
    value_scale: float = 1.0
    tempered: bool = True

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Of the noising."""
        return {"t": Integers(shape[:-1], 0, num_steps), "eps": Normal(shape)}

    def init_state(self, num_steps: int) -> State:
        """The running moments."""
        start = {"q_mean_ema": 0.0, "q_std_ema": float(self.faithful_normalisation), "count": 0.0}
        return {name: np.array(number) for name, number in start.items()}

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """At the next state and action, as in the official code."""
        q, new = self.values(critic, batch), self.track(critic, batch, state)
        if self.faithful_normalisation:
            advantage = np.clip(q - state["q_mean_ema"] / state["q_std_ema"], -3, 3)
        else:
            correction = 1 - (1 - self.rate) ** new["count"]
            std = new["q_std_ema"] / correction + 1e-8
            if self.centred:
                advantage = np.clip((q - new["q_mean_ema"] / correction) / std, -3, 3)
            else:
                advantage = (q - max(q)) / std
        weight = np.exp(self.value_scale * advantage / (temperature if self.tempered else 1))
        metrics = {"effective_samples": weight.sum() ** 2 / (weight**2).sum(), "q_mean": q.mean()}
        action = np.asarray(next_action(batch))
        noisy = add_noise(schedule, action, noise["eps"], noise["t"])
        return Regression(batch.next_obs, noisy, noise["t"], noise["eps"][None], weight[None], metrics, new, action)

    def values(self, critic: Any, batch: Batch) -> Array:
        """min Q at the next state and action, [batch]."""
        return reduced(critic(batch.next_obs, next_action(batch))[0], self.ensemble)[0]

    def track(self, critic: Any, batch: Batch, state: State) -> State:
        """The running moments after this batch; the standard deviation is the population's."""
        q = self.values(critic, batch)
        std = np.sqrt(((q - q.mean()) ** 2).mean())
        return {
            "q_mean_ema": (1 - self.rate) * state["q_mean_ema"] + self.rate * q.mean(),
            "q_std_ema": (1 - self.rate) * state["q_std_ema"] + self.rate * std,
            "count": state["count"] + 1,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class QWeightedProposal:
    """QVPO: of M actions the best, weighted by how much better than their mean it is, and as many uniform ones."""

    sampler: Any
    num_candidates: int = 64
    num_uniform: int = 10
    uniform_weight: float = 0.02
    ensemble: str = "min"

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Of the candidates, the uniform actions, and the noising of each row."""
        rows = 1 + self.num_uniform
        return {
            "candidates": self.sampler.noise_spec((self.num_candidates, *shape)),
            "uniform": Uniform((self.num_uniform, *shape)),
            "t": Integers((rows, *shape[:-1]), 0, num_steps),
            "eps": Normal((rows, *shape)),
        }

    def init_state(self, num_steps: int) -> State:
        """None."""
        return {}

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """State by state."""
        rollout, _ = self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["candidates"])
        q = reduced(critic(batch.obs, rollout.action)[0], self.ensemble)[0]
        actions, weights = np.empty(noise["eps"].shape), np.empty(noise["t"].shape)
        for row, values in enumerate(q.T):
            best = int(best_of(values))
            weights[0, row] = (values[best] - values).mean()
            weights[1:, row] = self.uniform_weight * weights[0, row]
            actions[0, row] = rollout.action[best, row]
            actions[1:, row] = -1 + 2 * noise["uniform"][:, row]
        advantage = weights[0]
        metrics = {
            "advantage": advantage.mean(),
            "effective_samples": advantage.sum() ** 2 / max((advantage**2).sum(), np.finfo(np.float64).tiny),
            "q_mean": q.mean(),
        }
        noisy = add_noise(schedule, actions, noise["eps"], noise["t"])
        return Regression(batch.obs, noisy, noise["t"], noise["eps"][None], weights[None], metrics, state, actions)


@dataclasses.dataclass(frozen=True, eq=False)
class ImprovedReplayProposal:
    """DIPO: replayed actions take steps up the gradient of Q, are learned, and are where the next steps begin.

    What was reached is kept by the transition's number modulo the capacity, the number beside it. Where several rows of
    a batch have the same place, that of the largest number stays, of equal ones the first.
    """

    capacity: int
    action_dim: int
    num_steps: int = 20
    learning_rate: float = 0.03
    eps: float = 1e-5
    max_grad_norm: float | None = None
    ensemble: str = "min"

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Of the noising."""
        return {"t": Integers(shape[:-1], 0, num_steps), "eps": Normal(shape)}

    def init_state(self, num_steps: int) -> State:
        """Nothing is kept."""
        return {
            "action": np.zeros((self.capacity, self.action_dim)),
            "replay_number": np.array([-1] * self.capacity, np.int32),
        }

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Row by row."""
        actions, numbers = np.array(state["action"], np.float64), np.array(state["replay_number"])
        places = [(int(number), int(number) % self.capacity) for number in np.asarray(batch.number)]
        kept = [numbers[place] == number for number, place in places]
        start = np.array(batch.action, np.float64)
        for i, (_, place) in enumerate(places):
            if kept[i]:
                start[i] = actions[place]
        improved = self.improved(critic, batch.obs, start)
        for number, i in sorted((number, -i) for i, (number, _) in enumerate(places)):
            actions[number % self.capacity], numbers[number % self.capacity] = improved[-i], number
        before, after = (reduced(critic(batch.obs, a)[0], self.ensemble)[0] for a in (start, improved))
        metrics = {
            "improvement": np.mean(after - before),
            "action_shift": np.mean(np.abs(improved - start)),
            "kept_fraction": np.mean(kept, dtype=np.float64),
        }
        noisy, weights = add_noise(schedule, improved, noise["eps"], noise["t"]), np.ones((1, len(places)))
        new = {"action": actions, "replay_number": numbers}
        return Regression(batch.obs, noisy, noise["t"], noise["eps"][None], weights, metrics, new, improved)

    def improved(self, critic: Any, obs: Array, action: Array) -> Array:
        """Where Adam's descent on minus the sum of Q arrives, held inside the box."""
        m, v, count = np.zeros(action.shape), np.zeros(action.shape), 0
        for _ in range(self.num_steps):
            values, pull_critic = critic(obs, action)
            q, pull_ensemble = reduced(values, self.ensemble)
            _, gradient = pull_critic(pull_ensemble(-np.ones(q.shape)))
            norm = math.sqrt((gradient**2).sum())
            if self.max_grad_norm is not None and norm > self.max_grad_norm:
                gradient = self.max_grad_norm / norm * gradient
            action, m, v, count = adam(action, gradient, m, v, count, self.learning_rate, eps=self.eps)
            action, _ = clip(action)
        return action


@dataclasses.dataclass(frozen=True, eq=False)
class EntropyRegularisedValue(ThroughSampler):
    """SAC's policy loss: mean of temperature * log pi - min Q."""

    ensemble: str = "min"

    def __call__(
        self,
        actor: Any,
        critic: Any,
        batch: Batch,
        noise: Noise,
        temperature: Any,
        state: State,
        rollout: RolloutAndPull | None = None,
    ) -> tuple[Loss, Gradient]:
        """The gradient comes by two ways, through the action and through its log-probability."""
        (action, _, log_prob, _), pull_sampler = rollout or self.sampler.rollout(
            Policy(actor, critic, temperature), batch.obs, noise["rollout"]
        )
        values, pull_critic = critic(batch.obs, action)
        q, pull_min = reduced(values, self.ensemble)
        share = np.full(q.shape, 1 / q.size)
        _, daction = pull_critic(pull_min(-share))
        log_prob = np.asarray(log_prob)
        metrics = {"q_mean": q.mean(), "entropy": -log_prob.mean()}
        value = (temperature * log_prob - q).mean()
        return Loss(value, metrics, state, log_prob), pull_sampler(daction, temperature * share)


class Sum:
    """A weighted sum of objectives, pairs (weight, objective).

    The rollout of a sampler may be made once, for all terms that look at one. State, noise and metrics of term i are
    told apart by "term{i}", metrics only where two have the same name.
    """

    def __init__(self, *terms: tuple[float, Any], rollout_of: Any = None) -> None:
        self.terms, self.shared = terms, rollout_of

    def shares(self, objective: Any) -> bool:
        """Whether this term takes part in the common rollout."""
        return self.shared is not None and getattr(objective, "rollout_sampler", None) is not None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The common rollout's, and what each term needs besides."""
        spec: dict[str, Any] = {} if self.shared is None else {"rollout": self.shared.noise_spec(shape)}
        for i, (_, objective) in enumerate(self.terms):
            own = objective.noise_spec(shape)
            skip = {"rollout"} if self.shares(objective) else set()
            spec[f"term{i}"] = {name: law for name, law in own.items() if name not in skip}
        return spec

    def init_state(self) -> State:
        """Of all terms."""
        states = [objective.init_state() for _, objective in self.terms]
        return {f"term{i}.{name}": array for i, state in enumerate(states) for name, array in state.items()}

    def __call__(
        self, actor: Any, critic: Any, batch: Batch, noise: Noise, temperature: Any, state: State
    ) -> tuple[Loss, Gradient]:
        """Value and gradient are linear in the terms."""
        common = None
        if self.shared is not None:
            common = self.shared.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        value, gradient, results = 0.0, zeros(actor.parameters), []
        for i, (weight, objective) in enumerate(self.terms):
            prefix = f"term{i}."
            own = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
            arguments = (actor, critic, batch, noise[f"term{i}"], temperature, own)
            loss, g = objective(*arguments, common) if self.shares(objective) else objective(*arguments)
            value, gradient = value + weight * loss.value, add(gradient, scaled(weight, g))
            results.append(loss)
        names = [name for loss in results for name in loss.metrics]
        metrics = {
            name if names.count(name) == 1 else f"term{i}_{name}": number
            for i, loss in enumerate(results)
            for name, number in loss.metrics.items()
        }
        new = {f"term{i}.{name}": array for i, loss in enumerate(results) for name, array in loss.state.items()}
        log_prob = next((loss.log_prob for loss in results if loss.log_prob is not None), None)
        return Loss(value, metrics, new, log_prob), gradient

    def track(self, critic: Any, batch: Batch, state: State) -> State:
        """Of every term that does so."""
        new = dict(state)
        for i, (_, objective) in enumerate(self.terms):
            if hasattr(objective, "track"):
                prefix = f"term{i}."
                own = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
                tracked = objective.track(critic, batch, own)
                new |= {prefix + name: array for name, array in tracked.items()}
        return new
