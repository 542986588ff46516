"""Noise schedules: the coefficients of a `diffac.schedules.ScheduleTable`, applied to tensors."""

import dataclasses
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffac.arguments import check_arguments
from diffac.schedules import ScheduleTable

Time: TypeAlias = int | Int[Tensor, "*#batch"]
Coefficient: TypeAlias = float | Float[Tensor, "*#batch 1"]


@dataclasses.dataclass(frozen=True, eq=False)
class TabularSchedule:
    """A variance-preserving forward process with T discrete times, given by its table.

    Ho et al. 2020 (arXiv 2006.11239), equations 4 to 7. A time `t` is a Python integer, then coefficients are Python
    floats and cost nothing, or an integer tensor [*batch], then they are gathered to shape [*batch 1]. The results of
    `add_noise`, `predict_action`, `score` and `posterior_mean` have the dtype of their tensors; coefficients asked for
    alone (`alpha`, `sigma`, `posterior_std`) have torch's default dtype. Times outside {0, ..., T-1} are the caller's
    error.
    """

    table: ScheduleTable
    _tensors: dict[tuple[str, torch.dtype, torch.device], Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        check_arguments("TabularSchedule", vars(self))

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.table.num_steps

    def alpha(self, t: Time) -> Coefficient:
        """Signal left at time t: a float, or [*batch 1] for a tensor t."""
        return self._coefficient("alpha", t, torch.get_default_dtype())

    def sigma(self, t: Time) -> Coefficient:
        """Noise present at time t: a float, or [*batch 1] for a tensor t."""
        return self._coefficient("sigma", t, torch.get_default_dtype())

    def add_noise(
        self, action: Float[Tensor, "*#batch act"], eps: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        """alpha[t] action + sigma[t] eps: a sample of the forward kernel."""
        return _add_scaled(
            self._coefficient("alpha", t, action.dtype) * action, self._coefficient("sigma", t, action.dtype), eps
        )

    def predict_action(
        self, noisy: Float[Tensor, "*#batch act"], eps: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        """(noisy - sigma[t] eps) / alpha[t]: the inverse of `add_noise`, not clipped."""
        signal = _add_scaled(noisy, -self._coefficient("sigma", t, noisy.dtype), eps)
        return signal / self._coefficient("alpha", t, noisy.dtype)

    def score(self, eps: Float[Tensor, "*#batch act"], t: Time) -> Float[Tensor, "*#batch act"]:
        """-eps / sigma[t]: the score of the noised density that belongs to a predicted noise."""
        return -eps / self._coefficient("sigma", t, eps.dtype)

    def posterior_mean(
        self, action: Float[Tensor, "*#batch act"], noisy: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        """Mean of q(a_{t-1} | a_t = noisy, a_0 = action); at t = 0 it is the action."""
        return _add_scaled(
            self._coefficient("posterior_action", t, action.dtype) * action,
            self._coefficient("posterior_noisy", t, action.dtype),
            noisy,
        )

    def posterior_std(self, t: Time) -> Coefficient:
        """Standard deviation of q(a_{t-1} | a_t, a_0): a float, or [*batch 1] for a tensor t; zero at t = 0."""
        return self._coefficient("posterior_std", t, torch.get_default_dtype())

    def _coefficient(self, name: str, t: Time, dtype: torch.dtype) -> Coefficient:
        values = getattr(self.table, name)
        if not isinstance(t, Tensor):
            return float(values[t])
        key = (name, dtype, t.device)
        if key not in self._tensors:
            with torch.inference_mode(False):  # else a table first needed while acting could never be used in training
                self._tensors[key] = torch.tensor(values, dtype=dtype, device=t.device)
        return self._tensors[key][t].unsqueeze(-1)


def _add_scaled(x: Tensor, coefficient: Coefficient, y: Tensor) -> Tensor:
    """x + coefficient y in one kernel: acting for one observation costs as much as its number of kernels."""
    if isinstance(coefficient, Tensor):
        return torch.addcmul(x, coefficient, y)
    return torch.add(x, y, alpha=coefficient)
