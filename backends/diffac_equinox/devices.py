"""Where networks live, how exactly their products are computed, and by how many threads."""

from __future__ import annotations

import contextlib
import getpass
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax

from diffac.errors import UsageError, unknown
from diffac.system.processors import granted_processors

Module = TypeVar("Module", bound=eqx.Module)

_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def use_granted_processors() -> None:
    """Lets JAX compute with no more threads than a container or batch system grants processors.

    JAX counts the processors that it sees, which may be all of a shared machine. The number reaches it by the variable
    NPROC, which XLA reads when JAX first computes; without effect after that, or where the environment has that
    variable already.
    """
    granted = granted_processors()
    if granted is not None and granted < len(os.sched_getaffinity(0)):
        os.environ.setdefault("NPROC", str(granted))


def compute_in_calling_thread() -> None:
    """Lets a program on the CPU run in the thread that calls it; GPUs stay asynchronous.

    JAX gives it to a thread of its own otherwise. There glibc serves no block above 64 MB from memory that it kept
    (`diffac.system.memory`), so each page of an update's temporary memory costs a fault anew: a third to a half of
    DACER2's time. An action for one observation would wait half as long for that thread as it takes itself. Nothing is
    lost, since an update keeps all cores busy, and processes of environments work meanwhile.

    Without effect when JAX has computed before. To have it otherwise, set the option of JAX again after the import.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles for the next process, in the folder of temporary files, where torch keeps its own.

    That folder belongs to one machine, as the programs do. Without effect where JAX has a folder already
    (JAX_COMPILATION_CACHE_DIR) or shall have none (JAX_ENABLE_COMPILATION_CACHE=false), or where somebody else owns or
    may write to ours.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError, KeyError):  # no place to write, a user without a name
        folder = Path(tempfile.gettempdir()) / f"diffac_jax_{getpass.getuser()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and (
            not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
        ):
            config.update("jax_compilation_cache_dir", str(folder))


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


def set_matmul_precision(precision: str) -> None:
    """Numbers that matrix products of float32 may be computed with: "float32", "tensorfloat32" or "bfloat16".

    Holds for the whole process. Where the hardware has no such product the next more exact one is taken.

    Raises:
        UsageError: an unknown name.
    """
    if precision not in _PRECISIONS:
        raise unknown("matmul precision", precision, _PRECISIONS)
    jax.config.update("jax_default_matmul_precision", precision)
