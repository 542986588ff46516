"""Every recipe, in every backend, balances the inverted pendulum with its `quick` preset, run from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import load_backend

from diffac.backend import backend_names
from diffac_recipes import RECIPES
from learning.learned import ENV_ID, SOLVED

BUDGET = 30_000
"""Environment steps."""


@pytest.mark.learning
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_balances(recipe: str, backend: str, tmp_path: Path) -> None:
    load_backend(backend)
    flags = ["--preset", "quick", "--env-id", ENV_ID, "--backend", backend, "--no-progress"]
    single_precision = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    subprocess.run(
        [sys.executable, "-m", "diffac", "train", recipe, *flags], cwd=tmp_path, check=True, env=single_precision
    )
    (file,) = tmp_path.rglob("evaluations.npz")
    evaluations = np.load(file)
    assert evaluations["timesteps"][-1] <= BUDGET
    assert evaluations["results"][-1].mean() >= SOLVED
