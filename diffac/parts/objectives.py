"""Actor objectives: losses whose only differentiated argument is the actor.

Gradients with respect to actions do flow through the critic, so the critic is part of the graph; only the actor's
gradient is ever asked for.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from diffac.errors import UsageError, check_number, check_present
from diffac.noise import Integers, Noise, NoiseSpec, Normal, Shape, Uniform
from diffac.parts.arguments import Argument, coefficient, optional
from diffac.parts.declaration import (
    EXAMPLES,
    STATIC,
    Coefficient,
    Count,
    Ensemble,
    Fraction,
    Part,
    Positive,
    PositiveCoefficient,
    Rate,
    Schedule,
    Unit,
    Whole,
    declared,
    part_of,
)
from diffac.parts.samplers import DENOISER_ARGUMENTS, DENOISER_PREDICTIONS, MEAN_VELOCITY_ARGUMENTS
from diffac.parts.schedules import LinearSchedule, flow_schedule
from diffac.protocols import (
    REPLAY_NUMBER,
    ActorObjective,
    Array,
    Batch,
    Critic,
    Loss,
    Metrics,
    NoiseSchedule,
    Policy,
    Rollout,
    Sampler,
    State,
)

__all__ = [
    "EntropyRegularisedValue",
    "ImprovedReplayProposal",
    "MeanFlowMatching",
    "PolicyProposal",
    "Proposal",
    "QWeightedProposal",
    "Regression",
    "ReverseProposal",
    "ReweightedScoreMatching",
    "Sum",
    "TimeWeightedQGradient",
    "TrackingProposal",
    "ValueThroughSampler",
]


class ActorObjectivePart(Part):
    """An `ActorObjective`, which a backend computes."""

    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch, as `ActorObjective` says."""
        raise NotImplementedError


@declared
class OfRollout(Part):
    """A `RolloutObjective` without state whose noise is that of the rollout; a backend computes it."""

    sampler: Sampler

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        rollout: Rollout | None = None,
    ) -> Loss:
        """The loss on a batch, as `RolloutObjective` says."""
        raise NotImplementedError

    @property
    def rollout_sampler(self) -> Sampler | None:
        """The sampler of the rollout."""
        return self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "rollout", the sampler's."""
        return {"rollout": self.sampler.noise_spec(shape)}

    def init_state(self) -> State:
        """No state."""
        return {}


@declared
class ValueThroughSampler(OfRollout):
    """-mean(min_i Q_i(s, a)) with the gradient through the whole sampler (DACER, arXiv 2405.15177).

    With a `DeterministicSampler` and the first critic it is TD3's (arXiv 1802.09477, algorithm 1). DACER's official
    code has the exploration noise inside; here that is a property of the sampler (`AdditiveNoise`).

    A `RolloutObjective`. Metrics: "q_mean"; "clipped_fraction", the fraction of action entries at or beyond a bound,
    where the clip stops the gradient.

    Args:
        sampler: gives the actions.
        relative: ours, not the paper's: the loss is divided by the detached mean of |min_i Q_i|, so that the weight of
            a term beside it means the same on every task.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.
    """

    relative: bool = False
    ensemble: Ensemble = "min"


@declared
class TimeWeightedQGradient(OfRollout):
    """Pulls the score of the policy towards the normalised action gradient of Q, harder where there is more noise.

    The auxiliary loss of DACER2 (arXiv 2505.23426): the mean over batch and times of
    || score - w(t) g/||g|| ||^2 with w(t) = exp(slope (t + time_offset) + intercept) and g = grad_a min_i Q_i(s, a) at
    the noisy action a = a_t; the target is detached. The paper leaves open where a_t comes from, in which space
    residuals are taken and from where times count; each is an argument, the defaults are our reading.

    A `RolloutObjective`, but with source "replay". Metrics: "q_gradient_norm", the mean of ||g||; "score_error", the
    loss.

    Args:
        sampler: gives the states or, detached, the actions that are noised.
        schedule: the forward process; T must be that of the sampler.
        slope: growth of log w per time step; this, intercept and contractive_step may be schedules over updates.
        intercept: log w where t + time_offset = 0.
        space: "score" compares scores; "eps" compares noises, so that time t counts sigma[t]^2 times as much.
        source: a_t is a state of the policy's own reverse "chain", its action without exploration noise noised
            "forward", or the noised action of the "replay" buffer.
        time_offset: 1 if the paper's times are 1..T, 0 if they are 0..T-1.
        contractive_step: ours, not the paper's. None: the target above, whose minimiser leads every step outwards. A
            positive number: with a_0 the clean action that the policy predicts from a_t, detached, g taken there, and
            x = clip(a_0 + contractive_step w(t) g/||g||, -1, 1), the target is the noise (a_t - alpha_t x)/sigma_t that
            leads from x to a_t, in "score" space its score; 0.2 is a good first choice.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.
        normalised: whether g is divided by its norm.
        target: what w(t) g/||g|| is: the "score" aimed at, or "eps": minus the noise aimed at, whose score is that of
            w(t)/sigma[t]. With `normalised` False, slope 0, space "eps" and source "replay" the latter is QSM's
            || eps + M g ||^2 with M = exp(intercept) (arXiv 2312.11752), at all times and not at one.

    Raises:
        UsageError: unknown space, source or target, contractive_step is not positive, or is given with target "eps";
            on a call, a rollout without one state for each time.
    """

    actor_arguments = DENOISER_ARGUMENTS
    actor_predictions = DENOISER_PREDICTIONS

    schedule: Schedule = dataclasses.field(metadata=STATIC)
    slope: Coefficient = 0.4
    intercept: Coefficient = -1.8
    space: Literal["score", "eps"] = "score"
    source: Literal["chain", "forward", "replay"] = "chain"
    time_offset: Whole = 1
    contractive_step: PositiveCoefficient | None = None
    ensemble: Ensemble = "min"
    normalised: bool = True
    target: Literal["score", "eps"] = "score"

    def check(self) -> None:
        """As every part's, and that there is one target."""
        super().check()
        if self.contractive_step is not None and self.target == "eps":
            raise UsageError(
                "contractive_step makes a target of its own, the noise that leads from the improved action; leave "
                f"target at 'score', or contractive_step out, got {self.contractive_step!r} and target='eps'"
            )

    @property
    def rollout_sampler(self) -> Sampler | None:
        """The sampler of the rollout; None with actions from replay."""
        return None if self.source == "replay" else self.sampler

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch: "rollout" (unless source="replay") and "eps" [T batch act] (unless source="chain")."""
        rollout = {} if self.source == "replay" else {"rollout": self.sampler.noise_spec(shape)}
        eps = {} if self.source == "chain" else {"eps": Normal((self.schedule.num_steps, *shape))}
        return rollout | eps

    def chain_states(self, rollout: Rollout | None) -> Array:
        """The states of the policy's own chain, [T batch act]; refuses a rollout without one for each time."""
        states = None if rollout is None else rollout.noisy
        if states is None or len(states) != self.schedule.num_steps:
            given = "no states" if states is None else f"{len(states)} states"
            raise UsageError(
                f"TimeWeightedQGradient with source='chain' needs a rollout with the states at all "
                f"{self.schedule.num_steps} times of its schedule, and the sampler gave {given}; use a DDPMSampler "
                "with that schedule, or source='forward'"
            )
        return states

    def clean_actions(self, replay: Array, rollout: Rollout | None) -> Array:
        """The actions [batch act] that are noised: those of the replay buffer, or the policy's before exploration."""
        if rollout is None:
            return replay
        return rollout.action if rollout.noise_free is None else rollout.noise_free


class Regression(NamedTuple):
    """The regression problem of one batch: weight ||eps_theta(obs, noisy, t) - target||^2 + spread.

    With several rows for each state all but `obs` have an axis for them before that of the batch.
    """

    obs: Array
    """[batch obs]; where the denoiser is evaluated, together with `noisy` and `t`."""
    noisy: Array
    """[batch act]"""
    t: Array
    """[batch] of integers."""
    target: Array
    """[batch act]; the noise to be predicted, or its mean where there are several."""
    action: Array
    """[batch act]; the clean action from which that noise leads to `noisy`."""
    weight: Array
    """[batch]; factor of the squared error."""
    spread: Array
    """[batch]; what several noises add to the squared error of their mean, constant in the actor."""
    metrics: Metrics
    state: State
    """The proposal's state after this batch."""


@runtime_checkable
class Proposal(Protocol):
    """Says at which noisy actions, and towards which noise, the denoiser is regressed."""

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """The noise needed for a batch whose actions have shape (batch, act); num_steps is the schedule's T."""
        ...

    def init_state(self, num_steps: int) -> State:
        """The state before the first batch, as NumPy arrays; num_steps is the schedule's T."""
        ...

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch, without gradient."""
        ...


@runtime_checkable
class TrackingProposal(Proposal, Protocol):
    """A proposal whose state moves in every update of the learner, as with a `TrackingObjective`."""

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The state after a batch on which the actor does not step; called without gradient."""
        ...


EXAMPLES[Proposal] = "PolicyProposal()"


class ProposalPart(Part):
    """A `Proposal`, which a backend computes."""

    def __call__(
        self,
        actor: Any,
        critic: Critic,
        batch: Batch,
        noise: Noise,
        temperature: Array,
        state: State,
        schedule: NoiseSchedule,
    ) -> Regression:
        """The regression problem of a batch, without gradient."""
        raise NotImplementedError


def _tracked(proposal: Proposal, critic: Critic, batch: Batch, state: State) -> State:
    """The state of any proposal after a batch on which the actor does not step."""
    track = getattr(proposal, "track", None)
    return state if track is None else track(critic, batch, state)


@declared
class ReweightedScoreMatching(ActorObjectivePart):
    """Noise regression on the data of a proposal: mean(weight ||eps_theta(s, a_t, t) - target||^2 + spread).

    Ma et al. 2025 (arXiv 2502.00361): denoising score matching may be reweighted by any positive function of a_t, so
    the score of exp(Q / temperature) can be learned without samples of it and without a gradient through the chain. A
    target that is a weighted mean of K noises needs one evaluation of the denoiser, not K, since
    sum_k w_k (e - eps_k)^2 = (e - mean)^2 + spread.

    With space "output" the error is that of what the denoiser predicts (`Prediction`), and there is no spread: for a
    velocity the loss of flow matching (arXiv 2210.02747, equation 9, for a schedule that is a flow), which counts noise
    errors ((alpha + sigma) / alpha)^2 times and is defined where no signal is left. Minimisers are the same.

    Metrics: those of the proposal.

    Args:
        schedule: the forward process of the regression, that of the sampler.
        proposal: gives the data, without gradient: `ReverseProposal` (SDAC, iDEM, RFM), `PolicyProposal` (DPMD, FPMD),
            `QWeightedProposal` (QVPO), `ImprovedReplayProposal` (DIPO).
        space: whether errors are those of the noise, "eps", or of the denoiser's "output".

    Raises:
        UsageError: unknown space.
    """

    actor_arguments = DENOISER_ARGUMENTS
    actor_predictions = DENOISER_PREDICTIONS

    schedule: Schedule = dataclasses.field(metadata=STATIC)
    proposal: Proposal = dataclasses.field()
    space: Literal["eps", "output"] = "eps"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise of the proposal for a batch of actions of that shape."""
        return self.proposal.noise_spec(shape, self.schedule.num_steps)

    def init_state(self) -> State:
        """State of the proposal."""
        return self.proposal.init_state(self.schedule.num_steps)

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The proposal's state after a batch on which the actor does not step."""
        return _tracked(self.proposal, critic, batch, state)


@declared
class MeanFlowMatching(ActorObjectivePart):
    """Regression of a mean velocity u of a flow: mean(weight ||u(s, a_t, t, r) - target||^2).

    MeanFlow (Geng et al. 2025, arXiv 2505.13447), with the weights of a proposal as in FPMD (arXiv 2507.23675). For an
    action a and a noise eps let a_t = (1 - t) a + t eps and v = eps - a. Along the paths of the flow
    (t - r) u(s, a_t, t, r) is the integral of the velocity from r to t; its derivative in t gives the identity from
    which the target comes, detached:

        target = v - (t - r) (v . grad_a u + d_t u),

    of which the bracket is one directional derivative of the network. The target is linear in v, so the minimiser knows
    the mean E[v | a_t] alone. For r = t the loss is that of flow matching.

    (t, r) are two times uniform in [0, 1], the larger one first; in a fraction of the pairs r is then set to t. The
    paper has logit-normal times, 75 % of r = t, and weights that adapt to the error, which we leave out; FPMD-M has
    uniform times and never r = t.

    State and metrics are those of the proposal.

    Args:
        proposal: gives observations, actions, noises and weights, without gradient: `PolicyProposal`. It is asked at
            the one time of `flow_schedule(1)`, where all is noise, and its noisy actions are not used.
        equal_fraction: of pairs with r = t, in [0, 1].

    Raises:
        UsageError: equal_fraction is outside [0, 1], the proposal is a `ReverseProposal`, whose targets are no noises
            that belong to an action.
    """

    actor_arguments = MEAN_VELOCITY_ARGUMENTS
    actor_example = "MeanFlowActor"

    proposal: Proposal
    equal_fraction: Unit = 0.25

    def check(self) -> None:
        """As every part's, and that actions come in pairs with noises."""
        super().check()
        if isinstance(self.proposal, ReverseProposal):
            raise UsageError(
                "MeanFlowMatching needs pairs of an action and its noise, and ReverseProposal gives means of noises; "
                "use PolicyProposal"
            )

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "proposal", "times" [2 batch] and "equal" [batch], uniform."""
        batch = shape[:-1]
        own = {"times": Uniform((2, *batch)), "equal": Uniform(batch)}
        return {"proposal": self.proposal.noise_spec(shape, ALL_NOISE.num_steps), **own}

    def init_state(self) -> State:
        """State of the proposal."""
        return self.proposal.init_state(ALL_NOISE.num_steps)

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The proposal's state after a batch on which the actor does not step."""
        return _tracked(self.proposal, critic, batch, state)


ALL_NOISE = flow_schedule(1)
"""At its only time nothing of the action is left, and `Regression.target` is the noise itself."""

MINIMUM_VARIANCE = "minimum_variance"


def _check_gradient_weight(name: str, value: Any) -> None:
    if isinstance(value, LinearSchedule) or (isinstance(value, str) and value == MINIMUM_VARIANCE):
        return
    try:
        for number in value if isinstance(value, tuple) and value else (value,):
            check_number(name, number)
    except UsageError:
        raise UsageError(
            f"{name} must be a finite number, a LinearSchedule, a tuple of numbers with one for each time of the "
            f"schedule, or {MINIMUM_VARIANCE!r}, got {value!r}"
        ) from None


GradientWeight = Annotated[
    Any,
    Argument(
        _check_gradient_weight,
        wrong=("minimum", None, True, (), (1.0, None), [1.0], math.nan),
    ),
]


@declared
class ReverseProposal(ProposalPart):
    """Reverse sampling: K guesses of the clean action behind one noised action, weighted by their value.

    The guesses a_k come from the reverse kernel q(a_0 | a_t) = N(a_t / alpha, (sigma / alpha)^2 I), with noises eps_k
    and weights w_k = softmax(Q(s, a_k) / lambda), lambda = temperature / value_scale. The noise E[eps | a_t] of the
    policy exp(Q / lambda) has two estimates with the same limit for many guesses (Stein's identity): sum_k w_k eps_k,
    and sum_k w_k b_k with b_k = -(sigma / alpha) grad Q(s, a_k) / lambda. The target is

        sum_k w_k ((1 - h) eps_k + h b_k),    h = gradient_weight.

    h = 0 is SDAC (arXiv 2502.00361), which needs no gradient of Q; h = 1 is iDEM (arXiv 2402.06121), whose error
    vanishes with sigma, where that of h = 0 stays; the h of least variance is that of reverse flow matching (arXiv
    2601.08136, whose abstract we know). For h = 0 the loss contains what the eps_k add to it, as in SDAC's paper.

    Actions outside [-1, 1] do not exist. With `truncated` guesses are drawn from the kernel restricted to the box,
    which is exact for a policy that lives there; Stein's identity fails at the box's faces, so h must be 0. Without,
    guesses are clipped to the box while their noises stay as drawn, as in the official code: right for the policy
    exp(Q(clip(a)) / lambda) on all of R^d, for every h, since b_k is 0 in the directions in which a_k was clipped. Most
    of that policy's mass may lie outside; `outside_std`, ours, takes it back: the policy, and with it w_k and b_k, has
    another factor exp(-|a - clip(a)|^2 / (2 outside_std^2)).

    State, with h = "minimum_variance": "gradient_covariance" and "gradient_variance" [T], moving averages for each time
    of sum_k w_k^2 <eps_k, d_k> and sum_k w_k^2 |d_k|^2, d_k = b_k - eps_k, both centred by their means under w. Then
    h(t) = -covariance / variance from before the batch, so that h does not depend on the guesses that it weighs, which
    would bias the target by O(1 / K); 0 where the variance is below 1e-12.

    Metrics: "effective_particles", the mean of 1 / sum w^2: 1 if one guess dominates, K if Q is flat; "q_mean" over all
    guesses; with h = "minimum_variance" also "gradient_weight", the mean of h.

    Args:
        sampler: gives the policy's action, drawn anew in each batch.
        num_particles: K, at least 1.
        value_scale: factor of Q, 5 in the official code; may be a schedule over updates.
        truncated: whether the guesses are drawn inside the action box or clipped to it.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.
        gradient_weight: h: a number, a `LinearSchedule` over updates, a tuple with one number for each time, or
            "minimum_variance".
        tempered: whether lambda is temperature / value_scale, else it is 1 / value_scale.
        rate: of the moving averages with "minimum_variance", in (0, 1].
        outside_std: how far outside the box the policy reaches, in the units of an action; None: as the official code.
        source: the noised action is the "policy"'s, or that of the "replay" buffer (MaxEntDP, arXiv 2502.11612), for
            which the sampler is not asked. The limit of many guesses is the same.

    Raises:
        UsageError: num_particles or value_scale is not positive, unknown source, gradient_weight is nothing of the
            above or has not one number for each time, or it is not 0 or outside_std is given with truncated guesses; on
            a call, a schedule without signal at some time.
    """

    sampler: Sampler
    num_particles: Count = 64
    value_scale: PositiveCoefficient = 5.0
    truncated: bool = True
    ensemble: Ensemble = "min"
    gradient_weight: GradientWeight = 0.0
    tempered: bool = True
    rate: Rate = 0.01
    outside_std: Positive | None = None
    source: Literal["policy", "replay"] = "policy"

    def check(self) -> None:
        """As every part's, and that Stein's identity holds where it is used."""
        super().check()
        if self.outside_std is not None and self.truncated:
            raise UsageError(
                f"outside_std={self.outside_std!r} needs truncated=False: no guess of a truncated kernel lies outside"
            )
        if self.uses_gradient and self.truncated:
            raise UsageError(
                f"gradient_weight={self.gradient_weight!r} needs truncated=False: with guesses from the kernel "
                "restricted to the action box, gradients of Q miss what happens at its faces; only 0 takes either"
            )

    @property
    def uses_gradient(self) -> bool:
        """Whether the gradient of Q enters."""
        return not (isinstance(self.gradient_weight, int | float) and self.gradient_weight == 0)

    def check_times(self, num_steps: int) -> None:
        """Refuses a gradient_weight for other times than the schedule's."""
        if isinstance(self.gradient_weight, tuple) and len(self.gradient_weight) != num_steps:
            raise UsageError(
                f"gradient_weight must have one number for each of the schedule's {num_steps} times, got "
                f"{len(self.gradient_weight)}: {self.gradient_weight!r}"
            )

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Noise for a batch of actions of that shape; num_steps is the schedule's T.

        "rollout", the sampler's (unless source="replay"); "t" [batch] in {0..T-1}; "eps" [batch act] normal;
        "particles" [K batch act], uniform if truncated, else normal.
        """
        self.check_times(num_steps)
        law = Uniform if self.truncated else Normal
        rollout = {} if self.source == "replay" else {"rollout": self.sampler.noise_spec(shape)}
        return rollout | {
            "t": Integers(shape[:-1], 0, num_steps),
            "eps": Normal(shape),
            "particles": law((self.num_particles, *shape)),
        }

    def init_state(self, num_steps: int) -> State:
        """The moving averages before the first batch, if there are any."""
        if self.gradient_weight != MINIMUM_VARIANCE:
            return {}
        return {"gradient_covariance": np.zeros(num_steps), "gradient_variance": np.zeros(num_steps)}


@declared
class PolicyProposal(ProposalPart):
    """Mirror descent (DPMD, arXiv 2502.00361): the old policy's own actions, weighted by their standardised value.

    The data are the next observations and the actions drawn there for the TD target, as in the official code. The
    weight is exp(advantage / temperature), advantage = clip((q - mean) / std, -3, 3), with exponential moving averages
    of the batch mean and standard deviation of q = min_i Q_i. By default they start at zero, are corrected for that as
    in Adam, and include the present batch. `faithful_normalisation` repeats the official code: averages from before
    this batch, started at 0 and 1, and `q - mean / std`, a slip of operator precedence after which most weights are
    clipped to be equal. Without `centred` (FPMD, arXiv 2507.23675) the advantage is q / std, not clipped; the batch's
    largest is subtracted, ours, without which the exponential overflows: it makes all weights of a batch smaller alike.

    State: "q_mean_ema", "q_std_ema", "count", each 0-d; moves in every update.

    Metrics: "effective_samples", (sum w)^2 / sum w^2; "q_mean".

    Args:
        rate: of the moving averages, in (0, 1).
        faithful_normalisation: whether to repeat the slip.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.
        centred: whether the mean is subtracted, and the advantage clipped.
        value_scale: factor of the advantage; may be a schedule over updates.
        tempered: whether the advantage is divided by the temperature.

    Raises:
        UsageError: rate is not in (0, 1), value_scale is not positive, faithful_normalisation is not centred, or (on a
            call) the batch has no next_rollout.
    """

    rate: Fraction = 0.001
    faithful_normalisation: bool = False
    ensemble: Ensemble = "min"
    centred: bool = True
    value_scale: PositiveCoefficient = 1.0
    tempered: bool = True

    def check(self) -> None:
        """As every part's, and that there is one advantage."""
        super().check()
        if self.faithful_normalisation and not self.centred:
            raise UsageError("faithful_normalisation repeats a slip of the centred advantage; it needs centred=True")

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "t" [batch] in {0..T-1}, T = num_steps; "eps" [batch act]."""
        return {"t": Integers(shape[:-1], 0, num_steps), "eps": Normal(shape)}

    def init_state(self, num_steps: int) -> State:
        """The moving averages before the first batch, and the number of batches in them."""
        std = 1.0 if self.faithful_normalisation else 0.0
        return {"q_mean_ema": np.zeros(()), "q_std_ema": np.full((), std), "count": np.zeros(())}


@declared
class QWeightedProposal(ProposalPart):
    """The best of the policy's own actions, weighted by its advantage, and uniform ones (QVPO, arXiv 2405.16173).

    For each state of the batch the sampler draws M = `num_candidates` actions. The row of the best has the weight
    w = max_m Q(s, a_m) - mean_m Q(s, a_m), which is never negative; each of `num_uniform` actions, uniform on the box,
    has uniform_weight w. Every row has its own time and noise, and the loss is the mean over all of them. Because
    weights within a state stand in fixed proportions, the law that is learned is, in each state, uniform with
    probability u / (1 + u), u = num_uniform uniform_weight: that keeps its entropy up.

    The authors' code draws a second batch of states for this; ours are the states of the critic's batch, as for every
    other objective here.

    Metrics: "advantage", the mean of w; "effective_samples", (sum w)^2 / sum w^2 over the states, 0 where all w are;
    "q_mean" of all candidates.

    Args:
        sampler: draws the candidates, without a choice among them.
        num_candidates: M.
        num_uniform: uniform actions for each state; 0: none.
        uniform_weight: weight of each of them, in units of that of the best; may be a schedule over updates.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.

    Raises:
        UsageError: num_candidates or uniform_weight is not positive, or num_uniform is negative.
    """

    sampler: Sampler
    num_candidates: Count = 64
    num_uniform: Whole = 10
    uniform_weight: PositiveCoefficient = 0.02
    ensemble: Ensemble = "min"

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Noise for a batch of actions of that shape; num_steps is the schedule's T.

        "candidates", the sampler's for [M batch act]; "uniform" [num_uniform batch act]; "t" [1 + num_uniform batch] in
        {0..T-1}; "eps" [1 + num_uniform batch act] normal.
        """
        return {
            "candidates": self.sampler.noise_spec((self.num_candidates, *shape)),
            "uniform": Uniform((self.num_uniform, *shape)),
            "t": Integers((1 + self.num_uniform, *shape[:-1]), 0, num_steps),
            "eps": Normal((1 + self.num_uniform, *shape)),
        }

    def init_state(self, num_steps: int) -> State:
        """No state."""
        return {}


@declared
class ImprovedReplayProposal(ProposalPart):
    """Replayed actions, moved along the action gradient of Q and kept so (DIPO, arXiv 2305.13122, algorithm 2).

    For each transition of the batch a_0 is the action that was kept for it, or else the one that was taken. With q the
    sum over the batch of min_i Q_i(s, a) it takes `num_steps` steps of Adam (arXiv 1412.6980) up the gradient of q,
    moments 0 at first,

        a_k = clip(a_(k-1) + learning_rate m_k / (sqrt(v_k) + eps), -1, 1),

    with m_k and v_k corrected for their start. The last a_k is kept in place of a_0, and the denoiser learns it: every
    row has a time and a noise of its own, and weight 1.

    Actions are kept in the state, a table beside the replay memory: that of transition i is in row i % capacity,
    together with i, so a transition that has come into that row since begins with the action that was taken. A table as
    long as the memory keeps all of them; a shorter one forgets. Rows of a batch that are the same transition begin
    alike, take the same steps, and differ by rounding alone; the first of them is kept. Where two transitions share a
    row of a table that is too short, the newer one is.

    State: "action" [capacity act]; "replay_number" [capacity] of integers, i, or -1 where nothing is kept. Updates that
    the actor sits out leave it as it is.

    Metrics: "improvement", the mean of min_i Q_i after all steps less that before; "action_shift", the mean of
    |a_k - a_0| over all entries; "kept_fraction", of rows whose a_0 had been kept.

    Args:
        capacity: rows of the table.
        action_dim: length of an action.
        num_steps: steps of Adam for each batch.
        learning_rate: of Adam.
        eps: of Adam.
        max_grad_norm: what the norm of the gradient at all actions of the batch together is clipped to; None: no clip.
            Adam hides it but for its changes from step to step, and for gradients near eps.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.

    Raises:
        UsageError: a number is not positive, or (on a call) the batch has no number, or actions of another length.
    """

    capacity: Count
    action_dim: Count
    num_steps: Count = 20
    learning_rate: Positive = 0.03
    eps: Positive = 1e-5
    max_grad_norm: Positive | None = None
    ensemble: Ensemble = "min"

    def noise_spec(self, shape: Shape, num_steps: int) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "t" [batch] in {0..T-1}, T = num_steps; "eps" [batch act]."""
        return {"t": Integers(shape[:-1], 0, num_steps), "eps": Normal(shape)}

    def init_state(self, num_steps: int) -> State:
        """An empty table."""
        return {
            "action": np.zeros((self.capacity, self.action_dim)),
            REPLAY_NUMBER: np.full(self.capacity, -1, np.int32),
        }

    def numbers(self, batch: Batch) -> Array:
        """Those of the batch's transitions, [batch]; refuses a batch without, or with actions of another length."""
        if batch.action.shape[-1] != self.action_dim:
            raise UsageError(
                f"ImprovedReplayProposal has action_dim={self.action_dim}, and the batch has actions of "
                f"{batch.action.shape[-1]} entries"
            )
        advice = "the replay memory must say which transitions it gives"
        return check_present("ImprovedReplayProposal", "batch.number", batch.number, advice)


IMPROVEMENT_BETAS = (0.9, 0.999)
"""Decay of both moments in the steps of `ImprovedReplayProposal`, Adam's own."""


@declared
class EntropyRegularisedValue(OfRollout):
    """mean(temperature log pi(a|s) - min_i Q_i(s, a)), the actor loss of SAC (arXiv 1812.05905, equation 9).

    That equation is equation 7 with actions that are a function of noise, through which the gradient goes.

    A `RolloutObjective`. Metrics: "q_mean"; "entropy", the mean of -log pi.

    Args:
        sampler: one that knows the log-probability of its actions, such as `TanhGaussianSampler`, or a bound of it,
            `LangevinSampler`.
        ensemble: how the critics' values become one, the "min", the "mean", or the "first" of them.

    Raises:
        UsageError: on a call, the sampler does not know it.
    """

    ensemble: Ensemble = "min"


@dataclasses.dataclass(eq=False, init=False)
class Sum(Part):
    """A weighted sum of objectives: `Sum((1.0, first), (0.01, second), rollout_of=sampler)`.

    Noise: "rollout" if one is shared; "term0", "term1", ...: what each term needs besides.

    State: that of each term, with names "term0.…".

    Metrics: those of the terms; a name that several terms use becomes "term0_…", "term1_…".

    Args:
        *terms: pairs (weight, objective); a weight may be a schedule over updates.
        rollout_of: the sampler whose rollout at `batch.obs` is computed once, and given to every term that looks at one
            (`RolloutObjective`); it must be their own sampler. None: each computes its own, with noise of its own.

    Raises:
        UsageError: there are no terms, one is no such pair, or a term looks at the rollout of another sampler.
    """

    terms: tuple[tuple[float | LinearSchedule, ActorObjective], ...]
    rollout_of: Sampler | None

    def __init__(
        self, *terms: tuple[float | LinearSchedule, ActorObjective], rollout_of: Sampler | None = None
    ) -> None:
        self.terms, self.rollout_of = terms, rollout_of
        self.check()

    def check(self) -> None:
        """As every part's, and that the terms look at the rollout that they share."""
        super().check()
        if self.rollout_of is None:
            return
        samplers = [getattr(objective, "rollout_sampler", None) for _, objective in self.terms]
        if all(sampler is None for sampler in samplers):
            raise UsageError(f"no term of Sum looks at a rollout; leave rollout_of out, got {self.rollout_of!r}")
        for i, sampler in enumerate(samplers):
            if sampler is not None and sampler is not self.rollout_of:
                raise UsageError(
                    f"term {i} of Sum looks at the rollout of another sampler; give both the very same object, or "
                    f"leave rollout_of out, got {sampler!r} and rollout_of={self.rollout_of!r}"
                )

    def _shares(self, objective: Any) -> bool:
        """Whether a term is given the common rollout."""
        return self.rollout_of is not None and getattr(objective, "rollout_sampler", None) is not None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape."""
        spec: dict[str, Any] = {} if self.rollout_of is None else {"rollout": self.rollout_of.noise_spec(shape)}
        for i, (_, objective) in enumerate(self.terms):
            own = objective.noise_spec(shape)
            without = {"rollout"} if self._shares(objective) else set()
            spec[f"term{i}"] = {name: law for name, law in own.items() if name not in without}
        return spec

    def init_state(self) -> State:
        """The states of all terms."""
        states = (objective.init_state() for _, objective in self.terms)
        return {f"term{i}.{name}": array for i, state in enumerate(states) for name, array in state.items()}

    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch, as `ActorObjective` says."""
        rollout: dict[str, Any] = {}
        if self.rollout_of is not None:
            policy = Policy(actor, critic, temperature)
            rollout["rollout"] = self.rollout_of.rollout(policy, batch.obs, noise["rollout"])
        losses = []
        for i, (_, objective) in enumerate(self.terms):
            own, shared = _part(state, f"term{i}."), rollout if self._shares(objective) else {}
            losses.append(objective(actor, critic, batch, noise[f"term{i}"], temperature, own, **shared))

        names = [name for loss in losses for name in loss.metrics]
        metrics, new_state = {}, {}
        for i, loss in enumerate(losses):
            for name, value in loss.metrics.items():
                metrics[name if names.count(name) == 1 else f"term{i}_{name}"] = value
            new_state |= {f"term{i}.{name}": array for name, array in loss.state.items()}
        value = sum(weight * loss.value for (weight, _), loss in zip(self.terms, losses, strict=True))
        log_prob = next((loss.log_prob for loss in losses if loss.log_prob is not None), None)
        return Loss(value, metrics, new_state, log_prob)

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The states of all terms after a batch on which the actor does not step."""
        new_state = dict(state)
        for i, (_, objective) in enumerate(self.terms):
            if (track := getattr(objective, "track", None)) is not None:  # a TrackingObjective
                tracked = track(critic, batch, _part(state, f"term{i}."))
                new_state |= {f"term{i}.{name}": array for name, array in tracked.items()}
        return new_state


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def _check_terms(name: str, terms: Any) -> None:
    if not terms:
        raise UsageError("Sum needs at least one term, for example Sum((1.0, ValueThroughSampler(sampler)))")
    for i, term in enumerate(terms):
        if not isinstance(term, tuple | list) or len(term) != 2:
            raise UsageError(f"term {i} of Sum must be a pair (weight, objective), got {term!r}")
        coefficient().check(f"the weight of term {i} of Sum", term[0])
        part_of(ActorObjective).check(f"the objective of term {i} of Sum", term[1])


Sum.arguments = {
    "terms": Argument(
        _check_terms, kind=inspect.Parameter.VAR_POSITIONAL, convert=lambda terms: tuple(tuple(term) for term in terms)
    ),
    "rollout_of": optional(part_of(Sampler)).by_keyword(),
}
