"""What lies around diffac: a broken framework, devices that are not there, defaults that a user has set.

One sentence each: exit code 2 on the command line, a UsageError in the library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import INSTALLED, load_backend

from diffac.errors import UsageError

NETWORK = "B.TwinCritic(3, 1, key=0, hidden_sizes=(4,))"
COMMAND = ["train", "sac", "--env-id", "Pendulum-v1", "--hidden-sizes", "4", "--run-root", "RUNS"]


def said(backend: str, folder: Path, setup: str = "", **environment: str) -> list[Any]:
    """In a fresh interpreter: what the library raises where a network is made, and exit code and words of a command."""
    code = f"""
import contextlib, io, json, sys
{setup}
from diffac.backend import get_backend
from diffac.errors import UsageError
try:
    B = get_backend({backend!r})
    B.Adam().init({NETWORK})
    library = "nothing"
except UsageError as error:
    library = str(error)
words = io.StringIO()
from diffac.commands.main import main
with contextlib.redirect_stderr(words):
    rc = main({[*COMMAND, "--backend", backend]!r})
print(json.dumps([library, rc, words.getvalue()]))
"""
    paths = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found: list[Any], *mentions: str) -> None:
    library, rc, words = found
    for mention in mentions:
        assert mention in library, library
    assert "\n" not in library
    assert rc == 2, words
    assert library in words
    assert "Traceback" not in words


@pytest.mark.skipif(not INSTALLED["equinox"], reason="of JAX")
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_of_jax_that_is_not_there(platform: str, tmp_path: Path) -> None:
    if platform == "cuda" and load_backend("equinox").testing.devices() != ["cpu"]:
        pytest.skip("there is a GPU")
    found = said("equinox", tmp_path, JAX_PLATFORMS=platform)
    check(found, "JAX cannot compute on this machine", f"JAX_PLATFORMS={platform}", "unset")


@pytest.mark.skipif(not INSTALLED["equinox"], reason="of JAX")
def test_a_framework_that_cannot_be_imported(tmp_path: Path) -> None:
    """By what the environment says, or by what is installed."""
    check(said("equinox", tmp_path, JAX_ENABLE_X64="maybe"), "backend 'equinox' cannot be imported", "JAX_ENABLE_X64")
    (tmp_path / "optax.py").write_text("raise OSError('libsomething.so.3: cannot open shared object file')\n")
    check(said("equinox", tmp_path), "backend 'equinox' cannot be imported", "OSError: libsomething.so.3", "reinstall")


@pytest.mark.skipif(not INSTALLED["torch"], reason="of torch")
@pytest.mark.parametrize(
    ("setup", "mentions"),
    [
        ("torch.set_default_device('meta')", ("torch.set_default_device('meta')", "has no numbers")),
        ("torch.set_default_device('xpu')", ("torch cannot use its default device here", "XPU")),
        ("torch.set_default_dtype(torch.float16)", ("torch.set_default_dtype", "float16", "float32 or float64")),
        ("torch.set_default_dtype(torch.bfloat16)", ("torch.set_default_dtype", "bfloat16", "float32 or float64")),
    ],
)
def test_defaults_of_torch(setup: str, mentions: tuple[str, ...], tmp_path: Path) -> None:
    check(said("torch", tmp_path, f"import torch\n{setup}"), *mentions)


@pytest.mark.skipif(not INSTALLED["torch"], reason="of torch")
def test_a_folder_for_compiled_programs_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = said("torch", tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file" / "programs"))
    check(found, "for what it compiles (Not a directory)", "TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.skipif(not INSTALLED["torch"], reason="of torch")
def test_a_default_device_that_is_there_may_stay() -> None:
    B: Any = load_backend("torch")
    import torch

    with torch.device("cpu"):
        assert B.to_arrays(B.TwinCritic(3, 1, key=0, hidden_sizes=(4,)))


def test_a_device_that_is_not_there(backend: Any) -> None:
    network = backend.TwinCritic(3, 1, key=0, hidden_sizes=(4,))
    for device in ("cuda:77", "tpu", "", "CUDA", "cpu:0"):
        with pytest.raises(UsageError, match=f"sees no device '{device}'.*it sees: cpu"):
            backend.to_device(network, device)
