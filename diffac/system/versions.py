"""Which versions of packages are installed; none of them is imported."""

from __future__ import annotations

import importlib.metadata

UNKNOWN = "0+unknown"
"""The version of diffac where it is run from a source folder that is not installed."""


def installed_versions(*packages: str) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def diffac_version() -> str:
    """The version of diffac."""
    return installed_versions("diffac").get("diffac", UNKNOWN)
