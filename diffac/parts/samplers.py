"""Samplers: from an actor network, observations and noise to actions. None of them draws a random number."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from diffac.errors import UsageError, check_present
from diffac.noise import EXPLORATION, Noise, NoiseSpec, Normal, Shape
from diffac.parts.declaration import EXAMPLES, STATIC, Count, Ensemble, NotNegative, Part, Positive, Schedule, declared
from diffac.parts.schedules import check_flow, check_signal, tabulated
from diffac.protocols import Array, Policy, Prediction, Rollout, Sampler

__all__ = [
    "AdditiveNoise",
    "BestOf",
    "DDIMSampler",
    "DDPMSampler",
    "DeterministicSampler",
    "HeunSampler",
    "LangevinSampler",
    "LogProbability",
    "MeanFlowSampler",
    "TanhGaussianSampler",
]


DENOISER_ARGUMENTS = ("obs", "noisy", "t")
"""What a `Denoiser` is called with."""
DENOISER_PREDICTIONS: tuple[str, ...] = get_args(Prediction)
"""What it may predict."""
MEAN_VELOCITY_ARGUMENTS = ("obs", "noisy", "t", "r")
"""What a `MeanVelocity` is called with."""


class SamplerPart(Part):
    """A `Sampler`, which a backend computes."""

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """As `Sampler` says; obs may have fewer batch axes than the noise."""
        raise NotImplementedError

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout` alone, [*batch act]."""
        raise NotImplementedError


@declared
class DiffusionSampler(SamplerPart):
    """What the samplers share that run a denoiser backwards in time."""

    actor_arguments = DENOISER_ARGUMENTS
    actor_predictions = DENOISER_PREDICTIONS

    schedule: Schedule = dataclasses.field(metadata=STATIC)
    start_scale: NotNegative | None = None

    @property
    def first_scale(self) -> float:
        """Standard deviation of the first state."""
        if self.start_scale is not None:
            return self.start_scale
        return float(self.schedule.sigma(self.schedule.num_steps - 1))


@declared
class DDPMSampler(DiffusionSampler):
    """Ancestral sampling of a diffusion policy (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

    By default the predicted clean action is clipped to [-1, 1] in every step, as in the official code of DACER and
    SDAC. The last step adds no noise, so the chain ends in the clipped prediction. `rollout.noisy` is [T *batch act].
    The denoiser may predict any `Prediction`.

    Args:
        schedule: the forward process, with T times.
        start_scale: standard deviation of the first state; None: sigma(T-1). The paper's is 1; the official SDAC code
            has 0.5.
        clip: what stays in [-1, 1] in each step: the predicted "action", or the "state" that follows (QSM, arXiv
            2312.11752), so that a start outside moves inside at once.
        variance: of a step's noise: that of the "posterior" q(a_{t-1} | a_t, a_0), or that of the "forward" step from
            t-1 to t, which is beta_t where alpha^2 + sigma^2 = 1 (section 3.2 of the paper has both). "zero": steps add
            no noise, so a chain ends in what its start alone decides (DIPO, arXiv 2305.13122, evaluates so).

    Raises:
        UsageError: start_scale is negative, or clip or variance is nothing of the above.
    """

    clip: Literal["action", "state"] = "action"
    variance: Literal["posterior", "forward", "zero"] = "posterior"

    @property
    def step_std(self) -> np.ndarray:
        """Standard deviation of the noise of each step, [T]; 0 at t = 0."""
        table = tabulated(self.schedule)
        if self.variance == "zero":
            return np.zeros(table.num_steps)
        if self.variance == "posterior":
            return table.posterior_std
        sigmas = table.sigmas
        return np.append(0.0, table.posterior_std[1:] * sigmas[1:] / sigmas[:-1])

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act), standard normal.

        "start" [*batch act]; "steps" [T-1 *batch act], whose entry t-1 belongs to the step from t to t-1.
        """
        return {"start": Normal(shape), "steps": Normal((self.schedule.num_steps - 1, *shape))}


@declared
class DeterministicDiffusionSampler(DiffusionSampler):
    """What the samplers share that draw a start and nothing else, and ask the denoiser at some of the T times."""

    num_steps: Count | None = None

    def check(self) -> None:
        """As in `Part`; also that there are no more steps than times."""
        super().check()
        most = self.schedule.num_steps
        if self.num_steps is not None and self.num_steps > most:
            raise UsageError(f"num_steps must be at most {most}, the steps of the schedule, got {self.num_steps!r}")

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act): "start" [*batch act], standard normal."""
        return {"start": Normal(shape)}


@declared
class DDIMSampler(DeterministicDiffusionSampler):
    """Deterministic sampling at some of the T times (Song et al. 2020, arXiv 2010.02502, equation 12 with eta = 0).

    The predicted clean action is clipped to [-1, 1], and the noise recomputed from the clipped action, so that the next
    state lies on the line between the two; the paper does not clip. `rollout.noisy` is [num_steps *batch act], in the
    order of increasing t. The denoiser may predict any `Prediction`. With `flow_schedule` a step is one of Euler's.

    Args:
        schedule: the forward process, with T times.
        start_scale: standard deviation of the first state; None: sigma(T-1).
        num_steps: number of evaluations, in 1..T, at times spread evenly over {0, ..., T-1}, of which T-1 is always
            one; None means T.

    Raises:
        UsageError: num_steps is outside 1..T, or start_scale is negative.
    """


@declared
class HeunSampler(DeterministicDiffusionSampler):
    """Heun's method for the differential equation of a flow, alpha = 1 - s and sigma = s: second order in the step.

    With v(x, s) the velocity eps - action that the denoiser's output stands for, a step from s to s' is

        y = x + (s' - s) v(x, s),    x' = x + (s' - s) (v(x, s) + v(y, s')) / 2.

    The last step, to s = 0, is one of Euler's and ends in the predicted action: a denoiser has no time for s = 0, and a
    velocity there would divide by s. Its error is of second order, as those of the steps before add up to. So K steps
    ask the denoiser 2K - 1 times, and one step is that of `DDIMSampler`, which with `flow_schedule` is Euler's method.
    Karras et al. 2022 (arXiv 2206.00364) end their sampler of second order likewise.

    As in `DDIMSampler` the predicted clean action is clipped to [-1, 1] wherever the denoiser is asked, and v is the
    velocity that leads from the clipped action to x: exact where predictions lie inside, and one that bends at the
    border, where the method is of first order. `rollout.noisy` is [num_steps *batch act], the states x in the order of
    increasing s; the states y are not kept. The denoiser may predict any `Prediction`.

    Args:
        schedule: the forward process, a flow with T times.
        start_scale: standard deviation of the first state; None: sigma(T-1).
        num_steps: number of steps, in 1..T, at times spread evenly over {0, ..., T-1}, of which T-1 is always one; None
            means T.

    Raises:
        UsageError: the schedule is no flow, num_steps is outside 1..T, or start_scale is negative.
    """

    def check(self) -> None:
        """As in `DDIMSampler`; also that the schedule is a flow."""
        super().check()
        check_flow("HeunSampler", self.schedule)


@declared
class MeanFlowSampler(SamplerPart):
    """Samples a flow by its mean velocities, in one step: action = start - u(obs, start, t=1, r=0).

    MeanFlow (Geng et al. 2025, arXiv 2505.13447). The actor is a `MeanVelocity`, such as `MeanFlowActor`. With K steps
    the line from 1 to 0 is cut into K equal parts, and a step from t to r subtracts (t - r) u(obs, x, t, r). The action
    is clipped to [-1, 1] in the end, and nothing on the way: a mean velocity between two times predicts no clean action
    that could be clipped. `rollout.noisy` is [num_steps *batch act], in the order of increasing t.

    Args:
        num_steps: K, at least 1.
        start_scale: standard deviation of the first state; 1 is what the flow leads to, the official FPMD code has 0.5.

    Raises:
        UsageError: num_steps is not positive, or start_scale is negative.
    """

    actor_arguments = MEAN_VELOCITY_ARGUMENTS
    actor_example = "MeanFlowActor"

    num_steps: Count = 1
    start_scale: NotNegative = 1.0

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act): "start" [*batch act], standard normal."""
        return {"start": Normal(shape)}


@declared
class LangevinSampler(SamplerPart):
    """Unadjusted Langevin steps from a wide normal prior, with the log-ratio of the path (DIME, arXiv 2502.02316).

    The actor is a `LangevinDrift` f with a step size, such as `LangevinActor`. The chain starts at x ~ N(0, s^2),
    s = prior_std, and takes N steps, t = N-1, ..., 0 (k = N-1-t in the paper), the last one with noise too:

        x' = x + eta_t (f(obs, x, t) - x / s^2) + sqrt(2 eta_t) xi,    eta_t = c_t step_size
        c_t = 0.999 cos^2(pi/2 (1.008 - (t+1)/N) / 1.008) + 0.001

    so that steps shrink from step_size to nearly a thousandth of it (a hundredth for N = 16). The action is tanh of the
    last state, and nothing is clipped anywhere. What is called `rollout.log_prob` is the log-ratio of the path's law to
    the law of a path that goes back from its end by the prior's own diffusion, N(x; x' - eta_t x' / s^2, 2 eta_t):

        L = log N(x_0; 0, s^2) + sum_t (log forward - log backward) - sum log(1 - action^2)

    Its mean is at least that of log pi(action): it exceeds it by the Kullback-Leibler divergence of the path, given its
    end, from what the backward kernels make of that end. So -L understates the entropy, and no more than that can be
    said of a single L: it is not the log-probability of its action. Gradients flow through both, to the drift and to
    the step size.

    Args:
        num_steps: N, at least 1.
        prior_std: s.

    Raises:
        UsageError: a number is not positive.
    """

    actor_arguments = DENOISER_ARGUMENTS
    actor_predictions = ("drift",)
    actor_example = "LangevinActor"

    num_steps: Count = 16
    prior_std: Positive = 2.5

    @property
    def step_factors(self) -> np.ndarray:
        """c_t, [N]; it grows with t."""
        angles = np.pi / 2 * (1.008 - np.arange(1, self.num_steps + 1) / self.num_steps) / 1.008
        return 0.999 * np.cos(angles) ** 2 + 0.001

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act), standard normal.

        "start" [*batch act]; "steps" [N *batch act], whose entry t belongs to step t.
        """
        return {"start": Normal(shape), "steps": Normal((self.num_steps, *shape))}


@declared
class DeterministicSampler(SamplerPart):
    """The action that the actor returns for an observation, as it is: the policy of TD3 (arXiv 1802.09477).

    It explores under `AdditiveNoise` only.

    Raises:
        UsageError: on a call, the actor returns something else.
    """

    actor_arguments = ("obs",)
    actor_example = "DeterministicActor"

    def check_output(self, output: Any) -> Array:
        """The actor's output, an action; refuses a pair."""
        if isinstance(output, tuple):
            raise UsageError(
                f"DeterministicSampler needs an actor that returns one action, such as DeterministicActor, got "
                f"{len(output)} arrays; for a mean and a log_std use TanhGaussianSampler"
            )
        return output

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}


@declared
class TanhGaussianSampler(SamplerPart):
    """tanh of a Gaussian action, the policy of SAC (Haarnoja et al. 2018, arXiv 1801.01290, appendix C, equation 21).

    The actor returns (mean, log_std). The log-probability contains the log-determinant of tanh, in the form that stays
    exact where tanh saturates: log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)). All noise is exploration: without it
    the action is tanh(mean).

    Args:
        epsilon: added to 1 - tanh(u)^2 inside the logarithm: 0 is exact, Stable-Baselines3 has 1e-6.

    Raises:
        UsageError: epsilon is negative, or (on a call) the actor returns something else.
    """

    actor_arguments = ("obs",)
    actor_example = "GaussianActor"

    epsilon: NotNegative = 0.0

    def check_output(self, output: Any) -> tuple[Array, Array]:
        """The actor's output, (mean, log_std); refuses anything else."""
        if not isinstance(output, tuple | list) or len(output) != 2:
            raise UsageError(
                "TanhGaussianSampler needs an actor that returns (mean, log_std), such as GaussianActor, got "
                f"{type(output).__name__}; for an action as it is use DeterministicSampler"
            )
        return tuple(output)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act): "exploration" [*batch act], standard normal."""
        return {EXPLORATION: Normal(shape)}


@declared
class BestOf(SamplerPart):
    """The best of several candidates by the value that the critics give them (SDAC, arXiv 2502.00361).

    Gradients flow through the chosen candidate, never through the choice. All that a rollout holds is the chosen one's.

    Args:
        sampler: draws the candidates.
        num_candidates: at least 1.
        ensemble: what counts as the value of a candidate: the "min" of the critics, their "mean", or the "first" one.

    Raises:
        UsageError: num_candidates is not positive, or (on a call) there is no critic.
    """

    sampler: Sampler
    num_candidates: Count = 32
    ensemble: Ensemble = "min"

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act): "candidates", the sampler's for [num_candidates *batch act]."""
        return {"candidates": self.sampler.noise_spec((self.num_candidates, *shape))}

    def check_critic(self, critic: Any) -> Any:
        """The critic that ranks the candidates; refuses None."""
        return check_present("BestOf", "a critic to rank its candidates", critic, "pass Policy(actor, critic)")


@declared
class AdditiveNoise(SamplerPart):
    """Adds exploration noise noise_scale * temperature * N(0, I) to a sampler's actions (DACER, arXiv 2405.15177).

    With `clip` the sum is clipped to [-1, 1]; where that changes it, no gradient flows. A rollout holds the states of
    the inner chain and, as `noise_free`, its action; the log-probability of the sum is not known.

    Args:
        sampler: draws the actions.
        noise_scale: standard deviation of the noise at temperature 1.
        clip: whether actions stay in [-1, 1]; the official SDAC code does not clip.
        noise_clip: bound of the noise itself, as in TD3's smoothing of targets (arXiv 1802.09477, section 5.3); None:
            none.

    Raises:
        UsageError: noise_scale is negative or noise_clip not positive, or (on a call) there is no temperature.
    """

    sampler: Sampler
    noise_scale: NotNegative = 0.1
    clip: bool = True
    noise_clip: Positive | None = None

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act): "inner", the sampler's; "exploration" [*batch act], normal."""
        return {"inner": self.sampler.noise_spec(shape), EXPLORATION: Normal(shape)}

    def check_temperature(self, temperature: Any) -> Any:
        """The temperature that scales the noise; refuses None."""
        what = "the temperature to scale its noise"
        return check_present("AdditiveNoise", what, temperature, "pass Policy(actor, critic, temperature)")


@declared
class LogProbability(SamplerPart):
    """Adds to a sampler's rollout the log-probability of its actions under the denoiser (MaxEntDP, arXiv 2502.11612).

    The integral of the denoiser's errors over the log-SNR, as a sum over the times:

        log pi(a) = -d/2 log(2 pi e) + sum_t w_t (s_t d - E |eps - eps_hat(alpha_t a + sigma_t eps)|^2)
        w_t = (s_{t-1} - s_t) / (2 s_t (1 - s_t)),    s_t = alpha_t^2 / (alpha_t^2 + sigma_t^2),    s_{-1} = 1

    where d is the number of action entries and E the mean over `num_noises` fresh noises. eps_hat is the noise that
    leads from the predicted action, clipped to [-1, 1], to the noisy one. s_t is alpha_bar_t; here any schedule may be
    used, since the errors depend on alpha / sigma alone. The paper's sum ends at its least time, where s is 0.9998,
    ours at no noise. No gradient flows through the log-probability: it is for the critic's target.

    The sum is not the integral: each interval counts with the errors of its noisier end. For a Gaussian, an exact
    denoiser and the published 20 times (`cosine_schedule(20, start=0.001, end=0.9946)`) it is too small by 0.03, 0.09,
    0.41 and 1.18 for each action entry at variances of 0.25, 0.09, 0.01 and 0.001: entropy is overstated, the more the
    narrower the policy is; the error falls with the distance of the times. What the inner sampler adds to the chain of
    the denoiser (a choice, exploration noise) is not in it, nor what clips do.

    Args:
        sampler: draws the actions, by a chain of the same denoiser.
        schedule: the times of the sum, which are those at which the denoiser is trained; that of the sampler.
        num_noises: at least 1; the denoiser is evaluated T num_noises times for each action, one time after another, so
            that memory holds one time.

    Raises:
        UsageError: num_noises is not positive, or the schedule has a time without signal.
    """

    sampler: Sampler
    schedule: Schedule = dataclasses.field(metadata=STATIC)
    num_noises: Count = 50

    def check(self) -> None:
        """As every part's, and that the sum is finite."""
        super().check()
        check_signal(self.schedule, "the log-probability would be infinite; use a schedule that keeps some signal")

    @property
    def signal_and_weight(self) -> tuple[np.ndarray, np.ndarray]:
        """s_t and w_t, [T] each."""
        table = tabulated(self.schedule)
        signal = table.alphas**2 / (table.alphas**2 + table.sigmas**2)
        return signal, (np.append(1.0, signal[:-1]) - signal) / (2 * signal * (1 - signal))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, act): "inner", the sampler's; "noises" [T num_noises *batch act]."""
        noises = Normal((self.schedule.num_steps, self.num_noises, *shape))
        return {"inner": self.sampler.noise_spec(shape), "noises": noises}


EXAMPLES[AdditiveNoise] = "AdditiveNoise(sampler)"
