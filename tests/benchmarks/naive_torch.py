"""The recipes in PyTorch the way public codes are written: the yardstick, never used for training.

The mathematics, the schedules and the noise are the recipe's own; a test asserts that an update gives the same numbers.
What differs is what the public codes do: the gradient of the actor in every step, also where it is thrown away; the
denoiser once for each particle; concatenation of obs, noisy action and embedded time in every evaluation; one call for
each critic; the framework's Mish; plain Adam and a loop over parameters for the slow copies.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diffac_torch as ours
from diffac.noise import EXPLORATION
from diffac.protocols import Batch
from diffac_torch.engine.random import draw, stream
from diffac_torch.parts.coefficients import value_at
from diffac_torch.parts.diffusion import add_noise, noise_between, posterior_mean, remove_noise
from diffac_torch.parts.diffusion import score as score_of
from diffac_torch.parts.objectives import _truncated_guesses


class MLP(nn.Module):
    """Layers with an activation between them."""

    def __init__(self, weights: Iterable[tuple[np.ndarray, np.ndarray]], activation: str = "mish") -> None:
        super().__init__()
        self.activation = getattr(F, activation)
        self.layers = nn.ModuleList()
        for weight, bias in weights:
            layer = nn.Linear(*weight.shape[::-1])
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """[rows in] -> [rows out]"""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class Denoiser(nn.Module):
    """What the network predicts [rows act] from obs, noisy action and time, each with one row for each result."""

    def __init__(self, arrays: Mapping[str, np.ndarray], activation: str) -> None:
        super().__init__()
        self.time_layers = MLP(_layers(arrays, "time_layers"), activation)
        self.layers = MLP(_layers(arrays, "layers"), activation)

    def forward(self, obs: Tensor, noisy: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        """t [rows]; a mean velocity takes the time r where it ends, too."""
        embedding = ours.time_embedding(t.to(noisy.dtype))
        if r is not None:
            embedding = torch.cat([embedding, ours.time_embedding(t - r)], dim=-1)
        return self.layers(torch.cat([obs, noisy, self.time_layers(embedding)], dim=-1))


class Drift(Denoiser):
    """The drift of a Langevin diffusion, and its step size [act]."""

    def __init__(self, arrays: Mapping[str, np.ndarray], activation: str) -> None:
        super().__init__(arrays, activation)
        self.raw_delta, self.raw_precision = (
            nn.Parameter(torch.tensor(arrays[f"raw_{name}"])) for name in ("delta", "precision")
        )

    def step_size(self) -> Tensor:
        """Learnt, positive."""
        return F.softplus(self.raw_delta, threshold=40) / F.softplus(self.raw_precision, threshold=40)


def _layers(arrays: Mapping[str, np.ndarray], prefix: str, member: int | None = None) -> list[tuple[Any, Any]]:
    """Weight and bias of each layer, of one member of an ensemble."""
    pick = slice(None) if member is None else member
    count = sum(name.startswith(f"{prefix}.") for name in arrays) // 2
    return [(arrays[f"{prefix}.{i}.weight"][pick], arrays[f"{prefix}.{i}.bias"][pick]) for i in range(count)]


class Naive:
    """One recipe with its networks, optimisers and slow copies.

    Args:
        learner: gives the numbers of the recipe: schedule, temperature, rates.
        actor: initial parameters, copied.
        critic: initial parameters, copied.
    """

    def __init__(self, learner: ours.Learner, actor: nn.Module, critic: nn.Module) -> None:
        self.learner = learner
        self.chain: Any = learner.sampler
        while hasattr(self.chain, "sampler"):
            self.chain = self.chain.sampler
        self.schedule = getattr(self.chain, "schedule", None)
        self.velocity = getattr(actor, "prediction", None) == "velocity"
        self.gaussian = isinstance(self.chain, ours.TanhGaussianSampler)
        self.langevin = isinstance(self.chain, ours.LangevinSampler)
        self.log_std_bounds = getattr(actor, "log_std_min", None), getattr(actor, "log_std_max", None)
        arrays = ours.to_arrays(actor)
        if self.gaussian:
            self.actor: Any = MLP(_layers(arrays, "layers"), actor.activation)
        else:
            self.actor = (Drift if self.langevin else Denoiser)(arrays, actor.activation)
        arrays = ours.to_arrays(critic)
        self.critics = nn.ModuleList(MLP(_layers(arrays, "layers", i), critic.activation) for i in range(2))
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        has_ema = "ema" in (learner.acting_actor, learner.target_actor)
        self.ema_actor = copy.deepcopy(self.actor).requires_grad_(False) if has_ema else None
        self.actor_adam, self.critic_adam = (
            torch.optim.Adam(module.parameters(), lr=0.0, betas=(adam.b1, adam.b2), eps=adam.eps)
            for module, adam in ((self.actor, learner.actor_optimiser), (self.critics, learner.critic_optimiser))
        )
        dtype = next(self.actor.parameters()).dtype
        self.atoms = None
        if isinstance(learner.critic_objective, ours.CategoricalTD):
            self.atoms = torch.linspace(critic.v_min, critic.v_max, critic.num_atoms, dtype=dtype)
        self.temperature = torch.as_tensor(np.exp(learner.temperature.init_state()["log_temperature"]), dtype=dtype)
        self.critic_state = {k: torch.as_tensor(v, dtype=dtype) for k, v in self._critic_objective_state().items()}
        self.actor_state = {
            name: torch.as_tensor(array, dtype=dtype if array.dtype.kind == "f" else None)
            for name, array in ((k, np.asarray(v)) for k, v in learner.actor_objective.init_state().items())
        }
        self.number: Any = None
        self.updates = 0

    def _critic_objective_state(self) -> dict[str, np.ndarray]:
        return {"omega": np.zeros(2)} if isinstance(self.learner.critic_objective, ours.GaussianTD) else {}

    def update(self, batch: Batch, key: int) -> float:
        """One update with noise of its own; the critic's loss."""
        dtype = self.temperature.dtype
        spec = self.learner.noise_spec(tuple(batch.action.shape))
        return self.step(batch, draw(stream(torch.device("cpu"), key), spec, dtype))

    def step(self, batch: Batch, noise: Mapping[str, Any]) -> float:
        """One update with this noise, NumPy's or torch's."""
        noise = _tensors(noise)
        learner, dtype = self.learner, self.temperature.dtype
        obs, action, reward, next_obs = (torch.as_tensor(x).to(dtype) for x in batch[:4])
        discount = torch.as_tensor(batch.discount).to(dtype)
        reward = learner.reward_scale * reward
        self.number = None if batch.number is None else torch.as_tensor(batch.number).long()
        with torch.no_grad():
            actor = self.ema_actor if learner.target_actor == "ema" else self.actor
            ranking = self.target_critics if learner.target_ranking == "target" else self.critics
            next_action = self.act(next_obs, noise["next_action"], learner.of_target, actor, ranking)
            if isinstance(learner.of_target, ours.LogProbability):
                log_prob = self.log_prob(learner.of_target, next_obs, next_action, noise["next_action"]["noises"])
                reward = reward - discount * self.temperature * log_prob
            elif self.gaussian or self.langevin:
                _, log_prob = self.drawn(actor, next_obs, noise["next_action"])
                reward = reward - discount * self.temperature * log_prob

        loss, critic_state = self.critic_loss(obs, action, reward, next_obs, discount, next_action, noise["critic"])
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_state = critic_state
        critic_first = learner.critic_steps_before_actor == 1
        if critic_first:
            _adam_step(self.critic_adam, learner.critic_optimiser, self.updates)
        actor_loss, self.actor_state = self.actor_loss(self.critics, obs, action, next_obs, next_action, noise["actor"])
        gradients = torch.autograd.grad(actor_loss, list(self.actor.parameters()))
        if not critic_first:
            _adam_step(self.critic_adam, learner.critic_optimiser, self.updates)
        if self.updates % learner.actor_delay == 0:
            for parameter, gradient in zip(self.actor.parameters(), gradients, strict=True):
                parameter.grad = gradient
            _adam_step(self.actor_adam, learner.actor_optimiser, self.updates // learner.actor_delay)
            for slow, fast in ((self.target_critics, self.critics), (self.ema_actor, self.actor)):
                for target, source in () if slow is None else zip(slow.parameters(), fast.parameters(), strict=True):
                    target.data.copy_((1 - learner.tau) * target.data + learner.tau * source.data)
        self.updates += 1
        return loss.item()

    def denoise(
        self, obs: Tensor, noise: Mapping[str, Tensor], actor: Denoiser | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Actions of whole chains, one for each row of obs, and their states from t = 0 on."""
        schedule, states, actor = self.schedule, [], actor or self.actor
        if isinstance(self.chain, ours.MeanFlowSampler):
            noisy, times = self.chain.start_scale * noise["start"], torch.linspace(0, 1, self.chain.num_steps + 1)
            for r, t in reversed(list(itertools.pairwise(times.to(noisy.dtype)))):
                noisy = noisy - (t - r) * actor(obs, noisy, t.expand(len(obs)), r.expand(len(obs)))
            return noisy.clamp(-1, 1), []
        noisy = self.chain.first_scale * noise["start"]
        for t in range(schedule.num_steps - 1, -1, -1):
            states.append(noisy)
            output = actor(obs, noisy, torch.full((len(obs),), t))
            of_flow = noisy - schedule.sigma(t) * output
            action = of_flow if self.velocity else remove_noise(schedule, noisy, output, t)
            if t > 0 and isinstance(self.chain, ours.DDIMSampler):
                action = action.clamp(-1, 1)
                noisy = add_noise(schedule, action, noise_between(schedule, action, noisy, t), t - 1)
            elif t > 0:
                mean = posterior_mean(schedule, self.clipped(action, "action"), noisy, t)
                noisy = self.clipped(mean + float(self.chain.step_std[t]) * noise["steps"][t - 1], "state")
        return action.clamp(-1, 1), states[::-1]

    def clipped(self, x: Tensor, what: str) -> Tensor:
        """The same, in the box if the chain clips this."""
        return x.clamp(-1, 1) if self.chain.clip == what else x

    def act(
        self, obs: Tensor, noise: Mapping[str, Any], sampler: Any = None, actor: Any = None, ranking: Any = None
    ) -> Tensor:
        """The sampled action, with exploration noise; of several candidates the one that the critics prefer."""
        sampler = sampler or self.learner.sampler
        if isinstance(sampler, ours.AdditiveNoise):
            return sampler.explore(self.act(obs, noise["inner"], sampler.sampler, actor), noise, self.temperature)
        if isinstance(sampler, ours.LogProbability):
            return self.act(obs, noise["inner"], sampler.sampler, actor)
        if self.gaussian or self.langevin:
            return self.drawn(actor or self.actor, obs, noise)[0]
        if not isinstance(sampler, ours.BestOf):
            return self.denoise(obs, noise, actor)[0]
        rows = obs.repeat(sampler.num_candidates, 1)
        actions = self.act(rows, _in_rows(noise["candidates"]), sampler.sampler, actor)
        chosen = self.value(ranking or self.critics, rows, actions).view(-1, len(obs)).argmax(0)
        return actions.view(-1, *obs.shape[:1], actions.shape[-1])[chosen, torch.arange(len(obs))]

    def drawn(self, actor: Any, obs: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """DSAC-T's action and its log-probability, or DIME's and the log-ratio of its path."""
        if self.langevin:
            return self.path(actor, obs, noise)
        mean, log_std = actor(obs).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(*self.log_std_bounds).exp())
        u = normal.mean + normal.stddev * noise[EXPLORATION]
        log_slope = 2 * (float(np.log(2)) - u - F.softplus(-2 * u, threshold=40))
        return u.tanh(), (normal.log_prob(u) - log_slope).sum(-1)

    def path(self, actor: Drift, obs: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """DIME: every step's log-probability forward, and back by the prior's diffusion."""
        std, variance = self.chain.prior_std, self.chain.prior_std**2
        x = std * noise["start"]
        log_ratio = torch.distributions.Normal(0.0, std).log_prob(x)
        for t in reversed(range(self.chain.num_steps)):
            eta = float(self.chain.step_factors[t]) * actor.step_size()
            drift = actor(obs, x, torch.full((len(obs),), t)) - x / variance
            forward = torch.distributions.Normal(x + eta * drift, (2 * eta).sqrt().expand_as(x))
            after = forward.mean + forward.stddev * noise["steps"][t]
            back = torch.distributions.Normal(after - eta * after / variance, forward.stddev)
            log_ratio = log_ratio + forward.log_prob(after) - back.log_prob(x)
            x = after
        log_slope = 2 * (float(np.log(2)) - x - F.softplus(-2 * x, threshold=40))
        return x.tanh(), (log_ratio - log_slope).sum(-1)

    def log_prob(self, sampler: Any, obs: Tensor, action: Tensor, noises: Tensor) -> Tensor:
        """MaxEntDP: at each time the denoiser is evaluated once for each noise, beside a copy of the state."""
        schedule, (count, action_dim) = self.schedule, (sampler.num_noises, action.shape[-1])
        rows, clean = obs.repeat(count, 1), action.repeat(count, 1)
        total = torch.full_like(action[:, 0], -action_dim / 2 * float(np.log(2 * np.pi * np.e)))
        for t, (signal, weight) in enumerate(zip(*sampler.signal_and_weight, strict=True)):
            eps = noises[t].flatten(0, 1)
            noisy = add_noise(schedule, clean, eps, t)
            predicted = remove_noise(schedule, noisy, self.actor(rows, noisy, torch.full((len(rows),), t)), t)
            error = eps - noise_between(schedule, predicted.clamp(-1, 1), noisy, t)
            total += float(weight) * (float(signal) * action_dim - error.square().sum(-1).view(count, -1).mean(0))
        return total

    def value(self, critics: Any, obs: Tensor, action: Tensor) -> Tensor:
        """The smaller of the two values (of the means), [rows]; of two categorical critics their mean (DIME)."""
        pair = torch.cat([obs, action], dim=-1)
        if self.atoms is not None:
            return sum(critic(pair).softmax(-1) @ self.atoms for critic in critics) / 2
        first, second = (critic(pair)[:, 0] for critic in critics)
        return torch.minimum(first, second)

    def critic_loss(
        self, obs: Any, action: Any, reward: Any, next_obs: Any, discount: Any, next_action: Any, noise: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Temporal difference of both critics, and the new state of the objective."""
        objective: Any = self.learner.critic_objective
        pair, next_pair = torch.cat([obs, action], -1), torch.cat([next_obs, next_action], -1)
        if isinstance(objective, ours.MeanSquaredTD):
            with torch.no_grad():
                next_q = self.value(self.target_critics, next_obs, next_action)
                y = reward + discount * next_q
            losses = [F.mse_loss(critic(pair)[:, 0], y) for critic in self.critics]
            return losses[0] + losses[1], {}
        if self.atoms is not None:
            goal = self.projected(next_pair, reward, discount)
            losses = [-(goal * critic(pair).log_softmax(-1)).sum(-1).mean() for critic in self.critics]
            return losses[0] + losses[1], {}
        with torch.no_grad():
            means, stds = zip(*(_gaussian(critic(next_pair)) for critic in self.target_critics), strict=True)
            mean = torch.minimum(*means)
            std = torch.where(means[0] <= means[1], stds[0], stds[1])
            y = reward + discount * mean
            y_z = reward + discount * (mean + std * noise["target"].clamp(-3, 3))
        losses, omegas = [], []
        for critic, omega in zip(self.critics, self.critic_state["omega"], strict=True):
            q, std = _gaussian(critic(pair))
            fixed, fixed_std = q.detach(), std.detach()
            batch_std = fixed_std.mean()
            omega = torch.where(omega == 0, batch_std, (1 - objective.tau) * omega + objective.tau * batch_std)
            bound = objective.clip * omega
            y_b = fixed + (y_z - fixed).clamp(-bound, bound)
            mean_term = q * (y - fixed) / (fixed_std**2 + 0.1)
            std_term = std * ((fixed - y_b) ** 2 - fixed_std**2) / (fixed_std**3 + 0.1)
            losses.append(-(omega**2 + 0.1) * (mean_term + std_term).mean())
            omegas.append(omega)
        return losses[0] + losses[1], {"omega": torch.stack(omegas)}

    @torch.no_grad()
    def projected(self, next_pair: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """DIME: the average of both slow critics' distributions, moved and projected as in C51."""
        probabilities = sum(critic(next_pair).softmax(-1) for critic in self.target_critics) / 2
        returns = reward.unsqueeze(-1) + discount.unsqueeze(-1) * self.atoms
        last = len(self.atoms) - 1
        place = (returns.clamp(self.atoms[0], self.atoms[-1]) - self.atoms[0]) * last / (self.atoms[-1] - self.atoms[0])
        below = place.floor().clamp(max=last - 1)
        goal = torch.zeros_like(probabilities)
        goal.scatter_add_(1, below.long(), probabilities * (1 - (place - below)))
        return goal.scatter_add_(1, below.long() + 1, probabilities * (place - below))

    def actor_loss(
        self, critics: Any, obs: Tensor, action: Tensor, next_obs: Tensor, next_action: Tensor, noise: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that the recipe is named after, and the new state of the objective."""
        objective: Any = self.learner.actor_objective
        if isinstance(objective, ours.EntropyRegularisedValue):
            action, log_prob = self.drawn(self.actor, obs, noise["rollout"])
            return (self.temperature * log_prob - self.value(critics, obs, action)).mean(), {}
        if isinstance(objective, ours.ValueThroughSampler):
            return -self.value(critics, obs, self.act(obs, noise["rollout"])).mean(), {}
        if isinstance(objective, ours.Sum) and len(objective.terms) == 1:
            ((weight, gradient),) = objective.terms
            if isinstance(gradient, ours.ReweightedScoreMatching) and isinstance(
                gradient.proposal, ours.QWeightedProposal
            ):
                return weight * self.best_loss(gradient.proposal, critics, obs, noise["term0"]), {}
            if isinstance(gradient, ours.ReweightedScoreMatching) and isinstance(
                gradient.proposal, ours.ImprovedReplayProposal
            ):
                loss, new = self.improved_loss(gradient.proposal, critics, obs, action, noise["term0"])
                return weight * loss, new
            if isinstance(gradient, ours.ReweightedScoreMatching):
                return weight * self.reverse_loss(gradient.proposal, critics, obs, noise["term0"], action), {}
            return weight * self.q_loss(gradient, critics, obs, action, noise["term0"]), {}
        if isinstance(objective, ours.Sum):
            (first, _), (second, gradient) = objective.terms
            rollout = noise["rollout"]
            action, states = self.denoise(obs, rollout["inner"])
            action = self.learner.sampler.explore(action, rollout, self.temperature)  # type: ignore[attr-defined]
            value = -self.value(critics, obs, action).mean()
            return first * value + second * self.score_loss(gradient, critics, obs, states), {}
        if isinstance(objective, ours.MeanFlowMatching):
            return self.mean_flow_loss(objective, critics, next_obs, next_action, noise)
        if isinstance(objective.proposal, ours.PolicyProposal):
            return self.policy_loss(objective.proposal, critics, next_obs, next_action, noise)
        if objective.proposal.gradient_weight == "minimum_variance":
            return self.variance_loss(objective.proposal, critics, obs, noise)
        if objective.proposal.uses_gradient:
            return self.energy_loss(objective.proposal, critics, obs, noise), self.actor_state
        return self.reverse_loss(objective.proposal, critics, obs, noise, action), self.actor_state

    def score_loss(self, gradient: Any, critics: Any, obs: Tensor, states: list[Tensor]) -> Tensor:
        """DACER2's second term, at the states of the chain."""
        rows, noisy = obs.repeat(len(states), 1), torch.cat(states).detach().requires_grad_()
        t = torch.arange(len(states)).repeat_interleave(len(obs))
        (slope,) = torch.autograd.grad(self.value(critics, rows, noisy).sum(), noisy)
        weight = torch.exp(gradient.slope * (t.to(slope.dtype) + gradient.time_offset) + gradient.intercept)
        target = weight.unsqueeze(-1) * slope / (slope.norm(dim=-1, keepdim=True) + 1e-8)
        score = score_of(self.schedule, self.actor(rows, noisy.detach(), t), t)
        return (score - target).square().sum(-1).mean()

    def q_loss(self, objective: Any, critics: Any, obs: Tensor, action: Tensor, noise: Mapping[str, Any]) -> Tensor:
        """QSM: the noise is minus the gradient of the mean of both values, at replayed actions noised to all times."""
        steps = self.schedule.num_steps
        rows, t = obs.repeat(steps, 1), torch.arange(steps).repeat_interleave(len(obs))
        noisy = add_noise(self.schedule, action.repeat(steps, 1), noise["eps"].flatten(0, 1), t).requires_grad_()
        pair = torch.cat([rows, noisy], dim=-1)
        first, second = (critic(pair).sum() for critic in critics)
        (slope,) = torch.autograd.grad((first + second) / 2, noisy)
        scale = float(np.exp(objective.intercept))
        return (self.actor(rows, noisy.detach(), t) + scale * slope).square().sum(-1).mean()

    def reverse_loss(
        self, proposal: Any, critics: Any, obs: Tensor, noise: Mapping[str, Any], action: Tensor
    ) -> Tensor:
        """SDAC and MaxEntDP: the denoiser is evaluated once for each particle."""
        count, t = proposal.num_particles, noise["t"].long()
        with torch.no_grad():
            if proposal.source == "policy":
                action = self.act(obs, noise["rollout"])
            noisy = add_noise(self.schedule, action, noise["eps"], t)
            guesses, eps = _truncated_guesses(self.schedule, noisy, t, noise["particles"])
            rows = obs.repeat(count, 1)
            q = self.value(critics, rows, guesses.flatten(0, 1)).view(count, -1)
            weight = torch.softmax(q * proposal.value_scale / self.temperature, dim=0)
        predicted = self.actor(rows, noisy.repeat(count, 1), t.repeat(count)).view_as(eps)
        return (weight * (predicted - eps).square().sum(-1)).sum(0).mean()

    def energy_loss(self, proposal: Any, critics: Any, obs: Tensor, noise: Mapping[str, Any]) -> Tensor:
        """iDEM: the gradient of the logarithm of the mean of exp(Q) at the particles, by the noisy action."""
        count, t = proposal.num_particles, noise["t"].long()
        with torch.no_grad():
            noisy = add_noise(self.schedule, self.act(obs, noise["rollout"]), noise["eps"], t)
        position = noisy.clone().requires_grad_()
        guesses = remove_noise(self.schedule, position, noise["particles"], t).clamp(-1, 1)
        q = self.value(critics, obs.repeat(count, 1), guesses.flatten(0, 1)).view(count, -1)
        (slope,) = torch.autograd.grad((q * proposal.value_scale).logsumexp(0).sum(), position)
        target = -add_noise(self.schedule, torch.zeros_like(slope), slope, t)
        return (self.actor(obs, noisy, t) - target).square().sum(-1).mean()

    def variance_loss(
        self, proposal: Any, critics: Any, obs: Tensor, noise: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """RFM: noises and gradients mixed by the ratio of two moving averages for each time."""
        old, t, eps = self.actor_state, noise["t"].long(), noise["particles"]
        with torch.no_grad():
            noisy = add_noise(self.schedule, self.act(obs, noise["rollout"]), noise["eps"], t)
            free = remove_noise(self.schedule, noisy, eps, t)
        guesses = free.clamp(-1, 1).requires_grad_()
        q = self.value(critics, obs.repeat(len(eps), 1), guesses.flatten(0, 1)).view(len(eps), -1)
        (slope,) = torch.autograd.grad(q.sum(), guesses)
        with torch.no_grad():
            scale = proposal.value_scale / self.temperature
            far = (free - guesses) / proposal.outside_std
            weight = torch.softmax(q * scale - far.square().sum(-1) / 2, dim=0).unsqueeze(-1)
            slope = scale * slope * (guesses.abs() < 1) - far / proposal.outside_std
            d = remove_noise(self.schedule, torch.zeros_like(noisy), slope, t) - eps
            variance = old["gradient_variance"]
            h = torch.where(variance > 1e-12, -old["gradient_covariance"] / variance.clamp(min=1e-12), 0)
            target = (weight * (eps + h[t].unsqueeze(-1) * d)).sum(0)
            eps, d = (x - (weight * x).sum(0) for x in (eps, d))
            moments = {
                "gradient_covariance": (weight.square() * eps * d).sum((0, 2)),
                "gradient_variance": (weight.square() * d * d).sum((0, 2)),
            }
            new = {name: array.clone() for name, array in old.items()}
            for time in t.unique():
                for name, moment in moments.items():
                    new[name][time] += proposal.rate * (moment[t == time].mean() - old[name][time])
        loss = (self.actor(obs, noisy, t) - target).square().sum(-1).mean()
        return loss, new if self.updates % self.learner.actor_delay == 0 else old

    def best_loss(self, proposal: Any, critics: Any, obs: Tensor, noise: Mapping[str, Any]) -> Tensor:
        """QVPO: the best of the policy's actions by their advantage, and uniform ones."""
        count, (rows, batch) = proposal.num_candidates, noise["t"].shape
        with torch.no_grad():
            states = obs.repeat(count, 1)
            actions = self.act(states, _in_rows(noise["candidates"]), proposal.sampler)
            q = self.value(critics, states, actions).view(count, batch)
            best = actions.view(count, batch, -1)[q.argmax(0), torch.arange(batch)]
            advantage = q.max(0).values - q.mean(0)
            clean = torch.cat([best, 2 * noise["uniform"].flatten(0, 1) - 1])
            share = torch.full((rows, 1), value_at(proposal.uniform_weight, self.updates), dtype=q.dtype)
            share[0] = 1
            t, eps = noise["t"].flatten().long(), noise["eps"].flatten(0, 1)
            noisy = add_noise(self.schedule, clean, eps, t)
        error = (self.actor(obs.repeat(rows, 1), noisy, t) - eps).square().sum(-1)
        return ((share * advantage).flatten() * error).mean()

    def improved_loss(
        self, proposal: Any, critics: Any, obs: Tensor, action: Tensor, noise: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """DIPO: replayed actions after steps of Adam up the values, kept for the next time."""
        actions, numbers = (self.actor_state[f"term0.{name}"] for name in ("action", "replay_number"))
        row = self.number % proposal.capacity
        kept = numbers[row] == self.number
        position = torch.where(kept.unsqueeze(-1), actions[row], action).requires_grad_()
        adam = torch.optim.Adam([position], proposal.learning_rate, eps=proposal.eps, maximize=True)
        for _ in range(proposal.num_steps):
            (position.grad,) = torch.autograd.grad(self.value(critics, obs, position).sum(), position)
            if proposal.max_grad_norm is not None:
                position.grad *= min(1.0, proposal.max_grad_norm / position.grad.norm().item())
            adam.step()
            position.data.clamp_(-1, 1)
        improved, t = position.detach(), noise["t"].long()
        actions[row], numbers[row] = improved, self.number.to(numbers.dtype)
        noisy = add_noise(self.schedule, improved, noise["eps"], t)
        loss = (self.actor(obs, noisy, t) - noise["eps"]).square().sum(-1).mean()
        return loss, self.actor_state

    def mean_flow_loss(
        self, objective: Any, critics: Any, next_obs: Tensor, next_action: Tensor, noise: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """MeanFlow: the mean velocity is the velocity minus the derivative along the path, by forward mode."""
        eps = noise["proposal"]["eps"]
        weight, new = self.weights(objective.proposal, critics, next_obs, next_action)
        t, r = noise["times"].max(0).values, noise["times"].min(0).values
        r = torch.where(noise["equal"] < objective.equal_fraction, t, r)
        velocity = eps - next_action
        noisy = next_action + t.unsqueeze(-1) * velocity
        u, change = torch.func.jvp(
            lambda position, time: self.actor(next_obs, position, time, r), (noisy, t), (velocity, torch.ones_like(t))
        )
        target = velocity - (t - r).unsqueeze(-1) * change.detach()
        return (weight * (u - target).square().sum(-1)).mean(), new

    def policy_loss(
        self, proposal: Any, critics: Any, next_obs: Tensor, next_action: Tensor, noise: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """DPMD and FPMD: the policy's own actions, weighted by their value over its running deviation."""
        t = noise["t"].long()
        weight, new = self.weights(proposal, critics, next_obs, next_action)
        noisy = add_noise(self.schedule, next_action, noise["eps"], t)
        target = noise["eps"] - next_action if self.velocity else noise["eps"]
        error = (self.actor(next_obs, noisy, t) - target).square().sum(-1)
        return (weight * error).mean(), new

    def weights(
        self, proposal: Any, critics: Any, next_obs: Tensor, next_action: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the policy's own actions, and the new running moments."""
        old, rate = self.actor_state, proposal.rate
        with torch.no_grad():
            q = self.value(critics, next_obs, next_action)
            new = {
                "q_mean_ema": (1 - rate) * old["q_mean_ema"] + rate * q.mean(),
                "q_std_ema": (1 - rate) * old["q_std_ema"] + rate * q.std(correction=0),
                "count": old["count"] + 1,
            }
            correction = -torch.expm1(new["count"] * np.log1p(-rate))
            unit = new["q_std_ema"] / correction + 1e-8
            if proposal.centred:
                weight = torch.exp(((q - new["q_mean_ema"] / correction) / unit).clamp(-3, 3) / self.temperature)
            else:
                weight = torch.exp(proposal.value_scale * (q - q.max()) / unit)
        return weight, new

    def arrays(self) -> dict[str, np.ndarray]:
        """All parameters, by the names of `diffac_torch.to_arrays` of a learner's state."""
        found = {}
        for role, module in (("actor", self.actor), ("ema_actor", self.ema_actor)):
            for name, parameter in () if module is None else module.named_parameters():
                found[f"{role}.{name.replace('layers.layers', 'layers')}"] = parameter.detach().numpy()
        for role, critics in (("critic", self.critics), ("target_critic", self.target_critics)):
            for (name, first), second in zip(critics[0].named_parameters(), critics[1].parameters(), strict=True):
                found[f"{role}.{name}"] = torch.stack([first, second]).detach().numpy()
        return found


def _tensors(noise: Any) -> Any:
    return {k: _tensors(v) for k, v in noise.items()} if isinstance(noise, Mapping) else torch.as_tensor(noise)


def _in_rows(noise: Any) -> Any:
    """Candidates and states as one axis."""
    return {k: _in_rows(v) for k, v in noise.items()} if isinstance(noise, Mapping) else noise.flatten(-3, -2)


def _gaussian(output: Tensor) -> tuple[Tensor, Tensor]:
    return output[:, 0], F.softplus(output[:, 1], threshold=40)


def _adam_step(adam: torch.optim.Adam, numbers: Any, count: int) -> None:
    (group,) = adam.param_groups
    if numbers.max_grad_norm is not None:
        gradients = [parameter.grad for parameter in group["params"]]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient *= min(1.0, numbers.max_grad_norm / norm.item())
    group["lr"] = value_at(numbers.learning_rate, count)
    adam.step()
