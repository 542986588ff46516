"""The mathematics of diffac once more, in plain NumPy float64: slow, obvious, and independent of every backend.

Two backends with the same bug agree with each other; this third voice arbitrates. It is written from the papers, with
loops where the papers have sums, so that it can be read beside them. Nothing here is meant to be fast. Equations are
cited by number where the number is certain, else by paper and name.

* Network parameters are a mapping from names (`layers.0.weight`, shape [out, in]) to arrays, as `to_arrays` gives them.
* A denoiser is any callable (obs, noisy, t) -> eps; a critic any callable (obs, action) -> values [ensemble batch].
* Nothing is differentiated here. Where a loss contains quantities that receive no gradient, they are arguments of their
  own, so that a central difference in the remaining argument gives the gradient of the paper.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239); DDIM = Song et al. 2021 (2010.02502); DACER = Wang et al. 2024
(2405.15177); DACER2 = 2505.23426; SDAC and DPMD = Ma et al. 2025 (2502.00361); SAC = Haarnoja et al. 2018 (1812.05905);
DSAC-T = Duan et al. 2023 (2310.05858).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Parameters = Mapping[str, np.ndarray]
Denoise = Callable[[np.ndarray, np.ndarray, Any], np.ndarray]


# Schedules


class Schedule(NamedTuple):
    """Coefficients of the forward and of the reverse process, each a list over t = 0..T-1."""

    alpha: list[float]
    sigma: list[float]
    posterior_action: list[float]
    posterior_noisy: list[float]
    posterior_std: list[float]


def vp_betas(num_steps: int, rate_min: float = 0.1, rate_max: float = 10.0) -> list[float]:
    """1 - exp(-integral of the rate of the SDE over one step); the rate is linear in time (2112.07804)."""

    def integral(time: float) -> float:
        return rate_min * time + (rate_max - rate_min) * time**2 / 2

    return [-math.expm1(integral(t / num_steps) - integral((t + 1) / num_steps)) for t in range(num_steps)]


def cosine_betas(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> list[float]:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17 and the clip below it."""

    def f(t: int) -> float:
        return math.cos((t / num_steps + offset) / (1 + offset) * math.pi / 2) ** 2

    return [min(1 - f(t + 1) / f(t), max_beta) for t in range(num_steps)]


def linear_betas(num_steps: int, scale: float = 0.8) -> list[float]:
    """Evenly spaced from scale * 1e-4 to scale * 0.999 (official SDAC code)."""
    gaps = max(num_steps - 1, 1)
    return [scale * (1e-4 + (0.999 - 1e-4) * t / gaps) for t in range(num_steps)]


def schedule(betas: Sequence[float]) -> Schedule:
    """DDPM equations 4 and 7, the latter by multiplying the two Gaussians of Bayes' rule:
    q(a_{t-1} | a_t, a_0) is proportional to N(a_t; sqrt(1-beta) a_{t-1}, beta) N(a_{t-1}; alpha' a_0, sigma'^2),
    primes for the previous time.
    """
    result = Schedule([], [], [], [], [])
    signal = 1.0  # alpha_bar of the previous time
    for t, beta in enumerate(betas):
        if t == 0:  # a_{-1} = a_0 is known
            result.posterior_action.append(1.0)
            result.posterior_noisy.append(0.0)
            result.posterior_std.append(0.0)
        else:
            variance = 1 / ((1 - beta) / beta + 1 / (1 - signal))
            result.posterior_action.append(variance * math.sqrt(signal) / (1 - signal))
            result.posterior_noisy.append(variance * math.sqrt(1 - beta) / beta)
            result.posterior_std.append(math.sqrt(variance))
        signal *= 1 - beta
        result.alpha.append(math.sqrt(signal))
        result.sigma.append(math.sqrt(1 - signal))
    return result


def add_noise(s: Schedule, action: np.ndarray, eps: np.ndarray, t: int) -> np.ndarray:
    """A sample of DDPM equation 4, for one time."""
    return s.alpha[t] * action + s.sigma[t] * eps


def predict_action(s: Schedule, noisy: np.ndarray, eps: np.ndarray, t: int) -> np.ndarray:
    """The inverse of `add_noise`."""
    return (noisy - s.sigma[t] * eps) / s.alpha[t]


# Networks


def activation(name: str, x: np.ndarray) -> np.ndarray:
    """The textbook forms; Mish is x tanh(softplus(x)) (Misra 2019, arXiv 1908.08681)."""
    match name:
        case "mish":
            return x * np.tanh(np.logaddexp(0, x))
        case "gelu":
            return x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2
        case "relu":
            return np.maximum(x, 0)
        case "silu":
            return x * np.exp(-np.logaddexp(0, -x))
        case "tanh":
            return np.tanh(x)
        case _:
            raise ValueError(name)


def perceptron(
    parameters: Parameters, x: np.ndarray, act: str = "mish", prefix: str = "layers", member: int | None = None
) -> np.ndarray:
    """W_n act(... act(W_0 x + b_0) ...) + b_n, with the parameters of one member where they are stacked."""
    depth = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in parameters)
    for i in range(depth):
        weight, bias = parameters[f"{prefix}.{i}.weight"], parameters[f"{prefix}.{i}.bias"]
        if member is not None:
            weight, bias = weight[member], bias[member]
        x = np.einsum("oi,...i->...o", weight, x) + bias
        if i < depth - 1:
            x = activation(act, x)
    return x


def concatenate(*arrays: np.ndarray) -> np.ndarray:
    """Side by side along the last axis, after broadcasting the batch axes."""
    axes = np.broadcast_shapes(*(a.shape[:-1] for a in arrays))
    return np.concatenate([np.broadcast_to(a, (*axes, a.shape[-1])) for a in arrays], axis=-1)


def time_embedding(t: Any, dim: int = 16) -> np.ndarray:
    """Sines, then cosines, of t times a geometric series of frequencies (Vaswani et al. 2017), over sqrt(dim)."""
    t = np.asarray(t, np.float64)
    waves = [wave(t / 10_000 ** (2 * j / dim)) for wave in (np.sin, np.cos) for j in range(dim // 2)]
    return np.stack(waves, axis=-1) / math.sqrt(dim)


def denoiser(parameters: Parameters, obs: np.ndarray, noisy: np.ndarray, t: Any, act: str = "mish") -> np.ndarray:
    """Predicted noise: an MLP of (obs, noisy action, embedded time)."""
    time_dim = parameters["time_layers.0.weight"].shape[1]
    time = perceptron(parameters, time_embedding(t, time_dim), act, "time_layers")
    return perceptron(parameters, concatenate(obs, noisy, time), act)


def gaussian_actor(
    parameters: Parameters, obs: np.ndarray, act: str = "mish", low: float = -20.0, high: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and clipped logarithm of the standard deviation."""
    mean, log_std = np.split(perceptron(parameters, obs, act), 2, axis=-1)
    return mean, np.clip(log_std, low, high)


def ensemble(parameters: Parameters, obs: np.ndarray, action: np.ndarray, act: str = "mish") -> np.ndarray:
    """Outputs of all critics, [ensemble batch outputs]."""
    size = len(parameters["layers.0.weight"])
    return np.stack([perceptron(parameters, concatenate(obs, action), act, member=i) for i in range(size)])


def critic(parameters: Parameters, obs: np.ndarray, action: np.ndarray, act: str = "mish") -> np.ndarray:
    """Values [ensemble batch]: the first output, which for a Gaussian critic is the mean."""
    return ensemble(parameters, obs, action, act)[..., 0]


def gaussian_critic(
    parameters: Parameters, obs: np.ndarray, action: np.ndarray, act: str = "mish"
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation log(1 + exp(output)) of the return (DSAC-T)."""
    outputs = ensemble(parameters, obs, action, act)
    return outputs[..., 0], np.logaddexp(0, outputs[..., 1])


# Samplers


def ddpm(
    s: Schedule, denoise: Denoise, obs: np.ndarray, start: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """DDPM algorithm 2 with a clipped prediction: the action, and the states [T batch act] seen at every t."""
    noisy, seen = start, {}
    for t in reversed(range(len(s.alpha))):
        seen[t] = noisy
        action = np.clip(predict_action(s, noisy, denoise(obs, noisy, t), t), -1, 1)
        noisy = s.posterior_action[t] * action + s.posterior_noisy[t] * noisy
        if t > 0:
            noisy = noisy + s.posterior_std[t] * steps[t - 1]
    return noisy, np.stack([seen[t] for t in sorted(seen)])


def ddim(s: Schedule, denoise: Denoise, obs: np.ndarray, start: np.ndarray, times: Sequence[int]) -> np.ndarray:
    """DDIM equation 12 with its sigma = 0, over decreasing `times`; the noise is the one of the clipped prediction."""
    noisy = start
    for t, following in zip(times, [*times[1:], None], strict=True):
        action = np.clip(predict_action(s, noisy, denoise(obs, noisy, t), t), -1, 1)
        eps = (noisy - s.alpha[t] * action) / s.sigma[t]
        noisy = action if following is None else add_noise(s, action, eps, following)
    return noisy


def tanh_gaussian(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SAC's bounded actions: a = tanh(u), log pi(a) = log N(u) - sum log(1 - tanh^2 u); 1 - tanh^2 = 1 / cosh^2."""
    u = mean + np.exp(log_std) * noise
    log_density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_cosh = np.logaddexp(u, -u) - math.log(2)
    return np.tanh(u), (log_density + 2 * log_cosh).sum(-1)


def best_of(actions: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each state, the candidate [n batch act] with the highest score [n batch] (SDAC)."""
    return np.stack([actions[np.argmax(scores[:, b]), b] for b in range(actions.shape[1])])


def with_exploration(action: np.ndarray, noise: np.ndarray, scale: float) -> np.ndarray:
    """DACER: scale * N(0, I) is added, and the sum goes back into the box."""
    return np.clip(action + scale * noise, -1, 1)


# Actor objectives


def value_loss(values: np.ndarray) -> float:
    """DACER: minus the mean over the batch of the smallest critic's value; values [ensemble batch]."""
    return -float(np.mean([min(column) for column in values.T]))


def time_weighted_q_gradient_loss(
    s: Schedule,
    eps: np.ndarray,
    q_gradient: np.ndarray,
    *,
    space: str = "score",
    time_offset: int = 1,
    slope: float = 0.4,
    intercept: float = -1.8,
) -> float:
    """DACER2's second loss: the score against the unit gradient of Q, the latter weighted by exp(slope t + intercept).

    Args:
        s: the schedule.
        eps: what the denoiser predicts at the states, [T batch act].
        q_gradient: gradient with respect to the action of the smallest critic there, [T batch act].
        space: "score", or "eps" to compare in the denoiser's own units.
        time_offset: 1 counts times from 1, 0 from 0.
        slope: of the exponent.
        intercept: of the exponent.
    """
    total, count = 0.0, 0
    for t in range(eps.shape[0]):
        weight = math.exp(slope * (t + time_offset) + intercept)
        for b in range(eps.shape[1]):
            pull = weight * q_gradient[t, b] / (np.linalg.norm(q_gradient[t, b]) + 1e-8)
            error = -eps[t, b] / s.sigma[t] - pull
            if space == "eps":
                error = -s.sigma[t] * error  # a noise is -sigma times a score
            total, count = total + float(error @ error), count + 1
    return total / count


def reverse_samples(
    s: Schedule, noisy: np.ndarray, t: np.ndarray, particles: np.ndarray, *, truncated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """SDAC's reverse sampling: clean actions that may have led to `noisy`, and the noise that did; both [K batch act].

    Clipped (official): a0 ~ N(noisy/alpha, (sigma/alpha)^2), then clipped, beside the noise from before the clip.
    Truncated: the same normal law restricted to [-1, 1], from uniform `particles`; the noise belongs to the sample.
    """
    actions, noises = np.empty_like(particles), np.empty_like(particles)
    for b, time in enumerate(t):
        mean, std = noisy[b] / s.alpha[time], s.sigma[time] / s.alpha[time]
        if truncated:
            from scipy.stats import truncnorm

            a0 = truncnorm.ppf(particles[:, b], (-1 - mean) / std, (1 - mean) / std, loc=mean, scale=std)
            noises[:, b] = (noisy[b] - s.alpha[time] * a0) / s.sigma[time]
        else:
            a0 = np.clip(mean - std * particles[:, b], -1, 1)
            noises[:, b] = particles[:, b]
        actions[:, b] = a0
    return actions, noises


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(logits) / sum(exp(logits)) along the first axis."""
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def reverse_score_matching_loss(
    eps: np.ndarray, noises: np.ndarray, q: np.ndarray, temperature: float, value_scale: float = 5.0
) -> tuple[float, float]:
    """SDAC: mean over the batch of sum_k w_k |eps - noise_k|^2, w = softmax_k(Q value_scale / temperature).

    Args:
        eps: predicted noise [batch act].
        noises: [K batch act]
        q: smallest value of the reverse samples [K batch].
        temperature: entropy coefficient.
        value_scale: factor of Q.

    Returns:
        The loss, and the mean effective number of particles 1 / sum w^2.
    """
    w = softmax(q * value_scale / temperature)
    losses = [sum(w[k, b] * np.sum((eps[b] - noises[k, b]) ** 2) for k in range(len(noises))) for b in range(len(eps))]
    return float(np.mean(losses)), float(np.mean(1 / (w**2).sum(0)))


def policy_weights(
    q: np.ndarray, temperature: float, state: Mapping[str, float], *, rate: float, faithful: bool
) -> tuple[np.ndarray, dict[str, float]]:
    """DPMD: exp(advantage / temperature), the advantage normalised by running moments, and the moments afterwards.

    Faithful: `q - mean/std` with the moments from before the batch, as the official code computes it. Corrected:
    (q - mean)/std with the moments up to this batch; they start at 0, hence the bias correction (as in Adam).
    """
    count = state["count"] + 1
    moments = {
        "q_mean_ema": (1 - rate) * state["q_mean_ema"] + rate * np.mean(q),
        "q_std_ema": (1 - rate) * state["q_std_ema"] + rate * np.sqrt(np.mean((q - np.mean(q)) ** 2)),
        "count": count,
    }
    if faithful:
        advantage = q - state["q_mean_ema"] / (state["q_std_ema"] + 1e-8)
    else:
        correction = 1 - (1 - rate) ** count
        mean, std = moments["q_mean_ema"] / correction, moments["q_std_ema"] / correction
        advantage = (q - mean) / (std + 1e-8)
    return np.exp(np.clip(advantage, -3, 3) / temperature), moments


def weighted_score_matching_loss(eps: np.ndarray, noise: np.ndarray, weight: np.ndarray) -> float:
    """Mean over the batch of weight |eps - noise|^2 (DPMD)."""
    return float(np.mean([w * np.sum((e - n) ** 2) for e, n, w in zip(eps, noise, weight, strict=True)]))


def entropy_value_loss(values: np.ndarray, log_prob: np.ndarray, temperature: float) -> float:
    """SAC's policy loss: mean of temperature * log pi - min Q."""
    return float(np.mean(temperature * log_prob - values.min(0)))


# Critic objectives


def td_target(
    reward: np.ndarray, terminated: np.ndarray, next_value: np.ndarray, gamma: float, entropy: np.ndarray | float = 0.0
) -> np.ndarray:
    """r + gamma (next value + entropy bonus), without a future where the episode ended (SAC, soft Bellman operator)."""
    return np.array(
        [r if d else r + gamma * v for r, d, v in zip(reward, terminated, next_value + entropy, strict=True)]
    )


def mean_squared_td_loss(values: np.ndarray, target: np.ndarray) -> float:
    """Sum over the critics of the mean over the batch of (Q - y)^2."""
    return float(sum(np.mean((q - target) ** 2) for q in values))


def gaussian_td_loss(
    mean: np.ndarray,
    std: np.ndarray,
    frozen_mean: np.ndarray,
    frozen_std: np.ndarray,
    next_mean: np.ndarray,
    next_std: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    noise: np.ndarray,
    omega: np.ndarray,
    *,
    gamma: float = 0.99,
    tau: float = 0.005,
    clip: float = 3.0,
) -> tuple[float, np.ndarray]:
    """DSAC-T's loss, with all three of its refinements, and the omega after this batch.

    Args:
        mean: of the online critics at the batch's actions, [ensemble batch], differentiated.
        std: likewise.
        frozen_mean: the same number as `mean`, not differentiated.
        frozen_std: likewise.
        next_mean: of the target critics at the next state and action.
        next_std: likewise.
        reward: [batch]
        terminated: [batch]
        noise: standard normal, [batch].
        omega: running mean of the standard deviation of each critic, [ensemble]; 0 before the first batch.
        gamma: discount.
        tau: rate of omega.
        clip: number of standard deviations that a sampled return may deviate.
    """
    omega = np.array(
        [np.mean(s) if o == 0 else (1 - tau) * o + tau * np.mean(s) for o, s in zip(omega, std, strict=True)]
    )
    smaller = [int(np.argmin(next_mean[:, b])) for b in range(len(reward))]  # per sample, never per batch
    value = np.array([next_mean[i, b] for b, i in enumerate(smaller)])
    deviation = np.array([next_std[i, b] for b, i in enumerate(smaller)])
    y = td_target(reward, terminated, value, gamma)
    y_z = td_target(reward, terminated, value + deviation * np.clip(noise, -3, 3), gamma)
    loss = 0.0
    for i in range(len(mean)):
        q, s = frozen_mean[i], frozen_std[i]
        y_b = q + np.clip(y_z - q, -clip * omega[i], clip * omega[i])
        towards_mean = mean[i] * (y - q) / (s**2 + 0.1)
        towards_std = std[i] * ((q - y_b) ** 2 - s**2) / (s**3 + 0.1)
        loss += -(omega[i] ** 2 + 0.1) * np.mean(towards_mean + towards_std)
    return float(loss), omega


# Temperature, optimiser, slow copies


def noise_entropy(action_dim: int, std: float) -> float:
    """Entropy of N(0, std^2 I) in `action_dim` dimensions (official SDAC code)."""
    return action_dim * (0.5 * math.log(2 * math.pi) + 0.5 + math.log(std))


def adam(
    parameter: Any, gradient: Any, m: Any, v: Any, count: int, rate: float, b1: float = 0.9, b2: float = 0.999
) -> tuple[Any, Any, Any, int]:
    """Algorithm 1 of Kingma and Ba 2015 (arXiv 1412.6980), epsilon 1e-8; `count` steps were done before."""
    count = count + 1
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * gradient**2
    m_hat, v_hat = m / (1 - b1**count), v / (1 - b2**count)
    return parameter - rate * m_hat / (np.sqrt(v_hat) + 1e-8), m, v, count


def clipped(gradients: Mapping[str, np.ndarray], max_norm: float) -> tuple[dict[str, np.ndarray], float]:
    """All gradients scaled down together where their joint norm exceeds `max_norm`, and that norm (arXiv 1211.5063)."""
    norm = math.sqrt(sum(float(np.sum(g**2)) for g in gradients.values()))
    return {name: g * min(1.0, max_norm / norm) for name, g in gradients.items()}, norm


def temperature_step(state: Mapping[str, float], entropy: float, target: float, rate: float) -> dict[str, float]:
    """One Adam step on log temperature with gradient H - target: too much entropy lowers it (DACER)."""
    log_temperature, m, v, count = adam(
        state["log_temperature"], entropy - target, state["m"], state["v"], int(state["count"]), rate
    )
    return {"log_temperature": log_temperature, "m": m, "v": v, "count": count}


def polyak(slow: Parameters, fast: Parameters, tau: float) -> dict[str, np.ndarray]:
    """(1 - tau) slow + tau fast."""
    return {name: (1 - tau) * slow[name] + tau * fast[name] for name in slow}
