"""Runs a learner: what comes in is brought to the device, noise is drawn there, and steps are compiled."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffac.errors import UsageError
from diffac.noise import Noise, NoiseSpec, Shape
from diffac.parts import engine as declared
from diffac.parts.inputs import entry
from diffac.parts.metrics import PackedMetrics, columns
from diffac.protocols import Batch, Metrics, Policy, Sampler, State
from diffac_torch.engine.convert import _slots, _to_device
from diffac_torch.engine.programs import AnyBatchProgram
from diffac_torch.engine.random import draw, stream
from diffac_torch.kernels.programs import Programs, reason_of
from diffac_torch.learner import Learner
from diffac_torch.parameters import parameters
from diffac_torch.state import LearnerState

_ENTRIES = ("next_action", "critic", "actor", "temperature")
"""Names of the noise of one step; the position tells the random streams apart."""


class Engine(declared.Engine):
    learners = Learner

    def __init__(self, learner: Any) -> None:
        super().__init__(learner)
        # Where `update` draws: `draw_noise` has no state to ask, and torch's random numbers differ between devices.
        self._device: torch.device | None = None
        self._programs = Programs()
        self._act_programs: dict[bool, AnyBatchProgram] = {}
        self._names: tuple[str, ...] = ()

    def init(self, actor: Any, critic: Any) -> LearnerState:
        state = super().init(actor, critic)
        self._device = _place(state)[1]
        return state

    def _step(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[LearnerState, PackedMetrics]:
        place = _place(state)
        numbers = self._one_step(state, _to_device(batch, *place), _to_device(noise, *place))
        return state, PackedMetrics(self._names, numbers)

    def _update(self, state: LearnerState, batches: Batch, key: int) -> tuple[LearnerState, PackedMetrics]:
        dtype, self._device = _place(state)
        batches = _to_device(batches, dtype, self._device)
        rows = []
        for index in range(len(batches.obs)):
            batch = entry(batches, index)
            noise = self._noise(key, index, tuple(batch.action.shape), dtype)
            rows.append(self._one_step(state, batch, noise))
        # most often there is one update, and its metrics are the means
        return state, PackedMetrics(self._names, rows[0] if len(rows) == 1 else torch.stack(rows).nanmean(0))

    def _with_moments(self, state: LearnerState, moments: State) -> LearnerState:
        dtype, device = _place(state)
        copies = {name: torch.tensor(array, dtype=dtype) for name, array in moments.items()}
        state.obs_moments = _to_device(copies, dtype, device)
        return state

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        return dict(self._noise(key, index, shape))

    @torch.no_grad()
    def measure(self, state: LearnerState) -> PackedMetrics:
        arrays = [slot.get() for slot in _slots(state).values()]
        finite = [array.isfinite().all() for array in arrays if array.is_floating_point()]
        norms = {
            f"{name}_param_norm": torch.nn.utils.get_total_norm(parameters(module))
            for name, module in {"actor": state.actor, "critic": state.critic}.items()
        }
        measured = norms | {"state_nonfinite": torch.stack(finite).all().logical_not()}
        return PackedMetrics(tuple(measured), torch.stack(list(measured.values())))

    def fetch(self, metrics: Sequence[PackedMetrics]) -> dict[str, np.ndarray]:
        if not metrics:
            return {}
        numbers = iter(torch.cat([row.numbers for row in metrics]).tolist())
        return columns([dict(zip(row, numbers, strict=False)) for row in metrics])

    @torch.inference_mode()
    def _act(self, state: LearnerState, obs: np.ndarray, noise: Noise, deterministic: bool) -> np.ndarray:
        obs_tensor, noise = _to_device((obs, noise), *_place(state))
        networks, arguments = self._acting(state, obs_tensor, noise, deterministic)
        program = self._act_programs.get(deterministic)
        action = None if program is None else program(networks, arguments)
        if action is None:
            action = self._action(self.learner.acting(deterministic), *networks, **arguments)
        return action.float().cpu().numpy()

    def compile_act(self, state: LearnerState, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        for deterministic in {False, self.learner.evaluates_apart}:
            self._compile_act(state, obs_dim, action_dim, batch_sizes, deterministic)

    def _compile_act(
        self, state: LearnerState, obs_dim: int, action_dim: int, batch_sizes: Sequence[int], deterministic: bool
    ) -> None:
        dtype, device = _place(state)

        def arguments(batch: int) -> tuple[tuple[Any, Any], dict[str, Any]]:
            spec = self.act_noise_spec((batch, action_dim), deterministic=deterministic)
            noise = draw(stream(device, 0, 0, 0), spec, dtype)
            return self._acting(state, torch.zeros(batch, obs_dim, dtype=dtype, device=device), noise, deterministic)

        (networks, two), (_, three) = arguments(2), arguments(3)
        action = partial(self._action, self.learner.acting(deterministic))
        try:
            self._act_programs[deterministic] = AnyBatchProgram(action, networks, two, three)
        except Exception as error:  # torch promises no type, and parts of any origin are exported
            raise UsageError(
                f"acting cannot be compiled ({reason_of(error)}); it takes a C++ compiler, and parts that use torch "
                "only and branch on no value"
            ) from error
        for batch in batch_sizes:
            _, inputs = arguments(batch)
            self.act(state, inputs["obs"].cpu().numpy(), inputs["noise"], deterministic=deterministic)

    def _acting(
        self, state: LearnerState, obs: Tensor, noise: Noise, deterministic: bool
    ) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """The networks that act, and what else `_action` takes."""
        actor, critic, temperature = self.learner.policy(state, deterministic=deterministic)
        rest = {"temperature": torch.as_tensor(temperature), "moments": state.obs_moments}
        return (actor, critic), {"obs": obs, "noise": noise, **rest}

    def _action(
        self, sampler: Sampler, actor: Any, critic: Any, obs: Tensor, noise: Noise, temperature: Tensor, moments: State
    ) -> Tensor:
        return sampler(Policy(actor, critic, temperature), self.learner.seen(obs, moments), noise)

    def _noise(self, key: int, index: int, shape: Shape, dtype: torch.dtype | None = None) -> Noise:
        """The noise of one update; without a dtype as it is drawn."""
        device = self._device or torch.get_default_device()
        return _Drawn(self.learner.noise_spec(shape), device, (key, index), dtype)

    def _one_step(self, state: LearnerState, batch: Batch, noise: Noise) -> Tensor:
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
