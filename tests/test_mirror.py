"""The two backends mirror one another: same files, same public names, same argument lists."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import INSTALLED

from diffac.backend import Backend

pytestmark = pytest.mark.skipif(not all(INSTALLED.values()), reason="compares both backends")

BACKENDS = Path(__file__).parent.parent / "backends"
TORCH, EQUINOX = "diffac_torch", "diffac_equinox"

FRAMEWORKS_OWN = {"torch", "equinox", "jax", "builtins", "abc", "typing", "collections", "object"}
"""Top-level packages whose methods a network or a tuple inherits; they are not ours to mirror."""


def files(package: str) -> set[str]:
    root = BACKENDS / package
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and "kernels" not in path.parts
        and "__pycache__" not in path.parts
        and not path.name.endswith(".pyc")
    }


def arguments(function: Any) -> list[tuple[str, str, str]]:
    """Name, kind and default of every parameter; annotations differ by framework and are left out."""
    parameters = inspect.signature(function).parameters.values()
    return [
        (p.name, p.kind.name, "no default" if p.default is p.empty else repr_default(p.default)) for p in parameters
    ]


def repr_default(value: Any) -> str:
    """A default that can be compared across backends: parts by their class and fields, the rest by repr."""
    if type(value).__module__.startswith(("diffac_torch", "diffac_equinox")):
        return f"{type(value).__name__}({vars(value)!r})"
    if repr(value) == "<factory>":
        return "<factory>"
    return repr(value)


def our_methods(cls: type) -> Iterator[str]:
    """Public methods and properties, `__call__` included, that the class, its declaration or another base defines."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in (TORCH, EQUINOX, "diffac"):
            continue
        for name, member in vars(base).items():
            if (name == "__call__" or not name.startswith("_")) and (
                inspect.isfunction(inspect.unwrap(member)) or isinstance(member, property | staticmethod | classmethod)
            ):
                yield name


def canonical(cls: type, names: set[str]) -> set[str]:
    """`forward` is how a torch module spells `__call__`; everything else is called alike."""
    if "forward" in names:
        names = (names - {"forward"}) | {"__call__"}
    return names


def method(cls: type, name: str) -> Any:
    if name == "__call__" and "forward" in dir(cls) and cls.__module__.startswith(TORCH):
        own = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
        if own is None or own.__module__.split(".")[0] == "torch":
            return cls.forward
    found = inspect.getattr_static(cls, name)
    if isinstance(found, property):
        return None
    return unwrapped(getattr(cls, name))


def unwrapped(function: Any) -> Any:
    return inspect.unwrap(function) if callable(function) else function


def public(module: Any) -> dict[str, Any]:
    """What a module offers: `__all__` where it has one, else the public classes and functions defined in it."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or callable(value))
        and getattr(value, "__module__", None) == module.__name__
    }


def test_same_files() -> None:
    """Except for those in `kernels`: how a framework is made fast is its own affair."""
    assert files(TORCH) == files(EQUINOX)


def test_same_public_names() -> None:
    torch_names = importlib.import_module(TORCH).__all__
    equinox_names = importlib.import_module(EQUINOX).__all__
    assert sorted(torch_names) == sorted(equinox_names)
    assert len(set(torch_names)) == len(torch_names)


@pytest.mark.parametrize("package", [TORCH, EQUINOX])
def test_every_name_of_the_backend_protocol_exists(package: str) -> None:
    module = importlib.import_module(package)
    wanted = set(Backend.__annotations__)
    assert len(wanted) > 20, "the protocol lost its names"
    assert {name for name in wanted if not hasattr(module, name)} == set()
    assert wanted - set(module.__all__) - {"name"} == set()
    assert all(hasattr(module, name) for name in module.__all__)
    assert module.name == package.removeprefix("diffac_")


def shared_names() -> dict[str, tuple[Any, Any]]:
    """Everything public in both backends: `__all__` of the packages, the tools for tests, and the exporter."""
    names = {}
    for suffix in ("", ".testing", ".engine.export"):
        ours, theirs = (public(importlib.import_module(package + suffix)) for package in (TORCH, EQUINOX))
        assert sorted(ours) == sorted(theirs)
        names |= {name: (ours[name], theirs[name]) for name in ours}
    return names


def test_same_signatures() -> None:
    """Parameter names, order, kinds and defaults of every public function, class, method and property."""
    names = shared_names()
    assert len(names) > 30
    for name, (one, other) in names.items():
        assert inspect.isclass(one) == inspect.isclass(other), name
        assert callable(one) == callable(other), name
        if not callable(one):
            continue
        assert arguments(one) == arguments(other), name
        if not inspect.isclass(one):
            continue
        methods = canonical(one, set(our_methods(one)))
        theirs = set(our_methods(other))
        assert methods == canonical(other, theirs), name
        for entry in sorted(methods):
            left, right = method(one, entry), method(other, entry)
            assert (left is None) == (right is None), f"{name}.{entry}: a property in one backend only"
            if left is not None:
                assert arguments(left) == arguments(right), f"{name}.{entry}"


@pytest.mark.parametrize("package", [TORCH, EQUINOX])
def test_everything_public_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    bare = [
        name
        for name in module.__all__
        if (inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name)))
        and not (getattr(module, name).__doc__ or "").strip()
    ]
    assert bare == []
