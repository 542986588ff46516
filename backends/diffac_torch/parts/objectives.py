"""Actor objectives, which `diffac.parts.objectives` declares. Only the actor is differentiated.

Use `torch.autograd.grad(loss.value, actor.parameters())`, not `loss.value.backward()`: the critic is part of the graph.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from diffac.errors import check_present
from diffac.noise import Noise
from diffac.parts import objectives as declared
from diffac.parts.critics import LOG_PROB, next_rollout
from diffac.parts.declaration import Ensemble
from diffac.parts.objectives import ALL_NOISE, IMPROVEMENT_BETAS, MINIMUM_VARIANCE, Regression
from diffac.parts.schedules import KEEP_SIGNAL, check_signal
from diffac.protocols import REPLAY_NUMBER, Batch, Critic, Loss, NoiseSchedule, Policy, Rollout, RowUpdate, State
from diffac_torch.parts.derivatives import value_and_derivative
from diffac_torch.parts.diffusion import (
    _output_of,
    add_noise,
    noise_between,
    predicted_action,
    predicted_eps,
    remove_noise,
    score,
)
from diffac_torch.parts.networks import _condition, _reduced
from diffac_torch.parts.samplers import Scalar

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
]


class ValueThroughSampler(declared.ValueThroughSampler):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch, as `RolloutObjective` says."""
        if rollout is None:
            action = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        else:
            action = rollout.action
        values = _reduced(critic(batch.obs, action), self.ensemble)
        q = values.mean()
        unit = values.detach().abs().mean() + 1e-8 if self.relative else 1
        clipped = (action.detach().abs() >= 1).to(action.dtype).mean()
        return Loss(-q / unit, {"q_mean": q.detach(), "clipped_fraction": clipped}, state)


class TimeWeightedQGradient(declared.TimeWeightedQGradient):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch, as `RolloutObjective` says."""
        num_steps = self.schedule.num_steps
        t = torch.arange(num_steps, device=batch.obs.device).unsqueeze(-1)
        if rollout is None and self.source != "replay":
            with torch.no_grad():
                rollout = self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        if self.source == "chain":
            noisy = self.chain_states(rollout).detach()
        else:
            noisy = add_noise(self.schedule, self.clean_actions(batch.action, rollout), noise["eps"], t).detach()
        output = actor(_condition(actor, batch.obs, num_steps), noisy, t)
        eps = predicted_eps(self.schedule, actor, output, noisy, t)
        start = noisy
        if self.contractive_step is not None:
            start = predicted_action(self.schedule, actor, output.detach(), noisy, t).clamp(-1, 1)

        _, gradient = _values_and_gradient(critic, batch.obs, start, self.ensemble)
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        weight = torch.exp(self.slope * (t.to(noisy.dtype) + self.time_offset) + self.intercept).unsqueeze(-1)
        target = weight * (gradient / (norm + 1e-8) if self.normalised else gradient)
        if self.target == "eps":
            target = score(self.schedule, -target, t)
        if self.contractive_step is not None:
            improved = (start + self.contractive_step * target).clamp(-1, 1)
            target = score(self.schedule, noise_between(self.schedule, improved, noisy, t), t)
        if self.space == "score":
            residual = score(self.schedule, eps, t) - target
        else:
            residual = eps + add_noise(self.schedule, torch.zeros_like(target), target, t)
        value = residual.square().sum(-1).mean()
        return Loss(value, {"q_gradient_norm": norm.mean(), "score_error": value.detach()}, state)


class ReweightedScoreMatching(declared.ReweightedScoreMatching):
    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Scalar, state: State
    ) -> Loss:
        """The loss on a batch, as `ActorObjective` says."""
        with torch.no_grad():
            data = self.proposal(actor, critic, batch, noise, temperature, state, self.schedule)
        output = actor(_condition(actor, data.obs, self.schedule.num_steps), data.noisy, data.t)
        if self.space == "output":
            error = (output - _output_of(actor, data.action, data.target)).square().sum(-1)
            return Loss((data.weight * error).mean(), data.metrics, data.state)
        eps = predicted_eps(self.schedule, actor, output, data.noisy, data.t)
        error = (eps - data.target).square().sum(-1)
        return Loss((data.weight * error + data.spread).mean(), data.metrics, data.state)


class MeanFlowMatching(declared.MeanFlowMatching):
    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Scalar, state: State
    ) -> Loss:
        """The loss on a batch, as `ActorObjective` says."""
        with torch.no_grad():
            data = self.proposal(actor, critic, batch, noise["proposal"], temperature, state, ALL_NOISE)
            r, t = noise["times"].sort(0).values
            r = torch.where(noise["equal"] < self.equal_fraction, t, r)
            velocity = data.target - data.action
            noisy = data.action + t.unsqueeze(-1) * velocity

        def mean_velocity(noisy: Tensor, t: Tensor) -> Tensor:
            return actor(data.obs, noisy, t, r)

        output, change = value_and_derivative(mean_velocity, (noisy, t), (velocity, torch.ones_like(t)))
        target = velocity - (t - r).unsqueeze(-1) * change
        error = data.weight * (output - target).square().sum(-1)
        return Loss(error.mean(), data.metrics, data.state)


class ReverseProposal(declared.ReverseProposal):
    @torch.no_grad()
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Regression data at noised actions of the policy."""
        check_signal(schedule, KEEP_SIGNAL)
        t, action = noise["t"], batch.action
        if self.source == "policy":
            action = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        noisy = add_noise(schedule, action, noise["eps"], t)
        if self.truncated:
            free, eps = _truncated_guesses(schedule, noisy, t, noise["particles"])
        else:
            eps = noise["particles"]
            free = remove_noise(schedule, noisy, eps, t)
        actions = free.clamp(-1, 1)

        if self.uses_gradient:
            q, gradient = _values_and_gradient(critic, batch.obs, actions, self.ensemble)
        else:
            q, gradient = _reduced(critic(batch.obs, actions), self.ensemble), None
        scale = self.value_scale / temperature if self.tempered else self.value_scale
        logits = q * scale
        if self.outside_std is not None:
            logits = logits - 0.5 * ((free - actions) / self.outside_std).square().sum(-1)
        weight = torch.softmax(logits, dim=0)
        metrics = {"effective_particles": (1 / weight.square().sum(0)).mean(), "q_mean": q.mean()}
        weighted = weight.unsqueeze(-1) * eps
        target = weighted.sum(0)
        if gradient is None:
            spread = (weighted * eps).sum((0, -1)) - target.square().sum(-1)
        else:
            spread = torch.zeros_like(target[..., 0])
            slope = scale * gradient * (actions.abs() < 1)
            if self.outside_std is not None:
                slope = slope - (free - actions) / self.outside_std**2
            by_gradient = remove_noise(schedule, torch.zeros_like(noisy), slope, t)
            difference = by_gradient - eps
            h = self._gradient_weight(state, t, target.dtype)
            if self.gradient_weight == MINIMUM_VARIANCE:
                metrics["gradient_weight"] = h.mean()
                state = self._moved(state, t, weight, eps, difference)
            target = target + h * (weight.unsqueeze(-1) * difference).sum(0)
        return Regression(
            obs=batch.obs,
            noisy=noisy,
            t=t,
            target=target,
            action=remove_noise(schedule, noisy, target, t),
            weight=torch.ones_like(spread),
            spread=spread,
            metrics=metrics,
            state=state,
        )

    def _gradient_weight(self, state: State, t: Tensor, dtype: torch.dtype) -> Any:
        """h: a number, or [batch 1]."""
        if isinstance(self.gradient_weight, tuple):
            return _table(self.gradient_weight, dtype, t.device)[t].unsqueeze(-1)
        if self.gradient_weight != MINIMUM_VARIANCE:
            return self.gradient_weight
        variance = state["gradient_variance"]
        h = torch.where(variance > 1e-12, -state["gradient_covariance"] / variance.clamp(min=1e-12), 0)
        return h[t].unsqueeze(-1)

    def _moved(self, state: State, t: Tensor, weight: Tensor, eps: Tensor, difference: Tensor) -> State:
        """The moments of a batch, averaged over the states at each time, in the moving averages."""
        share = weight.unsqueeze(-1)
        eps, difference = _centred(eps, share), _centred(difference, share)
        at_time = (t.unsqueeze(-1) == torch.arange(len(state["gradient_variance"]), device=t.device)).to(weight.dtype)
        count = at_time.sum(0)
        rate = self.rate * (count > 0)

        def moved(name: str, other: Tensor) -> Tensor:
            moment = (share.square() * difference * other).sum((0, -1)) @ at_time / count.clamp(min=1)
            return state[name] + rate * (moment - state[name])

        return {
            "gradient_covariance": moved("gradient_covariance", eps),
            "gradient_variance": moved("gradient_variance", difference),
        }


def _values_and_gradient(critic: Critic, obs: Tensor, actions: Tensor, ensemble: Ensemble) -> tuple[Tensor, Tensor]:
    """The reduced values [*batch] at actions [*batch act], and their gradient there, both detached."""
    with torch.enable_grad():
        position = actions.clone().requires_grad_()
        q = _reduced(critic(obs, position), ensemble)
        (gradient,) = torch.autograd.grad(q.sum(), position)
    return q.detach(), gradient


def _centred(values: Tensor, share: Tensor) -> Tensor:
    """Values less their mean, exact also where one share is nearly 1: differences to that one's value come first."""
    values = values - torch.take_along_dim(values, share.argmax(0, keepdim=True), 0)
    return values - (share * values).sum(0)


@functools.cache
def _table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One that is made once, so that programs find it as it is."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _truncated_guesses(schedule: NoiseSchedule, noisy: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Clean actions of the reverse kernel restricted to the box, by the inverse distribution function; their noises."""
    centre = remove_noise(schedule, noisy, torch.zeros_like(noisy), t)
    scale = remove_noise(schedule, torch.zeros_like(noisy), -torch.ones_like(noisy), t)
    # Where the centre is negative all is mirrored: the box then lies in the lower tail, in which the distribution
    # function does not round to 1.
    mirrored = centre < 0
    distance = centre.abs()
    lower = torch.special.ndtr((-1 - distance) / scale)
    upper = torch.special.ndtr((1 - distance) / scale)
    margin = torch.finfo(u.dtype).eps
    fraction = torch.where(mirrored, 1 - u, u).clamp(margin, 1 - margin)
    action = distance + scale * torch.special.ndtri(lower + fraction * (upper - lower))
    action = torch.where(mirrored, -action, action).clamp(-1, 1)
    return action, (centre - action) / scale


class PolicyProposal(declared.PolicyProposal):
    @torch.no_grad()
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Regression data at the noised actions of the TD target."""
        next_action = next_rollout(self, batch).action
        q = _reduced(critic(batch.next_obs, next_action), self.ensemble)
        new_state = self._moved(state, q)
        if self.faithful_normalisation:
            advantage = q - state["q_mean_ema"] / state["q_std_ema"]
        else:
            correction = -torch.expm1(new_state["count"] * math.log1p(-self.rate))  # 1 - (1 - rate)^count
            mean = new_state["q_mean_ema"] / correction if self.centred else q.max()
            advantage = (q - mean) / (new_state["q_std_ema"] / correction + 1e-8)
        if self.centred:
            advantage = advantage.clamp(-3, 3)
        weight = torch.exp(advantage * (self.value_scale / temperature if self.tempered else self.value_scale))
        return Regression(
            obs=batch.next_obs,
            noisy=add_noise(schedule, next_action, noise["eps"], noise["t"]),
            t=noise["t"],
            target=noise["eps"],
            action=next_action,
            weight=weight,
            spread=torch.zeros_like(weight),
            metrics={"effective_samples": weight.sum().square() / weight.square().sum(), "q_mean": q.mean()},
            state=new_state,
        )

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The moments after a batch on which the actor does not step."""
        return self._moved(state, _reduced(critic(batch.next_obs, next_rollout(self, batch).action), self.ensemble))

    def _moved(self, state: State, q: Tensor) -> State:
        return {
            "q_mean_ema": (1 - self.rate) * state["q_mean_ema"] + self.rate * q.mean(),
            "q_std_ema": (1 - self.rate) * state["q_std_ema"] + self.rate * q.std(correction=0),
            "count": state["count"] + 1,
        }


class QWeightedProposal(declared.QWeightedProposal):
    @torch.no_grad()
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Regression data at the noised best candidates and uniform actions."""
        candidates = self.sampler(Policy(actor, critic, temperature), batch.obs, noise["candidates"])
        q = _reduced(critic(batch.obs, candidates), self.ensemble)
        best = torch.take_along_dim(candidates, q.argmax(0)[None, :, None], 0)
        action = torch.cat([best, 2 * noise["uniform"] - 1])
        advantage = (q.amax(0) - q).mean(0)  # 0, not a rounding error, where all are worth the same
        weight = torch.stack([advantage] + [self.uniform_weight * advantage] * self.num_uniform)
        return Regression(
            obs=batch.obs,
            noisy=add_noise(schedule, action, noise["eps"], noise["t"]),
            t=noise["t"],
            target=noise["eps"],
            action=action,
            weight=weight,
            spread=torch.zeros_like(weight),
            metrics={
                "advantage": advantage.mean(),
                "effective_samples": advantage.sum().square()
                / advantage.square().sum().clamp(min=torch.finfo(advantage.dtype).tiny),
                "q_mean": q.mean(),
            },
            state=state,
        )


class ImprovedReplayProposal(declared.ImprovedReplayProposal):
    @torch.no_grad()
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Regression data at the noised improved actions."""
        number = self.numbers(batch).to(state[REPLAY_NUMBER].dtype)
        row = number % self.capacity
        kept = state[REPLAY_NUMBER].index_select(0, row) == number
        start = torch.where(kept.unsqueeze(-1), state["action"].index_select(0, row), batch.action)
        action, before = self._improved(critic, batch.obs, start)
        # Rows of the table that occur several times get equal values, in whatever order they are written.
        newest = torch.where(row.unsqueeze(-1) == row, number, -1).amax(-1)
        index = torch.arange(len(row), device=row.device)
        first = torch.where(newest.unsqueeze(-1) == number, index, len(row)).amin(-1)
        return Regression(
            obs=batch.obs,
            noisy=add_noise(schedule, action, noise["eps"], noise["t"]),
            t=noise["t"],
            target=noise["eps"],
            action=action,
            weight=torch.ones_like(before),
            spread=torch.zeros_like(before),
            metrics={
                "improvement": (_reduced(critic(batch.obs, action), self.ensemble) - before).mean(),
                "action_shift": (action - start).abs().mean(),
                "kept_fraction": kept.to(before.dtype).mean(),
            },
            state={"action": RowUpdate(row, action[first]), REPLAY_NUMBER: RowUpdate(row, newest)},
        )

    def _improved(self, critic: Critic, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The actions after all steps, and the values before them."""
        decay, decay_square = IMPROVEMENT_BETAS
        mean, square, values = torch.zeros_like(action), torch.zeros_like(action), []
        for count in range(1, self.num_steps + 1):
            q, gradient = _values_and_gradient(critic, obs, action, self.ensemble)
            values.append(q)
            if self.max_grad_norm is not None:
                gradient = gradient * (self.max_grad_norm / torch.linalg.vector_norm(gradient)).clamp(max=1)
            mean = torch.lerp(gradient, mean, decay)
            square = torch.lerp(gradient.square(), square, decay_square)
            std = (square / (1 - decay_square**count)).sqrt()
            ascent = mean / (1 - decay**count) / (std + self.eps)
            action = (action + self.learning_rate * ascent).clamp(-1, 1)
        return action, values[0]


class EntropyRegularisedValue(declared.EntropyRegularisedValue):
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Scalar,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch, as `RolloutObjective` says."""
        if rollout is None:
            rollout = self.sampler.rollout(Policy(actor, critic, temperature), batch.obs, noise["rollout"])
        log_prob = check_present("EntropyRegularisedValue", "rollout.log_prob", rollout.log_prob, LOG_PROB)
        q = _reduced(critic(batch.obs, rollout.action), self.ensemble)
        metrics = {"q_mean": q.detach().mean(), "entropy": -log_prob.detach().mean()}
        value = (temperature * log_prob - q).mean()
        return Loss(value, metrics, state, log_prob.detach())


class Sum(declared.Sum):
    pass
