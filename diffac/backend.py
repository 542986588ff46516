"""Finds backends by name, without importing one before it is asked for."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from diffac.errors import UsageError, unknown
from diffac.protocols import Backend

GROUP = "diffac.backends"


def backend_names() -> list[str]:
    """Names of all registered backends, whether or not their framework is installed."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def get_backend(name: str) -> Backend:
    """The backend module of that name; imports its framework.

    Third parties register a backend under the entry point group `diffac.backends`.

    Raises:
        UsageError: no backend has this name, or its framework is not installed or broken.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise unknown("backend", name, found)
    module = found[name].value
    try:
        return importlib.import_module(module)  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend {name!r} needs the package {error.name!r}, which is not installed; "
            f"run: python -m pip install 'diffac[{name}]'"
        ) from error
    except Exception as error:  # of any type: a missing library, a variable of the environment without sense
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise UsageError(
            f"backend {name!r} cannot be imported ({reason}); unset the environment variables of its framework, or "
            f"reinstall it: python -m pip install --force-reinstall 'diffac[{name}]'"
        ) from error
