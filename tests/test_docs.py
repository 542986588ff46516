"""The documentation keeps its word: its code runs, its API pages and recipe pages are complete."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import diffac
from diffac.commands.main import main
from diffac.parts import PARTS
from diffac.runs.engine import start_engine
from diffac.training.config import ActorCriticConfig, TrainConfig
from diffac_recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOT_RUN = {"use/reports.md": "needs a machine that can draw", "use/export.md": "test_export runs them"}
PACKAGES = {
    "torch": ("torch",),
    "equinox": ("jax", "equinox", "optax"),
    "mujoco": ("mujoco",),
    "sb3": ("stable_baselines3",),
}
FENCE = re.compile(r"^( *)```python(?: title=\"([\w.]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
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
        backends = {name for name in ("torch", "equinox") if f'"{name}"' in self.code or f"_{name}" in self.code}
        if "import compare" in self.code:
            backends = {"torch", "equinox"}
        if "diffac_recipes" in self.code or ("Agent.from_recipe" in self.code and not backends):
            backends.add(TrainConfig.backend)
        others = {"mujoco": "InvertedPendulum", "sb3": "stable_baselines3"}
        return backends | {name for name, word in others.items() if word in self.code}

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.title or self.number}"


def blocks(page: Path) -> list[Block]:
    found = (match.groups("") for match in FENCE.finditer(page.read_text()))
    return [Block(page, i, title, textwrap.dedent(code)) for i, (_, title, code) in enumerate(found)]


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if blocks(page) and str(page.relative_to(ROOT)).removeprefix("docs/") not in NOT_RUN]
BLOCKS = [block for page in PAGES for block in blocks(page)]
IMPORTED = {name for block in BLOCKS for name in re.findall(r"^(?:from|import) (\w+)", block.code, re.MULTILINE)}
MODULES = {block.title: block.code for block in BLOCKS if block.title.removesuffix(".py") in IMPORTED | {"point"}}
"""Files that programs of the documentation import; they need no run of their own."""


def variants() -> list[Block]:
    """All programs; those that choose a backend once, and are no matter of a single one, for each of both."""
    programs = []
    for block in (block for block in BLOCKS if block.title not in MODULES):
        code = re.sub(r"  # or .*", "", block.code)
        choice = r"(?:get_backend\(|backend=)" if block.page.parent.name == "extend" else r"get_backend\("
        chosen = re.findall(rf'{choice}"(torch|equinox)"', code)
        if len(chosen) != 1:
            programs.append(block)
            continue
        for name in ("torch", "equinox"):
            other = re.sub(rf'(?<=["_]){chosen[0]}\b', name, code)
            programs.append(block._replace(title=f"{block.title or block.number}-{name}", code=other))
    return programs


def test_blocks_are_found() -> None:
    names = set(map(str, variants()))
    assert len(names) > 35
    extend = {"objective": "qsm", "network": "residual", "sampler": "flow", "critic": "critic", "recipe": "td3"}
    for name in ("torch", "equinox"):
        assert {f"README-1-{name}", *(f"{page}-train_{what}.py-{name}" for page, what in extend.items())} <= names


@pytest.mark.parametrize("block", variants(), ids=str)
def test_code_runs(block: Block, tmp_path: Path) -> None:
    """In an interpreter and a folder of its own, beside the modules of the same page."""
    missing = [name for name in sorted(block.needs) for package in PACKAGES[name] if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    for title, module in MODULES.items():
        (tmp_path / title).write_text(module)
    code = block.code
    if block.page.name == "README.md":
        for long, short in SHORTER.items():
            assert long in block.page.read_text(), "README has changed: adapt SHORTER"
            code = code.replace(long, short)
    run([*AS_TEST, "program.py"] if block.title.startswith("test_") else ["program.py"], code, tmp_path)


AS_TEST = ["-m", "pytest", "-q", "--collect-only"]


def run(arguments: list[str], code: str, folder: Path) -> str:
    """What Python prints, called in the folder with the code in program.py."""
    (folder / "program.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    folders = [str(ROOT), str(ROOT / "backends"), str(ROOT / "recipes")]
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


SHOWN = [
    pytest.param(command, error, id=command)
    for page in sorted(DOCS.rglob("*.md"))
    for command, error in re.findall(r"^\$ diffac (.*)\n(error: .*)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("command", "error"), SHOWN)
def test_errors_are_those_that_are_shown(command: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == error


def test_parts_of_a_user_stay_short() -> None:
    """An algorithm that we did not foresee takes at most forty lines."""
    for title in ("qsm_torch.py", "qsm_equinox.py", "flow_matching.py", "my_td3.py"):
        assert len(MODULES[title].splitlines()) <= 40, title


@pytest.mark.parametrize("backend", ["torch", "equinox"])
def test_td3_of_the_documentation_is_exact(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds the learner of our recipe, which is compared with recorded updates of Stable-Baselines3."""
    if any(find_spec(needed) is None for needed in PACKAGES[backend]):
        pytest.skip(f"needs {backend}")
    (tmp_path / "my_td3.py").write_text(MODULES["my_td3.py"])
    monkeypatch.syspath_prepend(tmp_path)
    built = []
    for module in map(importlib.import_module, ("my_td3", "diffac_recipes.td3")):
        config = module.Config(backend=backend, hidden_sizes=(8,), initialiser="uniform")
        learner, *networks = module.build(config, 3, 2)
        arrays = [importlib.import_module(f"diffac_{backend}").to_arrays(network) for network in networks]
        built.append((repr(learner), arrays))
    (mine, networks), (ours, our_networks) = built
    assert mine == ours
    for one, other in zip(networks, our_networks, strict=True):
        assert all((one[name] == other[name]).all() for name in {**one, **other})


def test_the_recipe_of_the_documentation_is_a_program(tmp_path: Path) -> None:
    if any(find_spec(needed) is None for needed in PACKAGES["torch"]):
        pytest.skip("needs torch")
    ((end,),) = [re.findall(r"^```py title=.*?\n(.*?)^```$", (DOCS / "extend/recipe.md").read_text(), re.M | re.S)]
    options = ["--preset", "short", "--env-id", "Pendulum-v1", "--backend", "torch", "--eval-episodes", "1"]
    assert "updates" in run(["program.py", *options], MODULES["my_td3.py"] + "\n\n" + end, tmp_path)
    assert (tmp_path / "runs/Pendulum-v1/my_td3/torch").is_dir()


def documented() -> set[str]:
    """Everything that a directive of mkdocstrings asks for; of a module with `__all__` also what that lists."""
    directive = re.compile(r"^::: (\S+)$", re.MULTILINE)
    names = {name for page in DOCS.rglob("*.md") for name in directive.findall(page.read_text())}
    modules = {name: ROOT / f"{name.replace('.', '/')}.py" for name in names}
    return names | {f"{name}.{member}" for name, path in modules.items() if path.exists() for member in listed(path)}


def listed(path: Path) -> set[str]:
    """`__all__` of a module, read without importing it; `__all__ += other.__all__` adds that of a file below it."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "__all__":
            (other,) = path.parent.rglob(f"{ast.unparse(node.value).removesuffix('.__all__')}.py")
            names |= listed(other)
    return names


@pytest.mark.parametrize("package", ["diffac_torch", "diffac_equinox"])
def test_api_pages_name_everything(package: str) -> None:
    names = listed(ROOT / "backends" / package / "__init__.py")
    assert len(names) > 30
    shown = {path.rpartition(".")[2] for path in documented() if path.startswith(("diffac.parts.", "diffac_torch."))}
    assert names - shown == set(), "the page shows names of torch, which are those of Equinox too"
    assert set(PARTS) <= shown


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
    for name in ("critic", "projection", "value_range", "network"):  # what changes every recipe alike
        explained = (DOCS / "extend" / ("network.md" if name == "network" else "critic.md")).read_text()
        assert f"`--{name.replace('_', '-')}" in explained
        common[name] = ActorCriticConfig.__dataclass_fields__[name].default
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
    batch = diffac.Batch(obs, action, reward, next_obs, np.full(4, 0.99), number=np.arange(4))
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
