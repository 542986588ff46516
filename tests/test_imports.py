"""Who may know whom (DESIGN 1), asserted in fresh interpreters; and what `get_backend` says when it cannot."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import load_backend

import diffac.backend
from diffac.errors import UsageError

ROOT = Path(__file__).parent.parent
PATHS = [str(ROOT), str(ROOT / "backends"), str(ROOT / "recipes")]
FRAMEWORKS = {"torch", "jax", "equinox", "optax"}
ALLOWED = {
    "diffac": {"diffac", "gymnasium", "jaxtyping", "msgspec", "numpy", "yaml", "rich", "typing_extensions", "tyro"},
    "diffac_torch": {"diffac", "diffac_torch", "torch", "numpy", "jaxtyping"},
    "diffac_equinox": {"diffac", "diffac_equinox", "jax", "equinox", "optax", "numpy", "jaxtyping"},
    "diffac_recipes": {"diffac", "diffac_recipes", "numpy", "gymnasium", "tyro", "typing_extensions"},
}
FOLDERS = {
    "diffac": ROOT / "diffac",
    "diffac_torch": ROOT / "backends/diffac_torch",
    "diffac_equinox": ROOT / "backends/diffac_equinox",
    "diffac_recipes": ROOT / "recipes/diffac_recipes",
}


def fresh(code: str) -> str:
    """Runs code in a new interpreter and returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(imports: str) -> set[str]:
    """Top-level packages in sys.modules after the imports."""
    code = f"import sys, json\n{imports}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(json.loads(fresh(code).splitlines()[-1]))


def modules_of(package: str) -> list[str]:
    """Dotted names of all modules of a package, but for those that are programs."""
    root = FOLDERS[package]
    names = []
    for path in sorted(root.rglob("*.py")):
        parts = list(path.relative_to(root.parent).with_suffix("").parts)
        if parts[-1] == "__main__":
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imported_in_source(package: str) -> dict[str, set[str]]:
    """Top-level package -> files that mention it in any import statement, lazy ones included."""
    found: dict[str, set[str]] = {}
    for path in FOLDERS[package].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.name)
    return found


def test_import_diffac_loads_no_framework() -> None:
    assert loaded_after("import diffac").isdisjoint(FRAMEWORKS | set(FOLDERS) - {"diffac"})


def test_the_program_hears_ctrl_c_before_it_loads_anything() -> None:
    assert loaded_after("import diffac.__main__") <= {"diffac", *sys.stdlib_module_names, *loaded_after("")}


def test_public_names() -> None:
    """What a type checker sees, what there is, and what is found at its first use are the same."""
    tree = ast.parse((ROOT / "diffac/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen: dict[str, set[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        seen.setdefault(str(node.module).removeprefix("diffac."), set()).update(alias.name for alias in node.names)
    assert seen == {module: set(names) for module, names in diffac._NAMES.items()}
    fresh("import diffac\nfor name in dir(diffac):\n    getattr(diffac, name)\nassert 'noise' in dir(diffac)")
    with pytest.raises(AttributeError, match="module 'diffac' has no attribute 'nothing'"):
        diffac.nothing  # noqa: B018


def test_no_module_of_diffac_loads_a_framework() -> None:
    """Every module of `diffac`, in an interpreter in which torch and jax cannot be imported at all."""
    names = [name for name in modules_of("diffac") if not name.startswith("diffac.testing")]
    assert len(names) > 4
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in sorted(FRAMEWORKS))
    fresh(f"import sys\n{blocked}\n" + "\n".join(f"import {name}" for name in names))


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("diffac_torch", {"jax", "equinox", "optax", "diffac_equinox", "gymnasium", "diffac_recipes"}),
        ("diffac_equinox", {"torch", "diffac_torch", "gymnasium", "diffac_recipes"}),
    ],
)
def test_backends_know_only_diffac_and_their_framework(package: str, strangers: set[str]) -> None:
    load_backend(package.removeprefix("diffac_"))
    imports = "\n".join(f"import {name}" for name in modules_of(package))
    assert package in loaded_after(imports), "the backend was not loaded: the test would be empty"
    assert loaded_after(imports) & strangers == set()


def test_recipes_load_no_framework() -> None:
    names = modules_of("diffac_recipes")
    if not names:
        pytest.fail("there is no recipe to look at")
    assert loaded_after("\n".join(f"import {name}" for name in names)).isdisjoint(
        FRAMEWORKS | {"diffac_torch", "diffac_equinox"}
    )


@pytest.mark.parametrize("package", ["diffac_torch", "diffac_equinox", "diffac_recipes"])
def test_source_imports_only_what_it_may(package: str) -> None:
    """Also sees imports inside functions, which a fresh interpreter does not."""
    found = imported_in_source(package)
    foreign = {name: where for name, where in found.items() if name not in ALLOWED[package] | sys.stdlib_module_names}
    assert foreign == {}


def test_source_of_diffac_names_no_framework() -> None:
    """`diffac` may import extras lazily, but never a framework: it reaches one through `get_backend` alone.

    `diffac.testing` is what a test suite imports, and may compare backends."""
    found = imported_in_source("diffac")
    frameworks = {
        name: where for name, where in found.items() if name in FRAMEWORKS | {"diffac_torch", "diffac_equinox"}
    }
    assert frameworks == {}


def register(monkeypatch: pytest.MonkeyPatch, **backends: str) -> None:
    """Makes `get_backend` see these entry points, whether or not diffac is installed."""
    entries = [importlib.metadata.EntryPoint(name, value, diffac.backend.GROUP) for name, value in backends.items()]

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == diffac.backend.GROUP
        return entries

    monkeypatch.setattr(diffac.backend, "entry_points", entry_points)


def test_entry_points_are_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert declared["entry-points"][diffac.backend.GROUP] == {"torch": "diffac_torch", "equinox": "diffac_equinox"}
    assert {"torch", "equinox"} <= declared["optional-dependencies"].keys(), "get_backend's hint names these extras"


@pytest.mark.parametrize("name", ["torch", "equinox"])
def test_get_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_backend(name)
    register(monkeypatch, torch="diffac_torch", equinox="diffac_equinox")
    assert diffac.backend.backend_names() == ["equinox", "torch"]
    assert diffac.backend.get_backend(name).name == name


@pytest.mark.parametrize("name", ["torch", "equinox"])
def test_importing_a_backend_warns_of_nothing_of_ours(name: str) -> None:
    load_backend(name)
    code = f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import diffac_{name}
print([str(one.message)[:200] for one in caught if "diffac" in one.filename])
"""
    assert fresh(code).strip() == "[]"


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, torch="diffac_torch", equinox="diffac_equinox")
    with pytest.raises(UsageError, match=r"unknown backend 'tourch'; did you mean 'torch'\?; known: equinox, torch"):
        diffac.backend.get_backend("tourch")


@pytest.mark.parametrize(
    ("name", "module", "missing"),
    [
        ("torch", "diffac_torch", "torch"),
        ("equinox", "diffac_equinox", "jax"),
        ("equinox", "diffac_equinox", "equinox"),
        ("equinox", "diffac_equinox", "optax"),
    ],
)
def test_missing_framework_names_the_extra(name: str, module: str, missing: str) -> None:
    """In an interpreter whose import system does not find the framework."""
    load_backend(name)
    code = f"""
import importlib.metadata, sys
class Blocker:
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{fullname!r}}", name=fullname)
sys.meta_path.insert(0, Blocker())
import diffac.backend
from diffac.errors import UsageError
entry = importlib.metadata.EntryPoint({name!r}, {module!r}, diffac.backend.GROUP)
diffac.backend.entry_points = lambda group: [entry]
try:
    diffac.backend.get_backend({name!r})
except UsageError as error:
    print(error)
"""
    message = fresh(code)
    assert repr(missing) in message
    assert f"diffac[{name}]" in message
