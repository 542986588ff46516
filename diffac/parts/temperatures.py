"""Temperatures: the entropy coefficient as a small state, and the rules that adapt it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffac.errors import UsageError
from diffac.noise import Noise, NoiseSpec, Shape
from diffac.parts.arguments import Argument, count, number
from diffac.parts.declaration import Count, Part, Positive, Real, Whole, declared
from diffac.parts.samplers import AdditiveNoise
from diffac.protocols import Array, Metrics, Policy, Sampler, State

__all__ = ["FixedTemperature", "MixtureEntropyTemperature", "NoiseEntropyTemperature", "TargetEntropyTemperature"]


class TemperaturePart(Part):
    """A `Temperature`, which a backend computes."""

    def value(self, state: State) -> Array:
        """The temperature, a positive scalar."""
        raise NotImplementedError

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step of the rule, as `Temperature` says."""
        raise NotImplementedError


@declared
class FixedTemperature(TemperaturePart):
    """A constant temperature.

    State: "log_temperature", 0-d.

    Args:
        temperature: positive.

    Raises:
        UsageError: temperature is not positive.
    """

    temperature: Positive = 1.0

    @property
    def interval(self) -> int:
        """0: never updated."""
        return 0

    def init_state(self) -> State:
        """The logarithm of the temperature."""
        return {"log_temperature": np.asarray(math.log(self.temperature))}

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}


@declared
class NoiseEntropyTemperature(TemperaturePart):
    """Adapts the temperature to the entropy of the exploration noise alone (official SDAC code, arXiv 2502.00361).

    H = d/2 log(2 pi e (noise_scale temperature)^2) does not depend on the policy, so this is a fixed annealing from
    `initial` to the temperature at which H is the target: one Adam step on log temperature with gradient H - target.
    It cannot see a policy that has collapsed, so the policy's entropy is estimated beside it, from few states.

    State: "log_temperature" and its Adam moments "m", "v", "count", each 0-d. Metrics: noise_entropy, H;
    policy_entropy, `mixture_entropy` of the sampler's actions, and noise_free_entropy, that of the actions before the
    noise. The policy has collapsed where the first two are equal.

    Args:
        action_dim: d.
        sampler: the acting policy, with its exploration noise.
        initial: temperature at the start.
        target_entropy_per_dim: the target divided by d.
        interval: updates of the learner between two steps, of which the first is in update 0; 0: never.
        learning_rate: of Adam, on the logarithm of the temperature.
        num_states: of the batch, at most, on which the policy's entropy is estimated.
        num_samples: actions for each of them.

    Raises:
        UsageError: a number is out of range, or the sampler adds no noise.
    """

    action_dim: Count
    sampler: AdditiveNoise
    initial: Positive = 5.0
    target_entropy_per_dim: Real = -0.9
    interval: Whole = 250
    learning_rate: Positive = 7e-3
    num_states: Count = 16
    num_samples: Count = 128

    def check(self) -> None:
        """As in `Part`; also that the sampler adds noise."""
        super().check()
        if not getattr(self.sampler, "noise_scale", 0) > 0:
            raise UsageError(
                "NoiseEntropyTemperature needs an AdditiveNoise with noise_scale above 0, got "
                f"{type(self.sampler).__name__}"
            )

    def init_state(self) -> State:
        """The logarithm of `initial`, and zero moments."""
        return _adam_state(self.initial)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "samples", the sampler's for [num_samples states act]."""
        return _samples_spec(self.sampler, self.num_samples, self.num_states, shape)


@declared
class MixtureEntropyTemperature(TemperaturePart):
    """Adapts the temperature to the policy's entropy, by a Gaussian mixture for each state (DACER, arXiv 2405.15177).

    The paper fits with scikit-learn on the host every 10,000 of its 1.5 million updates; `mixture_entropy` fits all
    states at once on the device. With far fewer updates choose a smaller interval, else the temperature never anneals.
    One Adam step on log temperature with gradient H - target, where H is the mean over states.

    State: "log_temperature" and its Adam moments "m", "v", "count", each 0-d. Metrics: policy_entropy, H; if the
    sampler is an `AdditiveNoise` that adds any, noise_entropy, that of the noise alone, and noise_free_entropy, that of
    the actions before the noise. The policy has collapsed where the first two are equal.

    Args:
        sampler: the acting policy, with its exploration noise.
        initial: temperature at the start.
        target_entropy_per_dim: entropy aimed at, divided by the number of action entries.
        interval: updates of the learner between two steps of this rule, of which the first is in update 0; 0: never.
        learning_rate: of Adam, on the logarithm of the temperature.
        num_states: of the batch, at most, over which H is averaged; the paper takes all 256, at four times the cost.
        num_samples: actions for each of them.
        num_components: as in `mixture_entropy`.
        num_iterations: as in `mixture_entropy`.

    Raises:
        UsageError: a number is out of range, or the sampler's actions are not random.
    """

    sampler: Sampler
    initial: Positive = 3.0
    target_entropy_per_dim: Real = -0.9
    interval: Whole = 10_000
    learning_rate: Positive = 0.03
    num_states: Count = 64
    num_samples: Count = 200
    num_components: Count = 3
    num_iterations: Count = 100

    def check(self) -> None:
        """As in `Part`; also that there is an entropy."""
        super().check()
        if not self.sampler.noise_spec((1, 1)):
            raise UsageError(
                f"MixtureEntropyTemperature needs a sampler whose actions are random: {type(self.sampler).__name__} "
                f"needs no noise, so its entropy is -inf; use AdditiveNoise({type(self.sampler).__name__}(...))"
            )

    def init_state(self) -> State:
        """The logarithm of `initial`, and zero moments."""
        return _adam_state(self.initial)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """Noise for a batch of actions of that shape: "samples", the sampler's for [num_samples states act]."""
        return _samples_spec(self.sampler, self.num_samples, self.num_states, shape)


@declared
class TargetEntropyTemperature(TemperaturePart):
    """Adapts the temperature to the entropy of a policy with known log-probability (SAC, arXiv 1812.05905, section 5).

    The paper descends the temperature itself; like the common codes we descend its logarithm, by one Adam step with
    gradient H - target, H = -mean log pi: the paper's gradient divided by the temperature. The log-probabilities are
    those of the actor's loss in the same update (algorithm 1).

    State: "log_temperature" and its Adam moments "m", "v", "count", each 0-d. Metrics: policy_entropy, H.

    Args:
        action_dim: number of action entries.
        initial: temperature at the start.
        target_entropy_per_dim: entropy aimed at, divided by action_dim.
        interval: updates of the learner between two steps of this rule, of which the first is in update 0; 0: never.
        learning_rate: of Adam, on the logarithm of the temperature.

    Raises:
        UsageError: a number is out of range, or (on an update) the actor's loss has no log-probabilities.
    """

    action_dim: Count
    initial: Positive = 1.0
    target_entropy_per_dim: Real = -1.0
    interval: Whole = 1
    learning_rate: Positive = 3e-4

    def init_state(self) -> State:
        """The logarithm of `initial`, and zero moments."""
        return _adam_state(self.initial)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """No noise."""
        return {}

    def check_log_prob(self, log_prob: Any) -> Any:
        """The log-probabilities of the actor's loss; refuses None."""
        if log_prob is None:
            raise UsageError(
                "TargetEntropyTemperature steps on the log-probabilities of the actor's loss, and there are none; use "
                "an actor objective that knows them, such as EntropyRegularisedValue, and an interval that is a "
                "multiple of the learner's actor_delay"
            )
        return log_prob


def _samples_spec(sampler: Sampler, num_samples: int, num_states: int, shape: Shape) -> NoiseSpec:
    """Noise for num_samples actions at each of the first num_states states of a batch of actions of that shape."""
    batch, action_dim = shape
    return {"samples": sampler.noise_spec((num_samples, min(num_states, batch), action_dim))}


def _adam_state(temperature: float) -> State:
    zeros = {name: np.zeros(()) for name in ("m", "v", "count")}
    return {"log_temperature": np.asarray(math.log(temperature)), **zeros}


MIXTURE_ARGUMENTS: dict[str, Argument] = {
    "samples": Argument(lambda name, value: None),
    "num_components": count(3),
    "num_iterations": count(100),
    "covariance_floor": number("[0, inf)", 1e-6),
}
"""Of the backends' function `mixture_entropy`."""


def check_mixture(num_components: Any, num_iterations: Any, covariance_floor: Any) -> None:
    """Refuses arguments of `mixture_entropy` that make no sense."""
    given = {"num_components": num_components, "num_iterations": num_iterations, "covariance_floor": covariance_floor}
    for name, value in given.items():
        MIXTURE_ARGUMENTS[name].check(name, value)
