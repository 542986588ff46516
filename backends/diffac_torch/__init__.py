"""The PyTorch backend of diffac; `diffac.backend.Backend` lists the names that all backends share."""

from diffac_torch.activations import activation as activation
from diffac_torch.convert import from_arrays as from_arrays
from diffac_torch.convert import to_arrays as to_arrays
from diffac_torch.critics import GaussianTD as GaussianTD
from diffac_torch.critics import MeanSquaredTD as MeanSquaredTD
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
from diffac_torch.objectives import EntropyRegularisedValue as EntropyRegularisedValue
from diffac_torch.objectives import PolicyProposal as PolicyProposal
from diffac_torch.objectives import Regression as Regression
from diffac_torch.objectives import ReverseProposal as ReverseProposal
from diffac_torch.objectives import ReweightedScoreMatching as ReweightedScoreMatching
from diffac_torch.objectives import Sum as Sum
from diffac_torch.objectives import TimeWeightedQGradient as TimeWeightedQGradient
from diffac_torch.objectives import ValueThroughSampler as ValueThroughSampler
from diffac_torch.optimisers import Adam as Adam
from diffac_torch.replay import DeviceStorage as DeviceStorage
from diffac_torch.samplers import AdditiveNoise as AdditiveNoise
from diffac_torch.samplers import BestOf as BestOf
from diffac_torch.samplers import DDIMSampler as DDIMSampler
from diffac_torch.samplers import DDPMSampler as DDPMSampler
from diffac_torch.samplers import DeterministicSampler as DeterministicSampler
from diffac_torch.samplers import TanhGaussianSampler as TanhGaussianSampler
from diffac_torch.settings import configure as configure
from diffac_torch.temperatures import FixedTemperature as FixedTemperature
from diffac_torch.temperatures import MixtureEntropyTemperature as MixtureEntropyTemperature
from diffac_torch.temperatures import NoiseEntropyTemperature as NoiseEntropyTemperature
from diffac_torch.temperatures import TargetEntropyTemperature as TargetEntropyTemperature
from diffac_torch.temperatures import mixture_entropy as mixture_entropy

name = "torch"

__all__ = [
    "Adam",
    "AdditiveNoise",
    "BestOf",
    "DDIMSampler",
    "DDPMSampler",
    "DeterministicActor",
    "DeterministicSampler",
    "DeviceStorage",
    "Engine",
    "EnsembleCritic",
    "EntropyRegularisedValue",
    "FixedTemperature",
    "GaussianActor",
    "GaussianCritic",
    "GaussianTD",
    "Learner",
    "LearnerState",
    "MLPDenoiser",
    "MeanSquaredTD",
    "MixtureEntropyTemperature",
    "NoiseEntropyTemperature",
    "PolicyProposal",
    "Regression",
    "ReverseProposal",
    "ReweightedScoreMatching",
    "Sum",
    "TanhGaussianSampler",
    "TargetEntropyTemperature",
    "TimeWeightedQGradient",
    "TwinCritic",
    "ValueThroughSampler",
    "activation",
    "add_noise",
    "configure",
    "from_arrays",
    "mixture_entropy",
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
