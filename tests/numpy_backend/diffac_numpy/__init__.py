"""A third backend in plain NumPy, on top of `diffac.testing.reference`: small, slow, and an example to copy.

The reference knows values and pullbacks. A backend adds what its users meet: networks made from a key, arguments that
are checked, calls that return values alone, updates that draw their own noise, states as named arrays.
"""

from diffac_numpy.convert import from_arrays as from_arrays
from diffac_numpy.convert import to_arrays as to_arrays
from diffac_numpy.diffusion import add_noise as add_noise
from diffac_numpy.diffusion import noise_between as noise_between
from diffac_numpy.diffusion import posterior_mean as posterior_mean
from diffac_numpy.diffusion import predicted_action as predicted_action
from diffac_numpy.diffusion import predicted_eps as predicted_eps
from diffac_numpy.diffusion import remove_noise as remove_noise
from diffac_numpy.diffusion import score as score
from diffac_numpy.learner import Adam as Adam
from diffac_numpy.learner import Engine as Engine
from diffac_numpy.learner import Learner as Learner
from diffac_numpy.networks import DeterministicActor as DeterministicActor
from diffac_numpy.networks import EnsembleCritic as EnsembleCritic
from diffac_numpy.networks import GaussianActor as GaussianActor
from diffac_numpy.networks import GaussianCritic as GaussianCritic
from diffac_numpy.networks import MLPDenoiser as MLPDenoiser
from diffac_numpy.networks import TwinCritic as TwinCritic
from diffac_numpy.parts import AdditiveNoise as AdditiveNoise
from diffac_numpy.parts import BestOf as BestOf
from diffac_numpy.parts import DDIMSampler as DDIMSampler
from diffac_numpy.parts import DDPMSampler as DDPMSampler
from diffac_numpy.parts import DeterministicSampler as DeterministicSampler
from diffac_numpy.parts import EntropyRegularisedValue as EntropyRegularisedValue
from diffac_numpy.parts import FixedTemperature as FixedTemperature
from diffac_numpy.parts import GaussianTD as GaussianTD
from diffac_numpy.parts import MeanSquaredTD as MeanSquaredTD
from diffac_numpy.parts import MixtureEntropyTemperature as MixtureEntropyTemperature
from diffac_numpy.parts import NoiseEntropyTemperature as NoiseEntropyTemperature
from diffac_numpy.parts import PolicyProposal as PolicyProposal
from diffac_numpy.parts import ReverseProposal as ReverseProposal
from diffac_numpy.parts import ReweightedScoreMatching as ReweightedScoreMatching
from diffac_numpy.parts import Sum as Sum
from diffac_numpy.parts import TanhGaussianSampler as TanhGaussianSampler
from diffac_numpy.parts import TargetEntropyTemperature as TargetEntropyTemperature
from diffac_numpy.parts import TimeWeightedQGradient as TimeWeightedQGradient
from diffac_numpy.parts import ValueThroughSampler as ValueThroughSampler
from diffac_numpy.parts import mixture_entropy as mixture_entropy

name = "numpy"
