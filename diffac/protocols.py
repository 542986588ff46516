"""The contracts between the parts. Everything else in diffac is a leaf that satisfies one of them.

Conventions, the same in every backend:

* Leading axes are batch axes and broadcast: `obs [batch obs_dim]` beside `action [particles batch action_dim]` is fine.
* Actions live in [-1, 1]; the environment wrapper rescales them.
* Times t are integers in {0, ..., T-1}; noise grows with t.
* A component draws no random number: it states its noise (`noise_spec`) and receives it (`noise`). The `shape` that a
  `noise_spec` is given is always the shape of the actions concerned, `(*batch, action_dim)`.
* The first argument of an objective is the only thing that is differentiated.
* A *state* is a flat mapping from names to arrays, `{}` for a part that has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from typing_extensions import TypeIs, get_protocol_members

from diffac.noise import Noise, NoiseSpec, Shape

_T = TypeVar("_T")

Array: TypeAlias = Any
"""An array of the backend at hand: numpy.ndarray, torch.Tensor or jax.Array."""
State: TypeAlias = Mapping[str, Array]
REPLAY_NUMBER = "replay_number"
"""Reserved name of an array [rows] in a state: for each row of others beside it the `Batch.number` of the transition
that it belongs to, -1 for none. They are all -1 again where another replay memory begins to count."""
Metrics: TypeAlias = Mapping[str, Array]


class Transition(NamedTuple):
    """A step of environments, as a replay memory stores it."""

    obs: Array
    """[*batch obs_dim]"""
    action: Array
    """[*batch action_dim], in [-1, 1]."""
    reward: Array
    """[*batch], as the environment gave it."""
    next_obs: Array
    """[*batch obs_dim], the observation after the action, never the first one of the next episode."""
    terminated: Array
    """[*batch] of bool: the episode ended in a state without future. A time limit is not one."""
    first: Array
    """[*batch] of bool: the episode began with this step, so what an environment did before does not lead here."""


class Rollout(NamedTuple):
    """One run of a sampler."""

    action: Array
    """[*batch action_dim]"""
    noisy: Array | None = None
    """[T *batch action_dim] for a diffusion sampler: entry t is where the denoiser was evaluated at time t."""
    log_prob: Array | None = None
    """[*batch], log-probability of `action` where the sampler knows it, or what bounds its mean from above."""
    noise_free: Array | None = None
    """[*batch action_dim], the action before exploration noise; None where `action` has none."""


class Batch(NamedTuple):
    """What a learner and its objectives see of transitions, or of several steps in a row."""

    obs: Array
    """[*batch obs_dim]"""
    action: Array
    """[*batch action_dim], in [-1, 1]."""
    reward: Array
    """[*batch]; of m steps in a row the discounted sum. The learner scales it, once."""
    next_obs: Array
    """[*batch obs_dim], the observation after the last of these steps."""
    discount: Array
    """[*batch], the factor of the value of next_obs: gamma^m, or 0 where the episode ended there without future."""
    weight: Array | None = None
    """[*batch], of the transition in the critic's loss, 1 on average; None: all alike."""
    number: Array | None = None
    """[*batch] of integers, not negative: which transition of the training it is, counted from 0 in the order in which
    they came; of several steps in a row the first one. None: unknown."""
    next_rollout: Rollout | None = None
    """Of the target policy at next_obs. The learner fills it in before it calls an objective."""


class RowUpdate(NamedTuple):
    """In a new state, in place of an array: the array of the state before, with some rows replaced.

    The learner writes them into that array, where it lies: for arrays that are too large to be copied in every update.
    """

    rows: Array
    """[n] of integers; those that are equal must have equal values."""
    values: Array
    """[n ...], what the rows become."""


class Loss(NamedTuple):
    """What an objective returns."""

    value: Array
    """Scalar to be minimised."""
    metrics: Metrics
    """Scalars worth logging."""
    state: State
    """The objective's state after this batch; it replaces the one passed in. An entry may be a `RowUpdate`."""
    log_prob: Array | None = None
    """[*batch], log-probabilities of the actions that an actor's loss looked at, where it knows them; no gradient."""


@runtime_checkable
class NoiseSchedule(Protocol):
    """A forward diffusion process with T discrete times: noisy = alpha(t) action + sigma(t) eps.

    That is all that diffac needs to know of one. Each part that is given a schedule asks it once, for every time, with
    Python's integers; noising, reverse kernels and scores follow (`diffac.TabularSchedule`). The ratio sigma / alpha
    must not fall from a time to the next; alpha = 1 - s, sigma = s is a flow, alpha = 1 an exploding variance.
    """

    @property
    def num_steps(self) -> int:
        """T, at least 1."""
        ...

    def alpha(self, t: int) -> float:
        """Signal left at time t in {0, ..., T-1}; at least 0."""
        ...

    def sigma(self, t: int) -> float:
        """Standard deviation of the noise at time t; greater than 0."""
        ...


Prediction: TypeAlias = Literal["eps", "velocity", "action"]
"""What a denoiser predicts of a = action and eps = noise in noisy = alpha a + sigma eps; velocity is eps - a."""


@runtime_checkable
class Denoiser(Protocol):
    """Predicts what a noisy action consists of; any network that is called this way can be a diffusion policy's actor.

    It predicts the noise, unless its attribute `prediction` says otherwise (see `Prediction`).
    """

    def __call__(self, obs: Array, noisy: Array, t: Array | int) -> Array:
        """
        Args:
            obs: [*batch obs_dim], or what `condition` returned.
            noisy: [*batch action_dim]
            t: integer, or [*batch] of integers.

        Returns:
            The prediction, [*batch action_dim] with all batch axes broadcast.
        """
        ...


@runtime_checkable
class ConditionalDenoiser(Denoiser, Protocol):
    """A denoiser with a share that depends on the observation alone; samplers compute that share once per chain."""

    def condition(self, obs: Array, num_steps: int) -> Any:
        """Something that may be passed to `__call__` in place of `obs` for all t < num_steps, with the same result."""
        ...


@runtime_checkable
class MeanVelocity(Protocol):
    """Predicts the mean velocity of a flow between two times, with which one step leads from noise to an action.

    Along the paths x of a flow, alpha = 1 - s and sigma = s, u(obs, x_t, t, r) = (x_t - x_r) / (t - r); for r = t it is
    the velocity itself. It is an actor of `MeanFlowSampler` and `MeanFlowMatching`, and no `Denoiser`.
    """

    def __call__(self, obs: Array, noisy: Array, t: Array | float, r: Array | float) -> Array:
        """
        Args:
            obs: [*batch obs_dim]
            noisy: [*batch action_dim], at time t.
            t: a number in [0, 1], or [*batch] of such. The output must be differentiable in it and in noisy.
            r: likewise, at most t.

        Returns:
            The mean velocity [*batch action_dim] with all batch axes broadcast.
        """
        ...


@runtime_checkable
class LangevinDrift(Protocol):
    """The learned drift of a Langevin diffusion, with its step size: an actor of `LangevinSampler`, and no `Denoiser`.

    What tells it from one is its attribute `prediction`, which is "drift".
    """

    @property
    def prediction(self) -> Literal["drift"]:
        """Says how others read its output."""
        ...

    def __call__(self, obs: Array, noisy: Array, t: Array | int) -> Array:
        """
        Args:
            obs: [*batch obs_dim], or what its method `condition` returned, if it has one as a `ConditionalDenoiser`.
            noisy: [*batch action_dim], the state from which a step is taken.
            t: integer, or [*batch] of integers: how many steps follow this one.

        Returns:
            The drift beside that of the prior, [*batch action_dim] with all batch axes broadcast.
        """
        ...

    def step_size(self) -> Array:
        """The longest step for each action entry, [action_dim]; positive."""
        ...


@runtime_checkable
class Critic(Protocol):
    """An ensemble of state-action values."""

    def __call__(self, obs: Array, action: Array) -> Array:
        """Values [ensemble *batch] of obs [*batch obs_dim] and action [*batch action_dim] (batch axes broadcast).

        For a distributional critic these are the means.
        """
        ...


@runtime_checkable
class DistributionalCritic(Critic, Protocol):
    """A critic that knows a Gaussian of returns."""

    def distribution(self, obs: Array, action: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, each [ensemble *batch]; the standard deviation is positive."""
        ...


@runtime_checkable
class HistogramCritic(Critic, Protocol):
    """A critic that knows probabilities of returns on atoms, equally spaced from v_min to v_max."""

    @property
    def v_min(self) -> float:
        """The smallest atom."""
        ...

    @property
    def v_max(self) -> float:
        """The largest."""
        ...

    def logits(self, obs: Array, action: Array) -> Array:
        """Unnormalised log-probabilities [ensemble *batch atoms]; the values are the means."""
        ...


class Policy(NamedTuple):
    """What a sampler acts with."""

    actor: Any
    """The network, a `Denoiser` for diffusion samplers."""
    critic: Any = None
    """A `Critic`, which ranks candidates (`BestOf`), or None."""
    temperature: Any = None
    """Scalar or None; scales exploration noise (`AdditiveNoise`)."""


@runtime_checkable
class Sampler(Protocol):
    """Turns a policy, observations and noise into actions."""

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise needed for actions of shape (*batch, action_dim)."""
        ...

    def rollout(self, policy: Policy, obs: Array, noise: Noise) -> Rollout:
        """Samples actions and keeps what came up on the way. Differentiable in the actor's parameters.

        Args:
            policy: the networks; a sampler that needs no critic or temperature works without.
            obs: [*batch obs_dim]
            noise: as `noise_spec` says.
        """
        ...

    def __call__(self, policy: Policy, obs: Array, noise: Noise) -> Array:
        """The action of `rollout` alone, [*batch action_dim], in [-1, 1]; keeps nothing else in memory."""
        ...


@runtime_checkable
class ActorObjective(Protocol):
    """A loss of the actor."""

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise needed for a batch whose actions have shape (batch, action_dim)."""
        ...

    def init_state(self) -> State:
        """The state before the first batch, as NumPy arrays; `{}` for an objective without one."""
        ...

    def __call__(
        self, actor: Any, critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch; only `actor` is differentiated.

        Args:
            actor: the network.
            critic: the online critic.
            batch: arrays with one batch axis; `next_rollout` is filled in.
            noise: as `noise_spec` says.
            temperature: scalar.
            state: as returned by the previous call, or `init_state()` for the first one.
        """
        ...


@runtime_checkable
class RolloutObjective(ActorObjective, Protocol):
    """An actor objective that looks at a rollout of the current policy on `batch.obs`.

    Its noise has an entry "rollout". A `Sum` that is given the sampler runs the rollout once for all of its terms and
    passes it on; the noise entry "rollout" is then not read.
    """

    @property
    def rollout_sampler(self) -> Sampler | None:
        """The sampler of the rollout; None if this configuration of the objective needs none."""
        ...

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
        """As `ActorObjective`, with the rollout where somebody has run it already."""
        ...


@runtime_checkable
class TrackingObjective(ActorObjective, Protocol):
    """An actor objective whose state moves in every update, also in those in which the actor does not."""

    def track(self, critic: Critic, batch: Batch, state: State) -> State:
        """The state after a batch for which the loss is not computed; called in place of `__call__`.

        Args:
            critic: the online critic.
            batch: as for `__call__`.
            state: as returned by the call before, or `init_state()` for the first one.
        """
        ...


@runtime_checkable
class CriticObjective(Protocol):
    """A loss of the critic."""

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise needed for a batch whose actions have shape (batch, action_dim)."""
        ...

    def init_state(self, critic: Critic) -> State:
        """The state before the first batch, as NumPy arrays; `{}` for an objective without one."""
        ...

    def __call__(
        self, critic: Critic, target_critic: Critic, batch: Batch, noise: Noise, temperature: Array, state: State
    ) -> Loss:
        """The loss on a batch; only `critic` is differentiated.

        Args:
            critic: the online critic.
            target_critic: its slowly moving copy.
            batch: arrays with one batch axis, reward scaled, `next_rollout` filled in.
            noise: as `noise_spec` says.
            temperature: scalar.
            state: as returned by the previous call, or `init_state(critic)` for the first one.
        """
        ...


@runtime_checkable
class Temperature(Protocol):
    """The entropy coefficient and the rule that adapts it. State is data: this object never changes."""

    @property
    def interval(self) -> int:
        """`update` is called in the learner's updates 0, interval, 2 interval...; 0: never."""
        ...

    def init_state(self) -> State:
        """The state before training, as NumPy arrays."""
        ...

    def value(self, state: State) -> Array:
        """The temperature, a positive scalar."""
        ...

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise that one `update` needs for a batch whose actions have shape (batch, action_dim)."""
        ...

    def update(
        self, state: State, policy: Policy, obs: Array, noise: Noise, log_prob: Array | None = None
    ) -> tuple[State, Metrics]:
        """One step of the rule; nothing is differentiated outside.

        Args:
            state: as returned by the call before, or `init_state()` for the first one.
            policy: the actor from before its step in this update, the critic that the actor's loss sees, and the
                temperature of `state`.
            obs: the batch's observations, [batch obs_dim].
            noise: as `noise_spec` says.
            log_prob: [batch], `Loss.log_prob` of the actor's loss in this update; None where it knows none, or where
                `interval` is no multiple of the learner's `actor_delay`, so that there may be no such loss.
        """
        ...


@runtime_checkable
class ObsNormaliser(Protocol):
    """What networks see of an observation, given the moments of all observations so far. Holds no number of its own."""

    def init_state(self) -> State:
        """The moments before the first observation, as NumPy arrays: "count" 0-d, "mean" and "var" [obs_dim]."""
        ...

    def __call__(self, obs: Array, moments: State) -> Array:
        """What networks see, [*batch obs_dim], of observations [*batch obs_dim]; called in `step`, `act` and exports.

        Args:
            obs: as the environment gave them.
            moments: "count", "mean" and "var" of all observations that the policy has acted on, floats of the
                parameters' type.
        """
        ...


@runtime_checkable
class Optimiser(Protocol):
    """The rule that turns gradients into steps of one network. State is data: this object never changes."""

    def init(self, module: Any) -> Any:
        """The state before the first step of a network."""
        ...

    def step(self, opt_state: Any, module: Any, grads: Any) -> tuple[Any, Any, Metrics]:
        """One step.

        Args:
            opt_state: as returned by the step before, or `init(module)` for the first one; is consumed.
            module: the network; is consumed.
            grads: of its parameters, as the backend's `loss_and_gradient` returns them.

        Returns:
            The network and the state after the step, and {"grad_norm"}, the norm of the gradient as it was given.
        """
        ...


class Learner(Protocol):
    """An algorithm: everything that happens in one update. Holds no parameters: those are in the state.

    A learner either returns a new state (Equinox) or changes it in place and returns the same object (torch). The state
    that was passed in must not be used afterwards. An `Engine` runs it.
    """

    def init(self, actor: Any, critic: Critic) -> Any:
        """The state before the first update; takes ownership of both networks."""
        ...

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise of one `step` for a batch whose actions have shape (batch, action_dim).

        Entries: "next_action" (sampler), "critic" and "actor" (objectives), "temperature".
        """
        ...

    def step(self, state: Any, batch: Batch, noise: Noise) -> tuple[Any, Metrics]:
        """One update with explicit noise; metrics of parts that were not due are NaN or absent."""
        ...

    def policy(self, state: Any, *, deterministic: bool = False) -> Policy:
        """What acts; deterministic: in evaluations."""
        ...


class Engine(Protocol):
    """Runs a learner: checks what comes in, brings it to the device, compiles, draws noise, fuses updates.

    No algorithm knows it.
    """

    @property
    def learner(self) -> Learner:
        """The algorithm."""
        ...

    def init(self, actor: Any, critic: Critic) -> Any:
        """The learner's state before the first update; takes ownership of both networks."""
        ...

    def step(self, state: Any, batch: Batch, noise: Noise) -> tuple[Any, Metrics]:
        """One update with explicit noise; arrays of `batch` and `noise` may be NumPy's.

        The metrics have the same names in every update, NaN for a part that was not due.
        """
        ...

    def set_obs_moments(self, state: Any, moments: State) -> Any:
        """The state, which is consumed, with these moments of observations, by which its networks see them from now on.

        Nothing is compiled anew. Called only where the learner has an `obs_normaliser`.

        Args:
            state: of the learner.
            moments: "count" 0-d, "mean" and "var" [obs_dim], as `diffac.data.normalisation.RunningMoments.state` gives.
        """
        ...

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        """The noise that `update` with this key uses for its update number `index` (counted from 0)."""
        ...

    def update(self, state: Any, batches: Batch, key: int) -> tuple[Any, Metrics]:
        """K updates, one for each entry of the leading axis of `batches`; noise is drawn on the device.

        Metrics are means over those of the K updates that computed them (NaN if none did) and stay on the device.
        Among them are "critic_nonfinite" and "actor_nonfinite", the fraction of these updates in which loss or gradient
        was NaN or infinite: a mean alone would hide it.
        """
        ...

    def measure(self, state: Any) -> Metrics:
        """What is worth knowing about a state now and then; stays on the device.

        "actor_param_norm" and "critic_param_norm", the joint norm of the parameters; "state_nonfinite", 1 if any number
        of the state is NaN or infinite, else 0.
        """
        ...

    def fetch(self, metrics: Sequence[Metrics]) -> Mapping[str, np.ndarray]:
        """Brings what several calls of `update`, of `step` or of `measure` returned to the host, all at once.

        Args:
            metrics: all with the same names.

        Returns:
            name -> [calls] of float64.
        """
        ...

    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        """The noise of `act` for actions of shape (num_envs, action_dim).

        deterministic: in evaluations, whose sampler may be another one, and exploration noise is off.
        """
        ...

    def act(self, state: Any, obs: np.ndarray, noise: Noise, *, deterministic: bool = False) -> np.ndarray:
        """Actions [num_envs action_dim], in [-1, 1], for obs [num_envs obs_dim], from the acting copy of the policy.

        deterministic: in evaluations; the noise is what `act_noise_spec` says with the same value.
        """
        ...

    def compile_act(self, state: Any, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """Makes `act` one call of a compiled program for these numbers of observations, where the backend can.

        It then gives the same actions as before but for rounding, for all states of this structure.
        """
        ...


Activation: TypeAlias = Literal["mish", "gelu", "relu", "silu", "tanh"]


def provides(value: Any, protocol: type[_T]) -> TypeIs[_T]:
    """Whether a value has all that a protocol asks for.

    Unlike `isinstance` from Python 3.12 on, it sees what a wrapper passes on in `__getattr__`.
    """
    return all(hasattr(value, name) for name in get_protocol_members(protocol))
