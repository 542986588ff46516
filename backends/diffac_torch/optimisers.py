"""Steps along a gradient."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffac.errors import UsageError
from diffac.parts import optimisers as declared
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Metrics
from diffac_torch.parameters import parameters

Module = TypeVar("Module", bound=nn.Module)


def _check_compiler_folder() -> None:
    """Makes the folder for compiled programs as torch does with its first optimiser; it fails in ways that vary."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"torch cannot make the folder {folder!r} for what it compiles ({error.strerror}); set "
                "TORCHINDUCTOR_CACHE_DIR to a folder that can be written"
            ) from error


@dataclasses.dataclass
class AdamState:
    """The optimiser of one module, which holds the moments (from the start, as zeros), and the number of steps done."""

    optimiser: torch.optim.Adam
    count: int = 0

    def set_count(self, count: int) -> None:
        """Makes this the number of steps done."""
        self.count = count
        for state in self.optimiser.state.values():
            state["step"].fill_(count)


class Adam(declared.Adam):
    def init(self, module: nn.Module) -> AdamState:
        """The state before the first step.

        Raises:
            UsageError: torch cannot make the folder where it keeps what it compiles.
        """
        _check_compiler_folder()
        trained = parameters(module)
        options = {"lr": self._rate(0), "betas": (self.b1, self.b2), "eps": self.eps}
        try:
            optimiser = torch.optim.Adam(trained, fused=True, **options)
        except RuntimeError:  # not available for this device or dtype
            optimiser = torch.optim.Adam(trained, foreach=True, **options)
        fused = optimiser.defaults["fused"]
        for parameter in trained:
            optimiser.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return AdamState(optimiser)

    def step(self, opt_state: AdamState, module: Module, grads: Sequence[Tensor]) -> tuple[Module, AdamState, Metrics]:
        """One step in place with gradients in the order of `parameters(module)`.

        Returns:
            The same module, the same state, and {"grad_norm"}, the norm before the clip.
        """
        norm = torch.nn.utils.get_total_norm(grads)
        if self.max_grad_norm is not None:
            factor = (self.max_grad_norm / norm).clamp(max=1)
            grads = [grad * factor for grad in grads]
        optimiser = opt_state.optimiser
        for parameter, grad in zip(parameters(module), grads, strict=True):
            parameter.grad = grad.contiguous()  # the fused kernel reads expanded gradients wrongly
        optimiser.param_groups[0]["lr"] = self._rate(opt_state.count)
        optimiser.step()
        optimiser.zero_grad()
        opt_state.count += 1
        return module, opt_state, {"grad_norm": norm}

    def _rate(self, count: int) -> float:
        rate = self.learning_rate
        if not isinstance(rate, LinearSchedule):
            return rate
        progress = min(max((count - rate.begin) / (rate.end - rate.begin), 0.0), 1.0)
        return rate.initial + progress * (rate.final - rate.initial)
