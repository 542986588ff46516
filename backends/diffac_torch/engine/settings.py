"""The settings of torch with which diffac computes fast; `diffac.system.configure` asks for them."""

import os

import torch

from diffac.errors import unknown
from diffac.system.processors import granted_processors

_PRECISIONS = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}


def configure(*, matmul_precision: str = "float32") -> None:
    """The part of torch in `diffac.system.configure`, which says what it means.

    Raises:
        UsageError: an unknown precision.
    """
    if matmul_precision not in _PRECISIONS:
        raise unknown("matmul precision", matmul_precision, _PRECISIONS)
    torch.set_float32_matmul_precision(_PRECISIONS[matmul_precision])
    _use_granted_processors()


def _use_granted_processors() -> None:
    """Lets torch compute with no more threads than a container or batch system grants processors.

    torch counts the processors that it sees, which may be all of a shared machine. Without effect with OMP_NUM_THREADS
    in the environment; `torch.set_num_threads` sets another number at any time.
    """
    granted = granted_processors()
    if granted is not None and granted < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(granted)
