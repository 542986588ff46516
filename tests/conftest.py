"""Everything runs in float64 and with checked shapes; a backend whose framework is missing is skipped."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ["JAX_ENABLE_X64"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two worker processes, and several files, compile the same programs: they share the results.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest
from program import PATHS

from diffac.backend import GROUP, get_backend

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)

FRAMEWORKS = {"torch": ("torch",), "equinox": ("jax", "equinox", "optax")}
"""Backend name -> the packages it needs. The order matters: torch is imported before jax."""
INSTALLED = {name: all(find_spec(package) for package in packages) for name, packages in FRAMEWORKS.items()}
NUMPY_BACKEND = Path(__file__).parent / "numpy_backend"

if INSTALLED["torch"]:
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # the arrays are tiny, and pytest-xdist uses the cores

if find_spec("beartype") and find_spec("jaxtyping"):  # from here on every annotated shape is checked at every call
    import jaxtyping

    jaxtyping.install_import_hook([f"diffac_{name}" for name in FRAMEWORKS], "beartype.beartype")

if find_spec("hypothesis"):
    from hypothesis import HealthCheck, Phase, settings

    common = {
        "deadline": None,
        "phases": [Phase.explicit, Phase.reuse, Phase.generate],  # shrinking a seed tells nothing and takes minutes
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    }
    settings.register_profile("default", max_examples=8, derandomize=True, **common)
    settings.register_profile("ci", max_examples=16, derandomize=True, print_blob=True, **common)
    settings.register_profile("agreement", max_examples=16, derandomize=True, print_blob=True, **common)
    settings.register_profile("explore", max_examples=200, **common)  # new values each run; not for CI
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where `nox -s official` finds recordings."""
    parser.addoption("--data", help="folder with recordings of the authors' code (tests/official)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a folder without recordings."""
    given = config.getoption("--data")
    if given and not list(Path(given).glob("*.npz")):
        raise pytest.UsageError(f"--data {given}: no recordings (*.npz) are there; name their folder")


SLOW = [line for line in (Path(__file__).parent / "slow.txt").read_text().splitlines() if not line.startswith("#")]
"""Functions, and patterns of rows, that `nox -s tests` leaves to `nox -s slow`."""
_SLOW_ROWS: dict[str, list[str]] = {}
for _function, _bracket, _row in (line.partition("[") for line in SLOW):
    if _bracket:
        _SLOW_ROWS.setdefault(_function, []).append(_row)


def is_slow(test: str) -> bool:
    """Whether a test, such as "tests/test_agent.py::test_compiled[torch]", is one of them."""
    function, _, row = test.partition("[")
    return function in SLOW or any(fnmatchcase(row, pattern) for pattern in _SLOW_ROWS.get(function, ()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow."""
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs() -> Iterator[None]:
    """JAX forgets what a module's tests have compiled: a process may have 65,530 mappings, then compiling crashes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def load_backend(name: str) -> ModuleType:
    """The backend module; skips the test where its framework is missing. A broken backend is an error, not a skip."""
    if not INSTALLED[name]:
        pytest.skip(f"backend {name!r} needs {', '.join(FRAMEWORKS[name])}")
    module = importlib.import_module(f"diffac_{name}")
    module.configure()
    importlib.import_module(f"diffac_{name}.testing")
    return module


@pytest.fixture(params=list(FRAMEWORKS))
def backend(request: pytest.FixtureRequest) -> ModuleType:
    """Each backend in turn: the module `diffac_torch` or `diffac_equinox`, with its submodule `testing` loaded."""
    return load_backend(request.param)


@pytest.fixture(params=["equinox", "torch", "torch compiled"])
def backend_also_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Each backend; torch also with its updates recorded, as for large networks, and run as recorded."""
    module = load_backend(request.param.split()[0])
    if request.param == "torch compiled":
        import torch

        from diffac_torch.kernels import programs

        monkeypatch.setattr(programs, "_MIN_WORK", 0)
        monkeypatch.setattr(programs, "_warn", lambda error: pytest.fail(f"not compiled: {error}"))
        monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    return module


@pytest.fixture
def both() -> SimpleNamespace:
    """The two backends as `both.torch` and `both.equinox`; skips where one is missing."""
    return SimpleNamespace(**{name: load_backend(name) for name in FRAMEWORKS})


@pytest.fixture(scope="module")
def numpy_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The third backend, registered as an installer would: metadata with its entry point, on the path."""
    project = tomllib.loads((NUMPY_BACKEND / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    ((name, module),) = project["entry-points"][GROUP].items()
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")
    before = list(sys.path)
    sys.path[:0] = [str(site), str(NUMPY_BACKEND)]
    try:
        yield get_backend(name)
    finally:
        sys.path[:] = before


FAKE_RECIPE = {"METADATA": "Name: fake\nVersion: 1\n", "entry_points.txt": "[diffac.recipes]\nfake = fake_recipe\n"}
"""Files of an installed package that has a recipe."""


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The recipe `fake` is installed, for processes that are started too; the folder for runs, which is empty."""
    metadata, work = tmp_path / "site" / "fake-1.dist-info", tmp_path / "work"
    for folder in (metadata, work):
        folder.mkdir(parents=True)
    for name, text in FAKE_RECIPE.items():
        (metadata / name).write_text(text)
    monkeypatch.syspath_prepend(metadata.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(metadata.parent), *PATHS]))
    monkeypatch.chdir(work)
    return work
