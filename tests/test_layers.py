"""Who may import whom: the rooms of the house in layers, and every import of the source held against them."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (ROOT, ROOT / "backends", ROOT / "recipes")

LAYERS = (
    ("diffac_recipes",),
    ("diffac", "diffac.__main__"),
    ("diffac.commands",),
    ("diffac.agent", "diffac.reports", "diffac.scale", "diffac.testing"),
    ("diffac.runs",),
    ("diffac.training",),
    ("diffac.data", "diffac.logging"),
    ("diffac.envs",),
    ("diffac_torch", "diffac_equinox"),
    ("diffac.backend",),
    ("diffac.parts",),
    ("diffac.protocols",),
    ("diffac.noise",),
    ("diffac.files", "diffac.system", "diffac.values"),
    ("diffac.errors",),
    ("diffac.messages",),
)
"""Rooms, the highest first: a module may import from its own room and from those in lower rows, and from no others."""
BACKENDS = ("diffac_torch", "diffac_equinox")
LAYERS_OF_A_BACKEND = (
    ("testing",),
    ("engine",),
    ("learner",),
    ("gradients",),
    ("parts",),
    ("devices", "parameters", "state"),
    ("kernels",),
)
"""Files and folders of a backend, likewise; its `__init__` may import from all of them."""
SEEN_BY_BACKENDS = ("diffac.protocols", "diffac.parts", "diffac.noise", "diffac.errors", "diffac.system")
EXCEPTIONS = {("diffac_equinox.engine.settings", "diffac.messages")}
"""What a module of a backend imports beside those: one that tells a person something."""


def modules() -> dict[str, Path]:
    """Dotted name of every module -> its file."""
    found = {}
    for source, package in [(s, p) for s in SOURCES for p in s.glob("diffac*") if p.is_dir()]:
        for path in package.rglob("*.py"):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in MODULES or node.module in MODULES:
                    yield name if name in MODULES else str(node.module)


ARROWS = {name: sorted(set(imports_of(path)) - {name}) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """The room that a module belongs to."""
    rooms = [room for row in LAYERS for room in row if module == room or module.startswith(f"{room}.")]
    return max((room for room in rooms if room != "diffac" or module == "diffac"), key=len)


FLOOR = {room: number for number, row in enumerate(reversed(LAYERS)) for room in row}


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert {room_of(module) for module in MODULES} == FLOOR.keys()


def test_every_folder_says_what_lives_there() -> None:
    for path in MODULES.values():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} needs a sentence"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module: str) -> None:
    room = room_of(module)
    upward = [to for to in ARROWS[module] if room_of(to) != room and FLOOR[room_of(to)] >= FLOOR[room]]
    assert upward == []


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in BACKENDS])
def test_a_backend_sees_only_contracts_and_declarations(module: str) -> None:
    allowed = {room_of(module), *SEEN_BY_BACKENDS}
    assert [to for to in ARROWS[module] if room_of(to) not in allowed and (module, to) not in EXCEPTIONS] == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(tuple(f"{b}." for b in BACKENDS))])
def test_imports_run_down_within_a_backend(module: str) -> None:
    backend, own = module.split(".")[:2]
    floors = {room: number for number, row in enumerate(reversed(LAYERS_OF_A_BACKEND)) for room in row}
    others = {to.split(".")[1] for to in ARROWS[module] if to.startswith(f"{backend}.")} - {own}
    assert [to for to in others if floors[to] >= floors[own]] == []


def test_exceptions_are_needed() -> None:
    assert {(module, to) for module, to in EXCEPTIONS if to in ARROWS[module]} == EXCEPTIONS


def test_there_is_no_circle() -> None:
    """Not even within a room; a package's `__init__` counts only where something is imported from it."""
    graphlib.TopologicalSorter(ARROWS).prepare()


def test_an_import_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from diffac.commands import train\n    import diffac.agent\nimport numpy\n")
    assert set(imports_of(path)) == {"diffac.commands.train", "diffac.agent"}
