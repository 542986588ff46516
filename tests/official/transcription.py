"""The official updates in plain NumPy, gradients by hand, from ALGORITHMS.md: what leaves from what enters.

Nothing here is diffac's, so that a mistake there is none here. Names are those of a recording: a weight is (inputs,
outputs), y = x W + b. `pull` takes the gradient of a scalar with respect to a value, and returns it with respect to the
parameters, by name, and to the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, ndtr

from official.recording import Array, Recording

Gradient = dict[str, Array]
Pull = Callable[[Array], tuple[Gradient, Array]]


def activation(name: str, x: Array) -> tuple[Array, Array]:
    """Value and slope."""
    if name.startswith("relu"):
        return x * (x > 0), 1.0 * (x > 0)
    if name.startswith("gelu"):
        return x * ndtr(x), ndtr(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    squashed = np.tanh(np.logaddexp(x, 0))  # mish
    return x * squashed, squashed + x * (1 - squashed * squashed) * expit(x)


def perceptron(net: Mapping[str, Array], layers: Sequence[str], act: str, x: Array) -> tuple[Array, Pull]:
    """Layers of these names one after the other, with activations between them."""
    inputs, slopes = [], []
    for layer in layers:
        if inputs:
            x, slope = activation(act, x)
            slopes.append(slope)
        inputs.append(x)
        x = x @ net[f"{layer}/weight"] + net[f"{layer}/bias"]

    def pull(dy: Array) -> tuple[Gradient, Array]:
        gradient = {}
        for layer, entered in zip(reversed(layers), reversed(inputs), strict=True):
            rows = dy.reshape(-1, dy.shape[-1])
            gradient[f"{layer}/weight"] = entered.reshape(len(rows), -1).T @ rows
            gradient[f"{layer}/bias"] = rows.sum(0)
            dy = dy @ net[f"{layer}/weight"].T
            if layer != layers[0]:
                dy = dy * slopes[layers.index(layer) - 1]
        return gradient, dy

    return x, pull


def hidden(net: Mapping[str, Array]) -> list[str]:
    """The names of a network's layers, but for the embedding of time."""
    return [f"layer{i}" for i in range(sum(name.startswith("layer") for name in net) // 2)]


def joined(obs: Array, *others: Array) -> Array:
    """Along the last axis; obs is repeated along the leading axes of the others."""
    return np.concatenate([np.broadcast_to(obs, (*others[0].shape[:-1], obs.shape[-1])), *others], -1)


def sum_of(one: Gradient, other: Gradient) -> Gradient:
    """The gradient of a sum."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}


class Transcription:
    """What all official updates have in common; `out` collects what a recording would hold."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.c = recording, recording.constants
        self.obs_dim, self.action_dim = recording.obs_dim, recording.action_shape[1]
        self.nets: dict[str, Gradient] = {}
        self.adam: dict[str, tuple[Gradient, Gradient, int]] = {}
        self.scalars: dict[str, float] = {}
        for name, array in recording.under("init").items():
            net, _, entry = name.partition("/")
            if array.ndim:
                self.nets.setdefault(net, {})[entry] = array
            else:
                self.scalars[name] = float(array)
        self.out: dict[str, Array] = {}

    @property
    def temperature(self) -> float:
        """The entropy coefficient."""
        return math.exp(self.scalars["temperature/log"])

    def run(self) -> dict[str, Array]:
        """All updates, then acting."""
        for u in range(self.recording.updates):
            left: dict[str, Any] = {}
            self.update(u, self.recording.under(f"u{u}/batch"), self.recording.draws(f"u{u}"), left)
            left |= {f"after/{net}/{name}": array for net, part in self.nets.items() for name, array in part.items()}
            left |= {f"after/{name}": np.array(number) for name, number in self.scalars.items()}
            for net, (m, v, count) in self.adam.items():
                left[f"after/adam/{net}/count"] = np.array(count)
                for moment, part in (("m", m), ("v", v)):
                    left |= {f"after/adam/{net}/{moment}/{name}".rstrip("/"): array for name, array in part.items()}
            self.out |= {f"u{u}/{name}": np.asarray(array) for name, array in left.items()}
        obs, draws = self.recording.arrays["act/obs"], self.recording.draws("act")
        if "stochastic" in draws:
            self.out["act/stochastic/action"] = self.act(obs, draws["stochastic"])
        chains = {name: np.moveaxis(d, 0, -2) for name, d in draws.get("evaluation", {}).items() if name != "action"}
        self.out["act/evaluation/action"] = self.evaluate(obs, chains)
        return self.out

    def update(self, u: int, batch: dict[str, Array], draws: dict[str, dict[str, Array]], left: dict[str, Any]) -> None:
        """One update; `left` receives losses and values on the way."""
        raise NotImplementedError

    def act(self, obs: Array, draws: dict[str, Array]) -> Array:
        """As the collector."""
        raise NotImplementedError

    def evaluate(self, obs: Array, draws: dict[str, Array]) -> Array:
        """As the evaluator."""
        raise NotImplementedError

    def step(self, net: str, gradient: Gradient, rate: float) -> None:
        """Adam."""
        m, v, count = self.adam.get(net, ({}, {}, 0))
        count += 1
        m = {name: 0.9 * m.get(name, 0) + 0.1 * g for name, g in gradient.items()}
        v = {name: 0.999 * v.get(name, 0) + 0.001 * g * g for name, g in gradient.items()}
        change = {
            name: rate * m[name] / (1 - 0.9**count) / (np.sqrt(v[name] / (1 - 0.999**count)) + 1e-8) for name in m
        }
        if net == "temperature":
            self.scalars["temperature/log"] -= change[""]
        else:
            self.nets[net] = {name: array - change[name] for name, array in self.nets[net].items()}
        self.adam[net] = m, v, count

    def follow(self, slow: str, fast: str) -> None:
        """Polyak."""
        tau = self.c["tau"]
        self.nets[slow] = {n: (1 - tau) * array + tau * self.nets[fast][n] for n, array in self.nets[slow].items()}

    def is_due(self, u: int, what: str) -> bool:
        """Whether this is an update of "actor_delay" or "temperature_interval"."""
        return u % self.c.get(what, 1) == 0

    def critic(self, net: str, obs: Array, action: Array) -> tuple[Array, Callable[[Array], tuple[Gradient, Array]]]:
        """Outputs [*batch outputs] of one critic; pull gives the gradient of the action."""
        parameters = self.nets[net]
        outputs, pull = perceptron(parameters, hidden(parameters), self.c["activation"], joined(obs, action))

        def pull_action(doutputs: Array) -> tuple[Gradient, Array]:
            gradient, dx = pull(doutputs)
            return gradient, dx[..., self.obs_dim :]

        return outputs, pull_action

    def values(self, obs: Array, action: Array, suffix: str = "") -> Array:
        """First outputs [2 *batch] of both critics."""
        return np.stack([self.critic(f"critic{i}{suffix}", obs, action)[0][..., 0] for i in (0, 1)])

    def value_slope(self, obs: Array, action: Array) -> tuple[Array, Array]:
        """The smaller value [batch], and its gradient with respect to the action."""
        outputs, pulls = zip(*(self.critic(f"critic{i}", obs, action) for i in (0, 1)), strict=True)
        q = np.stack([output[..., 0] for output in outputs])
        slope = np.zeros(action.shape)
        for i, (output, pull) in enumerate(zip(outputs, pulls, strict=True)):
            chosen = np.zeros(output.shape)
            chosen[..., 0] = q.argmin(0) == i
            slope += pull(chosen)[1]
        return q.min(0), slope

    def squared_errors(self, batch: dict[str, Array], y: Array, left: dict[str, Any]) -> list[Gradient]:
        """Losses of both critics, and the gradients."""
        gradients = []
        for i in (0, 1):
            outputs, pull = self.critic(f"critic{i}", batch["obs"], batch["action"])
            error = outputs[..., 0] - y
            left[f"loss/critic{i}"] = np.mean(error**2)
            gradients.append(pull(2 * error[:, None] / len(error))[0])
        return gradients

    def step_critics(self, gradients: Sequence[Gradient]) -> None:
        """Each with an Adam of its own."""
        for i, gradient in enumerate(gradients):
            self.step(f"critic{i}", gradient, self.c["lr_critic"])

    def target(self, batch: dict[str, Array], next_value: Array) -> Array:
        """Scaled reward and discounted value."""
        return self.c["reward_scale"] * batch["reward"] + self.c["gamma"] * (1 - batch["done"]) * next_value


class Diffusion(Transcription):
    """A denoiser as actor."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        T = self.c["T"]
        if self.c["schedule"].startswith("vp"):
            i = np.arange(1, T + 1)
            self.beta = 1 - np.exp(-0.1 / T - 0.5 * (10 - 0.1) * (2 * i - 1) / T**2)
        else:
            self.beta = 0.8 * np.linspace(1e-4, 0.999, T)
        self.alpha_bar = np.cumprod(1 - self.beta)
        before = np.append(1.0, self.alpha_bar[:-1])
        self.alpha, self.sigma = np.sqrt(self.alpha_bar), np.sqrt(1 - self.alpha_bar)
        self.c1 = self.beta * np.sqrt(before) / (1 - self.alpha_bar)
        self.c2 = (1 - before) * np.sqrt(1 - self.beta) / (1 - self.alpha_bar)
        self.std = np.sqrt(self.beta * (1 - before) / (1 - self.alpha_bar))

    def denoiser(self, net: str, obs: Array, x: Array, t: Array | int) -> tuple[Array, Pull]:
        """Predicted noise; pull gives the gradient of x."""
        parameters, act = self.nets[net], self.c["activation"]
        half = len(parameters["time0/weight"]) // 2
        waves = np.broadcast_to(np.asarray(t)[..., None], (*x.shape[:-1], 1)) * 10_000.0 ** (-np.arange(half) / half)
        features = np.concatenate([np.sin(waves), np.cos(waves)], -1) / math.sqrt(2 * half)
        embedding, pull_time = perceptron(parameters, ["time0", "time1"], act, features)
        eps, pull_layers = perceptron(parameters, hidden(parameters), act, joined(obs, x, embedding))

        def pull(deps: Array) -> tuple[Gradient, Array]:
            gradient, dx = pull_layers(deps)
            _, dx, dembedding = np.split(dx, [self.obs_dim, self.obs_dim + self.action_dim], -1)
            return sum_of(gradient, pull_time(dembedding)[0]), dx

        return eps, pull

    def chain(self, net: str, obs: Array, draws: dict[str, Array]) -> tuple[Array, Callable[[Array], Gradient]]:
        """The end of the reverse chain [*leading batch d]; pull gives the gradient of the parameters alone."""
        x = self.c["chain_start_scale"] * draws["chain_start"]
        steps = np.moveaxis(draws["step_noise"], -3, 0)
        pulls = []
        for t, noise in zip(reversed(range(self.c["T"])), steps, strict=True):
            eps, pull_eps = self.denoiser(net, obs, x, t)
            free = x / self.alpha[t] - eps * math.sqrt(1 / self.alpha_bar[t] - 1)
            pulls.append((t, np.abs(free) < 1, pull_eps))
            x = self.c1[t] * np.clip(free, -1, 1) + self.c2[t] * x + (t > 0) * self.std[t] * noise

        def pull(dx: Array) -> Gradient:
            gradient: Gradient = {}
            for t, inside, pull_eps in reversed(pulls):
                dfree = self.c1[t] * dx * inside
                through_eps, through_x = pull_eps(-math.sqrt(1 / self.alpha_bar[t] - 1) * dfree)
                gradient = sum_of(gradient, through_eps)
                dx = self.c2[t] * dx + dfree / self.alpha[t] + through_x
            return gradient

        return x, pull

    def noised(self, action: Array, eps: Array, t: Array) -> Array:
        """a_t."""
        return self.alpha[t][:, None] * action + self.sigma[t][:, None] * eps

    def exploration(self, draws: dict[str, Array]) -> Array:
        """What is added to an action."""
        return self.c["noise_scale"] * self.temperature * draws["exploration"]


class BestOfN(Diffusion):
    """What SDAC and DPMD share: the acting policy, critics, temperature, slow copies."""

    def best(self, net: str, obs: Array, draws: dict[str, Array]) -> Array:
        """The candidate of the highest value."""
        if draws["chain_start"].ndim == obs.ndim:  # a single candidate without an axis
            draws = draws | {name: draws[name][None] for name in ("chain_start", "step_noise")}
        candidates, _ = self.chain(net, obs, draws)
        chosen = self.values(obs, candidates).min(0).argmax(0)
        return np.clip(candidates[chosen, np.arange(len(obs))], -1, 1)

    def act(self, obs: Array, draws: dict[str, Array]) -> Array:
        """The slow actor with noise, unclipped."""
        return self.best("actor_ema", obs, draws) + self.exploration(draws)

    def evaluate(self, obs: Array, draws: dict[str, Array]) -> Array:
        """The slow actor without noise."""
        return self.best("actor_ema", obs, draws)

    def policy(self, obs: Array, draws: dict[str, Array]) -> Array:
        """The online actor with noise, unclipped."""
        return self.best("actor", obs, draws) + self.exploration(draws)

    def finish(self, u: int, actor_gradient: Gradient) -> None:
        """Steps of actor and temperature, slow copies."""
        if self.is_due(u, "actor_delay"):
            self.step("actor", actor_gradient, self.c["lr_actor"])
        if self.is_due(u, "temperature_interval"):
            variance = (self.c["noise_scale"] * self.temperature) ** 2
            entropy = self.action_dim / 2 * math.log(2 * math.pi * math.e * variance)
            self.step("temperature", {"": np.array(entropy + 0.9 * self.action_dim)}, self.c["lr_temperature"])
        if self.is_due(u, "actor_delay"):
            for i in (0, 1):
                self.follow(f"critic{i}_target", f"critic{i}")
            self.follow("actor_ema", "actor")

    def move_moments(self, q: Array) -> None:
        """Running mean and population standard deviation."""
        for name, number in (("running_mean", q.mean()), ("running_std", q.std())):
            self.scalars[name] += 0.001 * (number - self.scalars[name])


class SDAC(BestOfN):
    """Reverse sampling."""

    def update(self, u: int, batch: dict[str, Array], draws: dict[str, dict[str, Array]], left: dict[str, Any]) -> None:
        """ALGORITHMS.md, section 3."""
        left["mid/next_action"] = next_action = self.policy(batch["next_obs"], draws["next_policy"])
        y = self.target(batch, self.values(batch["next_obs"], next_action, "_target").min(0))
        critic_gradients = self.squared_errors(batch, y, left)

        left["mid/action"] = action = self.policy(batch["obs"], draws["policy"])
        t, noises = draws["actor"]["t"], draws["actor"]["eps_k"]
        noisy = self.noised(action, draws["actor"]["xi"], t)
        clean = (noisy[:, None] - self.sigma[t][:, None, None] * noises) / self.alpha[t][:, None, None]
        wanted, weights = self.wanted(batch["obs"][:, None], clean, noises, t)
        eps, pull = self.denoiser("actor", batch["obs"], noisy, t)
        error = eps[:, None] - wanted
        left["loss/actor"] = np.mean(weights * error**2)
        actor_gradient, _ = pull((2 * weights * error).sum(1) / error.size)

        self.step_critics(critic_gradients)
        self.finish(u, actor_gradient)

    def wanted(self, obs: Array, clean: Array, noises: Array, t: Array) -> tuple[Array, Array]:
        """What the denoiser should say, and with which weights [B, K or 1, 1]."""
        logits = 5 * self.values(obs, np.clip(clean, -1, 1)).min(0) / self.temperature
        self.move_moments(logits)
        return noises, softmax(logits)


def softmax(logits: Array) -> Array:
    """Weights [B, K, 1] of logits [B, K]."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True))[..., None]


class IDEM(SDAC):
    """Gradients of Q at the reverse samples; the temperature has no part in it."""

    def wanted(self, obs: Array, clean: Array, noises: Array, t: Array) -> tuple[Array, Array]:
        """-sigma times the gradient of logsumexp_k min Q by a_t, which moves a clean action by 1 / alpha."""
        values, slope = self.value_slope(obs, np.clip(clean, -1, 1))
        by_noisy = slope * (np.abs(clean) < 1) / self.alpha[t][:, None, None]
        gradient = (softmax(values) * by_noisy).sum(1, keepdims=True)
        return -self.sigma[t][:, None, None] * gradient, np.ones(gradient.shape)


class DPMD(BestOfN):
    """Mirror descent."""

    def update(self, u: int, batch: dict[str, Array], draws: dict[str, dict[str, Array]], left: dict[str, Any]) -> None:
        """ALGORITHMS.md, section 4."""
        left["mid/next_action"] = next_action = self.policy(batch["next_obs"], draws["next_policy"])
        y = self.target(batch, self.values(batch["next_obs"], next_action, "_target").min(0))
        critic_gradients = self.squared_errors(batch, y, left)
        self.step_critics(critic_gradients)

        q = self.values(batch["next_obs"], next_action).min(0)
        advantage = q - self.scalars["running_mean"] / self.scalars["running_std"]
        weights = np.exp(np.clip(advantage, -3, 3) / self.temperature)[:, None]
        t, noise = draws["actor"]["t"], draws["actor"]["eps"]
        eps, pull = self.denoiser("actor", batch["next_obs"], self.noised(next_action, noise, t), t)
        left["loss/actor"] = np.mean(weights * (eps - noise) ** 2)
        actor_gradient, _ = pull(2 * weights * (eps - noise) / eps.size)

        self.step_critics(critic_gradients)  # the same gradient once more
        self.finish(u, actor_gradient)
        self.move_moments(q)


class DACER(Diffusion):
    """The value through the chain; the entropies of the fit are taken as given."""

    def policy(self, net: str, obs: Array, draws: dict[str, Array]) -> tuple[Array, Callable[[Array], Gradient]]:
        """Noise, then the clip, which cuts the gradient."""
        action, pull = self.chain(net, obs, draws)
        free = action + (self.exploration(draws) if "exploration" in draws else 0)
        return np.clip(free, -1, 1), lambda daction: pull(daction * (np.abs(free) < 1))

    def act(self, obs: Array, draws: dict[str, Array]) -> Array:
        """With noise."""
        return self.policy("actor", obs, draws)[0]

    evaluate = act  # without noise among the draws

    def distribution(self, net: str, obs: Array, action: Array) -> tuple[Array, Array, Array, Callable[..., Any]]:
        """Mean, standard deviation, the latter's slope, pull."""
        outputs, pull = self.critic(net, obs, action)
        return outputs[..., 0], np.logaddexp(outputs[..., 1], 0), expit(outputs[..., 1]), pull

    def update(self, u: int, batch: dict[str, Array], draws: dict[str, dict[str, Array]], left: dict[str, Any]) -> None:
        """ALGORITHMS.md, section 1."""
        next_action, _ = self.policy("actor", batch["next_obs"], draws["next_policy"])
        left["mid/next_action"] = next_action
        laws = [self.distribution(f"critic{i}_target", batch["next_obs"], next_action) for i in (0, 1)]
        samples = [laws[i][0] + laws[i][1] * np.clip(draws["critic"][f"z{i}"], -3, 3) for i in (0, 1)]
        first = laws[0][0] < laws[1][0]
        y = self.target(batch, np.where(first, laws[0][0], laws[1][0]))
        y_z = self.target(batch, np.where(first, *samples))

        critic_gradients = []
        for i in (0, 1):
            q, std, slope, pull = self.distribution(f"critic{i}", batch["obs"], batch["action"])
            omega = self.scalars[f"omega{i}"]
            rate = self.c.get("omega_rate", self.c["tau"])
            omega = std.mean() if omega == -1 else rate * std.mean() + (1 - rate) * omega
            self.scalars[f"omega{i}"] = float(omega)
            y_b = q + np.clip(y_z - q, -3 * omega, 3 * omega)
            factor = -(omega**2 + 0.1) / len(q)
            dq, dstd = factor * (y - q) / (std**2 + 0.1), factor * ((q - y_b) ** 2 - std**2) / (std**3 + 0.1)
            left[f"loss/critic{i}"] = (q * dq + std * dstd).sum()
            critic_gradients.append(pull(np.stack([dq, dstd * slope], -1))[0])

        if self.is_due(u, "temperature_interval"):
            actions, _ = self.policy("actor", batch["obs"], draws["entropy"])
            left["mid/entropy_actions"] = np.swapaxes(actions, 0, 1)
            left["stat/entropy"] = np.float32(np.mean(self.recording.arrays[f"u{u}/mid/entropy_per_state"]))
        left["mid/action"], pull_policy = self.policy("actor", batch["obs"], draws["policy"])
        value, slope = self.value_slope(batch["obs"], left["mid/action"])
        left["loss/actor"] = -value.mean()
        actor_gradient = pull_policy(-slope / len(slope))

        self.step_critics(critic_gradients)
        if self.is_due(u, "actor_delay"):
            self.step("actor", actor_gradient, self.c["lr_actor"])
        if self.is_due(u, "temperature_interval"):  # in float32, as there
            gradient = left["stat/entropy"] - np.float32(-0.9 * self.action_dim)
            self.step("temperature", {"": np.array(gradient, np.float64)}, self.c["lr_temperature"])
        if self.is_due(u, "actor_delay"):
            for i in (0, 1):
                self.follow(f"critic{i}_target", f"critic{i}")


class SAC(Transcription):
    """Of DACER's repository and of Stable-Baselines3."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.epsilon = self.c.get("log_prob_epsilon", 0.0)
        self.has_heads = "mean/weight" in self.nets["actor"]

    def outputs(self, obs: Array) -> tuple[Array, Array, Callable[[Array, Array], Gradient]]:
        """Mean, log standard deviation before its clip, pull."""
        net, act = self.nets["actor"], self.c["activation"]
        if not self.has_heads:
            both, pull_both = perceptron(net, hidden(net), act, obs)
            mean, log_std = np.split(both, 2, -1)
            return mean, log_std, lambda dmean, dlog_std: pull_both(np.concatenate([dmean, dlog_std], -1))[0]
        mean, pull_mean = perceptron(net, [*hidden(net), "mean"], act, obs)
        log_std, pull_log_std = perceptron(net, [*hidden(net), "log_std"], act, obs)
        return mean, log_std, lambda dmean, dlog_std: sum_of(pull_mean(dmean)[0], pull_log_std(dlog_std)[0])

    def policy(self, obs: Array, z: Array) -> tuple[Array, Array, Callable[[Array, Array], Gradient]]:
        """Action, its log-probability, pull."""
        mean, free, pull_outputs = self.outputs(obs)
        log_std = np.clip(free, *self.c["log_std_clip"])
        u = mean + np.exp(log_std) * z
        action = np.tanh(u)
        if self.epsilon:
            log_slope = np.log(1 - action**2 + self.epsilon)
        else:
            log_slope = 2 * (math.log(2) - u - np.logaddexp(-2 * u, 0))
        log_prob = (-0.5 * z * z - log_std - 0.5 * math.log(2 * math.pi) - log_slope).sum(-1)

        def pull(daction: Array, dlog_prob: Array) -> Gradient:
            slope = 1 - action**2
            du = daction * slope + dlog_prob[..., None] * 2 * action * slope / (slope + self.epsilon)
            inside = (free > self.c["log_std_clip"][0]) & (free < self.c["log_std_clip"][1])
            return pull_outputs(du, (du * np.exp(log_std) * z - dlog_prob[..., None]) * inside)

        return action, log_prob, pull

    def act(self, obs: Array, draws: dict[str, Array]) -> Array:
        """A sample."""
        return self.policy(obs, draws["z"])[0]

    def evaluate(self, obs: Array, draws: dict[str, Array]) -> Array:
        """tanh of the mean."""
        return np.tanh(self.outputs(obs)[0])

    def update(self, u: int, batch: dict[str, Array], draws: dict[str, dict[str, Array]], left: dict[str, Any]) -> None:
        """ALGORITHMS.md, section 5; when the temperature steps changes nothing, all losses have the one before."""
        temperature = self.temperature
        next_action, next_log_prob, _ = self.policy(batch["next_obs"], draws["next_policy"]["z"])
        next_value = self.values(batch["next_obs"], next_action, "_target").min(0) - temperature * next_log_prob
        critic_gradients = self.squared_errors(batch, self.target(batch, next_value), left)
        if self.c["algorithm"] == "sb3_sac":
            critic_gradients = [{name: g / 2 for name, g in gradient.items()} for gradient in critic_gradients]
            left["loss/critic"] = (left.pop("loss/critic0") + left.pop("loss/critic1")) / 2
        self.step_critics(critic_gradients)

        action, log_prob, pull = self.policy(batch["obs"], draws["policy"]["z"])
        left |= {"mid/next_action": next_action, "mid/next_log_prob": next_log_prob, "mid/action": action}
        left |= {"mid/log_prob": log_prob, "stat/entropy": -log_prob.mean()}
        value, slope = self.value_slope(batch["obs"], action)
        left["loss/actor"] = np.mean(temperature * log_prob - value)
        if self.is_due(u, "actor_delay"):
            share = np.full(len(value), 1 / len(value))
            self.step("actor", pull(-slope * share[:, None], temperature * share), self.c["lr_actor"])
            entropy = -(log_prob.mean() - self.action_dim)
            self.step("temperature", {"": np.array(entropy)}, self.c["lr_temperature"])
            for i in (0, 1):
                self.follow(f"critic{i}_target", f"critic{i}")


class TD3(Transcription):
    """Of Stable-Baselines3."""

    def action(self, net: str, obs: Array) -> tuple[Array, Callable[[Array], Gradient]]:
        """The action, pull."""
        parameters = self.nets[net]
        outputs, pull = perceptron(parameters, hidden(parameters), self.c["activation"], obs)
        action = np.tanh(outputs)
        return action, lambda daction: pull(daction * (1 - action**2))[0]

    def evaluate(self, obs: Array, draws: dict[str, Array]) -> Array:
        """As it is."""
        return self.action("actor", obs)[0]

    def update(self, u: int, batch: dict[str, Array], draws: dict[str, dict[str, Array]], left: dict[str, Any]) -> None:
        """ALGORITHMS.md, section 5: actor and all copies move in every policy_delay-th update, counted from 1."""
        clip = self.c["target_noise_clip"]
        noise = np.clip(self.c["target_policy_noise"] * draws["next_policy"]["noise"], -clip, clip)
        next_action = np.clip(self.action("actor_target", batch["next_obs"])[0] + noise, -1, 1)
        next_value = self.values(batch["next_obs"], next_action, "_target").min(0)
        self.step_critics(self.squared_errors(batch, self.target(batch, next_value), left))
        left["loss/critic"] = left.pop("loss/critic0") + left.pop("loss/critic1")
        if (u + 1) % self.c["policy_delay"] != 0:
            return
        action, pull = self.action("actor", batch["obs"])
        q, pull_critic = self.critic("critic0", batch["obs"], action)
        left["loss/actor"] = -q.mean()
        self.step("actor", pull(pull_critic(np.full(q.shape, -1 / len(q)))[1]), self.c["lr_actor"])
        for net in ("actor", "critic0", "critic1"):
            self.follow(f"{net}_target", net)


ALGORITHMS = {
    "sdac": SDAC,
    "dpmd": DPMD,
    "idem": IDEM,
    "dacer": DACER,
    "sac_dacer": SAC,
    "sb3_sac": SAC,
    "sb3_td3": TD3,
}


def transcribe(recording: Recording) -> dict[str, Array]:
    """What leaves the updates of a recording, by its names; what leaves in the recording itself is not read."""
    return ALGORITHMS[recording.constants["algorithm"]](recording).run()
