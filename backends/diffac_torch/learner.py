"""One update of actor, critic, temperature and slow copies, assembled from parts."""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from diffac.arguments import check_arguments
from diffac.batches import check_batch, check_obs, entry
from diffac.errors import UsageError, check_count
from diffac.metrics import scatter
from diffac.noise import Noise, NoiseSpec, Shape, without_exploration
from diffac.protocols import (
    ActorObjective,
    Batch,
    CriticObjective,
    Loss,
    Metrics,
    Policy,
    Rollout,
    Sampler,
    State,
    Temperature,
    TrackingObjective,
)
from diffac.returned import checked_metrics, checked_state, initial_state
from diffac_torch.convert import _slots, _to_device
from diffac_torch.optimisers import Adam, AdamState, loss_and_gradient, without_gradient
from diffac_torch.programs import AnyBatchProgram, Program, reason_of
from diffac_torch.random import draw, stream

_ENTRIES = ("next_action", "critic", "actor", "temperature")
"""Names of the noise of one step; the position tells the random streams apart."""


class PackedMetrics(Mapping[str, Tensor]):
    """Metrics in one tensor, so that they travel together.

    Args:
        names: of the numbers.
        numbers: [names]
    """

    def __init__(self, names: tuple[str, ...], numbers: Tensor) -> None:
        self.names, self.numbers = names, numbers

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.numbers[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _pack(metrics: dict[str, Tensor]) -> PackedMetrics:
    return PackedMetrics(tuple(metrics), torch.stack(list(metrics.values())))


@dataclasses.dataclass
class LearnerState:
    """Everything that training changes; `update` and `step` change it in place."""

    actor: Any
    critic: Any
    target_critic: Any
    ema_actor: Any
    """None where no copy of the learner's policies is "ema"."""
    actor_optimiser: AdamState
    critic_optimiser: AdamState
    temperature: State
    actor_objective: State
    critic_objective: State
    updates: int
    """Number of updates done."""


@dataclasses.dataclass(eq=False, kw_only=True)
class Learner:
    """Everything that happens in one update; holds no parameters.

    Update number u, counted from 0 over the whole training:

    1. The reward is scaled; the target's sampler draws the next actions with its copy of the actor.
    2. Critic loss and gradient; `critic_steps_before_actor` optimiser steps of the critic.
    3. If u is first_actor_update or a multiple of actor_delay later: actor loss and gradient, with the critic as it is
       now. They are not computed otherwise; a `TrackingObjective` still sees the batch.
    4. If u is a multiple of the temperature's interval: its step, with the actor as it is now and the log-probabilities
       of the actor's loss.
    5. Optimiser step of the actor, and those of the critic that are left.
    6. If the actor was updated: target critic and slow actor move by tau towards their originals.

    Metrics: critic_loss, actor_loss, temperature, critic_grad_norm, actor_grad_norm, critic_nonfinite and
    actor_nonfinite (1 if loss or gradient is NaN or infinite, else 0), and those of the parts with the prefix critic_,
    actor_ or temperature_; absent for a part that was not due.

    Batches and noise may be NumPy's. They go to the device of the actor's parameters, floats in their dtype.

    Args:
        sampler: draws actions, for acting and, without a target_sampler, for the critic's target.
        actor_objective: loss of the actor.
        critic_objective: loss of the critic.
        temperature: the entropy coefficient and its rule.
        actor_optimiser: of the actor.
        critic_optimiser: of the critic.
        tau: rate of the slow copies, in (0, 1].
        actor_delay: updates of the critic for one of the actor.
        reward_scale: factor of the reward, applied here and nowhere else.
        acting_actor: which copy of the actor acts, the "online" one or its exponential moving average, "ema".
        target_sampler: draws the actions of the critic's target; None: as `sampler`.
        target_actor: which copy of the actor it draws them with.
        first_actor_update: the update in which the actor first moves, below actor_delay; then every actor_delay-th.
        critic_steps: optimiser steps with one critic gradient; 1, except to reproduce the official DPMD code (2).
        critic_steps_before_actor: how many of them come before the actor's loss, in 0..critic_steps. 0: the actor sees
            the critic of the update before, as in the codes of DACER and SDAC; 1: the new one, as in SAC (arXiv
            1812.05905, algorithm 1) and DPMD.

    Raises:
        UsageError: a number is out of range.
    """

    sampler: Sampler
    actor_objective: ActorObjective
    critic_objective: CriticObjective
    temperature: Temperature
    actor_optimiser: Adam
    critic_optimiser: Adam
    tau: float = 0.005
    actor_delay: int = 2
    reward_scale: float = 1.0
    acting_actor: Literal["online", "ema"] = "online"
    target_sampler: Sampler | None = None
    target_actor: Literal["online", "ema"] = "online"
    first_actor_update: int = 0
    critic_steps: int = 1
    critic_steps_before_actor: int = 0
    # Where `update` draws: `draw_noise` has no state to ask, and torch's random numbers differ between devices.
    _device: torch.device | None = dataclasses.field(default=None, init=False, repr=False)
    _critic_program: Program = dataclasses.field(init=False, repr=False)
    _actor_program: Program = dataclasses.field(init=False, repr=False)
    _act_program: AnyBatchProgram | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_arguments("Learner", vars(self))
        self._critic_program, self._actor_program = Program(_critic_gradient), Program(loss_and_gradient)

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The state before the first update; takes ownership of both networks.

        Raises:
            UsageError: actor or critic is not a `torch.nn.Module` with parameters, or they are on different devices.
        """
        (dtype, device), critic_place = _place("actor", actor), _place("critic", critic)
        if critic_place[1] != device:
            raise UsageError(f"actor and critic must be on one device, got {device} and {critic_place[1]}")
        self._device = device
        return LearnerState(
            actor=actor,
            critic=critic,
            target_critic=copy.deepcopy(critic).requires_grad_(False),
            ema_actor=copy.deepcopy(actor).requires_grad_(False) if self.has_ema else None,
            actor_optimiser=self.actor_optimiser.init(actor),
            critic_optimiser=self.critic_optimiser.init(critic),
            temperature=_first_state(self.temperature, dtype, device),
            actor_objective=_first_state(self.actor_objective, dtype, device),
            critic_objective=_first_state(self.critic_objective, *critic_place, critic),
            updates=0,
        )

    @property
    def of_target(self) -> Sampler:
        """What draws the actions of the critic's target."""
        return self.sampler if self.target_sampler is None else self.target_sampler

    @property
    def has_ema(self) -> bool:
        """Whether a policy has the moving average of the actor."""
        return "ema" in (self.acting_actor, self.target_actor)

    def noise_spec(self, shape: Shape) -> NoiseSpec:
        """The noise of one `step` for actions (batch, action_dim): "next_action", "critic", "actor", "temperature"."""
        return {
            "next_action": self.of_target.noise_spec(shape),
            "critic": self.critic_objective.noise_spec(shape),
            "actor": self.actor_objective.noise_spec(shape),
            "temperature": self.temperature.noise_spec(shape),
        }

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, PackedMetrics]:
        """One update with explicit noise, in place.

        Args:
            state: is changed.
            batch: arrays with one batch axis.
            noise: as `noise_spec` says; an entry without noise may be absent.

        Returns:
            The same state, and the metrics of this update.

        Raises:
            UsageError: shapes or types of the batch are wrong, or noise is missing.
        """
        place = _place("actor", state.actor)
        batch = _to_device(batch, *place)
        check_batch(batch, ("batch",), state.actor)
        missing = [name for name, spec in self.noise_spec(batch.action.shape).items() if spec and name not in noise]
        if missing:
            raise UsageError(f"noise lacks {', '.join(missing)}; noise_spec says what a step needs")
        return state, _pack(self._update(state, batch, lambda name: _to_device(noise.get(name, {}), *place)))

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        """The noise that `update` with this key uses for its update number `index` (counted from 0 in each call).

        It is drawn on the device of the actor last given to `init` or `update`, in torch's default dtype.
        """
        return {name: self._draw(key, index, shape, name) for name in _ENTRIES}

    def update(self, state: LearnerState, batches: Batch, key: int) -> tuple[LearnerState, PackedMetrics]:
        """K updates in place, with noise drawn on the device.

        Args:
            state: is changed.
            batches: arrays with two leading axes [K batch].
            key: seed of all noise, not negative; use another one for each call.

        Returns:
            The same state, and means of the metrics over those of the K updates that computed them.

        Raises:
            UsageError: shapes or types of the batches are wrong.
        """
        check_count("key", key, 0)
        dtype, device = _place("actor", state.actor)
        self._device = device
        batches = _to_device(batches, dtype, device)
        check_batch(batches, ("updates", "batch"), state.actor)
        collected = defaultdict(list)
        for index in range(len(batches.obs)):
            batch = entry(batches, index)
            draw_entry = partial(self._draw, key, index, tuple(batch.action.shape))
            metrics = self._update(state, batch, lambda name, f=draw_entry: _to_device(f(name), dtype, device))
            for name, value in metrics.items():
                collected[name].append(value)
        # most often there is one update, and its metrics are the means
        means = {
            name: values[0] if len(values) == 1 else torch.stack(values).mean() for name, values in collected.items()
        }
        return state, _pack(means)

    @torch.no_grad()
    def measure(self, state: LearnerState) -> PackedMetrics:
        """ "actor_param_norm", "critic_param_norm"; "state_nonfinite", 1 if any number is NaN or infinite, else 0."""
        arrays = [slot.get() for slot in _slots(state).values()]
        finite = [array.isfinite().all() for array in arrays if array.is_floating_point()]
        norms = {
            f"{name}_param_norm": torch.nn.utils.get_total_norm(list(module.parameters()))
            for name, module in {"actor": state.actor, "critic": state.critic}.items()
        }
        return _pack(norms | {"state_nonfinite": torch.stack(finite).all().logical_not()})

    def fetch(self, metrics: Sequence[PackedMetrics]) -> dict[str, np.ndarray]:
        """The metrics of several calls on the host: name -> [calls] of float64, NaN for a call without that name."""
        numbers = [row.numbers for row in metrics]
        return scatter([row.names for row in metrics], torch.cat(numbers).cpu() if numbers else ())

    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        """The noise of `act` for actions (num_envs, action_dim); deterministic: what only explores is off."""
        spec = self.sampler.noise_spec(shape)
        return without_exploration(spec) if deterministic else spec

    @torch.inference_mode()
    def act(self, state: LearnerState, obs: np.ndarray, noise: Noise) -> np.ndarray:
        """Float32 actions [num_envs action_dim] from the slow copy of the actor if there is one, else from the actor.

        Raises:
            UsageError: obs is not a floating array [num_envs obs_dim].
        """
        obs_tensor, noise = _to_device((obs, noise), *_place("actor", state.actor))
        check_obs(obs_tensor, ("num_envs",), state.actor)
        networks, arguments = self._acting(state), {"obs": obs_tensor, "noise": noise, "temperature": state.temperature}
        action = None if self._act_program is None else self._act_program(networks, arguments)
        if action is None:
            action = self._policy(*networks, **arguments)
        return action.float().cpu().numpy()

    def compile_act(self, state: LearnerState, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """Makes `act` one call of a program, without Python between the steps of a diffusion chain.

        The program is compiled once, in 15 to 60 seconds, for any number of observations and for all states that are
        like this one. Its actions differ from those before by rounding. For arguments of other shapes or types `act`
        still computes step by step.

        Args:
            state: where the networks are.
            obs_dim: length of an observation.
            action_dim: length of an action.
            batch_sizes: numbers of observations for which `act` is called once.

        Raises:
            UsageError: it cannot be compiled.
        """
        dtype, device = _place("actor", state.actor)

        def arguments(batch: int) -> dict[str, Any]:
            noise = draw(stream(device, 0, 0, 0), self.act_noise_spec((batch, action_dim)), dtype)
            obs = torch.zeros(batch, obs_dim, dtype=dtype, device=device)
            return {"obs": obs, "noise": noise, "temperature": state.temperature}

        try:
            self._act_program = AnyBatchProgram(self._policy, self._acting(state), arguments(2), arguments(3))
        except Exception as error:  # torch promises no type, and parts of any origin are exported
            raise UsageError(
                f"acting cannot be compiled ({reason_of(error)}); it takes a C++ compiler, and parts that use torch "
                "only and branch on no value"
            ) from error
        for batch in batch_sizes:
            inputs = arguments(batch)
            self.act(state, inputs["obs"].cpu().numpy(), inputs["noise"])

    def _acting(self, state: LearnerState) -> tuple[Any, Any]:
        """The networks of the policy."""
        return state.ema_actor if self.acting_actor == "ema" else state.actor, state.critic

    def _policy(self, actor: Any, critic: Any, obs: Tensor, noise: Noise, temperature: State) -> Tensor:
        """Actions."""
        value = self.temperature.value(temperature)
        return self.sampler(Policy(actor, critic, value), obs, noise)

    def _draw(self, key: int, index: int, shape: Shape, name: str) -> Noise:
        """One entry of the noise of an update, from a stream of its own."""
        device = self._device or torch.get_default_device()
        generator = stream(device, key, index, _ENTRIES.index(name))
        return draw(generator, self.noise_spec(shape)[name], torch.get_default_dtype())

    def _update(self, state: LearnerState, batch: Batch, noise: Callable[[str], Noise]) -> dict[str, Tensor]:
        """One update in place; noise(name) is asked for only where it is needed."""
        if batch.reward.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # until the next mark the programs' results stay valid
        actor_is_due = state.updates % self.actor_delay == self.first_actor_update
        temperature = without_gradient(self.temperature.value(state.temperature), batch.reward)
        batch, rows = batch._replace(reward=self.reward_scale * batch.reward), batch.reward.numel()
        (loss, next_rollout), critic_grads = self._critic_program(
            rows,
            self.of_target,
            self.critic_objective,
            state.ema_actor if self.target_actor == "ema" else state.actor,
            state.critic,
            state.target_critic,
            batch,
            noise("next_action"),
            noise("critic"),
            temperature,
            state.critic_objective,
        )
        batch = batch._replace(next_rollout=next_rollout)
        state.critic_objective = loss.state
        critic_loss = loss.value
        metrics = {"critic_loss": critic_loss, "temperature": temperature, **_prefixed("critic", loss.metrics)}

        def step_critic(times: int) -> None:
            for _ in range(times):
                _, _, step_metrics = self.critic_optimiser.step(state.critic_optimiser, state.critic, critic_grads)
                checked = {**step_metrics, "nonfinite": _nonfinite(critic_loss, step_metrics["grad_norm"])}
                metrics.update(_prefixed("critic", checked))

        step_critic(self.critic_steps_before_actor)
        actor_grads, log_prob = None, None
        if actor_is_due:
            loss, actor_grads = self._actor_program(
                rows,
                self.actor_objective,
                state.actor,
                state.critic,
                batch,
                noise("actor"),
                temperature,
                state.actor_objective,
            )
            state.actor_objective = loss.state
            metrics |= {"actor_loss": loss.value, **_prefixed("actor", loss.metrics)}
            if self.temperature.interval % self.actor_delay == 0:
                log_prob = loss.log_prob
        elif isinstance(self.actor_objective, TrackingObjective):
            with torch.no_grad():
                new = self.actor_objective.track(state.critic, batch, state.actor_objective)
            state.actor_objective = checked_state(self.actor_objective, new, state.actor_objective, without_gradient)
        if self.temperature.interval and state.updates % self.temperature.interval == 0:
            new, temperature_metrics = self.temperature.update(
                state.temperature,
                Policy(state.actor, state.critic, temperature),
                batch.obs,
                noise("temperature"),
                log_prob,
            )
            state.temperature = checked_state(self.temperature, new, state.temperature, without_gradient)
            temperature_metrics = checked_metrics(self.temperature, temperature_metrics, temperature, without_gradient)
            metrics |= _prefixed("temperature", temperature_metrics)
        if actor_grads is not None:
            _, _, step_metrics = self.actor_optimiser.step(state.actor_optimiser, state.actor, actor_grads)
            checked = {**step_metrics, "nonfinite": _nonfinite(metrics["actor_loss"], step_metrics["grad_norm"])}
            metrics |= _prefixed("actor", checked)
        step_critic(self.critic_steps - self.critic_steps_before_actor)
        state.updates += 1
        if actor_is_due:
            _towards(state.target_critic, state.critic, self.tau)
            if state.ema_actor is not None:
                _towards(state.ema_actor, state.actor, self.tau)
        return metrics


def _critic_gradient(
    sampler: Sampler,
    objective: CriticObjective,
    actor: Any,
    critic: Any,
    target_critic: Any,
    batch: Batch,
    next_action_noise: Noise,
    noise: Noise,
    temperature: Tensor,
    state: State,
) -> tuple[tuple[Loss, Rollout], tuple[Tensor, ...]]:
    """Loss of the critic, what the policy does at next_obs; the gradient."""
    with torch.no_grad():
        rollout = sampler.rollout(Policy(actor, critic, temperature), batch.next_obs, next_action_noise)
    next_rollout = Rollout(rollout.action, log_prob=rollout.log_prob)
    batch = batch._replace(next_rollout=next_rollout)
    loss, gradient = loss_and_gradient(objective, critic, target_critic, batch, noise, temperature, state)
    return (loss, next_rollout), gradient


@torch.no_grad()
def _towards(slow: nn.Module, fast: nn.Module, tau: float) -> None:
    """slow <- (1 - tau) slow + tau fast, for every parameter."""
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), tau)  # type: ignore[attr-defined]


def _nonfinite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """1 if a loss or its gradient is NaN or infinite, else 0."""
    return (loss + grad_norm).isfinite().logical_not().to(loss.dtype)


def _prefixed(prefix: str, metrics: Metrics) -> dict[str, Tensor]:
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def _first_state(part: Any, dtype: torch.dtype, device: torch.device, *args: Any) -> State:
    """What a part remembers before the first batch, floats in that type."""
    return initial_state(
        part, part.init_state(*args), lambda value: _to_device(torch.as_tensor(value).detach(), dtype, device)
    )


def _place(name: str, module: Any) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a network's parameters."""
    parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    if parameter is None:
        raise UsageError(f"{name} must be a torch.nn.Module with parameters, got {type(module).__name__}")
    return parameter.dtype, parameter.device
