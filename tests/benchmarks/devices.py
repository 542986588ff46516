"""The device that is measured: the first GPU that the framework finds, else the CPU."""

from __future__ import annotations

from typing import Any


def choose(backend: str) -> None:
    """Makes everything of torch's live on the GPU if there is one, as JAX does by itself."""
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.set_default_device("cuda")


def wait(backend: str, results: Any) -> None:
    """Until the results are there."""
    if backend == "equinox":
        import jax

        jax.block_until_ready(results)
    else:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def put(backend: str, batch: Any) -> Any:
    """A batch of NumPy arrays on the device."""
    if backend == "equinox":
        import jax

        return jax.device_put(batch)
    import torch

    return type(batch)(*(torch.as_tensor(array, device=torch.get_default_device()) for array in batch[:5]))
