"""No import changes the process; `diffac.system.configure` changes what it says, and nothing else."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_recipe
import pytest
from conftest import FRAMEWORKS, INSTALLED, load_backend

from diffac.agent import Agent
from diffac.commands import validate as validation
from diffac.commands.script import run_recipe
from diffac.errors import UsageError
from diffac.system import configure

ROOT = Path(__file__).parents[2]
FOLDERS = {"diffac": ROOT, "diffac_recipes": ROOT / "recipes"} | {
    f"diffac_{name}": ROOT / "backends" for name in FRAMEWORKS if INSTALLED[name]
}

SNAPSHOT = """
import faulthandler, gc, logging, multiprocessing, operator, os, random, resource, signal, sys, threading, warnings

FLAGS = [
    ("cudnn", "enabled"), ("cudnn", "benchmark"), ("cudnn", "deterministic"), ("cudnn", "allow_tf32"),
    ("cuda.matmul", "allow_tf32"), ("cuda.matmul", "allow_fp16_reduced_precision_reduction"), ("mkldnn", "enabled"),
    ("opt_einsum", "enabled"), ("opt_einsum", "strategy"),
]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def snapshot():
    "Everything about this process that could be set, as texts by name."
    found = {f"environment: {name}": value for name, value in os.environ.items()}
    found |= {f"handler: {number}": signal.getsignal(number) for number in signal.valid_signals()}
    found |= {
        "folder": os.getcwd(), "gc": (gc.isenabled(), gc.get_threshold()), "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(), "warnings": warnings.filters, "faults": faulthandler.is_enabled(),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook, sys.stdout, sys.stderr),
        "threads": threading.enumerate(), "start": multiprocessing.get_start_method(allow_none=True),
        "log": (logging.root.level, logging.root.handlers, logging.root.manager.disable), "path": sys.path,
        "random": random.getstate(), "umask": (os.umask(0o22), os.umask(0o22)),
    }
    if numpy := sys.modules.get("numpy"):
        found |= {"numpy errors": numpy.geterr(), "numpy prints": numpy.get_printoptions()}
        found |= {"numpy random": str(numpy.random.get_state())}
        if sys.platform == "linux":
            before = resident()
            numpy.ones(5_000_000)  # 40 MB
            found["keeps freed memory"] = resident() - before > 20_000_000
    if jax := sys.modules.get("jax"):
        found |= {f"jax: {name}": value for name, value in jax.config.values.items()}
    if torch := sys.modules.get("torch"):
        found |= {
            "torch threads": torch.get_num_threads(), "torch interop": torch.get_num_interop_threads(),
            "torch dtype": torch.get_default_dtype(), "torch device": torch.get_default_device(),
            "torch gradients": torch.is_grad_enabled(), "torch seed": torch.initial_seed(),
            "torch deterministic": torch.are_deterministic_algorithms_enabled(),
            "torch precision": torch.get_float32_matmul_precision(),
            "torch denormals": (torch.tensor([1e-310], dtype=torch.float64) * 1.0).item(),
        }
        for name, flag in FLAGS:
            found[f"torch.backends.{name}.{flag}"] = getattr(operator.attrgetter(name)(torch.backends), flag)
    return {name: repr(value) for name, value in found.items()}

def changed(before):
    now = snapshot()
    return {name: now.get(name) for name in {*before, *now} if before.get(name) != now.get(name)}
"""


def fresh(code: str, **variables: str) -> str:
    """What the code prints in a process of its own, without what the tests have set."""
    ours = ("JAX_", "XLA_", "OMP_", "NPROC")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "backends", "recipes"))
    environment = {**kept, "PYTHONPATH": paths, **variables}
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT + code], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def modules_of(package: str) -> list[str]:
    """Dotted names of all modules of a package."""
    paths = sorted((FOLDERS[package] / package).rglob("*.py"))
    names = [".".join(path.relative_to(FOLDERS[package]).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("testing.conformance")]


@pytest.mark.parametrize("package", FOLDERS)
def test_an_import_changes_nothing(package: str, tmp_path: Path) -> None:
    """Modules of other people, which may do as they please, are there before."""
    names = modules_of(package)
    code = f"""
import importlib
for name in {names!r}:
    importlib.import_module(name)
print(*(name for name in sys.modules if not name.startswith("diffac")))
"""
    others = fresh(code).split()
    code = f"""
import contextlib, importlib
for name in {others!r}:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
before = snapshot()
assert not changed(before)
for name in {names!r}:
    importlib.import_module(name)
    print(name, changed(before))
"""
    assert fresh(code, TMPDIR=str(tmp_path)).splitlines() == [f"{name} {{}}" for name in names]
    assert list(tmp_path.iterdir()) == []


CONFIGURE = """
import diffac, diffac.system
backend = diffac.get_backend({name!r})
diffac.system.processors.granted_processors = lambda: {granted}
sys.modules[backend.__name__ + ".engine.settings"].granted_processors = lambda: {granted}
{before}
before = snapshot()
diffac.system.configure(backend{arguments})
print(sorted(changed(before).items()))
before = snapshot()
diffac.system.configure(backend{arguments})
print(changed(before))
"""


def configured(name: str, granted: int | None = None, before: str = "", arguments: str = "", **variables: str) -> Any:
    """What `configure` changes in a fresh process, and what it says; a second call must change and say nothing."""
    load_backend(name)
    code = CONFIGURE.format(name=name, granted=granted, before=before, arguments=arguments)
    changes, again, *said = fresh(code, **variables).splitlines()
    assert again == "{}"
    found = dict(eval(changes))
    if sys.platform == "linux":
        assert found.pop("keeps freed memory", "True") == "True"
    return found, said


def test_what_is_set_in_torch() -> None:
    found, said = configured("torch", granted=1, arguments=", matmul_precision='tensorfloat32'")
    assert found.pop("torch precision") == "'high'"
    assert said == []
    assert {name for name in found if "tf32" not in name and "precision" not in name} <= {"torch threads"}
    assert configured("torch") == ({}, [])


def test_what_is_set_in_jax(tmp_path: Path) -> None:
    user = {"TMPDIR": str(tmp_path), "USER": "me", "LOGNAME": "me", "JAX_PLATFORMS": "cpu"}
    expected = {
        "jax: jax_compilation_cache_dir": repr(str(tmp_path / "diffac_jax_me")),
        "jax: jax_cpu_enable_async_dispatch": "False",
        "jax: jax_default_matmul_precision": "'float32'",
    }
    assert configured("equinox", **user) == (expected, [])
    granted = {"environment: NPROC": "'1'"} if len(os.sched_getaffinity(0)) > 1 else {}
    assert configured("equinox", granted=1, **user) == (expected | granted, [])
    said_so = {"JAX_COMPILATION_CACHE_DIR": "/elsewhere", "NPROC": "2"}
    del expected["jax: jax_compilation_cache_dir"]
    assert configured("equinox", granted=1, **user, **said_so) == (expected, [])


def test_what_comes_too_late_is_said_once(tmp_path: Path) -> None:
    """The folder for compiled programs is not too late even then."""
    user = {"TMPDIR": str(tmp_path), "USER": "me", "LOGNAME": "me", "JAX_PLATFORMS": "cpu"}
    user |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    before = "import jax\njax.jit(lambda x: x + 1)(1.0)"
    found, said = configured("equinox", granted=1, before=before, **user)
    assert sorted(found) == ["jax: jax_compilation_cache_dir", "jax: jax_default_matmul_precision"]
    start = "note: JAX has computed before diffac.system.configure was called, so "
    words = ["its programs on the CPU stay in a thread of their own, which is slower"]
    if len(os.sched_getaffinity(0)) > 1:
        words.append("it keeps more threads than the 1 processors that this process is granted")
    assert said == [f"{start}{what}; call it before the first computation" for what in words]
    late = (
        "import diffac_equinox, diffac.system\ndiffac.system.configure(diffac_equinox)\njax.jit(lambda x: x + 2)(1.0)"
    )
    fresh(f"{before}\n{late}", **user)
    assert list((tmp_path / "diffac_jax_me").iterdir()), "nothing was kept"


def test_impossible_arguments(backend: Any) -> None:
    with pytest.raises(UsageError, match=rf"configure\(diffac.get_backend\('{backend.name}'\)\)"):
        configure(backend.name)
    with pytest.raises(UsageError, match=r"'float8'.*float32"):
        configure(backend, matmul_precision="float8")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Whom `configure` was called for."""
    found: list[tuple[Any, str]] = []
    for place in ("diffac.runs.engine", "diffac.commands.validate"):
        monkeypatch.setattr(
            f"{place}.configure", lambda b, *, matmul_precision="float32": found.append((b, matmul_precision))
        )
    return found


def test_commands_configure_their_process(backend: Any, tmp_path: Path, calls: list[Any]) -> None:
    argv = ["--run-root", str(tmp_path), "--backend", backend.name, "--no-progress"]
    run_recipe(fake_recipe, argv, "fake")
    assert calls == [(backend, "float32")]
    (run,) = tmp_path.glob("*/fake/*/seed*")
    run_recipe(fake_recipe, ["evaluate", str(run), "--episodes", "1"], "fake")
    assert calls == [(backend, "float32")] * 2
    validation._load([backend.name])
    assert calls == [(backend, "float32")] * 3


def test_an_agent_does_unless_told_otherwise(tmp_path: Path, calls: list[Any]) -> None:
    Agent.from_recipe(fake_recipe).save(tmp_path)
    Agent.load(tmp_path, recipe=fake_recipe)
    assert calls == [(None, "float32")] * 2
    for agent in (
        Agent.from_recipe(fake_recipe, configure=False),
        Agent.load(tmp_path, recipe=fake_recipe, configure=False),
    ):
        copy.deepcopy(agent)
        pickle.loads(pickle.dumps(agent))
    assert len(calls) == 2
    with (
        pytest.warns(UserWarning, match="matmul_precision 'bfloat16' has no effect with configure=False"),
        pytest.raises(UsageError, match="no choice of device or precision"),
    ):
        Agent.from_recipe(fake_recipe, matmul_precision="bfloat16", configure=False)
