"""The PyTorch backend of diffac; `diffac.backend.Backend` lists the names that all backends share."""

from diffac_torch import critics, normalisers, objectives, samplers, temperatures
from diffac_torch.activations import activation as activation
from diffac_torch.convert import from_arrays as from_arrays
from diffac_torch.convert import to_arrays as to_arrays
from diffac_torch.critics import *  # noqa: F403
from diffac_torch.devices import to_device as to_device
from diffac_torch.diffusion import add_noise as add_noise
from diffac_torch.diffusion import noise_between as noise_between
from diffac_torch.diffusion import posterior_mean as posterior_mean
from diffac_torch.diffusion import predicted_action as predicted_action
from diffac_torch.diffusion import predicted_eps as predicted_eps
from diffac_torch.diffusion import remove_noise as remove_noise
from diffac_torch.diffusion import score as score
from diffac_torch.engine import Engine as Engine
from diffac_torch.learner import Learner as Learner
from diffac_torch.learner import LearnerState as LearnerState
from diffac_torch.networks import DeterministicActor as DeterministicActor
from diffac_torch.networks import EnsembleCritic as EnsembleCritic
from diffac_torch.networks import GaussianActor as GaussianActor
from diffac_torch.networks import GaussianCritic as GaussianCritic
from diffac_torch.networks import MLPDenoiser as MLPDenoiser
from diffac_torch.networks import TwinCritic as TwinCritic
from diffac_torch.networks import time_embedding as time_embedding
from diffac_torch.normalisers import *  # noqa: F403
from diffac_torch.objectives import *  # noqa: F403
from diffac_torch.optimisers import Adam as Adam
from diffac_torch.optimisers import AdamW as AdamW
from diffac_torch.replay import DeviceStorage as DeviceStorage
from diffac_torch.samplers import *  # noqa: F403
from diffac_torch.settings import configure as configure
from diffac_torch.temperatures import *  # noqa: F403

name = "torch"

__all__ = [
    "Adam",
    "AdamW",
    "DeterministicActor",
    "DeviceStorage",
    "Engine",
    "EnsembleCritic",
    "GaussianActor",
    "GaussianCritic",
    "Learner",
    "LearnerState",
    "MLPDenoiser",
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
