"""Critic objectives: temporal-difference losses. Only the online critic is differentiated, never a target."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from diffac.errors import UsageError, check_present
from diffac.noise import Noise, NoiseSpec, Normal, Shape, Uniform
from diffac.parts.declaration import Part, Positive, PositiveCoefficient, Rate, TargetEnsemble, declared
from diffac.protocols import Array, Batch, Critic, HistogramCritic, Loss, Rollout, State, provides

__all__ = ["CategoricalTD", "GaussianTD", "MeanSquaredTD"]

NEXT_ROLLOUT = "it is what the policy does at next_obs, which the learner fills in"
LOG_PROB = "use a sampler that knows the log-probability of its actions, such as TanhGaussianSampler or LogProbability"


def next_rollout(part: Any, batch: Batch) -> Rollout:
    """What the policy does at next_obs; refuses a batch without it."""
    return check_present(type(part).__name__, "batch.next_rollout", batch.next_rollout, NEXT_ROLLOUT)


def pair_spec(ensemble: TargetEnsemble) -> NoiseSpec:
    """Noise that chooses the members of a target: "pair" [2], uniform, one choice for the whole batch; or nothing.

    Of n members these are the first, floor(n pair[0]), and the second, floor((n - 1) pair[1]) of those that are left.
    """
    return {"pair": Uniform((2,))} if ensemble == "random_pair" else {}


def check_pair(size: int) -> None:
    """Refuses an ensemble of that size where a pair of its members is to be drawn."""
    if size < 2:
        raise UsageError(f"ensemble='random_pair' needs a critic with two members or more, and this one has {size}")


class CriticObjectivePart(Part):
    """A `CriticObjective`, which a backend computes."""

    soft: bool

    def next_log_prob(self, batch: Batch) -> Array:
        """The log-probabilities [batch] of the next actions, for a soft target; refuses a batch without them."""
        part, name = f"{type(self).__name__}(soft=True)", "batch.next_rollout.log_prob"
        return check_present(part, name, next_rollout(self, batch).log_prob, LOG_PROB)

    def __call__(
        self, critic: Any, target_critic: Any, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch, as `CriticObjective` says."""
        raise NotImplementedError


@declared
class MeanSquaredTD(CriticObjectivePart):
    """factor sum_i mean w (Q_i(s, a) - y)^2 with y = r + discount min_i Q'_i(s', a').

    Fujimoto et al. 2018 (arXiv 1802.09477); with `soft`, temperature * log pi(a'|s') is subtracted from the minimum, as
    in SAC (arXiv 1812.05905, equations 3 and 5: the value of a state, in the residual that the critics minimise). The
    discount and the weights w are the batch's.

    Metrics: "q_mean"; "q_batch_std", the standard deviation over the batch, averaged over the ensemble; "q_min" and
    "q_max" of batch and ensemble; "q_disagreement", the mean over the batch of the range of the ensemble;
    "target_mean", that of y; with `soft` also "entropy", the mean of -log pi(a'|s').

    Args:
        soft: whether the target contains the entropy of the policy.
        factor: of the loss; Stable-Baselines3's SAC has 0.5. It changes nothing but what Adam's eps is added to.
        ensemble: how the target critics' values become one, the "min", the "mean", the "first" of them, or the smaller
            of a "random_pair", two different members drawn for each batch (REDQ, arXiv 2101.05982).

    Raises:
        UsageError: factor is not positive; on a call, a batch without next_rollout, or with a soft target without its
            log-probabilities, or a pair of a critic with one member.
    """

    soft: bool = False
    factor: PositiveCoefficient = 1.0
    ensemble: TargetEnsemble = "min"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise, but with ensemble="random_pair" "pair" [2], uniform: the members that a whole batch sees."""
        return pair_spec(self.ensemble)

    def init_state(self, critic: Critic) -> State:
        """No state."""
        return {}


@declared
class GaussianTD(CriticObjectivePart):
    """The distributional loss of DSAC-T (arXiv 2310.05858, equations 22 to 25), as DACER uses it (arXiv 2405.15177).

    For critic i, with everything in <> and omega detached,

        -(omega^2 + 0.1) mean w [Q <y - Q> / (<std>^2 + 0.1) + std <(Q - y_b)^2 - std^2> / (<std>^3 + 0.1)]

    where y = r + discount min_i mean'_i, y_b = Q + clip(y_z - Q, -clip omega, clip omega), and y_z
    bootstraps from a sample z = mean' + std' clip(noise, -3, 3) of the critic whose mean is smaller, chosen for each
    transition. omega is a moving average of the batch mean of std_i, set from the first batch. With `soft`, as in
    DSAC-T, temperature * log pi(a'|s') is subtracted from that mean' and from z; DACER leaves the entropy out. The
    authors' code of DSAC-T has another form of the loss since July 2025: with `huber_delta`, H being Huber's loss (half
    the square up to it, linear beyond), and the same targets,

        mean w <r> [H(Q - y) + std <(std^2 - H(Q - y_b)) / (std + 0.1)>],   r = clip(omega^2 / (std^2 + 0.1), 0.1, 10)

    There std comes to rest where std^2 is the mean of H, so that it is the deviation of the return over sqrt(2).

    State: "omega" [ensemble]; 0 means: no batch so far.

    Metrics: those of `MeanSquaredTD` for the means; "q_std", the mean of std_i over batch and ensemble.

    Args:
        tau: rate of omega, in (0, 1].
        clip: bound of the distance of y_z from Q, in units of omega; may be a schedule over updates.
        soft: whether the targets contain the entropy of the policy.
        huber_delta: where Huber's loss becomes linear, in units of the scaled reward; 50 in the authors' code. None:
            the paper's form.

    Raises:
        UsageError: a number is outside its range; in `init_state`, a critic without `distribution`; on a call, a batch
            without next_rollout, or with soft targets without its log-probabilities.
    """

    tau: Rate = 0.005
    clip: PositiveCoefficient = 3.0
    soft: bool = False
    huber_delta: Positive | None = None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "target" [batch], standard normal.

        One number for each transition, since only one critic's sample is used.
        """
        return {"target": Normal(shape[:-1])}

    def init_state(self, critic: Any) -> State:
        """omega, zero for each member of the ensemble."""
        if not hasattr(critic, "distribution") or not hasattr(critic, "size"):
            raise UsageError(
                "GaussianTD needs a critic with a method `distribution` and the number `size` of its members, such as "
                f"GaussianCritic, got {type(critic).__name__}"
            )
        return {"omega": np.zeros(critic.size)}


@declared
class CategoricalTD(CriticObjectivePart):
    """Cross-entropy of categorical distributions of the return with a projected target.

    sum_i mean w sum_k -p_k log q_ik, where q_i are the probabilities that critic i gives to the atoms z_k. With
    y = r + discount (Q' - temperature log pi(a'|s')), the second term only with `soft`, the target p is

    * "hl_gauss" (Farebrother et al. 2024, arXiv 2403.03950): y, clipped to [v_min, v_max], smeared by a normal
      distribution of standard deviation `sigma` times the distance of two atoms. p_k is its mass in the bin around z_k,
      from half a distance below to half a distance above, over the mass in all bins.
    * "c51" (Bellemare et al. 2017, arXiv 1707.06887, algorithm 1): the target critic's distribution with its atoms
      moved to r + discount (z_k - temperature log pi), clipped; the mass of each is divided among the two atoms beside
      it in proportion to its nearness, so all of it stays where it meets one. Inside the range this keeps the mean.

    Q' is one value of the ensemble. C51's distribution is then that of the member with the smaller mean, chosen for
    each transition, or with "mean" the average of the members' (DIME, arXiv 2502.02316).

    Metrics: those of `MeanSquaredTD` for the means, with "target_mean" that of y, not clipped; "q_std", the standard
    deviation of the distributions, mean over batch and ensemble.

    Args:
        projection: one of the two.
        soft: whether the target contains the entropy of the policy.
        ensemble: as in `MeanSquaredTD`.
        sigma: standard deviation of "hl_gauss", over the distance of two atoms.

    Raises:
        UsageError: a number is outside its range; in `init_state`, a critic without `logits`; on a call, a batch
            without next_rollout, or with a soft target without its log-probabilities, or a pair of a critic with one
            member.
    """

    projection: Literal["hl_gauss", "c51"] = "hl_gauss"
    soft: bool = False
    ensemble: TargetEnsemble = "min"
    sigma: Positive = 0.75

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise, but with ensemble="random_pair" "pair" [2], uniform: the members that a whole batch sees."""
        return pair_spec(self.ensemble)

    def init_state(self, critic: Critic) -> State:
        """No state."""
        if not provides(critic, HistogramCritic):
            raise UsageError(
                "CategoricalTD needs a critic with a method `logits` and the numbers `v_min` and `v_max`, such as "
                f"CategoricalCritic, got {type(critic).__name__}"
            )
        return {}
