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
from diffac_numpy.learner import AdamW as AdamW
from diffac_numpy.learner import Engine as Engine
from diffac_numpy.learner import Learner as Learner
from diffac_numpy.networks import CategoricalCritic as CategoricalCritic
from diffac_numpy.networks import DeterministicActor as DeterministicActor
from diffac_numpy.networks import EnsembleCritic as EnsembleCritic
from diffac_numpy.networks import GaussianActor as GaussianActor
from diffac_numpy.networks import GaussianCritic as GaussianCritic
from diffac_numpy.networks import LangevinActor as LangevinActor
from diffac_numpy.networks import MeanFlowActor as MeanFlowActor
from diffac_numpy.networks import MLPDenoiser as MLPDenoiser
from diffac_numpy.networks import TwinCritic as TwinCritic
from diffac_numpy.parts import *  # noqa: F403

name = "numpy"
