"""What a backend is, and how one is found by its name, without importing it before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeAlias

import numpy as np

from diffac.errors import UsageError, unknown
from diffac.parts import critics, learner, networks, normalisers, objectives, optimisers, samplers, temperatures
from diffac.protocols import Array, Engine, NoiseSchedule

GROUP = "diffac.backends"
OTHER_NAMES = {"jax": "equinox", "eqx": "equinox", "flax": "equinox", "pytorch": "torch"}
"""What people call backends otherwise."""
Time: TypeAlias = "Array | int"


class Backend(Protocol):
    """A backend is a module with these names; what is declared in `diffac.parts` inherits its declaration."""

    name: str

    # diffusion
    add_noise: Callable[[NoiseSchedule, Array, Array, Time], Array]
    remove_noise: Callable[[NoiseSchedule, Array, Array, Time], Array]
    noise_between: Callable[[NoiseSchedule, Array, Array, Time], Array]
    score: Callable[[NoiseSchedule, Array, Time], Array]
    posterior_mean: Callable[[NoiseSchedule, Array, Array, Time], Array]
    predicted_action: Callable[[NoiseSchedule, Any, Array, Array, Time], Array]
    predicted_eps: Callable[[NoiseSchedule, Any, Array, Array, Time], Array]
    # networks
    MLPDenoiser: type[networks.MLPDenoiser]
    MeanFlowActor: type[networks.MeanFlowActor]
    LangevinActor: type[networks.LangevinActor]
    DeterministicActor: type[networks.DeterministicActor]
    GaussianActor: type[networks.GaussianActor]
    EnsembleCritic: type[networks.EnsembleCritic]
    TwinCritic: type[networks.TwinCritic]
    GaussianCritic: type[networks.GaussianCritic]
    CategoricalCritic: type[networks.CategoricalCritic]
    # normalisers
    Standardiser: type[normalisers.Standardiser]
    # samplers
    DDPMSampler: type[samplers.DDPMSampler]
    DDIMSampler: type[samplers.DDIMSampler]
    HeunSampler: type[samplers.HeunSampler]
    MeanFlowSampler: type[samplers.MeanFlowSampler]
    LangevinSampler: type[samplers.LangevinSampler]
    DeterministicSampler: type[samplers.DeterministicSampler]
    TanhGaussianSampler: type[samplers.TanhGaussianSampler]
    BestOf: type[samplers.BestOf]
    AdditiveNoise: type[samplers.AdditiveNoise]
    LogProbability: type[samplers.LogProbability]
    # actor objectives
    ValueThroughSampler: type[objectives.ValueThroughSampler]
    TimeWeightedQGradient: type[objectives.TimeWeightedQGradient]
    ReweightedScoreMatching: type[objectives.ReweightedScoreMatching]
    MeanFlowMatching: type[objectives.MeanFlowMatching]
    ReverseProposal: type[objectives.ReverseProposal]
    PolicyProposal: type[objectives.PolicyProposal]
    QWeightedProposal: type[objectives.QWeightedProposal]
    ImprovedReplayProposal: type[objectives.ImprovedReplayProposal]
    EntropyRegularisedValue: type[objectives.EntropyRegularisedValue]
    Sum: type[objectives.Sum]
    # critic objectives
    MeanSquaredTD: type[critics.MeanSquaredTD]
    GaussianTD: type[critics.GaussianTD]
    CategoricalTD: type[critics.CategoricalTD]
    # temperatures
    FixedTemperature: type[temperatures.FixedTemperature]
    NoiseEntropyTemperature: type[temperatures.NoiseEntropyTemperature]
    MixtureEntropyTemperature: type[temperatures.MixtureEntropyTemperature]
    TargetEntropyTemperature: type[temperatures.TargetEntropyTemperature]
    mixture_entropy: Any
    # learning
    Adam: type[optimisers.Adam]
    AdamW: type[optimisers.AdamW]
    Learner: type[learner.Learner]
    Engine: Callable[[learner.Learner], Engine]
    # parameters and states to and from NumPy
    to_arrays: Any
    from_arrays: Any


def engine_of(learner: Any, backend: str) -> Engine:
    """What runs a learner: the learner itself where it can, else its backend's engine."""
    return learner if hasattr(learner, "update") else get_backend(backend).Engine(learner)


def unknown_backend(name: str) -> UsageError:
    """The error for a name that no backend has."""
    return unknown("backend", name, backend_names(), other_names=OTHER_NAMES)


def check_backend_name(name: str) -> None:
    """Refuses what is only another name of a backend; an unknown one may belong to a learner that needs none."""
    plain = name.casefold()
    if plain in OTHER_NAMES or plain != name:  # asked first, as finding all names takes its time
        names = backend_names()
        if name not in names and plain in (*OTHER_NAMES, *names):
            raise unknown_backend(name)


def backend_names() -> list[str]:
    """Names of all registered backends, whether or not their framework is installed."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def get_backend(name: str) -> Backend:
    """The backend module of that name; imports its framework.

    Third parties register a backend under the entry point group `diffac.backends`.

    Raises:
        UsageError: no backend has this name, or its framework is not installed or broken.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise unknown_backend(name)
    module = found[name].value
    try:
        return importlib.import_module(module)  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend {name!r} needs the package {error.name!r}, which is not installed; "
            f"run: python -m pip install 'diffac[{name}]'"
        ) from error
    except Exception as error:  # of any type: a missing library, a variable of the environment without sense
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise UsageError(
            f"backend {name!r} cannot be imported ({reason}); unset the environment variables of its framework, or "
            f"reinstall it: python -m pip install --force-reinstall 'diffac[{name}]'"
        ) from error


class Codec(Protocol):
    """Turns a learner's state into named arrays and back; a backend is one, and a learner can be one itself."""

    def to_arrays(self, state: Any, /) -> Mapping[str, np.ndarray]:
        """All arrays of a state, copied to the host."""
        ...

    def from_arrays(self, state: Any, arrays: Mapping[str, np.ndarray], /) -> Any:
        """The state with these arrays in place of its own."""
        ...


def codec_of(learner: Any, backend: str) -> Codec:
    """The learner itself where it is a `Codec`, else its backend."""
    return learner if hasattr(learner, "to_arrays") else get_backend(backend)
