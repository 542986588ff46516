"""Actor objectives. Only the actor is differentiated: the learner asks for no other gradient.

Gradients with respect to actions do flow through the critic, so the critic's parameters are part of the graph; use
`torch.autograd.grad(loss.value, actor.parameters())`, not `loss.value.backward()`.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffac.arguments import LOG_PROB, NEXT_ACTION, check_arguments, check_chain
from diffac.errors import check_present
from diffac.noise import Integers, Noise, NoiseSpec, Normal, Shape, Uniform
from diffac.protocols import (
    ActorObjective,
    Critic,
    Loss,
    NoiseSchedule,
    Rollout,
    Sampler,
    State,
    TrackingObjective,
    Transition,
)
from diffac_torch.networks import _condition, _smallest
from diffac_torch.samplers import Scalar


@dataclasses.dataclass(frozen=True, eq=False)
class ValueThroughSampler:
    """-mean(min_i Q_i(s, a)) with the gradient through the whole sampler (DACER, arXiv 2405.15177, equation 12).

    The official code has the exploration noise inside; here that is a property of the sampler (`AdditiveNoise`).

    Metrics: "q_mean"; "clipped_fraction", the fraction of action entries at or beyond a bound, where the clip stops the
    gradient.

    Args:
        sampler: gives the actions.
        relative: ours, not the paper's: the loss is divided by the detached mean of |min_i Q_i|, so that the weight of
            a term beside it means the same on every task.
    """

    sampler: Sampler
    relative: bool = False

    def __post_init__(self) -> None:
        check_arguments("ValueThroughSampler", vars(self))

    @property
    def rollout_sampler(self) -> Sampler:
        """The sampler of the rollout."""
        return self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "rollout"."""
        return {"rollout": self.sampler.noise_spec(shape)}

    def init_state(self) -> State:
        """No state."""
        return {}

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch, as `RolloutObjective` says."""
        if rollout is None:
            action = self.sampler(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
        else:
            action = rollout.action
        values = _smallest(critic(batch.obs, action))
        q = values.mean()
        unit = values.detach().abs().mean() + 1e-8 if self.relative else 1
        clipped = (action.detach().abs() >= 1).to(action.dtype).mean()
        return Loss(-q / unit, {"q_mean": q.detach(), "clipped_fraction": clipped}, state)


@dataclasses.dataclass(frozen=True, eq=False)
class TimeWeightedQGradient:
    """Pulls the score of the policy towards the normalised action gradient of Q, harder where there is more noise.

    The auxiliary loss of DACER2 (arXiv 2505.23426): the mean over batch and times of
    || score - w(t) g/||g|| ||^2 with w(t) = exp(slope (t + time_offset) + intercept) and g = grad_a min_i Q_i(s, a) at
    the noisy action a = a_t; the target is detached. The paper leaves open where a_t comes from, in which space
    residuals are taken and from where times count; each is an argument, the defaults are our reading.

    Metrics: "q_gradient_norm", the mean of ||g||; "score_error", the loss.

    Args:
        sampler: gives the states or, detached, the actions that are noised.
        schedule: the forward process; T must be that of the sampler.
        slope: growth of log w per time step.
        intercept: log w where t + time_offset = 0.
        space: "score" compares scores; "eps" compares noises, so that time t counts sigma[t]^2 times as much.
        source: a_t is a state of the policy's own reverse "chain", its action noised "forward", or the noised action of
            the "replay" buffer.
        time_offset: 1 if the paper's times are 1..T, 0 if they are 0..T-1.
        contractive_step: ours, not the paper's. None: the target above, whose minimiser leads every step outwards. A
            positive number: with a_0 the clean action that the policy predicts from a_t, detached, g taken there, and
            x = clip(a_0 + contractive_step w(t) g/||g||, -1, 1), the target is the noise (a_t - alpha_t x)/sigma_t that
            leads from x to a_t, in "score" space its score; 0.2 is a good first choice.

    Raises:
        UsageError: unknown space or source, or contractive_step is not positive; on a call, a rollout without one state
            for each time.
    """

    sampler: Sampler
    schedule: NoiseSchedule
    slope: float = 0.4
    intercept: float = -1.8
    space: Literal["score", "eps"] = "score"
    source: Literal["chain", "forward", "replay"] = "chain"
    time_offset: int = 1
    contractive_step: float | None = None

    def __post_init__(self) -> None:
        check_arguments("TimeWeightedQGradient", vars(self))

    @property
    def rollout_sampler(self) -> Sampler | None:
        """The sampler of the rollout; None with actions from replay."""
        return None if self.source == "replay" else self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch: "rollout" (unless source="replay") and "eps" [T batch act] (unless source="chain")."""
        rollout = {} if self.source == "replay" else {"rollout": self.sampler.noise_spec(shape)}
        eps = {} if self.source == "chain" else {"eps": Normal((self.schedule.num_steps, *shape))}
        return rollout | eps

    def init_state(self) -> State:
        """No state."""
        return {}

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
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
                rollout = self.sampler.rollout(
                    actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature
                )
        noisy = self._noisy(batch, noise, t, rollout).detach()
        eps = actor(_condition(actor, batch.obs, num_steps), noisy, t)
        start = noisy
        if self.contractive_step is not None:
            start = self.schedule.predict_action(noisy, eps.detach(), t).clamp(-1, 1)

        with torch.enable_grad():
            position = start.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(_smallest(critic(batch.obs, position)).sum(), position)
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        weight = torch.exp(self.slope * (t.to(noisy.dtype) + self.time_offset) + self.intercept).unsqueeze(-1)
        target = weight * gradient / (norm + 1e-8)
        if self.contractive_step is not None:
            improved = (start + self.contractive_step * target).clamp(-1, 1)
            sigma_eps = noisy - self.schedule.add_noise(improved, torch.zeros_like(improved), t)
            target = self.schedule.score(-self.schedule.score(sigma_eps, t), t)
        if self.space == "score":
            residual = self.schedule.score(eps, t) - target
        else:
            residual = eps + self.schedule.add_noise(torch.zeros_like(target), target, t)
        value = residual.square().sum(-1).mean()
        return Loss(value, {"q_gradient_norm": norm.mean(), "score_error": value.detach()}, state)

    def _noisy(self, batch: Transition, noise: Noise, t: Tensor, rollout: Rollout | None) -> Tensor:
        """States [T batch act] at which the score is taught."""
        if rollout is None:
            return self.schedule.add_noise(batch.action, noise["eps"], t)
        if self.source == "forward":
            clean = rollout.action if rollout.noise_free is None else rollout.noise_free
            return self.schedule.add_noise(clean, noise["eps"], t)
        return check_chain(rollout.noisy, len(t))


class Regression(NamedTuple):
    """Data for weighted noise regression; everything but obs, noisy and t is a target and carries no gradient."""

    obs: Float[Tensor, "batch obs"]
    """Where the denoiser is evaluated, together with `noisy` and `t`."""
    noisy: Float[Tensor, "batch act"]
    t: Int[Tensor, "batch"]
    target: Float[Tensor, "batch act"]
    """The noise to be predicted, or its mean where there are several."""
    weight: Float[Tensor, "#batch"]
    """Factor of the squared error."""
    spread: Float[Tensor, "#batch"]
    """What the several noises add to the squared error of their mean; constant in the actor."""
    metrics: dict[str, Tensor]
    state: State


@runtime_checkable
class Proposal(Protocol):
    """Says at which noisy actions, and towards which noise, the denoiser is regressed."""

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """The noise needed for a batch whose actions have shape (batch, action_dim); num_steps is the schedule's T."""
        ...

    def init_state(self) -> State:
        """The state before the first batch, as NumPy arrays."""
        ...

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression data of a batch; called without gradient."""
        ...


@runtime_checkable
class TrackingProposal(Proposal, Protocol):
    """A proposal whose state moves in every update of the learner, as with a `TrackingObjective`."""

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The state after a batch on which the actor does not step; called without gradient."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ReweightedScoreMatching:
    """Noise regression on the data of a proposal: mean(weight ||eps_theta(s, a_t, t) - target||^2 + spread).

    Ma et al. 2025 (arXiv 2502.00361): denoising score matching may be reweighted by any positive function of a_t, so
    the score of exp(Q / temperature) can be learned without samples of it and without a gradient through the chain. A
    target that is a weighted mean of K noises needs one evaluation of the denoiser, not K, since
    sum_k w_k (e - eps_k)^2 = (e - mean)^2 + spread.

    Metrics: those of the proposal.

    Args:
        schedule: the forward process of the regression, that of the sampler.
        proposal: gives the data, without gradient; `ReverseProposal` (SDAC) or `PolicyProposal` (DPMD).
    """

    schedule: NoiseSchedule
    proposal: Proposal

    def __post_init__(self) -> None:
        check_arguments("ReweightedScoreMatching", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise of the proposal for a batch of actions of that shape."""
        return self.proposal.noise_spec(shape, self.schedule.num_steps)

    def init_state(self) -> State:
        """State of the proposal."""
        return self.proposal.init_state()

    def __call__(
        self, actor: Any, critic: Critic, batch: Transition, noise: Noise, temperature: Scalar, state: State
    ) -> Loss:
        """The loss on a batch, as `ActorObjective` says."""
        with torch.no_grad():
            data = self.proposal(actor, critic, batch, noise, temperature, state, self.schedule)
        eps = actor(_condition(actor, data.obs, self.schedule.num_steps), data.noisy, data.t)
        error = (eps - data.target).square().sum(-1)
        return Loss((data.weight * error + data.spread).mean(), data.metrics, data.state)

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The proposal's state after a batch on which the actor does not step."""
        return self.proposal.track(critic, batch, state) if isinstance(self.proposal, TrackingProposal) else state


@dataclasses.dataclass(frozen=True, eq=False)
class ReverseProposal:
    """Reverse sampling (SDAC, arXiv 2502.00361): K guesses of the clean action behind one noised policy action.

    The guesses come from the reverse kernel q(a_0 | a_t) = N(a_t / alpha, (sigma / alpha)^2 I), and their noises are
    averaged with weights softmax(value_scale min_i Q_i(s, a_0) / temperature), which makes the policy p_0 proportional
    to the exponential of that. Actions outside [-1, 1] do not exist. With `truncated` guesses are drawn from the kernel
    restricted to the box, which is exact for a p_0 that lives there. Without, they are clipped to it while their noise
    stays as drawn, as in the official code, which regresses on noises that do not belong to the valued actions.

    Noise: "rollout"; "t" [batch] in {0..T-1}; "eps" [batch act] normal; "particles" [K batch act], uniform if
    truncated, else normal.

    Metrics: "effective_particles", the mean of 1 / sum w^2: 1 if one guess dominates, K if Q is flat; "q_mean" over all
    guesses.

    Args:
        sampler: gives the policy action that is noised, drawn anew in each batch.
        num_particles: K, at least 1.
        value_scale: factor of Q, 5 in the official code.
        truncated: whether the guesses are drawn inside the action box or clipped to it.

    Raises:
        UsageError: num_particles or value_scale is not positive.
    """

    sampler: Sampler
    num_particles: int = 64
    value_scale: float = 5.0
    truncated: bool = True

    def __post_init__(self) -> None:
        check_arguments("ReverseProposal", vars(self))

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Noise for a batch of actions of that shape; num_steps is the schedule's T."""
        particles = (self.num_particles, *shape)
        return {
            "rollout": self.sampler.noise_spec(shape),
            "t": Integers(shape[:-1], 0, num_steps),
            "eps": Normal(shape),
            "particles": Uniform(particles) if self.truncated else Normal(particles),
        }

    def init_state(self) -> State:
        """No state."""
        return {}

    @torch.no_grad()
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Regression data at noised actions of the policy."""
        action = self.sampler(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
        t = noise["t"]
        noisy = schedule.add_noise(action, noise["eps"], t)
        guesses = _truncated_guesses if self.truncated else _clipped_guesses
        actions, eps = guesses(schedule, noisy, t, noise["particles"])

        q = critic(batch.obs, actions).amin(0)
        weight = torch.softmax(q * self.value_scale / temperature, dim=0)
        effective = 1 / weight.square().sum(0)
        weighted = weight.unsqueeze(-1) * eps
        target = weighted.sum(0)
        spread = (weighted * eps).sum((0, -1)) - target.square().sum(-1)
        return Regression(
            obs=batch.obs,
            noisy=noisy,
            t=t,
            target=target,
            weight=torch.ones_like(spread),
            spread=spread,
            metrics={"effective_particles": effective.mean(), "q_mean": q.mean()},
            state=state,
        )


def _clipped_guesses(schedule: NoiseSchedule, noisy: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Clean actions of the reverse kernel clipped to the box, and the noises they were drawn with."""
    return schedule.predict_action(noisy, eps, t).clamp(-1, 1), eps


def _truncated_guesses(schedule: NoiseSchedule, noisy: Tensor, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Clean actions of the reverse kernel restricted to the box, by the inverse distribution function; their noises."""
    centre = schedule.predict_action(noisy, torch.zeros_like(noisy), t)
    scale = schedule.predict_action(torch.zeros_like(noisy), -torch.ones_like(noisy), t)
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


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyProposal:
    """Mirror descent (DPMD, arXiv 2502.00361): the old policy's own actions, weighted by their standardised value.

    The data are the next observations and the actions drawn there for the TD target, as in the official code. The
    weight is exp(advantage / temperature), advantage = clip((q - mean) / std, -3, 3), with exponential moving averages
    of the batch mean and standard deviation of q = min_i Q_i. By default they start at zero, are corrected for that as
    in Adam, and include the present batch. `faithful_normalisation` repeats the official code: averages from before
    this batch, started at 0 and 1, and `q - mean / std`, a slip of operator precedence after which most weights are
    clipped to be equal.

    Noise: "t" [batch] in {0..T-1}; "eps" [batch act] normal.

    State: "q_mean_ema", "q_std_ema", "count", each 0-d.

    Metrics: "effective_samples", (sum w)^2 / sum w^2; "q_mean".

    Args:
        rate: of the moving averages, in (0, 1).
        faithful_normalisation: whether to repeat the slip.

    Raises:
        UsageError: rate is not in (0, 1), or (on a call) the batch has no next_action.
    """

    rate: float = 0.001
    faithful_normalisation: bool = False

    def __post_init__(self) -> None:
        check_arguments("PolicyProposal", vars(self))

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Noise for a batch of actions of that shape; num_steps is the schedule's T."""
        return {"t": Integers(shape[:-1], 0, num_steps), "eps": Normal(shape)}

    def init_state(self) -> State:
        """The moving averages before the first batch."""
        std = 1.0 if self.faithful_normalisation else 0.0
        return {"q_mean_ema": np.zeros(()), "q_std_ema": np.full((), std), "count": np.zeros(())}

    @torch.no_grad()
    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """Regression data at the noised actions of the TD target."""
        check_present("PolicyProposal", "batch.next_action", batch.next_action, NEXT_ACTION)
        q = critic(batch.next_obs, batch.next_action).amin(0)
        new_state = self._moved(state, q)
        if self.faithful_normalisation:
            advantage = q - state["q_mean_ema"] / state["q_std_ema"]
        else:
            correction = -torch.expm1(new_state["count"] * math.log1p(-self.rate))  # 1 - (1 - rate)^count
            mean, std = new_state["q_mean_ema"] / correction, new_state["q_std_ema"] / correction
            advantage = (q - mean) / (std + 1e-8)
        weight = torch.exp(advantage.clamp(-3, 3) / temperature)
        return Regression(
            obs=batch.next_obs,
            noisy=schedule.add_noise(batch.next_action, noise["eps"], noise["t"]),
            t=noise["t"],
            target=noise["eps"],
            weight=weight,
            spread=torch.zeros_like(weight),
            metrics={"effective_samples": weight.sum().square() / weight.square().sum(), "q_mean": q.mean()},
            state=new_state,
        )

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The moments after a batch on which the actor does not step."""
        return self._moved(state, critic(batch.next_obs, batch.next_action).amin(0))

    def _moved(self, state: State, q: Tensor) -> State:
        return {
            "q_mean_ema": (1 - self.rate) * state["q_mean_ema"] + self.rate * q.mean(),
            "q_std_ema": (1 - self.rate) * state["q_std_ema"] + self.rate * q.std(correction=0),
            "count": state["count"] + 1,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class EntropyRegularisedValue:
    """mean(temperature log pi(a|s) - min_i Q_i(s, a)), the actor loss of SAC (arXiv 1812.05905, equation 9).

    Metrics: "q_mean"; "entropy", the mean of -log pi.

    Raises:
        UsageError: on a call, the sampler does not know the log-probability of its actions.
    """

    sampler: Sampler

    def __post_init__(self) -> None:
        check_arguments("EntropyRegularisedValue", vars(self))

    @property
    def rollout_sampler(self) -> Sampler:
        """The sampler of the rollout."""
        return self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "rollout"."""
        return {"rollout": self.sampler.noise_spec(shape)}

    def init_state(self) -> State:
        """No state."""
        return {}

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Scalar,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch, as `RolloutObjective` says."""
        if rollout is None:
            rollout = self.sampler.rollout(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
        log_prob = check_present("EntropyRegularisedValue", "rollout.log_prob", rollout.log_prob, LOG_PROB)
        q = _smallest(critic(batch.obs, rollout.action))
        metrics = {"q_mean": q.detach().mean(), "entropy": -log_prob.detach().mean()}
        value = (temperature * log_prob - q).mean()
        return Loss(value, metrics, state, log_prob.detach())


class Sum:
    """A weighted sum of objectives: `Sum((1.0, first), (0.01, second))`.

    The first sampler that two or more terms roll out (the very same object) is run once for all of them; others stay
    with their terms.

    Noise: "rollout" if one is shared; "term0", "term1", ...: what each term needs besides.

    State: that of each term, with names "term0.…".

    Metrics: those of the terms; a name that several terms use becomes "term0_…", "term1_…".

    Raises:
        UsageError: there are no terms.
    """

    def __init__(self, *terms: tuple[float, ActorObjective]) -> None:
        check_arguments("Sum", locals())
        self.terms = terms
        samplers = [getattr(objective, "rollout_sampler", None) for _, objective in terms]
        groups = ([other is sampler for other in samplers] for sampler in samplers if sampler is not None)
        self._shares = next((group for group in groups if sum(group) > 1), [False] * len(terms))
        self._sampler: Sampler | None = samplers[self._shares.index(True)] if any(self._shares) else None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape."""
        spec: dict[str, Any] = {} if self._sampler is None else {"rollout": self._sampler.noise_spec(shape)}
        for i, ((_, objective), shares) in enumerate(zip(self.terms, self._shares, strict=True)):
            own = dict(objective.noise_spec(shape))
            if shares:
                del own["rollout"]
            spec[f"term{i}"] = own
        return spec

    def init_state(self) -> State:
        """The states of all terms."""
        return {
            f"term{i}.{name}": array
            for i, (_, objective) in enumerate(self.terms)
            for name, array in objective.init_state().items()
        }

    def __call__(
        self, actor: Any, critic: Critic, batch: Transition, noise: Noise, temperature: Scalar, state: State
    ) -> Loss:
        """The loss on a batch, as `ActorObjective` says."""
        shared = {}
        if self._sampler is not None:
            shared["rollout"] = self._sampler.rollout(
                actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature
            )
        losses = []
        for i, ((_, objective), shares) in enumerate(zip(self.terms, self._shares, strict=True)):
            own, extra = _part(state, f"term{i}."), shared if shares else {}
            losses.append(objective(actor, critic, batch, noise[f"term{i}"], temperature, own, **extra))

        names = [name for loss in losses for name in loss.metrics]
        metrics, new_state = {}, {}
        for i, loss in enumerate(losses):
            for name, value in loss.metrics.items():
                metrics[name if names.count(name) == 1 else f"term{i}_{name}"] = value
            new_state |= {f"term{i}.{name}": array for name, array in loss.state.items()}
        value = sum(weight * loss.value for (weight, _), loss in zip(self.terms, losses, strict=True))
        log_prob = next((loss.log_prob for loss in losses if loss.log_prob is not None), None)
        return Loss(value, metrics, new_state, log_prob)

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The states of all terms after a batch on which the actor does not step."""
        new_state = dict(state)
        for i, (_, objective) in enumerate(self.terms):
            if isinstance(objective, TrackingObjective):
                tracked = objective.track(critic, batch, _part(state, f"term{i}."))
                new_state |= {f"term{i}.{name}": array for name, array in tracked.items()}
        return new_state


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
