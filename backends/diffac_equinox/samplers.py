"""Samplers: an actor network, observations and noise give actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffac.arguments import check_arguments
from diffac.errors import check_present
from diffac.noise import EXPLORATION, Noise, NoiseSpec, Normal, Shape
from diffac.protocols import Array, Critic, Rollout, Sampler
from diffac_equinox.networks import _clip
from diffac_equinox.schedules import TabularSchedule

_LONGEST_UNROLLED = 8
"""Chains up to this length are unrolled, which saves the loop's overhead; longer ones are scanned, to compile fast."""


def _condition(actor: Any, obs: Array, num_steps: int) -> Any:
    """What stands for `obs` along a chain: the share that does not change, where the actor offers one."""
    return actor.condition(obs, num_steps) if hasattr(actor, "condition") else obs


def _run_backwards(
    step: Callable[[Any, tuple[Array | int, Any]], tuple[Any, Array]],
    start: Any,
    times: Sequence[int],
    inputs: Any = None,
) -> tuple[Any, Array]:
    """Carries `start` through step(carry, (t, inputs of t)) from the last of `times` to the first.

    Returns:
        The last carry, and the second results of `step`, stacked in the order of `times`.
    """
    if not 0 < len(times) <= _LONGEST_UNROLLED:
        return jax.lax.scan(step, start, (np.asarray(times, np.int32), inputs), reverse=True)
    carry, outputs = start, []
    for i in reversed(range(len(times))):
        carry, output = step(carry, (times[i], None if inputs is None else inputs[i]))
        outputs.append(output)
    return carry, jnp.stack(outputs[::-1])


class DDPMSampler(eqx.Module):
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2) with predicted actions clipped to [-1, 1].

    The last step adds no noise, so the chain ends in the clipped prediction at t = 0, as in the official DACER and SDAC
    code. `rollout.noisy` is [T *batch action_dim].

    Args:
        schedule: the schedule, T steps.
        start_scale: standard deviation of the start of the chain; 1 is exact, the official SDAC code has 0.5.

    Raises:
        UsageError: start_scale is negative.
    """

    schedule: TabularSchedule
    start_scale: float = 1.0

    def __check_init__(self) -> None:
        check_arguments("DDPMSampler", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "start" [*shape]; "steps" [T-1 *shape], whose entry t-1 belongs to the step from t to t-1."""
        return {"start": Normal(shape), "steps": Normal((self.schedule.num_steps - 1, *shape))}

    def rollout(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Rollout:
        """Runs the whole chain; obs may have fewer batch axes than the noise."""
        num_steps = self.schedule.num_steps
        condition = _condition(actor, obs, num_steps)

        def predict(noisy: Array, t: Array | int) -> Array:
            return _clip(self.schedule.predict_action(noisy, actor(condition, noisy, t), t))

        def step(noisy: Array, t_and_noise: tuple[Array | int, Array]) -> tuple[Array, Array]:
            t, eps = t_and_noise
            mean = self.schedule.posterior_mean(predict(noisy, t), noisy, t)
            return mean + jnp.asarray(self.schedule.posterior_std(t), eps.dtype) * eps, noisy

        noisy, later = _run_backwards(step, self.start_scale * noise["start"], range(1, num_steps), noise["steps"])
        return Rollout(predict(noisy, 0), jnp.concatenate([noisy[None], later]))

    def __call__(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Array:
        """The action of `rollout`; in a compiled program the states on the way are not kept."""
        return self.rollout(actor, obs, noise).action


class DDIMSampler(eqx.Module):
    """Deterministic sampling (Song et al. 2021, arXiv 2010.02502, equation 12 with eta = 0).

    Predicted actions are clipped to [-1, 1], and the noise is recomputed from the clipped action, so that both always
    explain the current state. `rollout.noisy` is [num_steps *batch action_dim], in the order of increasing t.

    Args:
        schedule: the schedule, T steps.
        start_scale: standard deviation of the start of the chain.
        num_steps: evaluations of the denoiser, at times spread evenly over {0, ..., T-1} including both ends (for one
            step: T-1); None: all T.

    Raises:
        UsageError: num_steps is not in {1, ..., T}, or start_scale is negative.
    """

    schedule: TabularSchedule
    start_scale: float = 1.0
    num_steps: int | None = None

    def __check_init__(self) -> None:
        check_arguments("DDIMSampler", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "start" [*shape]."""
        return {"start": Normal(shape)}

    def rollout(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Rollout:
        """Runs the whole chain; obs may have fewer batch axes than the noise."""
        schedule, last = self.schedule, self.schedule.num_steps - 1
        condition = _condition(actor, obs, schedule.num_steps)
        number = self.num_steps or schedule.num_steps
        *earlier, first = np.linspace(0 if number > 1 else last, last, number).round().astype(int).tolist()

        def predict(noisy: Array, t: Array | int) -> tuple[Array, Array]:
            action = _clip(schedule.predict_action(noisy, actor(condition, noisy, t), t))
            alpha, sigma = (jnp.asarray(x, noisy.dtype) for x in (schedule.alpha(t), schedule.sigma(t)))
            return action, (noisy - alpha * action) / sigma

        def step(action_and_eps: tuple[Array, Array], t_and_nothing: tuple[Array | int, None]) -> tuple[Any, Array]:
            t, _ = t_and_nothing
            noisy = schedule.add_noise(*action_and_eps, t)
            return predict(noisy, t), noisy

        start = self.start_scale * noise["start"]
        (action, _), later = _run_backwards(step, predict(start, first), earlier)
        return Rollout(action, jnp.concatenate([later, start[None]]))

    def __call__(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Array:
        """The action of `rollout`; in a compiled program the states on the way are not kept."""
        return self.rollout(actor, obs, noise).action


class TanhGaussianSampler(eqx.Module):
    """tanh of a Gaussian, with the exact log-probability (SAC, Haarnoja et al. 2018, arXiv 1812.05905, appendix C).

    The actor returns (mean, log_std). log(1 - tanh(u)^2) is computed as 2 (log 2 - u - softplus(-2u)), which is
    accurate for every u. All noise is exploration: without it the action is tanh(mean).

    Args:
        epsilon: added to 1 - tanh(u)^2 inside the logarithm: 0 is exact, Stable-Baselines3 has 1e-6.

    Raises:
        UsageError: epsilon is negative.
    """

    epsilon: float = 0.0

    def __check_init__(self) -> None:
        check_arguments("TanhGaussianSampler", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "exploration" [*shape]."""
        return {EXPLORATION: Normal(shape)}

    def rollout(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Rollout:
        """Action and its log-probability."""
        mean, log_std = actor(obs)
        eps = noise[EXPLORATION]
        u = mean + jnp.exp(log_std) * eps
        log_density = -0.5 * eps**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
        if self.epsilon > 0:
            log_slope = jnp.log(1 - jnp.tanh(u) ** 2 + self.epsilon)
        return Rollout(jnp.tanh(u), log_prob=(log_density - log_slope).sum(-1))

    def __call__(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Array:
        """The action of `rollout`."""
        return self.rollout(actor, obs, noise).action


class BestOf(eqx.Module):
    """The best of several candidates by the smallest value of the critic's ensemble (SDAC, arXiv 2502.00361).

    Gradients flow through the chosen candidate, never through the choice. `noisy` and `log_prob` are the chosen one's.

    Args:
        sampler: draws the candidates.
        num_candidates: how many, for each state.

    Raises:
        UsageError: num_candidates is not positive; on a call: there is no critic.
    """

    sampler: Sampler
    num_candidates: int = 32

    def __check_init__(self) -> None:
        check_arguments("BestOf", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "candidates": the sampler's noise for actions [num_candidates *shape]."""
        return {"candidates": self.sampler.noise_spec((self.num_candidates, *shape))}

    def rollout(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Rollout:
        """The rollout of the best candidate of each state."""
        ranked: Any = check_present("BestOf", "a critic to rank its candidates", critic, "pass critic=...")
        action, noisy, log_prob, noise_free = self.sampler.rollout(
            actor, obs, noise["candidates"], critic=critic, temperature=temperature
        )
        best = ranked(obs, jax.lax.stop_gradient(action)).min(0).argmax(0)

        def choose(candidates: Array | None, axis: int) -> Array | None:
            if candidates is None:
                return None
            index = best.reshape(best.shape + (1,) * (candidates.ndim - axis - 1 - best.ndim))
            index = jnp.expand_dims(index, tuple(range(axis + 1)))
            return jnp.take_along_axis(candidates, index, axis).squeeze(axis)

        return Rollout(choose(action, 0), choose(noisy, 1), choose(log_prob, 0), choose(noise_free, 0))

    def __call__(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Array:
        """The action of `rollout`; in a compiled program nothing else is kept."""
        return self.rollout(actor, obs, noise, critic=critic, temperature=temperature).action


class AdditiveNoise(eqx.Module):
    """Adds noise_scale * temperature * N(0, I) to another sampler's action (DACER, arXiv 2405.15177).

    `noisy` is the inner sampler's, `noise_free` its action; the log-probability is not known.

    Args:
        sampler: the inner sampler.
        noise_scale: standard deviation of the noise at temperature 1.
        clip: whether the sum is clipped to [-1, 1]; the official SDAC code does not clip.

    Raises:
        UsageError: noise_scale is negative; on a call: there is no temperature.
    """

    sampler: Sampler
    noise_scale: float = 0.1
    clip: bool = True

    def __check_init__(self) -> None:
        check_arguments("AdditiveNoise", vars(self))

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Entry "inner": the inner sampler's; "exploration" [*shape]."""
        return {"inner": self.sampler.noise_spec(shape), EXPLORATION: Normal(shape)}

    def rollout(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Rollout:
        """The inner rollout with the noise on its action."""
        inner = self.sampler.rollout(actor, obs, noise["inner"], critic=critic, temperature=temperature)
        noise_free = inner.action if inner.noise_free is None else inner.noise_free
        return Rollout(self.explore(inner.action, noise, temperature), inner.noisy, noise_free=noise_free)

    def explore(self, action: Array, noise: Noise, temperature: Array | None) -> Array:
        """Actions of the inner sampler with the noise."""
        what = "the temperature to scale its noise"
        scale = self.noise_scale * check_present("AdditiveNoise", what, temperature, "pass temperature=...")
        action = action + scale * noise[EXPLORATION]
        return _clip(action) if self.clip else action

    def noise_entropy(self, temperature: Array, action_dim: int) -> Array:
        """Entropy in nats of the added noise alone, before any clip: d/2 log(2 pi e (noise_scale temperature)^2)."""
        variance = (self.noise_scale * temperature) ** 2
        return 0.5 * action_dim * jnp.log(2 * math.pi * math.e * variance)

    def __call__(
        self, actor: Any, obs: Array, noise: Noise, *, critic: Critic | None = None, temperature: Array | None = None
    ) -> Array:
        """The action of `rollout`; in a compiled program nothing else is kept."""
        return self.rollout(actor, obs, noise, critic=critic, temperature=temperature).action
