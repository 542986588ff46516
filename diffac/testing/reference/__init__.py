"""The mathematics of diffac once more, in plain NumPy float64: slow, obvious, and independent of every backend.

Two backends with the same bug agree with each other; this third voice arbitrates. It is written from the papers, to be
read beside them, and covers everything from a network to a whole learner step, with gradients derived by hand.
Equations are cited by number where the number is certain, else by paper and name.

* The classes have the backends' names and arguments, so that `part.make(reference, dims)` builds the same part. Only
  networks differ: they are bound to their parameters, a mapping from names (`layers.0.weight`, shape [out, in]) to
  arrays, as `to_arrays` gives them.
* What is differentiated returns (value, pull). `pull`, a *pullback*, takes the gradient of any scalar with respect to
  the value and returns the gradient of that scalar with respect to the inputs: the chain rule, one function at a time.
  Gradients with respect to parameters are mappings with the parameters' names, all of them present.
* An objective returns (Loss, gradient). What a paper holds fixed in a loss gets no gradient.
* min over critics is the critic with the smallest index among the smallest; a clip passes the gradient where it changes
  nothing; the slope of relu at 0 is 0.
* Numbers outside their range are not looked for; that is the backends' task.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239); DDIM = Song et al. 2021 (2010.02502); DACER = Wang et al. 2024
(2405.15177); DACER2 = 2505.23426; SDAC and DPMD = Ma et al. 2025 (2502.00361); SAC = Haarnoja et al. 2018 (1812.05905);
DSAC-T = Duan et al. 2023 (2310.05858); TD3 = Fujimoto et al. 2018 (1802.09477).
"""

from diffac.testing.reference.convert import from_arrays as from_arrays
from diffac.testing.reference.convert import to_arrays as to_arrays
from diffac.testing.reference.critics import *  # noqa: F403
from diffac.testing.reference.gradients import Array as Array
from diffac.testing.reference.gradients import Gradient as Gradient
from diffac.testing.reference.gradients import Parameters as Parameters
from diffac.testing.reference.gradients import Pull as Pull
from diffac.testing.reference.gradients import add as add
from diffac.testing.reference.gradients import best_of as best_of
from diffac.testing.reference.gradients import clip as clip
from diffac.testing.reference.gradients import concatenate as concatenate
from diffac.testing.reference.gradients import margins as margins
from diffac.testing.reference.gradients import reduced as reduced
from diffac.testing.reference.gradients import scaled as scaled
from diffac.testing.reference.gradients import sigmoid as sigmoid
from diffac.testing.reference.gradients import smallest as smallest
from diffac.testing.reference.gradients import softmax as softmax
from diffac.testing.reference.gradients import unbroadcast as unbroadcast
from diffac.testing.reference.gradients import zeros as zeros
from diffac.testing.reference.learner import Adam as Adam
from diffac.testing.reference.learner import AdamState as AdamState
from diffac.testing.reference.learner import AdamW as AdamW
from diffac.testing.reference.learner import Learner as Learner
from diffac.testing.reference.learner import LearnerState as LearnerState
from diffac.testing.reference.learner import nonfinite as nonfinite
from diffac.testing.reference.learner import polyak as polyak
from diffac.testing.reference.learner import prefixed as prefixed
from diffac.testing.reference.networks import CategoricalCritic as CategoricalCritic
from diffac.testing.reference.networks import DeterministicActor as DeterministicActor
from diffac.testing.reference.networks import EnsembleCritic as EnsembleCritic
from diffac.testing.reference.networks import GaussianActor as GaussianActor
from diffac.testing.reference.networks import GaussianCritic as GaussianCritic
from diffac.testing.reference.networks import LangevinActor as LangevinActor
from diffac.testing.reference.networks import MeanFlowActor as MeanFlowActor
from diffac.testing.reference.networks import MLPDenoiser as MLPDenoiser
from diffac.testing.reference.networks import activation as activation
from diffac.testing.reference.networks import body as body
from diffac.testing.reference.networks import body_derivative as body_derivative
from diffac.testing.reference.networks import bound as bound
from diffac.testing.reference.networks import ensemble as ensemble
from diffac.testing.reference.networks import layer_norm as layer_norm
from diffac.testing.reference.networks import perceptron as perceptron
from diffac.testing.reference.networks import perceptron_derivative as perceptron_derivative
from diffac.testing.reference.networks import simba as simba
from diffac.testing.reference.networks import simba_derivative as simba_derivative
from diffac.testing.reference.networks import time_embedding as time_embedding
from diffac.testing.reference.normalisers import *  # noqa: F403
from diffac.testing.reference.objectives import *  # noqa: F403
from diffac.testing.reference.samplers import *  # noqa: F403
from diffac.testing.reference.schedules import Posterior as Posterior
from diffac.testing.reference.schedules import Schedule as Schedule
from diffac.testing.reference.schedules import add_noise as add_noise
from diffac.testing.reference.schedules import coefficient as coefficient
from diffac.testing.reference.schedules import cosine_betas as cosine_betas
from diffac.testing.reference.schedules import linear_betas as linear_betas
from diffac.testing.reference.schedules import noise_between as noise_between
from diffac.testing.reference.schedules import posterior as posterior
from diffac.testing.reference.schedules import posterior_mean as posterior_mean
from diffac.testing.reference.schedules import predicted_action as predicted_action
from diffac.testing.reference.schedules import predicted_eps as predicted_eps
from diffac.testing.reference.schedules import remove_noise as remove_noise
from diffac.testing.reference.schedules import schedule as schedule
from diffac.testing.reference.schedules import score as score
from diffac.testing.reference.schedules import vp_betas as vp_betas
from diffac.testing.reference.temperatures import *  # noqa: F403
