"""Where networks live."""

from typing import TypeVar

import torch
from torch import nn

from diffac.errors import UsageError

Module = TypeVar("Module", bound=nn.Module)


def check_defaults() -> None:
    """Refuses defaults of torch with which no network could be made, or none that learns.

    Raises:
        UsageError: the default device is not there or holds no numbers, or the default type is not one to learn in.
    """
    try:
        device = torch.empty(0).device
    except Exception as error:  # torch promises no type
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"torch cannot use its default device here ({reason}); call torch.set_default_device('cpu')"
        ) from error
    if device.type == "meta":
        raise UsageError("torch.set_default_device('meta') was called, and what lives there has no numbers; use 'cpu'")
    dtype = torch.get_default_dtype()
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"torch.set_default_dtype({dtype}) was called; diffac learns in float32 or float64")


def find_device(device: str) -> torch.device:
    """The device of that name, as `to_device` takes it.

    Raises:
        UsageError: this machine, or this build of torch, has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if device == "auto":
        device = "cuda" if count else "cpu"
    if device not in names:
        raise UsageError(f"torch sees no device {device!r} on this machine; it sees: {', '.join(names)}")
    return torch.device(device)


def to_device(network: Module, device: str) -> Module:
    """The network, moved; everything else follows it.

    Args:
        network: is moved in place.
        device: "cpu", "cuda", "cuda:1"..., or "auto": the first GPU if there is one, else the CPU.

    Raises:
        UsageError: this machine, or this build of torch, has no such device.
    """
    return network.to(find_device(device))
