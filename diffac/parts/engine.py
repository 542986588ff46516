"""The engine of a backend: what comes in is checked here, in the same way and order everywhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from diffac.errors import UsageError, check_count
from diffac.noise import Noise, NoiseSpec, Shape, without_exploration
from diffac.parts.inputs import check_batch, check_moments, check_noise, check_obs
from diffac.protocols import Batch, Learner, Metrics, State

__all__ = ["Engine"]


class Engine:
    """Runs a learner: brings batches and noise to the device of the actor's parameters, and compiles.

    Batches and noise may be NumPy's; floats get the dtype of the actor's parameters. A state that is given to `step`,
    `update` or `set_obs_moments` is consumed: torch changes it in place, and in Equinox its memory becomes that of the
    next one.

    In Equinox the first call with new shapes compiles; other keys, values or numbers of updates do not. In torch the
    first step with large networks and a new batch size does; with small ones nothing does.

    Args:
        learner: the algorithm.

    Raises:
        UsageError: it is no learner of this backend.
    """

    learners: ClassVar[type]
    """Those that it runs, the backend's."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__doc__ = cls.__doc__ or Engine.__doc__

    def __init__(self, learner: Learner) -> None:
        if not isinstance(learner, self.learners):
            own = f"{self.learners.__module__.partition('.')[0]}.{self.learners.__name__}"
            raise UsageError(f"this engine runs a {own}, got a {type(learner).__module__}.{type(learner).__qualname__}")
        self.learner: Any = learner
        self._act_noise_spec = functools.lru_cache(maxsize=64)(self._make_act_noise_spec)

    def __reduce__(self) -> Any:
        return type(self), (self.learner,)

    def init(self, actor: Any, critic: Any) -> Any:
        """The learner's state before the first update; takes ownership of both networks.

        Raises:
            UsageError: actor or critic is no network of this backend with parameters, or they are on different devices.
        """
        return self.learner.init(actor, critic)

    def step(self, state: Any, batch: Batch, noise: Noise) -> tuple[Any, Metrics]:
        """One update with explicit noise.

        Args:
            state: is consumed.
            batch: arrays with one batch axis.
            noise: as `Learner.noise_spec` says; an entry without noise may be absent.

        Returns:
            The new state, and the metrics of this update, NaN for a part that was not due.

        Raises:
            UsageError: shapes or types of the batch are wrong, or noise is missing.
        """
        check_batch(batch, ("batch",), state.actor)
        check_noise(noise, self.learner.noise_spec(tuple(batch.action.shape)))
        return self._step(state, batch, noise)

    def update(self, state: Any, batches: Batch, key: int) -> tuple[Any, Metrics]:
        """K updates, with noise drawn on the device; in Equinox one compiled call.

        Args:
            state: is consumed.
            batches: arrays with two leading axes [K batch].
            key: seed of all noise, not negative; use another one for each call.

        Returns:
            The new state, and means of the metrics over those of the K updates that computed them (NaN: none did).

        Raises:
            UsageError: shapes or types of the batches are wrong.
        """
        check_count("key", key, 0)
        check_batch(batches, ("updates", "batch"), state.actor)
        return self._update(state, batches, key)

    def draw_noise(self, key: int, index: int, shape: Shape) -> Noise:
        """The noise that `update` with this key uses for its update number `index` (counted from 0 in each call).

        In torch it is drawn on the device of the actor last given to `init` or `update`, in torch's default dtype.
        """
        raise NotImplementedError

    def set_obs_moments(self, state: Any, moments: State) -> Any:
        """The state with these moments of observations: by them its networks see observations from now on.

        Args:
            state: is consumed.
            moments: "count" 0-d, "mean" and "var" [obs_dim], of NumPy; they are copied.

        Raises:
            UsageError: the learner has no normaliser, or a shape is wrong.
        """
        check_moments(moments, state.obs_moments)
        return self._with_moments(state, moments)

    def act(self, state: Any, obs: np.ndarray, noise: Noise, *, deterministic: bool = False) -> np.ndarray:
        """Float32 actions [num_envs action_dim] of the learner's policy.

        Args:
            state: stays as it is.
            obs: [num_envs obs_dim] of floats.
            noise: as `act_noise_spec` says, with the same `deterministic`.
            deterministic: by the sampler and the critic of evaluations.

        Raises:
            UsageError: obs is not a floating array [num_envs obs_dim].
        """
        check_obs(obs, ("num_envs",), state.actor)
        return self._act(state, obs, noise, deterministic and self.learner.evaluates_apart)

    def act_noise_spec(self, shape: Shape, *, deterministic: bool = False) -> NoiseSpec:
        """The noise of `act` for actions (num_envs, action_dim).

        deterministic: in evaluations, that of their sampler, where what only explores is off.
        """
        return self._act_noise_spec(shape, deterministic)

    def compile_act(self, state: Any, obs_dim: int, action_dim: int, batch_sizes: Sequence[int]) -> None:
        """Compiles `act`, for evaluations too, so that later calls do not wait for the compiler.

        In Equinox `act` always is a compiled program, one for each number of observations; here it is called once for
        each of these. In torch this makes one program for any number (two where the learner `evaluates_apart`), without
        Python between the steps of a diffusion chain, in 15 to 60 seconds; its actions differ from those before by
        rounding, and for arguments of other shapes or types `act` still computes step by step.

        Args:
            state: where the networks are; the program serves all states like it.
            obs_dim: length of an observation.
            action_dim: length of an action.
            batch_sizes: numbers of observations.

        Raises:
            UsageError: it cannot be compiled.
        """
        raise NotImplementedError

    def measure(self, state: Any) -> Metrics:
        """ "actor_param_norm", "critic_param_norm"; "state_nonfinite", 1 if any number is NaN or infinite, else 0."""
        raise NotImplementedError

    def fetch(self, metrics: Sequence[Any]) -> Mapping[str, np.ndarray]:
        """The metrics of several calls on the host: name -> [calls] of float64, NaN for a call without that name."""
        raise NotImplementedError

    def _make_act_noise_spec(self, shape: Shape, deterministic: bool) -> NoiseSpec:
        spec = self.learner.acting(deterministic).noise_spec(shape)
        return without_exploration(spec) if deterministic else spec

    def _step(self, state: Any, batch: Batch, noise: Noise) -> tuple[Any, Metrics]:
        raise NotImplementedError

    def _update(self, state: Any, batches: Batch, key: int) -> tuple[Any, Metrics]:
        raise NotImplementedError

    def _act(self, state: Any, obs: np.ndarray, noise: Noise, deterministic: bool) -> np.ndarray:
        """`act`; deterministic only where evaluations have a sampler or critic of their own."""
        raise NotImplementedError

    def _with_moments(self, state: Any, moments: State) -> Any:
        raise NotImplementedError
