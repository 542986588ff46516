"""Replay memory on the device of the networks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffac.parts.storage import Column
from diffac_torch.devices import find_device


class DeviceStorage:
    """What a `ReplayBuffer` holds, as tensors beside the networks: of a batch only the row numbers travel.

    The device's memory is taken at once.

    Args:
        device: as in `to_device`.
        columns: to be held.

    Raises:
        UsageError: this machine, or this build of torch, has no such device.
        MemoryError: the device has too little memory.
    """

    def __init__(self, device: str, columns: Sequence[Column]) -> None:
        place = find_device(device)
        dtypes = {bool: torch.bool, np.float32: torch.float32}
        try:
            self._tensors = [torch.empty(column.shape, dtype=dtypes[column.dtype], device=place) for column in columns]
        except RuntimeError as error:  # out of memory, on a GPU and on a CPU
            raise MemoryError(str(error)) from error

    def write(self, start: int, rows: Sequence[np.ndarray]) -> None:
        """Overwrites the rows from `start` on in every column."""
        for tensor, values in zip(self._tensors, rows, strict=True):
            tensor[start : start + len(values)] = torch.as_tensor(np.ascontiguousarray(values))

    def read(self, rows: slice) -> list[np.ndarray]:
        """These rows of every column on the host."""
        return [tensor[rows].cpu().numpy() for tensor in self._tensors]

    def take(self, index: np.ndarray) -> list[Tensor]:
        """Copies [*index ...] of the rows with these numbers, on the device."""
        numbers = torch.as_tensor(index.ravel()).to(self._tensors[0].device)
        return [tensor.index_select(0, numbers).view(*index.shape, *tensor.shape[1:]) for tensor in self._tensors]
