"""The PyTorch backend of diffac; `diffac.backend.Backend` lists the names that all backends share."""

from diffac_torch.devices import to_device as to_device
from diffac_torch.engine.convert import from_arrays as from_arrays
from diffac_torch.engine.convert import to_arrays as to_arrays
from diffac_torch.engine.engine import Engine as Engine
from diffac_torch.engine.replay import DeviceStorage as DeviceStorage
from diffac_torch.engine.settings import configure as configure
from diffac_torch.learner import Learner as Learner
from diffac_torch.parts import critics, normalisers, objectives, samplers, temperatures
from diffac_torch.parts.activations import activation as activation
from diffac_torch.parts.critics import *  # noqa: F403
from diffac_torch.parts.diffusion import add_noise as add_noise
from diffac_torch.parts.diffusion import noise_between as noise_between
from diffac_torch.parts.diffusion import posterior_mean as posterior_mean
from diffac_torch.parts.diffusion import predicted_action as predicted_action
from diffac_torch.parts.diffusion import predicted_eps as predicted_eps
from diffac_torch.parts.diffusion import remove_noise as remove_noise
from diffac_torch.parts.diffusion import score as score
from diffac_torch.parts.networks import CategoricalCritic as CategoricalCritic
from diffac_torch.parts.networks import DeterministicActor as DeterministicActor
from diffac_torch.parts.networks import EnsembleCritic as EnsembleCritic
from diffac_torch.parts.networks import GaussianActor as GaussianActor
from diffac_torch.parts.networks import GaussianCritic as GaussianCritic
from diffac_torch.parts.networks import LangevinActor as LangevinActor
from diffac_torch.parts.networks import MeanFlowActor as MeanFlowActor
from diffac_torch.parts.networks import MLPDenoiser as MLPDenoiser
from diffac_torch.parts.networks import TwinCritic as TwinCritic
from diffac_torch.parts.networks import time_embedding as time_embedding
from diffac_torch.parts.normalisers import *  # noqa: F403
from diffac_torch.parts.objectives import *  # noqa: F403
from diffac_torch.parts.optimisers import Adam as Adam
from diffac_torch.parts.optimisers import AdamW as AdamW
from diffac_torch.parts.samplers import *  # noqa: F403
from diffac_torch.parts.temperatures import *  # noqa: F403
from diffac_torch.state import LearnerState as LearnerState

name = "torch"

__all__ = [
    "Adam",
    "AdamW",
    "CategoricalCritic",
    "DeterministicActor",
    "DeviceStorage",
    "Engine",
    "EnsembleCritic",
    "GaussianActor",
    "GaussianCritic",
    "LangevinActor",
    "Learner",
    "LearnerState",
    "MLPDenoiser",
    "MeanFlowActor",
    "TwinCritic",
    "activation",
    "add_noise",
    "configure",
    "from_arrays",
    "name",
    "noise_between",
    "posterior_mean",
    "predicted_action",
    "predicted_eps",
    "remove_noise",
    "score",
    "time_embedding",
    "to_arrays",
    "to_device",
]
__all__ += critics.__all__
__all__ += normalisers.__all__
__all__ += objectives.__all__
__all__ += samplers.__all__
__all__ += temperatures.__all__
