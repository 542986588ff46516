"""The settings of a process with which diffac computes fast. No import changes any of them."""

from __future__ import annotations

from typing import Any

from diffac.errors import UsageError
from diffac.system.memory import keep_freed_memory


def configure(backend: Any, *, matmul_precision: str = "float32") -> None:
    """Sets this process up to compute with a backend: memory, threads, precision, a cache of compiled programs.

    The program `diffac` and `Agent` call it. Whoever uses the parts directly calls it or leaves it; without it the same
    numbers come slower (docs/use/settings.md says by how much). Call it before anything is computed: what comes too
    late is named in a note. What the environment's variables say stays. Calling it again changes nothing.

    Args:
        backend: the module, as `diffac.get_backend` returns it; None: only what concerns all of them.
        matmul_precision: numbers that matrix products of float32 may be computed with: "float32", "tensorfloat32" or
            "bfloat16". Where the hardware has no such product the next more exact one is taken.

    Raises:
        UsageError: an unknown precision, or a name in place of the backend's module.
    """
    if isinstance(backend, str):
        raise UsageError(
            f"configure takes a backend's module, got {backend!r}; write configure(diffac.get_backend({backend!r}))"
        )
    keep_freed_memory()
    if hasattr(backend, "configure"):
        backend.configure(matmul_precision=matmul_precision)
