"""Steps along a gradient."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from diffac.errors import UsageError
from diffac.parts import optimisers as declared
from diffac.protocols import Metrics
from diffac_torch.parameters import parameters
from diffac_torch.parts.coefficients import value_at

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
        try:
            optimiser = self._new(trained, fused=True)
        except RuntimeError:  # not available for this device or dtype
            optimiser = self._new(trained, foreach=True)
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
        opt_state.optimiser.param_groups[0]["lr"] = self._rate(opt_state.count)
        _step(opt_state.optimiser, module, grads)
        opt_state.count += 1
        return module, opt_state, {"grad_norm": norm}

    def _new(self, trained: list[nn.Parameter], **how: Any) -> torch.optim.Adam:
        return torch.optim.Adam(trained, **self._options(), **how)

    def _options(self) -> dict[str, Any]:
        return {"lr": self._rate(0), "betas": (self.b1, self.b2), "eps": self.eps}

    def _rate(self, count: int) -> float:
        return value_at(self.learning_rate, count)


class AdamW(declared.AdamW, Adam):
    def _new(self, trained: list[nn.Parameter], **how: Any) -> torch.optim.Adam:
        return torch.optim.AdamW(trained, weight_decay=self.weight_decay, **self._options(), **how)


def _step(optimiser: torch.optim.Optimizer, module: nn.Module, grads: Sequence[Tensor]) -> None:
    for parameter, grad in zip(parameters(module), grads, strict=True):
        # the fused kernel reads gradients wrongly that do not lie in memory as their parameter does
        parameter.grad = grad if grad.stride() == parameter.stride() else torch.empty_like(parameter).copy_(grad)
    optimiser.step()
    optimiser.zero_grad()


@dataclasses.dataclass
class OptimState:
    """An optimiser of torch.optim, which holds its numbers."""

    optimiser: torch.optim.Optimizer
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]

    def make_room(self) -> None:
        """Lets it keep, as zeros, all that it will keep from its first step on; found out with copies of parameters."""
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        copies = [nn.Parameter(parameter.detach().clone()) for parameter in trained]
        other = self.make(copies)
        for one in copies:
            one.grad = torch.zeros_like(one)
        other.step()
        for parameter, one in zip(trained, copies, strict=True):
            own = self.optimiser.state[parameter]
            for name, value in other.state[one].items():
                own.setdefault(name, torch.zeros_like(value) if isinstance(value, Tensor) else value)


class TorchOptimiser:
    """An optimiser of `torch.optim` as it is.

    Its numbers are saved by the names that it gives them; they mean nothing in another backend.

    Args:
        make: takes a list of parameters and returns a `torch.optim.Optimizer`: its class, or one with arguments, such
            as `functools.partial(torch.optim.RMSprop, lr=1e-3)`.
    """

    def __init__(self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.make = make

    def init(self, module: nn.Module) -> OptimState:
        """The state before the first step.

        Raises:
            UsageError: what was given makes no optimiser of the parameters.
        """
        _check_compiler_folder()
        try:
            optimiser = self.make(parameters(module))
        except TypeError as error:
            raise UsageError(f"an optimiser cannot be made with {self.make!r}: {error}") from error
        if not isinstance(optimiser, torch.optim.Optimizer):
            raise UsageError(
                "an optimiser must be a class of torch.optim, a function from a list of parameters to one of its "
                f"objects, or have the methods of diffac.protocols.Optimiser; {self.make!r} made a "
                f"{type(optimiser).__name__}"
            )
        if isinstance(optimiser, torch.optim.LBFGS):
            raise UsageError("torch.optim.LBFGS evaluates the loss anew within a step, which no learner here does")
        return OptimState(optimiser, self.make)

    def step(
        self, opt_state: OptimState, module: Module, grads: Sequence[Tensor]
    ) -> tuple[Module, OptimState, Metrics]:
        """One step in place, as `Optimiser` says."""
        norm = torch.nn.utils.get_total_norm(tuple(grads))
        _step(opt_state.optimiser, module, grads)
        return module, opt_state, {"grad_norm": norm}


def as_optimiser(given: Any) -> Any:
    """What a learner steps with: a part as it is, an optimiser of torch.optim in a `TorchOptimiser`."""
    if isinstance(given, torch.optim.Optimizer):
        raise UsageError(
            f"an optimiser must be given without parameters, as torch.optim.{type(given).__name__} or "
            f"functools.partial(torch.optim.{type(given).__name__}, lr=1e-3), got one that has them"
        )
    is_class = isinstance(given, type) and issubclass(given, torch.optim.Optimizer)
    is_maker = is_class or isinstance(given, functools.partial) or inspect.isroutine(given)
    return TorchOptimiser(cast(Any, given)) if is_maker else given
