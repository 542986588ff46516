"""Every part, declared once: what it is called, what it takes, which noise and state it needs, and where it comes from.

A backend's class inherits its declaration and adds the computation.
"""

from diffac.parts import critics, learner, objectives, samplers, temperatures
from diffac.parts.declaration import Part

PARTS: dict[str, type[Part]] = {
    part.__name__: part
    for part in (
        samplers.DDPMSampler,
        samplers.DDIMSampler,
        samplers.DeterministicSampler,
        samplers.TanhGaussianSampler,
        samplers.BestOf,
        samplers.AdditiveNoise,
        objectives.ValueThroughSampler,
        objectives.TimeWeightedQGradient,
        objectives.ReweightedScoreMatching,
        objectives.ReverseProposal,
        objectives.PolicyProposal,
        objectives.EntropyRegularisedValue,
        objectives.Sum,
        critics.MeanSquaredTD,
        critics.GaussianTD,
        temperatures.FixedTemperature,
        temperatures.NoiseEntropyTemperature,
        temperatures.MixtureEntropyTemperature,
        temperatures.TargetEntropyTemperature,
        learner.Learner,
    )
}
"""Name in every backend -> its declaration."""
