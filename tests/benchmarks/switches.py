"""The optimisations one by one: each row switches one part of diffac off and leaves the rest as it is.

The switches live here and nowhere else: they replace parts of the running process by slower ones with equal results.
The library itself has no second way.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from . import switches_equinox, switches_torch

Patch = Callable[[Any, str, Any], None]
"""Replaces an attribute of an object: `setattr`, or a test's, which undoes it."""


@dataclasses.dataclass(frozen=True)
class Switch:
    """An optimisation that can be taken away."""

    title: str
    """What the optimisation is."""
    cases: tuple[str, ...]
    """Where it is measured."""
    backends: tuple[str, ...] = ("torch", "equinox")
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment of the process without it."""

    def off(self, name: str, backend: str, patch: Patch = setattr) -> None:
        """Takes it away in this process."""
        module = {"torch": switches_torch, "equinox": switches_equinox}[backend]
        importlib.import_module(f"diffac_{backend}")
        if not self.variables:
            getattr(module, name)(patch)


SWITCHES = {
    "skip": Switch("no gradient for an actor step that is not applied", ("dacer2",)),
    "particles": Switch("denoiser once for each noised action, not for each particle", ("sdac_small",)),
    "shares": Switch("shares of observation and time in the first layer once for each chain", ("dacer2", "sdac")),
    "mish": Switch("cheap exact Mish", ("dacer2", "sdac")),
    "ensemble": Switch("critics as one batched product", ("dacer2", "sac"), ("equinox",)),
    "share": Switch("first layer of all critics as one product", ("dacer2", "sac"), ("equinox",)),
    "repeated": Switch("gradient of the observations' share by a product, not a sum", ("dacer2",), ("equinox",)),
    "products": Switch("products by oneDNN where a CPU has AVX-512", ("dacer2", "sdac", "sac"), ("torch",)),
    "vectors": Switch("vectors of 512 bits where a CPU has them", ("dacer2", "sdac"), ("equinox",)),
    "dispatch": Switch("programs run in the thread that calls them", ("dacer2", "sac"), ("equinox",)),
    "adam": Switch("fused Adam, slow copies in one call", ("dacer2", "sac"), ("torch",)),
    "unrolled": Switch("short chains unrolled", ("dacer2",), ("equinox",)),
    "donation": Switch("the state's memory is handed over, not copied", ("dacer2", "sac"), ("equinox",)),
    "projection": Switch("masses of C51 added where they belong, not compared with every atom", ("dime",)),
    "metrics": Switch("metrics stay on the device until they are logged", ("dacer2", "sac")),
    "heap": Switch("freed memory stays with the process", ("dacer2", "sdac")),
    "compile": Switch(
        "torch.compile", ("dacer2", "dacer", "sdac", "sdac_small", "sac"), ("torch",), {"TORCH_COMPILE_DISABLE": "1"}
    ),
}  # fmt: skip
