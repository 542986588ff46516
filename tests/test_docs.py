"""The documentation keeps its word: its code runs, its API pages and recipe pages are complete."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import diffac
from diffac.building import start_engine
from diffac.parts import PARTS
from diffac.training import TrainConfig
from diffac_recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NAMES = ("start/getting-started", "extend/objective", "results/agreement", "use/agent", "use/settings")
PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in NAMES)]
PACKAGES = {
    "torch": ("torch",),
    "equinox": ("jax", "equinox", "optax"),
    "mujoco": ("mujoco",),
    "sb3": ("stable_baselines3",),
}
FENCE = re.compile(r"^```python(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = {
    "total_timesteps=4_000": "total_timesteps=300",
    "learning_starts=1_000": "learning_starts=200, eval_episodes=1",
    "agent.learn(10_000)": "agent.learn(1_100)",
}
"""README's runs are for people; the test only asks whether it works."""


class Block(NamedTuple):
    """A piece of Python in the documentation."""

    page: Path
    number: int
    title: str
    """Name of the file that the reader should save it as; may be empty."""
    code: str

    @property
    def needs(self) -> set[str]:
        """Backends and packages without which it cannot run."""
        backends = {name for name in ("torch", "equinox") if f'"{name}"' in self.code or f"diffac_{name}" in self.code}
        if "diffac_recipes" in self.code or ("Agent.from_recipe" in self.code and not backends):
            backends.add(TrainConfig.backend)
        others = {"mujoco": "InvertedPendulum", "sb3": "stable_baselines3"}
        return backends | {name for name, word in others.items() if word in self.code}

    @property
    def is_module(self) -> bool:
        """Whether other blocks import it, so that it needs no run of its own."""
        return self.title.startswith("qsm_")

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.title or self.number}"


def blocks(page: Path) -> list[Block]:
    return [Block(page, i, *match.groups("")) for i, match in enumerate(FENCE.finditer(page.read_text()))]


def variants() -> list[Block]:
    """All programs; those that say `get_backend("equinox")` or `("torch")` once, for either backend."""
    programs = []
    for block in (block for page in PAGES for block in blocks(page) if not block.is_module):
        code = re.sub(r"  # or .*", "", block.code)
        chosen = re.findall(r'get_backend\("(\w+)"\)\n', code)
        if len(chosen) != 1:
            programs.append(block)
            continue
        for name in ("torch", "equinox"):
            other = code.replace(f'"{chosen[0]}"', f'"{name}"').replace(f"qsm_{chosen[0]}", f"qsm_{name}")
            programs.append(block._replace(title=f"{block.title or block.number}-{name}", code=other))
    return programs


def test_blocks_are_found() -> None:
    assert [len(blocks(page)) for page in PAGES] >= [3, 2, 4, 3, 4, 1]
    names = set(map(str, variants()))
    for name in ("torch", "equinox"):
        assert {f"README-1-{name}", f"objective-train_qsm.py-{name}"} <= names


@pytest.mark.parametrize("block", variants(), ids=str)
def test_code_runs(block: Block, tmp_path: Path) -> None:
    """In an interpreter and a folder of its own, beside the modules of the same page."""
    missing = [name for name in sorted(block.needs) for package in PACKAGES[name] if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    for other in blocks(block.page):
        if other.is_module:
            (tmp_path / other.title).write_text(other.code)
    code = block.code
    if block.page.name == "README.md":
        for long, short in SHORTER.items():
            assert long in block.page.read_text(), "README has changed: adapt SHORTER"
            code = code.replace(long, short)
    program = tmp_path / "program.py"
    program.write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    folders = [str(ROOT), str(ROOT / "backends"), str(ROOT / "recipes")]
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_objectives_stay_short() -> None:
    modules = [block for block in blocks(DOCS / "extend/objective.md") if block.is_module]
    assert [block.title for block in modules] == ["qsm_torch.py", "qsm_equinox.py"]
    for block in modules:
        assert len(block.code.splitlines()) < 40, block.title


def documented() -> set[str]:
    """Everything that a directive of mkdocstrings asks for."""
    directive = re.compile(r"^::: (\S+)$", re.MULTILINE)
    return {name for page in DOCS.rglob("*.md") for name in directive.findall(page.read_text())}


@pytest.mark.parametrize("package", ["diffac_torch", "diffac_equinox"])
def test_api_pages_name_everything(package: str) -> None:
    """Reads `__all__` without importing the framework."""
    tree = ast.parse((ROOT / "backends" / package / "__init__.py").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert len(names) > 30
    declared = {path.rpartition(".")[2] for path in documented() if path.startswith("diffac.parts.")}
    assert {f"{package}.{name}" for name in names if name not in declared} - documented() == set()
    assert set(PARTS) <= declared


def test_api_pages_name_everything_of_diffac() -> None:
    tree = ast.parse((ROOT / "diffac/__init__.py").read_text())
    wanted = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffac.")
        for alias in node.names
        if not (alias.asname or "").startswith("_")
    }
    assert len(wanted) > 40
    assert wanted - documented() == set()


def test_api_pages_name_nothing_else() -> None:
    """Every directive names something that exists (the strict build says so too, but later)."""
    for path in sorted(documented()):
        package = path.split(".")[0].removeprefix("diffac_")
        if any(find_spec(needed) is None for needed in PACKAGES.get(package, ())) or "strategies" in path:
            continue
        module, _, name = path.rpartition(".")
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_pages_are_complete(recipe: str) -> None:
    page = (DOCS / "results/recipes" / f"{recipe}.md").read_text()
    module = importlib.import_module(RECIPES[recipe])
    common = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    own = [f for f in dataclasses.fields(module.Config) if f.name not in common or f.default != common[f.name]]
    assert [f.name for f in own if not re.search(rf"^\| `{f.name}` \|", page, re.MULTILINE)] == []
    assert [name for name in module.PRESETS if f"`{name}`" not in page] == []
    assert f"diffac train {recipe}" in page
    assert f"recipes/{recipe}.md" in (ROOT / "mkdocs.yml").read_text()
    for heading in ("Method", "Parts", "Hyper-parameters", "Logged numbers", "Where we differ", "What goes wrong"):
        assert f"\n## {heading}\n" in page, heading


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_logged_number_is_explained(recipe: str) -> None:
    """One update in which everything is due: no number that nobody explains, no line on the recipe's page without one.

    In one backend, torch where possible (it need not compile); that both log the same is a matter of agreement.
    """
    backend = next((name for name in ("torch", "equinox") if all(map(find_spec, PACKAGES[name]))), None)
    if backend is None:
        pytest.skip("needs a backend")
    module = importlib.import_module(RECIPES[recipe])
    fields = {field.name for field in dataclasses.fields(module.Config)}
    small = {"hidden_sizes": (8,), "num_diffusion_steps": 2, "num_candidates": 2, "num_particles": 2}
    small |= {"temperature_interval": 1, "backend": backend}
    config = module.Config(**{k: v for k, v in small.items() if k in fields})
    engine, state = start_engine(module, config, 3, 2)
    rng = np.random.default_rng(0)
    dtype = float  # the dtype of the networks, see conftest
    obs, action, reward, next_obs = (
        rng.uniform(-1, 1, shape).astype(dtype) for shape in [(4, 3), (4, 2), (4,), (4, 3)]
    )
    batch = diffac.Batch(obs, action, reward, next_obs, np.full(4, 0.99))
    noise = diffac.draw(rng, engine.learner.noise_spec((4, 2)), dtype)
    metrics: dict[str, Any] = {}
    for _ in range(2):  # td3's actor moves in the second
        state, new = engine.step(state, batch, noise)
        metrics |= {name: value for name, value in new.items() if np.isfinite(float(value))}
    assert all(np.isfinite(float(value)) for value in metrics.values())
    page = (DOCS / "results/recipes" / f"{recipe}.md").read_text()
    explained = set(re.findall(r"^\| `train/(\w+)` \|", page, re.MULTILINE))
    assert explained <= set(metrics)
    everywhere = set(re.findall(r"`train/(\w+)`", (DOCS / "use/metrics.md").read_text()))
    assert {name for name in metrics if not name.endswith("_nonfinite")} <= everywhere


def test_our_numbers_say_where_they_come_from() -> None:
    """A number without versions, seeds, steps, updates and a command is none; what `quick` does, many seeds say."""
    for recipe in RECIPES:
        _, heading, ours = (DOCS / "results/recipes" / f"{recipe}.md").read_text().partition("## Our runs")
        assert heading, recipe
        assert "(../learns.md)" in ours, recipe
        assert "--env-id InvertedPendulum-v5 --preset quick` |" not in ours, recipe
        words = ("MuJoCo", "torch 2", "jax 0", "seed", "environment steps", "updates", f"diffac train {recipe}")
        for word in words if "|---|" in ours else ():
            assert word in ours, (recipe, word)
