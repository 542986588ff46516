"""Which arrays of a network are trained, how slow copies follow them, and the mode in which networks run."""

from typing import Any, TypeVar

import torch
from torch import nn

from diffac.errors import UsageError

Module = TypeVar("Module", bound=nn.Module)


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained: those with `requires_grad`."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def first_parameters(actor: Any, critic: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """One that is trained of each.

    Raises:
        UsageError: there is none, or the networks are on different devices.
    """
    first = []
    for name, module in (("actor", actor), ("critic", critic)):
        found = parameters(module) if isinstance(module, nn.Module) else []
        if not found:
            raise UsageError(f"{name} must be a torch.nn.Module with parameters, got {type(module).__name__}")
        first.append(found[0])
    if first[0].device != first[1].device:
        raise UsageError(f"actor and critic must be on one device, got {first[0].device} and {first[1].device}")
    return first[0], first[1]


def in_evaluation_mode(module: Module) -> Module:
    """The network, in place, with its dropout and the like switched off."""
    return module.eval()


@torch.no_grad()
def towards(slow: nn.Module, fast: nn.Module, tau: float) -> None:
    """slow <- (1 - tau) slow + tau fast for every parameter that is trained; slow <- fast for all else."""
    pairs = list(zip(slow.parameters(), fast.parameters(), strict=True))
    trained, of_fast = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
    torch._foreach_lerp_(trained, of_fast, tau)  # type: ignore[attr-defined]
    frozen = [pair for pair in pairs if not pair[1].requires_grad]
    for own, new in (*frozen, *zip(slow.buffers(), fast.buffers(), strict=True)):
        own.copy_(new)
