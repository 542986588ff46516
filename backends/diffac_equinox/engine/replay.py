"""Replay memory on the device of the networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffac.parts.storage import Column
from diffac.protocols import Array
from diffac_equinox.devices import find_device


class DeviceStorage:
    """What a `ReplayBuffer` holds, as arrays beside the networks: of a batch only the row numbers travel.

    The memory is taken at once. Writing compiles once for each number of rows, taking for each size of a batch.

    Args:
        device: as in `to_device`.
        columns: to be held.

    Raises:
        UsageError: this machine, or this build of JAX, has no such device.
        MemoryError: the device has too little memory.
    """

    def __init__(self, device: str, columns: Sequence[Column]) -> None:
        place = find_device(device)
        try:
            self._arrays = [jnp.zeros(column.shape, column.dtype, device=place) for column in columns]
        except jax.errors.JaxRuntimeError as error:
            raise MemoryError(str(error)) from error

    def write(self, start: int, rows: Sequence[np.ndarray]) -> None:
        """Overwrites the rows from `start` on in every column."""
        self._arrays = _write(self._arrays, np.int32(start), list(rows))

    def read(self, rows: slice) -> list[np.ndarray]:
        """These rows of every column on the host."""
        return [np.asarray(array[rows]) for array in self._arrays]

    def take(self, index: np.ndarray) -> list[Array]:
        """Copies [*index ...] of the rows with these numbers, on the device."""
        return _take(self._arrays, index.astype(np.int32))


@partial(jax.jit, donate_argnums=0)
def _write(arrays: list[Array], start: Array, rows: list[Array]) -> list[Array]:
    return [
        jax.lax.dynamic_update_slice_in_dim(array, values, start, 0) for array, values in zip(arrays, rows, strict=True)
    ]


@jax.jit
def _take(arrays: list[Array], index: Array) -> list[Array]:
    return [array.at[index].get(mode="promise_in_bounds") for array in arrays]
