"""Every recipe, in every backend, balances the inverted pendulum with its `quick` preset."""

from __future__ import annotations

import pytest

from diffac.backend import backend_names, get_backend
from diffac.cli import load_recipe, run_recipe
from diffac.errors import UsageError
from diffac_recipes import RECIPES

SOLVED = 950.0
"""Of 1,000, the return of an episode in which the pendulum never falls."""


@pytest.mark.learning
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_balances(recipe, backend, tmp_path):
    try:
        get_backend(backend)
    except UsageError as error:
        pytest.skip(str(error))
    result = run_recipe(
        load_recipe(recipe),
        ["--preset", "quick", "--env-id", "InvertedPendulum-v5", "--backend", backend,
         "--run-root", str(tmp_path), "--no-progress"],
        recipe,
    )  # fmt: skip
    assert result.evaluations[-1].env_step <= 30_000
    assert result.evaluations[-1].returns.mean() >= SOLVED
