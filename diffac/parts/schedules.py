"""Noise schedules: how much of an action is left, and how much noise there is, at each time of a diffusion."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from diffac.errors import UsageError
from diffac.parts.arguments import Argument
from diffac.parts.declaration import EXAMPLES, Part, declared
from diffac.protocols import Array
from diffac.schedules import ScheduleTable


def _check_table(name: str, value: Any) -> None:
    if not isinstance(value, ScheduleTable):
        raise UsageError(f"{name} must be a ScheduleTable, such as vp_table(5), got {value!r}")


@declared
class TabularSchedule(Part):
    """A variance-preserving forward process with T discrete times, given by its table.

    Ho et al. 2020 (arXiv 2006.11239), equations 4 to 7. A time `t` in {0, ..., T-1} is a Python integer, then
    coefficients are Python floats and cost nothing, or an array of integers [*batch], then they are gathered to shape
    [*batch 1]. Results have the dtype of the actions and noises; coefficients asked for alone (`alpha`, `sigma`,
    `posterior_std`) the framework's default one. Other times are the caller's error.

    Args:
        table: the coefficients, such as `vp_table(5)`. In Equinox, schedules with the same table object share compiled
            programs.
    """

    table: Annotated[ScheduleTable, Argument(_check_table, wrong=(None, 5, "vp"))] = dataclasses.field(
        metadata={"static": True}  # for Equinox: no array, but a part of the program
    )

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.table.num_steps

    def alpha(self, t: Array | int) -> Array | float:
        """Signal left at time t: a float, or [*batch 1] for an array t."""
        raise NotImplementedError

    def sigma(self, t: Array | int) -> Array | float:
        """Noise present at time t: a float, or [*batch 1] for an array t."""
        raise NotImplementedError

    def add_noise(self, action: Array, eps: Array, t: Array | int) -> Array:
        """alpha[t] action + sigma[t] eps: a sample of the forward kernel."""
        raise NotImplementedError

    def predict_action(self, noisy: Array, eps: Array, t: Array | int) -> Array:
        """(noisy - sigma[t] eps) / alpha[t]: the inverse of `add_noise`, not clipped."""
        raise NotImplementedError

    def score(self, eps: Array, t: Array | int) -> Array:
        """-eps / sigma[t]: the score of the noised density that belongs to a predicted noise."""
        raise NotImplementedError

    def posterior_mean(self, action: Array, noisy: Array, t: Array | int) -> Array:
        """Mean of q(a_{t-1} | a_t = noisy, a_0 = action); at t = 0 it is the action."""
        raise NotImplementedError

    def posterior_std(self, t: Array | int) -> Array | float:
        """Standard deviation of q(a_{t-1} | a_t, a_0): a float, or [*batch 1] for an array t; zero at t = 0."""
        raise NotImplementedError


EXAMPLES[TabularSchedule] = "TabularSchedule(vp_table(5))"
