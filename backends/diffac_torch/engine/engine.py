"""Runs a learner: what comes in is checked and brought to the device, noise is drawn there, and steps are compiled."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffac.errors import UsageError, check_count
from diffac.noise import Noise, NoiseSpec, Shape, without_exploration
from diffac.parts.inputs import check_batch, check_moments, check_noise, check_obs, entry
from diffac.parts.metrics import PackedMetrics, columns
from diffac.protocols import Batch, Metrics, Policy, State
from diffac_torch.engine.convert import _slots, _to_device
from diffac_torch.engine.programs import AnyBatchProgram
from diffac_torch.engine.random import draw, stream
from diffac_torch.kernels.programs import Programs, reason_of
from diffac_torch.learner import Learner
from diffac_torch.parameters import parameters
from diffac_torch.state import LearnerState

_ENTRIES = ("next_action", "critic", "actor", "temperature")
"""Names of the noise of one step; the position tells the random streams apart."""


class Engine:
    """Runs a learner.

    Batches and noise may be NumPy's. They go to the device of the actor's parameters, floats in their dtype. The first
    step with large networks and a new batch size compiles; with small ones nothing does.

    Args:
        learner: the algorithm.

    Raises:
        UsageError: it is no learner of this backend.
    """

    def __init__(self, learner: Learner) -> None:
        if not isinstance(learner, Learner):
            raise UsageError(f"this engine runs a Learner of the torch backend, got {type(learner).__name__}")
        self.learner = learner
        # Where `update` draws: `draw_noise` has no state to ask, and torch's random numbers differ between devices.
        self._device: torch.device | None = None
        self._programs = Programs()
        self._act_program: AnyBatchProgram | None = None
        self._names: tuple[str, ...] = ()

    def __reduce__(self) -> Any:
        return Engine, (self.learner,)

    def init(self, actor: Any, critic: Any) -> LearnerState:
        """The learner's state before the first update; takes ownership of both networks.

        Raises:
            UsageError: actor or critic is not a `torch.nn.Module` with parameters, or they are on different devices.
        """
        state = self.learner.init(actor, critic)
        self._device = _place(state)[1]
        return state

    def step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, PackedMetrics]:
        """One update with explicit noise, in place.

        Args:
            state: is changed.
            batch: arrays with one batch axis.
            noise: as `Learner.noise_spec` says; an entry without noise may be absent.

        Returns:
            The same state, and the metrics of this update, NaN for a part that was not due.

        Raises:
            UsageError: shapes or types of the batch are wrong, or noise is missing.
        """
        batch = _to_device(batch, *_place(state))
        check_batch(batch, ("batch",), state.actor)
        check_noise(noise, self.learner.noise_spec(batch.action.shape))
        numbers = self._step(state, batch, _to_device(noise, *_place(state)))
        return state, PackedMetrics(self._names, numbers)

    def set_obs_moments(self, state: LearnerState, moments: State) -> LearnerState:
        """The state with these moments of observations: by them its networks see observations from now on.

        Args:
            state: is changed.
            moments: "count" 0-d, "mean" and "var" [obs_dim], of NumPy; they are copied.

        Raises:
            UsageError: the learner has no normaliser, or a shape is wrong.
        """
        check_moments(moments, state.obs_moments)
        dtype, device = _place(state)
        copies = {name: torch.tensor(array, dtype=dtype) for name, array in moments.items()}
        state.obs_moments = _to_device(copies, dtype, device)
        return state

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        """The noise that `update` with this key uses for its update number `index` (counted from 0 in each call).

        It is drawn on the device of the actor last given to `init` or `update`, in torch's default dtype.
        """
        return dict(self._noise(key, index, shape))

    def update(self, state: LearnerState, batches: Batch, key: int) -> tuple[LearnerState, PackedMetrics]:
        """K updates in place, with noise drawn on the device.

        Args:
            state: is changed.
            batches: arrays with two leading axes [K batch].
            key: seed of all noise, not negative; use another one for each call.

        Returns:
            The same state, and means of the metrics over those of the K updates that computed them (NaN: none did).

        Raises:
            UsageError: shapes or types of the batches are wrong.
        """
        check_count("key", key, 0)
        dtype, self._device = _place(state)
        batches = _to_device(batches, dtype, self._device)
        check_batch(batches, ("updates", "batch"), state.actor)
        rows = []
        for index in range(len(batches.obs)):
            batch = entry(batches, index)
            noise = self._noise(key, index, tuple(batch.action.shape), dtype)
            rows.append(self._step(state, batch, noise))
        # most often there is one update, and its metrics are the means
        return state, PackedMetrics(self._names, rows[0] if len(rows) == 1 else torch.stack(rows).nanmean(0))

    @torch.no_grad()
    def measure(self, state: LearnerState) -> PackedMetrics:
        """ "actor_param_norm", "critic_param_norm"; "state_nonfinite", 1 if any number is NaN or infinite, else 0."""
        arrays = [slot.get() for slot in _slots(state).values()]
        finite = [array.isfinite().all() for array in arrays if array.is_floating_point()]
        norms = {
            f"{name}_param_norm": torch.nn.utils.get_total_norm(parameters(module))
            for name, module in {"actor": state.actor, "critic": state.critic}.items()
        }
        measured = norms | {"state_nonfinite": torch.stack(finite).all().logical_not()}
        return PackedMetrics(tuple(measured), torch.stack(list(measured.values())))

    def fetch(self, metrics: Sequence[PackedMetrics]) -> dict[str, np.ndarray]:
        """The metrics of several calls on the host: name -> [calls] of float64, NaN for a call without that name."""
        if not metrics:
            return {}
        numbers = iter(torch.cat([row.numbers for row in metrics]).tolist())
        return columns([dict(zip(row, numbers, strict=False)) for row in metrics])

    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        """The noise of `act` for actions (num_envs, action_dim); deterministic: what only explores is off."""
        spec = self.learner.sampler.noise_spec(shape)
        return without_exploration(spec) if deterministic else spec

    @torch.inference_mode()
    def act(self, state: LearnerState, obs: np.ndarray, noise: Noise) -> np.ndarray:
        """Float32 actions [num_envs action_dim] of the learner's policy.

        Raises:
            UsageError: obs is not a floating array [num_envs obs_dim].
        """
        obs_tensor, noise = _to_device((obs, noise), *_place(state))
        check_obs(obs_tensor, ("num_envs",), state.actor)
        networks, arguments = self._acting(state, obs_tensor, noise)
        action = None if self._act_program is None else self._act_program(networks, arguments)
        if action is None:
            action = self._action(*networks, **arguments)
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
        dtype, device = _place(state)

        def arguments(batch: int) -> tuple[tuple[Any, Any], dict[str, Any]]:
            noise = draw(stream(device, 0, 0, 0), self.act_noise_spec((batch, action_dim)), dtype)
            return self._acting(state, torch.zeros(batch, obs_dim, dtype=dtype, device=device), noise)

        (networks, two), (_, three) = arguments(2), arguments(3)
        try:
            self._act_program = AnyBatchProgram(self._action, networks, two, three)
        except Exception as error:  # torch promises no type, and parts of any origin are exported
            raise UsageError(
                f"acting cannot be compiled ({reason_of(error)}); it takes a C++ compiler, and parts that use torch "
                "only and branch on no value"
            ) from error
        for batch in batch_sizes:
            _, inputs = arguments(batch)
            self.act(state, inputs["obs"].cpu().numpy(), inputs["noise"])

    def _acting(self, state: LearnerState, obs: Tensor, noise: Noise) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """The networks that act, and what else `_action` takes."""
        actor, critic, temperature = self.learner.policy(state)
        rest = {"temperature": torch.as_tensor(temperature), "moments": state.obs_moments}
        return (actor, critic), {"obs": obs, "noise": noise, **rest}

    def _action(
        self, actor: Any, critic: Any, obs: Tensor, noise: Noise, temperature: Tensor, moments: State
    ) -> Tensor:
        return self.learner.sampler(Policy(actor, critic, temperature), self.learner.seen(obs, moments), noise)

    def _noise(self, key: int, index: int, shape: Shape, dtype: torch.dtype | None = None) -> Noise:
        """The noise of one update; without a dtype as it is drawn."""
        device = self._device or torch.get_default_device()
        return _Drawn(self.learner.noise_spec(shape), device, (key, index), dtype)

    def _step(self, state: LearnerState, batch: Batch, noise: Noise) -> Tensor:
        """One update in place; the metrics as one tensor, in the order of `_names`."""
        first = self.learner.first_actor_update
        if not self._names and (state.updates or first):  # in update 0 everything else is due
            self._names = tuple(self._rehearsed(state, batch, noise))
        if batch.reward.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # until the next mark the programs' results stay valid
        with self._programs.in_use():
            _, metrics = self.learner.step(state, batch, noise)
        self._names = self._names or tuple(metrics)
        if not metrics.keys() <= set(self._names):
            raise UsageError(
                f"metrics must keep their names, got {', '.join(sorted(metrics.keys() - set(self._names)))} for the "
                "first time after other updates"
            )
        absent = torch.full_like(batch.reward[0], torch.nan)
        return torch.stack([metrics.get(name, absent) for name in self._names])

    def _rehearsed(self, state: LearnerState, batch: Batch, noise: Noise) -> Metrics:
        """The metrics of updates in which each part is due, made with copies of the state."""
        metrics: dict[str, Tensor] = {}
        for updates in (0, self.learner.first_actor_update):
            other = copy.deepcopy(state)
            other.updates = updates
            metrics |= self.learner.step(other, batch, noise)[1]
        return metrics


class _Drawn(Mapping[str, Any]):
    """Noise that is drawn when it is asked for, each entry from a stream of its own."""

    def __init__(self, spec: NoiseSpec, device: torch.device, path: tuple[int, ...], dtype: torch.dtype | None) -> None:
        self._spec, self._device, self._path, self._dtype = spec, device, path, dtype

    def __getitem__(self, name: str) -> Any:
        generator = stream(self._device, *self._path, _ENTRIES.index(name))
        drawn = draw(generator, self._spec[name], torch.get_default_dtype())
        return drawn if self._dtype is None else _to_device(drawn, self._dtype, self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spec)

    def __len__(self) -> int:
        return len(self._spec)


def _place(state: LearnerState) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the actor's parameters."""
    parameter: nn.Parameter = next(state.actor.parameters())
    return parameter.dtype, parameter.device
