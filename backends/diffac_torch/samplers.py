"""Samplers: from an actor network, observations and noise to actions. None of them draws a random number."""

import dataclasses
import math
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffac.arguments import check_arguments
from diffac.errors import check_present
from diffac.noise import EXPLORATION, Noise, NoiseSpec, Normal, Shape
from diffac.protocols import Critic, Rollout, Sampler
from diffac_torch.networks import _condition
from diffac_torch.schedules import TabularSchedule, _add_scaled

Scalar: TypeAlias = float | Float[Tensor, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class DDPMSampler:
    """Ancestral sampling of a diffusion policy (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

    The predicted clean action is clipped to [-1, 1] in every step, as in DACER and SDAC. The last step adds no noise,
    so the chain ends in the clipped prediction.

    Noise: "start" [*batch act] and "steps" [T-1 *batch act], both standard normal.

    Args:
        schedule: the T coefficients.
        start_scale: standard deviation of the first state; the official SDAC code uses 0.5, a standard normal is 1.
    """

    schedule: TabularSchedule
    start_scale: float = 1.0

    def __post_init__(self) -> None:
        check_arguments("DDPMSampler", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, action_dim)."""
        return {"start": Normal(shape), "steps": Normal((self.schedule.num_steps - 1, *shape))}

    def rollout(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Rollout:
        """Action and all T states of the chain; obs may have fewer batch axes than the noise."""
        states: list[Tensor] = []
        action = self._chain(actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))

    def __call__(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(actor, obs, noise)

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, states: list[Tensor] | None = None) -> Tensor:
        schedule = self.schedule
        cond = _condition(actor, obs, schedule.num_steps)
        noisy = self.start_scale * noise["start"]
        for t in range(schedule.num_steps - 1, 0, -1):
            if states is not None:
                states.append(noisy)
            action = schedule.predict_action(noisy, actor(cond, noisy, t), t).clamp(-1, 1)
            mean = schedule.posterior_mean(action, noisy, t)
            noisy = _add_scaled(mean, schedule.posterior_std(t), noise["steps"][t - 1])
        if states is not None:
            states.append(noisy)
        return schedule.predict_action(noisy, actor(cond, noisy, 0), 0).clamp(-1, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class DDIMSampler:
    """Deterministic sampling at some of the T times (Song et al. 2020, arXiv 2010.02502, equation 12 with eta = 0).

    The predicted clean action is clipped to [-1, 1], and the noise recomputed from the clipped action, so that the next
    state lies on the line between the two; the paper does not clip.

    Noise: "start" [*batch act], standard normal.

    Args:
        schedule: the T coefficients.
        start_scale: standard deviation of the first state.
        num_steps: number of evaluations, in 1..T, at times spread evenly over {0, ..., T-1}, of which T-1 is always
            one; None means T.

    Raises:
        UsageError: num_steps outside 1..T.
    """

    schedule: TabularSchedule
    start_scale: float = 1.0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        check_arguments("DDIMSampler", vars(self))

    @property
    def _times(self) -> list[int]:
        """The times at which the denoiser is evaluated, increasing."""
        last = self.schedule.num_steps - 1
        if self.num_steps == 1:
            return [last]
        return np.linspace(0, last, self.num_steps or last + 1).round().astype(int).tolist()

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, action_dim)."""
        return {"start": Normal(shape)}

    def rollout(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Rollout:
        """Action and the states at which the denoiser was evaluated, in the order of time."""
        states: list[Tensor] = []
        action = self._chain(actor, obs, noise, states)
        return Rollout(action, noisy=torch.stack(states[::-1]))

    def __call__(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        return self._chain(actor, obs, noise)

    def _chain(self, actor: Any, obs: Tensor, noise: Noise, states: list[Tensor] | None = None) -> Tensor:
        schedule = self.schedule
        cond = _condition(actor, obs, schedule.num_steps)
        noisy = self.start_scale * noise["start"]
        *earlier, t = self._times
        while True:
            if states is not None:
                states.append(noisy)
            action = schedule.predict_action(noisy, actor(cond, noisy, t), t).clamp(-1, 1)
            if not earlier:
                return action
            eps = _add_scaled(noisy, -schedule.alpha(t), action) / schedule.sigma(t)
            t = earlier.pop()
            noisy = schedule.add_noise(action, eps, t)


@dataclasses.dataclass(frozen=True, eq=False)
class TanhGaussianSampler:
    """tanh of a Gaussian action, the policy of SAC (Haarnoja et al. 2018, arXiv 1801.01290, appendix C, equation 21).

    The actor returns (mean, log_std). The log-probability contains the log-determinant of tanh, in the form that stays
    exact where tanh saturates.

    Noise: "exploration" [*batch act], standard normal; without it the action is tanh(mean).

    Args:
        epsilon: added to 1 - tanh(u)^2 inside the logarithm: 0 is exact, Stable-Baselines3 has 1e-6.

    Raises:
        UsageError: epsilon is negative.
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        check_arguments("TanhGaussianSampler", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, action_dim)."""
        return {EXPLORATION: Normal(shape)}

    def rollout(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Rollout:
        """Action and its log-probability [*batch]."""
        mean, log_std = actor(obs)
        eps = noise[EXPLORATION]
        u = mean + log_std.exp() * eps
        log_normal = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u, threshold=40))  # as exact as float64
        if self.epsilon > 0:
            log_slope = torch.log(1 - u.tanh().square() + self.epsilon)
        return Rollout(u.tanh(), log_prob=(log_normal - log_slope).sum(-1))

    def __call__(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Float[Tensor, "*#batch act"]:
        """The action alone, [*batch act] in [-1, 1]."""
        mean, log_std = actor(obs)
        return torch.tanh(mean + log_std.exp() * noise[EXPLORATION])


@dataclasses.dataclass(frozen=True, eq=False)
class BestOf:
    """The best of several candidates by the smallest value of the critic's ensemble (SDAC, arXiv 2502.00361).

    No gradient flows through the scores.

    Noise: "candidates", that of the inner sampler for [num_candidates *batch act].

    Args:
        sampler: draws the candidates.
        num_candidates: at least 1.

    Raises:
        UsageError: num_candidates is not positive, or (on a call) there is no critic.
    """

    sampler: Sampler
    num_candidates: int = 32

    def __post_init__(self) -> None:
        check_arguments("BestOf", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, action_dim)."""
        return {"candidates": self.sampler.noise_spec((self.num_candidates, *shape))}

    def rollout(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Rollout:
        """Action, states and log-probability of the chosen candidate."""
        candidates = self.sampler.rollout(actor, obs, noise["candidates"], critic=critic, temperature=temperature)
        best = self._best(critic, obs, candidates.action)
        _, noisy, log_prob, noise_free = candidates
        return Rollout(
            torch.take_along_dim(candidates.action, best.unsqueeze(-1), 0).squeeze(0),
            None if noisy is None else torch.take_along_dim(noisy, best[None, ..., None], 1).squeeze(1),
            None if log_prob is None else torch.take_along_dim(log_prob, best, 0).squeeze(0),
            None if noise_free is None else torch.take_along_dim(noise_free, best.unsqueeze(-1), 0).squeeze(0),
        )

    def __call__(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Float[Tensor, "*#batch act"]:
        """The chosen action alone, [*batch act] in [-1, 1]."""
        actions = self.sampler(actor, obs, noise["candidates"], critic=critic, temperature=temperature)
        best = self._best(critic, obs, actions).unsqueeze(-1)
        return actions.gather(0, best.expand(1, *actions.shape[1:])).squeeze(0)  # take_along_dim cannot be exported

    @torch.no_grad()
    def _best(self, critic: Any, obs: Tensor, actions: Tensor) -> Tensor:
        """Index of the best candidate, [1 *batch]."""
        check_present("BestOf", "a critic to rank its candidates", critic, "pass critic=...")
        return critic(obs, actions).amin(0).argmax(0, keepdim=True)


@dataclasses.dataclass(frozen=True, eq=False)
class AdditiveNoise:
    """Adds exploration noise noise_scale * temperature * N(0, I) to a sampler's actions (DACER, arXiv 2405.15177).

    With `clip` the sum is clipped to [-1, 1], where it is active it stops the gradient. The states of the inner chain
    are passed on unchanged; the log-probability of the sum is not known.

    Noise: "inner", that of the inner sampler, and "exploration" [*batch act], standard normal.

    Args:
        sampler: draws the actions.
        noise_scale: standard deviation of the noise at temperature 1.
        clip: whether actions stay in [-1, 1]; the official SDAC code does not clip.

    Raises:
        UsageError: noise_scale is negative, or (on a call) there is no temperature.
    """

    sampler: Sampler
    noise_scale: float = 0.1
    clip: bool = True

    def __post_init__(self) -> None:
        check_arguments("AdditiveNoise", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for actions of shape (*batch, action_dim)."""
        return {"inner": self.sampler.noise_spec(shape), EXPLORATION: Normal(shape)}

    def rollout(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Rollout:
        """Noisy action, with the states and the action of the noise-free chain."""
        inner = self.sampler.rollout(actor, obs, noise["inner"], critic=critic, temperature=temperature)
        noise_free = inner.action if inner.noise_free is None else inner.noise_free
        return Rollout(self.explore(inner.action, noise, temperature), inner.noisy, noise_free=noise_free)

    def noise_entropy(self, temperature: Tensor, action_dim: int) -> Tensor:
        """Entropy in nats of the added noise alone, before any clip: d/2 log(2 pi e (noise_scale temperature)^2)."""
        variance = (self.noise_scale * temperature) ** 2
        return 0.5 * action_dim * torch.log(2 * math.pi * math.e * variance)

    def __call__(
        self,
        actor: Any,
        obs: Float[Tensor, "*#batch obs"],
        noise: Noise,
        *,
        critic: Critic | None = None,
        temperature: Scalar | None = None,
    ) -> Float[Tensor, "*#batch act"]:
        """The noisy action alone, [*batch act]."""
        action = self.sampler(actor, obs, noise["inner"], critic=critic, temperature=temperature)
        return self.explore(action, noise, temperature)

    def explore(self, action: Tensor, noise: Noise, temperature: Scalar | None) -> Tensor:
        """Actions of the inner sampler with the noise."""
        what = "the temperature to scale its noise"
        scale = self.noise_scale * check_present("AdditiveNoise", what, temperature, "pass temperature=...")
        action = action + scale * noise[EXPLORATION]
        return action.clamp(-1, 1) if self.clip else action
