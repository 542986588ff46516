"""What follows from a noise schedule: the reference's, without pullbacks."""

from __future__ import annotations

from typing import Any

from diffac.parts.schedules import check_signal, prediction_of
from diffac.protocols import NoiseSchedule
from diffac.testing import reference
from diffac.testing.reference import add_noise as add_noise
from diffac.testing.reference import noise_between as noise_between
from diffac.testing.reference import posterior_mean as posterior_mean
from diffac.testing.reference import remove_noise as remove_noise
from diffac.testing.reference import score as score


class _Said:
    """A denoiser that has given its output already."""

    def __init__(self, denoiser: Any, output: Any) -> None:
        self.prediction, self.output = prediction_of(denoiser), output

    def __call__(self, obs: Any, noisy: Any, t: Any) -> Any:
        return self.output, None


def predicted_action(schedule: NoiseSchedule, denoiser: Any, output: Any, noisy: Any, t: Any) -> Any:
    if prediction_of(denoiser) == "eps":
        check_signal(schedule)
    return reference.predicted_action(schedule, _Said(denoiser, output), None, noisy, t)[0]


def predicted_eps(schedule: NoiseSchedule, denoiser: Any, output: Any, noisy: Any, t: Any) -> Any:
    return reference.predicted_eps(schedule, _Said(denoiser, output), None, noisy, t)[0]
