"""Where networks live."""

from __future__ import annotations

from typing import TypeVar

import equinox as eqx
import jax

from diffac.errors import UsageError

Module = TypeVar("Module", bound=eqx.Module)


def all_devices() -> list[jax.Device]:
    """What JAX can compute on, its first choice first.

    Raises:
        UsageError: nothing, mostly since JAX_PLATFORMS names what is not there.
    """
    try:
        return jax.devices()
    except Exception as error:  # JAX promises no type: a RuntimeError, an AssertionError without words
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")
        asked = f"JAX_PLATFORMS={jax.config.jax_platforms}" if jax.config.jax_platforms else "its own choice"  # type: ignore[attr-defined]
        raise UsageError(
            f"JAX cannot compute on this machine with {asked} ({reason}); unset JAX_PLATFORMS or set it to cpu"
        ) from error


def find_device(device: str) -> jax.Device:
    """The device of that name, as `to_device` takes it.

    Raises:
        UsageError: this machine, or this build of JAX, has no such device.
    """
    devices = all_devices()
    gpus = [gpu for gpu in devices if gpu.platform == "gpu"]
    found = {"auto": devices[0], "cpu": jax.devices("cpu")[0]}
    if gpus:
        found |= {"cuda": gpus[0]} | {f"cuda:{index}": gpu for index, gpu in enumerate(gpus)}
    if device not in found:
        names = ", ".join(name for name in found if name != "auto")
        raise UsageError(f"JAX sees no device {device!r} on this machine; it sees: {names}")
    return found[device]


def to_device(network: Module, device: str) -> Module:
    """A copy of the network on a device; everything else follows it.

    Args:
        network: stays where it is.
        device: "cpu", "cuda", "cuda:1"..., or "auto": JAX's first choice, a GPU if there is one.

    Raises:
        UsageError: this machine, or this build of JAX, has no such device.
    """
    if device == "auto":
        return network
    arrays, rest = eqx.partition(network, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, find_device(device)), rest)
