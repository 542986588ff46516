"""The settings of JAX with which diffac computes fast; `diffac.system.configure` asks for them."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from diffac.errors import unknown
from diffac.messages import note
from diffac.system.processors import granted_processors

_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def configure(*, matmul_precision: str = "float32") -> None:
    """The part of JAX in `diffac.system.configure`, which says what it means.

    Raises:
        UsageError: an unknown precision.
    """
    if matmul_precision not in _PRECISIONS:
        raise unknown("matmul precision", matmul_precision, _PRECISIONS)
    jax.config.update("jax_default_matmul_precision", matmul_precision)
    _keep_compiled_programs()
    _compute_in_calling_thread()
    _use_granted_processors()


def _compute_in_calling_thread() -> None:
    """Lets a program on the CPU run in the thread that calls it; GPUs stay asynchronous.

    JAX gives it to a thread of its own otherwise. There glibc serves no block above 64 MB from memory that it kept
    (`diffac.system.memory`), so each page of an update's temporary memory costs a fault anew: a third to a half of
    DACER2's time. An action for one observation would wait half as long for that thread as it takes itself. Nothing is
    lost, since an update keeps all cores busy, and processes of environments work meanwhile.
    """
    config: Any = jax.config
    if config.values["jax_cpu_enable_async_dispatch"]:
        if _has_computed():
            _say_late("its programs on the CPU stay in a thread of their own, which is slower")
        else:
            config.update("jax_cpu_enable_async_dispatch", False)


def _use_granted_processors() -> None:
    """Lets JAX compute with no more threads than a container or batch system grants processors.

    JAX counts the processors that it sees, which may be all of a shared machine. The number reaches it by the variable
    NPROC, which XLA reads when JAX first computes; without effect where the environment has that variable already.
    """
    granted = granted_processors()
    if granted is not None and granted < len(os.sched_getaffinity(0)) and "NPROC" not in os.environ:
        if _has_computed():
            _say_late(f"it keeps more threads than the {granted} processors that this process is granted")
        else:
            os.environ["NPROC"] = str(granted)


def _keep_compiled_programs() -> None:
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
            compilation_cache.reset_cache()  # whoever has compiled without a folder would never look for one again


def _has_computed() -> bool:
    """Whether JAX has begun to compute on a CPU, which fixes how it does."""
    with contextlib.suppress(ImportError):  # JAX has no public name for it
        from jax._src.xla_bridge import backends_are_initialized

        return backends_are_initialized() and jax.default_backend() == "cpu"
    return False


@functools.cache
def _say_late(what: str) -> None:
    note(f"JAX has computed before diffac.system.configure was called, so {what}; call it before the first computation")
