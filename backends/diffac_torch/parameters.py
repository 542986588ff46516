"""Which arrays of a network are trained, and the mode in which networks run."""

from typing import Any, TypeVar

from torch import nn

from diffac.errors import UsageError

Module = TypeVar("Module", bound=nn.Module)


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained: those with `requires_grad`."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def first_parameter(name: str, module: Any) -> nn.Parameter:
    """One that is trained.

    Raises:
        UsageError: there is none.
    """
    found = parameters(module) if isinstance(module, nn.Module) else []
    if not found:
        raise UsageError(f"{name} must be a torch.nn.Module with parameters, got {type(module).__name__}")
    return found[0]


def in_evaluation_mode(module: Module) -> Module:
    """The network, in place, with its dropout and the like switched off."""
    return module.eval()
