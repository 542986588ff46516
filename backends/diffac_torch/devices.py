"""Where networks live, how exactly their products are computed, and by how many threads."""

import os
from typing import TypeVar

import torch
from torch import nn

from diffac.errors import UsageError, unknown
from diffac.processors import granted_processors

Module = TypeVar("Module", bound=nn.Module)

_PRECISIONS = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}


def use_granted_processors() -> None:
    """Lets torch compute with no more threads than a container or batch system grants processors.

    torch counts the processors that it sees, which may be all of a shared machine. Without effect with OMP_NUM_THREADS
    in the environment; `torch.set_num_threads` sets another number at any time.
    """
    granted = granted_processors()
    if granted is not None and granted < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(granted)


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


def set_matmul_precision(precision: str) -> None:
    """Numbers that matrix products of float32 may be computed with: "float32", "tensorfloat32" or "bfloat16".

    Holds for the whole process. Where the hardware has no such product the next more exact one is taken.

    Raises:
        UsageError: an unknown name.
    """
    if precision not in _PRECISIONS:
        raise unknown("matmul precision", precision, _PRECISIONS)
    torch.set_float32_matmul_precision(_PRECISIONS[precision])
