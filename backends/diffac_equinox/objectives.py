"""Actor objectives: losses whose only differentiated argument is the actor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from diffac.arguments import LOG_PROB, NEXT_ACTION, check_arguments, check_chain
from diffac.errors import check_present
from diffac.noise import Integers, Noise, NoiseSpec, Normal, Shape, Uniform
from diffac.protocols import (
    ActorObjective,
    Array,
    Critic,
    Loss,
    Metrics,
    NoiseSchedule,
    Rollout,
    Sampler,
    State,
    TrackingObjective,
    Transition,
)
from diffac_equinox.networks import _smallest
from diffac_equinox.samplers import _condition

Tree = TypeVar("Tree")


def _detached(tree: Tree) -> Tree:
    """The same values, without gradient. Detaching the *inputs* of a computation saves tracing its derivative."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


class ValueThroughSampler(eqx.Module):
    """-E[min_i Q_i(s, a)] with `a` differentiated through the whole sampler (DACER, arXiv 2405.15177, section 4).

    A `RolloutObjective`. Metrics: q_mean; clipped_fraction, the share of action entries on the boundary, which carry no
    gradient.

    Args:
        sampler: gives the actions.
        relative: ours, not the paper's: the loss is divided by the detached mean of |min_i Q_i|, so that the weight of
            a term beside it means the same on every task.
    """

    sampler: Sampler
    relative: bool = False

    def __check_init__(self) -> None:
        check_arguments("ValueThroughSampler", vars(self))

    @property
    def rollout_sampler(self) -> Sampler:
        """The sampler."""
        return self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "rollout": the sampler's."""
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
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch."""
        if rollout is None:
            rollout = self.sampler.rollout(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
        q = _smallest(critic(batch.obs, rollout.action))
        q_mean = q.mean()
        unit = jax.lax.stop_gradient(jnp.abs(q).mean() + 1e-8) if self.relative else 1
        clipped = jnp.abs(rollout.action) >= 1
        return Loss(-q_mean / unit, {"q_mean": q_mean, "clipped_fraction": clipped.mean(dtype=q_mean.dtype)}, state)


Space = Literal["score", "eps"]
Source = Literal["chain", "forward", "replay"]


class TimeWeightedQGradient(eqx.Module):
    """Pulls the policy's score at every t towards the unit gradient of Q (DACER2, arXiv 2505.23426).

    mean over t and batch of |S(s, a_t, t) - w(t) g/|g||^2, with S = -eps/sigma_t, g = grad_a min_i Q_i(s, a_t) and
    w(t) = exp(slope (t + time_offset) + intercept). The paper leaves open which a_t are used, whether the loss is taken
    between scores or predicted noises, and whether times count from 0 or 1; each is a field here.

    A `RolloutObjective`, except with source "replay". Metrics: q_gradient_norm, the mean of |g|; score_error, the loss.

    Args:
        sampler: the rollout's, for sources "chain" and "forward".
        schedule: the diffusion schedule, T steps.
        slope: of the exponent of w.
        intercept: of the exponent of w.
        space: "score" as above; "eps": |eps + sigma_t w g/|g||^2, which is the former times sigma_t^2.
        source: a_t from the "chain" of the policy (its states, detached), from "forward" noising of the policy's
            action, or from forward noising of the "replay" action.
        time_offset: 1: w(1), ..., w(T) as in the paper; 0: w(0), ..., w(T-1).
        contractive_step: ours, not the paper's. None: the target above, whose minimiser leads every step outwards. A
            positive number: with a_0 the clean action that the policy predicts from a_t, detached, g taken there, and
            x = clip(a_0 + contractive_step w(t) g/||g||, -1, 1), the target is the noise (a_t - alpha_t x)/sigma_t that
            leads from x to a_t, in "score" space its score; 0.2 is a good first choice.

    Raises:
        UsageError: space or source is unknown, or contractive_step is not positive; on a call with source "chain": the
            rollout has no T states.
    """

    sampler: Sampler
    schedule: NoiseSchedule
    slope: float = 0.4
    intercept: float = -1.8
    space: Space = "score"
    source: Source = "chain"
    time_offset: int = 1
    contractive_step: float | None = None

    def __check_init__(self) -> None:
        check_arguments("TimeWeightedQGradient", vars(self))

    @property
    def rollout_sampler(self) -> Sampler | None:
        """The sampler; None with source "replay"."""
        return None if self.source == "replay" else self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entries "rollout" (not for "replay") and "eps" [T *shape] (not for "chain")."""
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
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch; one batched pass of the denoiser over all t."""
        if rollout is None and self.source != "replay":
            rollout = self.sampler.rollout(
                _detached(actor), batch.obs, noise["rollout"], critic=critic, temperature=temperature
            )
        t = jnp.arange(self.schedule.num_steps)[:, None]
        noisy = jax.lax.stop_gradient(self._states(rollout, batch.action, noise, t))

        eps = actor(batch.obs, noisy, t)
        start = noisy
        if self.contractive_step is not None:
            start = jnp.clip(self.schedule.predict_action(noisy, jax.lax.stop_gradient(eps), t), -1, 1)
        g = jax.grad(lambda action: _smallest(critic(batch.obs, action)).sum())(start)
        norm = jnp.linalg.norm(g, axis=-1, keepdims=True)
        weight = jnp.exp(self.slope * (t + self.time_offset) + self.intercept).astype(g.dtype)
        target = weight[..., None] * g / (norm + 1e-8)

        if self.contractive_step is not None:
            improved = jnp.clip(start + self.contractive_step * target, -1, 1)
            sigma_eps = noisy - self.schedule.add_noise(improved, jnp.zeros_like(improved), t)
            target = self.schedule.score(-self.schedule.score(sigma_eps, t), t)
        if self.space == "score":
            error = self.schedule.score(eps, t) - target
        else:
            error = eps + self.schedule.add_noise(jnp.zeros_like(target), target, t)
        loss = (error**2).sum(-1).mean()
        return Loss(loss, {"q_gradient_norm": norm.mean(), "score_error": loss}, state)

    def _states(self, rollout: Rollout | None, replay: Array, noise: Noise, t: Array) -> Array:
        """[T batch action_dim]"""
        if rollout is None:
            return self.schedule.add_noise(replay, noise["eps"], t)
        if self.source == "forward":
            clean = rollout.action if rollout.noise_free is None else rollout.noise_free
            return self.schedule.add_noise(clean, noise["eps"], t)
        return check_chain(rollout.noisy, self.schedule.num_steps)


class Regression(NamedTuple):
    """The regression problem of one batch: weight |eps_theta(obs, noisy, t) - target|^2 + spread."""

    obs: Array
    """[batch obs_dim]"""
    noisy: Array
    """[batch action_dim]"""
    t: Array
    """[batch] of integers."""
    target: Array
    """[batch action_dim]"""
    weight: Array
    """[batch]"""
    spread: Array
    """[batch], does not depend on the network: what remains at the optimum."""
    metrics: Metrics
    """Scalars worth logging."""
    state: State
    """The proposal's state after this batch."""


@runtime_checkable
class Proposal(Protocol):
    """Says on which noisy actions, and towards which noise, the denoiser is regressed."""

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """The noise needed for a batch whose actions have shape (batch, action_dim), with times t < num_steps."""
        ...

    def init_state(self) -> State:
        """The state before the first batch."""
        ...

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem; the objective detaches it."""
        ...


@runtime_checkable
class TrackingProposal(Proposal, Protocol):
    """A proposal whose state moves in every update of the learner, as with a `TrackingObjective`."""

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The state after a batch on which the actor does not step."""
        ...


class ReweightedScoreMatching(eqx.Module):
    """Denoising score matching with any weights (SDAC and DPMD, arXiv 2502.00361, section 4).

    mean over the batch of weight |eps_theta(s, a_t, t) - target|^2 + spread: one evaluation of the denoiser, however
    many samples the proposal averages, because sum_k w_k |e - eps_k|^2 = |e - target|^2 + spread with the weighted mean
    `target` and variance `spread` of the eps_k.

    Args:
        schedule: the diffusion schedule.
        proposal: `ReverseProposal` (SDAC) or `PolicyProposal` (DPMD).
    """

    schedule: NoiseSchedule
    proposal: Proposal

    def __check_init__(self) -> None:
        check_arguments("ReweightedScoreMatching", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The proposal's."""
        return self.proposal.noise_spec(shape, self.schedule.num_steps)

    def init_state(self) -> State:
        """The proposal's."""
        return self.proposal.init_state()

    def __call__(
        self, actor: Any, critic: Critic, batch: Transition, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        regression = _detached(self.proposal(_detached(actor), critic, batch, noise, temperature, state, self.schedule))
        condition = _condition(actor, regression.obs, self.schedule.num_steps)
        eps = actor(condition, regression.noisy, regression.t)
        error = ((eps - regression.target) ** 2).sum(-1)
        return Loss((regression.weight * error + regression.spread).mean(), regression.metrics, regression.state)

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The proposal's state after a batch on which the actor does not step."""
        return self.proposal.track(critic, batch, state) if isinstance(self.proposal, TrackingProposal) else state


class ReverseProposal(eqx.Module):
    """Reverse sampling (SDAC, arXiv 2502.00361, section 4.2): samples of the policy's own optimum are never needed.

    The policy's action is noised to a_t; K clean actions a0_k that may have led there are drawn from the reverse kernel
    N(a_t/alpha, (sigma/alpha)^2), and their noises are averaged with weights softmax_k(value_scale min_i Q_i /
    temperature). Then the optimal denoiser is the one of exp(value_scale Q / temperature).

    Metrics: effective_particles, the mean of 1/sum w^2 (1: one guess dominates; K: Q is flat); q_mean, over all a0_k.

    Args:
        sampler: draws the policy's actions, without gradient.
        num_particles: K.
        value_scale: factor of Q in the weights; 5 in the official code.
        truncated: True: the reverse kernel is restricted to [-1, 1], which is exact for a policy on the action box, and
            the noise belongs to the a0_k. False: the a0_k are clipped and the noise is the one from before, as in the
            official code.

    Raises:
        UsageError: num_particles or value_scale is not positive.
    """

    sampler: Sampler
    num_particles: int = 64
    value_scale: float = 5.0
    truncated: bool = True

    def __check_init__(self) -> None:
        check_arguments("ReverseProposal", vars(self))

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Entries "rollout" (the sampler's), "t" [batch], "eps" [*shape], "particles" [K *shape]."""
        law = Uniform if self.truncated else Normal
        return {
            "rollout": self.sampler.noise_spec(shape),
            "t": Integers(shape[:-1], 0, num_steps),
            "eps": Normal(shape),
            "particles": law((self.num_particles, *shape)),
        }

    def init_state(self) -> State:
        """No state."""
        return {}

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch."""
        t = noise["t"]
        action = self.sampler(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
        noisy = schedule.add_noise(action, noise["eps"], t)
        if self.truncated:
            mean = schedule.predict_action(noisy, jnp.zeros_like(noisy), t)
            std = schedule.predict_action(jnp.zeros_like(noisy), -jnp.ones_like(noisy), t)
            a0 = _truncated_normal(mean, std, noise["particles"])
            eps = (mean - a0) / std
        else:
            eps = noise["particles"]
            a0 = jnp.clip(schedule.predict_action(noisy, eps, t), -1, 1)
        q = critic(batch.obs, a0).min(0)
        w = jax.nn.softmax(q * self.value_scale / temperature, axis=0)
        target = jnp.einsum("kb,kba->ba", w, eps)
        spread = jnp.einsum("kb,kba->b", w, eps**2) - (target**2).sum(-1)
        metrics = {"effective_particles": (1 / (w**2).sum(0)).mean(), "q_mean": q.mean()}
        return Regression(batch.obs, noisy, t, target, jnp.ones_like(spread), spread, metrics, state)


def _truncated_normal(mean: Array, std: Array, uniform: Array) -> Array:
    """N(mean, std^2) restricted to [-1, 1], by the inverse distribution function; increasing in `uniform`.

    An interval right of the mean is mirrored to the left, where the distribution function does not round to 1.
    """
    lo, hi = (-1 - mean) / std, (1 - mean) / std
    mirrored = lo + hi > 0
    low, high = ndtr(jnp.where(mirrored, -hi, lo)), ndtr(jnp.where(mirrored, -lo, hi))
    tiny = jnp.finfo(uniform.dtype).eps
    fraction = jnp.clip(jnp.where(mirrored, 1 - uniform, uniform), tiny, 1 - tiny)
    z = ndtri(low + fraction * (high - low))
    return jnp.clip(mean + std * jnp.where(mirrored, -z, z), -1, 1)


class PolicyProposal(eqx.Module):
    """Mirror descent (DPMD, arXiv 2502.00361, section 4.1): the policy's actions, weighted by
    exp(advantage/temperature).

    The data are (next_obs, next_action) of the TD target, as in the official code. The advantage is
    clip((q - mean)/std, -3, 3), q = min_i Q_i, with running moments of q.

    Metrics: effective_samples, (sum w)^2 / sum w^2; q_mean.

    Args:
        rate: of the running moments, in (0, 1).
        faithful_normalisation: False: moments up to this batch, corrected for their start at 0. True: clip(q -
            mean/std) with the moments from before this batch, as the official code computes it by a missing pair of
            parentheses; the clip then saturates and all weights become equal.

    Raises:
        UsageError: rate is not in (0, 1).
    """

    rate: float = 0.001
    faithful_normalisation: bool = False

    def __check_init__(self) -> None:
        check_arguments("PolicyProposal", vars(self))

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Entries "t" [batch], "eps" [*shape]."""
        return {"t": Integers(shape[:-1], 0, num_steps), "eps": Normal(shape)}

    def init_state(self) -> State:
        """Running mean and standard deviation of q, and the number of batches in them."""
        return {
            "q_mean_ema": np.array(0.0),
            "q_std_ema": np.array(float(self.faithful_normalisation)),
            "count": np.array(0.0),
        }

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Transition,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch."""
        check_present("PolicyProposal", "batch.next_action", batch.next_action, NEXT_ACTION)
        q = critic(batch.next_obs, batch.next_action).min(0)
        new = self._moved(state, q)
        if self.faithful_normalisation:
            advantage = q - state["q_mean_ema"] / state["q_std_ema"]
        else:
            correction = -jnp.expm1(new["count"] * math.log1p(-self.rate))  # 1 - (1 - rate)^count
            advantage = (q - new["q_mean_ema"] / correction) / (new["q_std_ema"] / correction + 1e-8)
        weight = jnp.exp(jnp.clip(advantage, -3, 3) / temperature)
        noisy = schedule.add_noise(batch.next_action, noise["eps"], noise["t"])
        metrics = {"effective_samples": weight.sum() ** 2 / (weight**2).sum(), "q_mean": q.mean()}
        return Regression(batch.next_obs, noisy, noise["t"], noise["eps"], weight, jnp.zeros_like(weight), metrics, new)

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The moments after a batch on which the actor does not step."""
        return self._moved(state, critic(batch.next_obs, batch.next_action).min(0))

    def _moved(self, state: State, q: Array) -> State:
        return {
            "q_mean_ema": (1 - self.rate) * state["q_mean_ema"] + self.rate * q.mean(),
            "q_std_ema": (1 - self.rate) * state["q_std_ema"] + self.rate * q.std(),
            "count": state["count"] + 1,
        }


class EntropyRegularisedValue(eqx.Module):
    """E[temperature log pi(a|s) - min_i Q_i(s, a)] (SAC, Haarnoja et al. 2018, arXiv 1812.05905, equation 7).

    A `RolloutObjective`. Metrics: q_mean; entropy, the mean of -log pi.

    Args:
        sampler: one that knows log-probabilities, such as `TanhGaussianSampler`.

    Raises:
        UsageError: on a call: the sampler's rollout has no log_prob.
    """

    sampler: Sampler

    def __check_init__(self) -> None:
        check_arguments("EntropyRegularisedValue", vars(self))

    @property
    def rollout_sampler(self) -> Sampler:
        """The sampler."""
        return self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "rollout": the sampler's."""
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
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch."""
        if rollout is None:
            rollout = self.sampler.rollout(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
        log_prob = check_present("EntropyRegularisedValue", "rollout.log_prob", rollout.log_prob, LOG_PROB)
        q_mean, entropy = _smallest(critic(batch.obs, rollout.action)).mean(), -log_prob.mean()
        value = -temperature * entropy - q_mean
        return Loss(value, {"q_mean": q_mean, "entropy": entropy}, state, jax.lax.stop_gradient(log_prob))


class Sum(eqx.Module):
    """A weighted sum of objectives: `Sum((1.0, a), (0.01, b))`.

    If two or more terms look at a rollout of the identical sampler object, it runs once, for all of them, with the
    noise entry "rollout" (of several such groups only the first is shared). Other noise of term i is in entry
    "term{i}", its state has names "term{i}.name", and a metric whose name occurs in several terms is called
    "term{i}_name".

    Args:
        *terms: pairs (weight, objective).

    Raises:
        UsageError: there are no terms.
    """

    terms: tuple[tuple[float, ActorObjective], ...]
    # Found here, because identity does not survive a transformation: jit rebuilds every module.
    shared: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, *terms: tuple[float, ActorObjective]) -> None:
        check_arguments("Sum", locals())
        self.terms = terms
        samplers = [getattr(objective, "rollout_sampler", None) for _, objective in terms]
        groups = [tuple(i for i, other in enumerate(samplers) if other is one) for one in samplers if one is not None]
        self.shared = next((group for group in groups if len(group) > 1), ())

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entries "rollout" if a rollout is shared, and "term0", "term1", ..."""
        spec: dict[str, Any] = {}
        for i, (_, objective) in enumerate(self.terms):
            own = dict(objective.noise_spec(shape))
            if i in self.shared:
                spec = {"rollout": own.pop("rollout"), **spec}
            spec[f"term{i}"] = own
        return spec

    def init_state(self) -> State:
        """The states of all terms."""
        states = [objective.init_state() for _, objective in self.terms]
        return {f"term{i}.{name}": value for i, state in enumerate(states) for name, value in state.items()}

    def __call__(
        self, actor: Any, critic: Critic, batch: Transition, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch."""
        rollout: dict[str, Rollout] = {}
        if self.shared:
            sampler = self.terms[self.shared[0]][1].rollout_sampler  # type: ignore[attr-defined]
            rollout = {
                "rollout": sampler.rollout(actor, batch.obs, noise["rollout"], critic=critic, temperature=temperature)
            }
        losses = [
            objective(
                actor,
                critic,
                batch,
                noise[f"term{i}"],
                temperature,
                _part(state, f"term{i}."),
                **(rollout if i in self.shared else {}),
            )
            for i, (_, objective) in enumerate(self.terms)
        ]
        value = sum(weight * loss.value for (weight, _), loss in zip(self.terms, losses, strict=True))
        occurrences = Counter(name for loss in losses for name in loss.metrics)
        metrics, new_state = {}, {}
        for i, loss in enumerate(losses):
            metrics |= {name if occurrences[name] == 1 else f"term{i}_{name}": x for name, x in loss.metrics.items()}
            new_state |= {f"term{i}.{name}": x for name, x in loss.state.items()}
        log_prob = next((loss.log_prob for loss in losses if loss.log_prob is not None), None)
        return Loss(value, metrics, new_state, log_prob)

    def track(self, critic: Critic, batch: Transition, state: State) -> State:
        """The states of all terms after a batch on which the actor does not step."""
        new_state = dict(state)
        for i, (_, objective) in enumerate(self.terms):
            if isinstance(objective, TrackingObjective):
                tracked = objective.track(critic, batch, _part(state, f"term{i}."))
                new_state |= {f"term{i}.{name}": x for name, x in tracked.items()}
        return new_state


def _part(state: Mapping[str, Array], prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
