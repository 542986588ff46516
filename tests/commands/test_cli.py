"""The command line: exit codes, messages, order of precedence, and nothing on disk before all is well."""

from __future__ import annotations

import ast
import csv
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import fake_recipe
import fakes
import numpy as np
import pytest
import yaml
from program import PATHS, TESTS

import diffac
import diffac.runs.recipes
from diffac.commands.main import main
from diffac.commands.train import parse


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is registered as a third party's, beside a broken one; runs go to an empty folder."""
    entries = [
        importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP),
        importlib.metadata.EntryPoint("broken", "no_such_module", diffac.runs.recipes.GROUP),
    ]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)


def interpreter(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "fake", "--gain", "1.5", "--run-root", "results", "--log-interval", "20"]) == 0
    (folder,) = (tmp_path / "results/fakes-Random-v0/fake/none").iterdir()
    out = capsys.readouterr().out
    assert "final return " in out
    assert "80 environment steps, 12 updates" in out
    assert str(folder.relative_to(tmp_path)) in out
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["recipe"], config["gain"], config["total_timesteps"]) == ("fake", 1.5, 80)
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["20", "40", "60", "80", "80"]
    with np.load(folder / "evaluations.npz") as saved:
        assert saved["results"].shape == (1, 2)
    assert json.loads((folder / "manifest.json").read_text())["versions"]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    ("argv", "gain", "hidden_sizes", "env_id"),
    [
        ([], 1.0, (8, 8), "fakes:Random-v0"),
        (["--preset", "loud"], 3.0, (8, 8), "fakes:Random-v0"),
        (["--env-id", "fakes:Terminates-v0"], 2.0, (5,), "fakes:Terminates-v0"),
        (["--env_id=fakes:Terminates-v0"], 2.0, (5,), "fakes:Terminates-v0"),
        (["--preset=loud", "--env-id", "fakes:Terminates-v0"], 3.0, (5,), "fakes:Terminates-v0"),
        (["--preset", "elsewhere"], 2.0, (5,), "fakes:Terminates-v0"),
        (["--preset", "elsewhere", "--env-id", "fakes:Random-v0"], 1.0, (8, 8), "fakes:Random-v0"),
        (["--gain", "9", "--preset", "loud", "--hidden-sizes", "1", "2"], 9.0, (1, 2), "fakes:Random-v0"),
    ],
)
def test_precedence(argv: list[str], gain: float, hidden_sizes: tuple[int, ...], env_id: str) -> None:
    config, num_seeds = parse(fake_recipe, argv, "fake")
    assert num_seeds == 1
    assert isinstance(config, fake_recipe.Config)
    assert (config.gain, config.hidden_sizes, config.env_id) == (gain, hidden_sizes, env_id)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "fakke"], "unknown recipe 'fakke'; did you mean 'fake'?; known: broken, dacer,"),
        (["train", "broken"], "recipe 'broken' cannot be imported: No module named 'no_such_module'"),
        (["train", "--gain", "2"], "the recipe comes before its options"),
        (["recipes", "x"], "unexpected argument 'x'"),
        (["train", "fake", "--preset", "lud"], "unknown preset of fake 'lud'; did you mean 'loud'?"),
        (["train", "fake", "--fail", "backend", "--backend", "none"], "unknown backend 'none'"),
        (["train", "fake", "--env-id", "fakes:Rondom-v0"], "unknown environment 'fakes:Rondom-v0'"),
        (["train", "fake", "--env-id", "CartPole-v1"], "action space Discrete(2)"),
        (["train", "fake", "--env-id", "fakes:Missing-v0"], "python -m pip install 'diffac[mujoco]'"),
        (["train", "fake", "--total-timesteps", "10"], "learning_starts must be less than total_timesteps (10)"),
        (["train", "fake", "--num-envs", "0"], "num_envs must be at least 1, got 0"),
    ],
)
def test_mistakes_cost_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["diffac COMMAND", "recipes"]),
        (["--help"], ["diffac COMMAND"]),
        (["--version"], [diffac.__version__]),
        (["recipes"], ["A recipe of nothing", "sac ", "dacer2", "broken", "cannot be imported"]),
        (["train", "--help"], ["diffac train RECIPE", "A recipe of nothing", "sdac"]),
        (
            ["train", "fake", "--help"],
            ["diffac train fake", "A recipe of nothing", "--preset", "default, loud", "Gain of nothing", "--seed"],
        ),
        (["train", "fake", "--preset", "loud", "--help"], ["(default: 3.0)", "'loud'"]),
    ],
)
def test_help(argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(argv) == 0
    captured = capsys.readouterr()
    for part in parts:
        assert part in captured.out
    assert "no part of the summary" not in captured.out
    assert captured.err == ""
    assert not list(tmp_path.iterdir())


def test_divergence_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fake", "--fail", "diverge", "--log-interval", "10"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: training diverged: the critic's loss or gradient was NaN or infinite in update 5 ")


def test_a_training_is_six_calls_from_main_to_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that a newcomer reads, named in full."""
    called: list[list[str]] = []
    update = fakes.FakeEngine.update

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = [f for f, _ in traceback.walk_stack(sys._getframe(1)) if f.f_globals["__name__"].startswith("diffac.")]
        called.append([f"{f.f_globals['__name__'].removeprefix('diffac.')}.{f.f_code.co_name}" for f in reversed(ours)])
        return update(self, *args, **kwargs)

    monkeypatch.setattr(fakes.FakeEngine, "update", noted)
    assert main(["train", "fake"]) == 0
    way = ["commands.main.main", "commands.train.main", "runs.run.run", "training.loop.train"]
    assert called[0] == [*way, "training.loop.advance", "training.loop._update"]


@pytest.mark.parametrize("mode", ["--no-asynchronous", "--asynchronous"])
def test_interrupt(mode: str, tmp_path: Path) -> None:
    script = (
        "import signal, sys, fake_recipe, diffac.commands.exit_codes as e, diffac.commands.script as c\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background\n"
        "with e.exit_code() as code: c.run_recipe(fake_recipe)\n"
        "sys.exit(code.value)"
    )
    done = interpreter("-c", script, "--fail", "interrupt", mode, cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"interrupted; what was written until then is in {tmp_path}/runs/")


def test_recipe_as_a_script_is_the_script_itself(tmp_path: Path) -> None:
    """A copy of a recipe, changed: it must not train the original."""
    copy = tmp_path / "mine.py"
    copy.write_text((TESTS / "fake_recipe.py").read_text().replace("gain: float = 1.0", "gain: float = 7.0"))
    done = interpreter("mine.py", "--seed", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (config,) = tmp_path.glob("runs/*/fake/none/seed4__*/config.yaml")
    assert yaml.safe_load(config.read_text())["gain"] == 7.0


def test_module_runs(tmp_path: Path) -> None:
    done = interpreter("-m", "diffac", "recipes", cwd=tmp_path)
    assert done.returncode == 0
    assert "dacer2" in done.stdout


@pytest.mark.parametrize(
    ("argv", "absent"),
    [
        (["recipes"], {"torch", "jax"}),
        (["--help"], {"torch", "jax", "tyro", "gymnasium"}),
        (["help"], {"torch", "jax", "tyro", "gymnasium"}),
        (["--version"], {"torch", "jax", "tyro", "gymnasium"}),
    ],
)
def test_a_command_loads_only_what_it_needs(argv: list[str], absent: set[str], tmp_path: Path) -> None:
    code = f"import sys, diffac.commands.main as c; c.main({argv}); assert not {absent} & set(sys.modules)"
    done = interpreter("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_public_names_exist() -> None:
    """All of them, those that are loaded at their first use included; type checkers see the same list."""
    source = ast.parse(Path(diffac.__file__).read_text())
    names = {a.asname: n.module for n in ast.walk(source) if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
    public = {name: module for name, module in names.items() if not name.startswith("_")}
    assert {"Transition", "draw", "vp_schedule", "make_envs", "ReplayBuffer", "TrainConfig", "train"} <= public.keys()
    for name, module in public.items():
        assert getattr(diffac, name) is getattr(importlib.import_module(str(module)), name)
        assert name in dir(diffac)
    assert set(diffac._MODULE_OF) <= public.keys()
    assert diffac.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = diffac.nothing
