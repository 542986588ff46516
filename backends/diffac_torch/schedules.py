"""Noise schedules, which `diffac.parts.schedules` declares."""

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffac.parts import schedules as declared

Time: TypeAlias = int | Int[Tensor, "*#batch"]
Coefficient: TypeAlias = float | Float[Tensor, "*#batch 1"]


class TabularSchedule(declared.TabularSchedule):
    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
        self._tensors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def alpha(self, t: Time) -> Coefficient:
        return self._coefficient("alpha", t, torch.get_default_dtype())

    def sigma(self, t: Time) -> Coefficient:
        return self._coefficient("sigma", t, torch.get_default_dtype())

    def add_noise(
        self, action: Float[Tensor, "*#batch act"], eps: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        return _add_scaled(
            self._coefficient("alpha", t, action.dtype) * action, self._coefficient("sigma", t, action.dtype), eps
        )

    def predict_action(
        self, noisy: Float[Tensor, "*#batch act"], eps: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        signal = _add_scaled(noisy, -self._coefficient("sigma", t, noisy.dtype), eps)
        return signal / self._coefficient("alpha", t, noisy.dtype)

    def score(self, eps: Float[Tensor, "*#batch act"], t: Time) -> Float[Tensor, "*#batch act"]:
        return -eps / self._coefficient("sigma", t, eps.dtype)

    def posterior_mean(
        self, action: Float[Tensor, "*#batch act"], noisy: Float[Tensor, "*#batch act"], t: Time
    ) -> Float[Tensor, "*#batch act"]:
        return _add_scaled(
            self._coefficient("posterior_action", t, action.dtype) * action,
            self._coefficient("posterior_noisy", t, action.dtype),
            noisy,
        )

    def posterior_std(self, t: Time) -> Coefficient:
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
