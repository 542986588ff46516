"""How commands read their arguments: what `--help` shows, what is understood, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import fake_recipe
import pytest
import tyro
from program import PATHS

import diffac.runs.recipes
from diffac.commands.evaluate import EvaluateArguments
from diffac.commands.export import ExportArguments
from diffac.commands.main import COMMANDS, main
from diffac.commands.parsing import parse
from diffac.commands.report import ReportArguments
from diffac.commands.resume import ResumeArguments
from diffac.commands.script import run_recipe
from diffac.commands.train import parse as parse_train
from diffac.commands.validate import ValidateArguments
from diffac.errors import UsageError, nearest
from diffac.training.config import ActorCriticConfig, TrainConfig
from diffac_recipes import RECIPES

SCRIPT = '''
"""A recipe in a file of its own."""

import dataclasses
import sys
from typing import Annotated

from diffac.training.config import ActorCriticConfig, Heading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig):
    """Arguments of mine."""

    temperature: float = 0.2
    """Mine alone."""
    backend: str = "torch"
    tau: float = 0.01
    """Another sentence about it."""
    cache: Annotated[str, Heading.MACHINE] = "there"
    """Where this machine keeps something."""


PRESETS = {"default": {}}
ENV_CONSTANTS = {}

if __name__ == "__main__":
    from diffac.commands.script import recipe_main

    recipe_main("scripted")
'''


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The recipe `fake` is registered; nothing may be written to the current folder."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def boxes(text: str) -> dict[str, dict[str, str]]:
    """Heading -> option -> its help, as `--help` shows them."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        line = line.strip("│ ─╭╮╰╯")
        if line.endswith(" options") or line == "options":
            entries = found.setdefault(line, {})
        elif line.strip("-") and (option := re.fullmatch(r"(-[\w-]+)(, --[\w-]+)?( \[.*?\]\S*| \S+)?(  +(.*)|)", line)):
            assert option[1] not in entries
            flag = option[1]
            entries[flag] = option[5] or ""
        elif found and line.strip("-"):
            entries[flag] = f"{entries[flag]} {line}".strip()
    return found


def flags_of(*names: str) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in names]


# what --help shows


def check_headings(text: str, module: ModuleType, name: str) -> dict[str, dict[str, str]]:
    """Every field is there once, with a sentence, below the right heading, in the right order."""
    found = boxes(text)
    ours = [base for base in (TrainConfig, ActorCriticConfig) if issubclass(module.Config, base)]
    expected = ["options", f"{name} options", "networks and optimisation options", "training options"]
    expected += ["evaluation and logging options", "machine options"]
    assert list(found) == [heading for heading in expected if len(ours) == 2 or not heading.startswith("networks")]
    assert list(found.pop("options")) == ["-h", "--preset", "--config", "--num-seeds"]
    shown = [flag for entries in found.values() for flag in entries]
    assert sorted(shown) == sorted(flags_of(*(field.name for field in dataclasses.fields(module.Config))))
    for entries in found.values():
        for flag, text in entries.items():
            assert re.search(r"\. \(default: [^()]+\)$", text), f"{flag} has no help: {text}"
    inherited = set(flags_of(*(field.name for field in dataclasses.fields(ours[-1]))))
    assert inherited.isdisjoint(found[f"{name} options"])
    assert not found["training options"].keys() - flags_of(*(f.name for f in dataclasses.fields(TrainConfig)))
    return found


@pytest.mark.parametrize("name", [*RECIPES, "fake"])
def test_options_are_grouped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = fake_recipe if name == "fake" else importlib.import_module(RECIPES[name])
    assert main(["train", name, "--help"]) == 0
    found = check_headings(capsys.readouterr().out, module, name)
    own = {field for field in module.Config.__annotations__ if not hasattr(ActorCriticConfig, field)}
    assert set(flags_of(*own)) <= found[f"{name} options"].keys()
    assert {"--backend", "--device", "--run-root"} <= found["machine options"].keys()
    assert {"--eval-interval", "--track"} <= found["evaluation and logging options"].keys()
    assert {"--env-id", "--total-timesteps", "--batch-size"} <= found["training options"].keys()


def test_options_of_a_script_are_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own are those without a heading; new defaults and sentences stay where the field was declared."""
    (tmp_path / "scripted.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    command = [sys.executable, "scripted.py", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("scripted")
    found = check_headings(done.stdout, module, "scripted")
    assert found["scripted options"] == {"--temperature": "Mine alone. (default: 0.2)"}
    assert found["machine options"]["--cache"] == "Where this machine keeps something. (default: there)"
    assert found["machine options"]["--backend"].endswith("(default: torch)")
    networks = found["networks and optimisation options"]
    assert networks["--tau"] == "Another sentence about it. (default: 0.01)"
    config: Any = parse_train(module, ["--cache", "here", "--temperature", "3"], "scripted")[0]
    assert (config.cache, config.temperature, config.backend) == ("here", 3.0, "torch")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("argv", [["train", "dacer2"], *([name] for name in COMMANDS if name != "train")])
def test_help_fits_the_terminal(
    argv: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*argv, "--help"]) == 0
    usage, *lines = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: diffac {' '.join(argv)} [-h]")
    assert max(map(len, lines)) <= columns
    assert "{None}" not in usage
    assert not any("{None}" in line or "(default: )" in line for line in lines)


@pytest.mark.parametrize("argv", [["help"], ["train", "--help"], ["recipes"]])
def test_lists_fit_the_terminal(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(argv) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("argv", "same"),
    [(["help"], ["--help"]), (["help", "train"], ["train", "-h"]), (["help", "evaluate"], ["evaluate", "--help"])],
)
def test_help_is_a_command_too(argv: list[str], same: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == main(same) == 0
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :] != ""


# what is understood

RUN = {"run": Path("RUN")}
"""What a command makes of its word RUN."""


@pytest.mark.parametrize(
    ("arguments", "argv", "values"),
    [
        (EvaluateArguments, ["RUN"], RUN),
        (
            EvaluateArguments,
            ["--episodes", "3", "RUN", "--checkpoint=last", "--env_id", "A", "--seed", "7", "--no-deterministic"],
            RUN | {"episodes": 3, "checkpoint": "last", "env_id": "A", "seed": 7, "deterministic": False},
        ),
        (EvaluateArguments, ["RUN", "--env-id", "A", "--deterministic"], RUN | {"env_id": "A"}),
        (EvaluateArguments, ["--video", "RUN", "--max-steps", "5"], RUN | {"video": True, "max_steps": 5}),
        (EvaluateArguments, ["RUN", "--video", "--backend", "torch"], RUN | {"video": True, "backend": "torch"}),
        (EvaluateArguments, ["--", "--RUN"], {"run": Path("--RUN")}),
        (ExportArguments, ["RUN", "--format", "onnx"], RUN | {"format": "onnx"}),
        (ExportArguments, ["--format=jax", "--out=-x.jax", "RUN"], RUN | {"format": "jax", "out": Path("-x.jax")}),
        (ExportArguments, ["--format=jax", "--out", "None", "RUN"], RUN | {"format": "jax"}),
        (ResumeArguments, ["RUN", "--backend", "equinox"], RUN | {"backend": "equinox"}),
        (ReportArguments, ["a", "B=b"], {"paths": ("a", "B=b")}),
        (
            ReportArguments,
            ["a", "b", "--out", "x", "--env_id=E", "--unfinished"],
            {"paths": ("a", "b"), "out": Path("x"), "env_id": "E", "unfinished": True},
        ),
        (ValidateArguments, [], {}),
        (
            ValidateArguments,
            ["--backends", "torch", "equinox", "--cases", "5", "--steps=2", "--json"],
            {"backends": ("torch", "equinox"), "cases": 5, "steps": 2, "json": True},
        ),
        (ValidateArguments, ["--module", "my_parts"], {"module": "my_parts"}),
    ],
)
def test_commands_understand(arguments: type[Any], argv: list[str], values: dict[str, Any]) -> None:
    assert parse(arguments, argv, "diffac") == arguments(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything:
    """Of every type that a configuration may hold."""

    word: tyro.conf.Positional[str] = "w"
    number: float = 1.0
    count: int | None = 3
    either: int | str = 0
    choice: Literal["a", "5"] | None = "a"
    switch: bool = True
    maybe: bool | None = None
    text: str = "t"
    texts: tuple[str, ...] | None = ("x",)
    pair: tuple[int, float] = (1, 2.0)
    many: list[int] = dataclasses.field(default_factory=list)
    keyed: dict[str, Any] = dataclasses.field(default_factory=dict)
    marked: Annotated[int, "of no meaning"] = 1


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ("", {}),
        ("5", {"word": "5"}),
        ("--number 3", {"number": 3.0}),
        ("--number=-1e-3", {"number": -1e-3}),
        ("--number -.5", {"number": -0.5}),
        ("--number -inf", {"number": float("-inf")}),
        ("--count 1_000", {"count": 1000}),
        ("--count None", {"count": None}),
        ("--count null --count 4", {"count": 4}),
        ("--either 5", {"either": 5}),
        ("--either five", {"either": "five"}),
        ("--choice 5", {"choice": "5"}),
        ("--choice None", {"choice": None}),
        ("--no-switch", {"switch": False}),
        ("--no_switch --switch", {"switch": True}),
        ("--maybe true", {"maybe": True}),
        ("--maybe False", {"maybe": False}),
        ("--text 5", {"text": "5"}),
        ("--text None", {"text": "None"}),
        ("--text=--number", {"text": "--number"}),
        ("--text=", {"text": ""}),
        ("--texts", {"texts": ()}),
        ("--texts None", {"texts": None}),
        ("--texts a 5 w", {"texts": ("a", "5", "w")}),
        ("--pair 3 4", {"pair": (3, 4.0)}),
        ("--many 1 -2", {"many": [1, -2]}),
        ("--keyed a=1 b=x c=[1,2] d=true e=None", {"keyed": {"a": 1, "b": "x", "c": [1, 2], "d": True, "e": None}}),
        ("--marked 4", {"marked": 4}),
    ],
)
def test_values_are_of_the_type_that_is_wanted(argv: str, values: dict[str, Any]) -> None:
    found = parse(Everything, argv.split(), "diffac")
    assert found == Everything(**values)
    assert [type(value) for value in vars(found).values()] == [type(v) for v in vars(Everything(**values)).values()]


# what is said about mistakes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # options that do not exist
        ("train sac --lr 3", "unknown option --lr; did you mean --learning-rate? diffac train sac --help shows"),
        ("train sac --lr=3", "unknown option --lr; did you mean --learning-rate?"),
        ("train sac --gama 1", "unknown option --gama; did you mean --gamma?"),
        ("train sac --total_timestep 1", "did you mean --total-timesteps?"),
        ("train sac --steps 1", "did you mean --total-timesteps?"),
        ("train sac --timesteps 1", "did you mean --total-timesteps?"),
        ("train sac --env Ant-v5", "did you mean --env-id?"),
        ("train sac --n-envs 2", "did you mean --num-envs?"),
        ("train sac --net_arch 64 64", "did you mean --hidden-sizes?"),
        ("train sac --LR 1", "did you mean --learning-rate?"),
        ("train sac --learning 1", "unknown option --learning; did you mean"),
        ("train sac -n 5", "unknown option -n; diffac train sac --help shows all options"),
        ("train sac --zzz", "unknown option --zzz; diffac train sac --help shows all options"),
        ("evaluate RUN --n-episodes 3", "unknown option --n-episodes; did you mean --episodes? diffac evaluate --help"),
        ("evaluate --episode 3", "unknown option --episode; did you mean --episodes?"),
        ("export RUN --fmt onnx", "unknown option --fmt; did you mean --format?"),
        ("resume RUN --seed 3", "unknown option --seed; diffac resume --help shows all options"),
        ("report RUN --output x", "unknown option --output; did you mean --out?"),
        ("validate --backend torch", "unknown option --backend; did you mean --backends?"),
        ("recipes --all", "unknown option --all; diffac recipes --help"),
        # values that are missing, and those that are too many
        ("train fake --gain", "--gain needs a value, FLOAT: Gain of nothing."),
        ("train fake --gain --seed 3", "--gain needs a value, FLOAT: Gain of nothing."),
        ("train fake --preset", "--preset needs a value, STR: "),
        ("train --config", "--config needs a value, "),
        ("evaluate RUN --max_steps", "--max-steps needs a value, INT|None: "),
        ("evaluate", "diffac evaluate needs RUN: "),
        ("export RUN", "diffac export needs --format {onnx,torch,jax}: "),
        ("report", "diffac report needs PATH [PATH ...]: "),
        ("train fake --progress false", "--progress takes no value, got 'false'"),
        ("train fake --no-progress=1", "--no-progress takes no value, got '1'"),
        ("evaluate RUN --video yes", "--video takes no value, got 'yes'"),
        ("train fake --gain 1 2", "unexpected argument '2'; diffac train fake --help shows all options"),
        ("train fake Ant-v5", "unexpected argument 'Ant-v5'"),
        ("evaluate RUN RUN", "unexpected argument 'RUN'"),
        # values of another type
        ("train fake --gain much", "--gain must be a number, got 'much'"),
        ("train fake --seed 1.5", "--seed must be a whole number, got '1.5'"),
        ("train fake --total-timesteps 1e6", "--total-timesteps must be a whole number, got '1e6' (write 1000000)"),
        ("train fake --updates-per-call x", "--updates-per-call must be a whole number or null, got 'x'"),
        ("train fake --track neptune", "--track must be one of wandb, trackio or null, got 'neptune'"),
        ("train fake --hidden-sizes 64 x", "--hidden-sizes must be a list, each entry a whole number, got [64, 'x']"),
        ("train fake --hidden-sizes 64,64", "got ['64,64']; entries are separated by spaces"),
        ("train fake --env-kwargs x", "--env-kwargs must be given as name=value, got 'x'"),
        ("train fake --seed=-1", "seed must be at least 0, got -1"),
        ("train fake --seed -1", "seed must be at least 0, got -1"),
        ("evaluate RUN --episodes few", "--episodes must be a whole number, got 'few'"),
        ("export RUN --format pt", "--format must be one of onnx, torch, jax, got 'pt'"),
        ("validate --cases many", "--cases must be a whole number, got 'many'"),
        # backends
        ("train fake --backend jax", "unknown backend 'jax'; did you mean 'equinox'?; known: equinox, torch"),
        ("train sac --backend pytorch", "unknown backend 'pytorch'; did you mean 'torch'?"),
        ("train sac --backend Torch", "unknown backend 'Torch'; did you mean 'torch'?"),
        ("validate --backends jax torch", "unknown backend 'jax'; did you mean 'equinox'?"),
        # commands and recipes
        ("sac --env-id Ant-v5", "sac is a recipe; train it with: diffac train sac --env-id Ant-v5"),
        ("SAC", "SAC is a recipe; train it with: diffac train sac"),
        ("run", "unknown command 'run'; did you mean 'train'?"),
        ("eval RUN", "unknown command 'eval'; did you mean 'evaluate'?"),
        ("test", "unknown command 'test'; did you mean 'evaluate'?"),
        ("help tarin", "unknown command 'tarin'; did you mean 'train'?"),
        ("train SAC", "unknown recipe 'SAC'; did you mean 'sac'?"),
        ("train mine.py", "a recipe of your own is run by itself: python mine.py"),
        ("train --lr 3 sac", "the recipe comes before its options: diffac train RECIPE --lr 3 sac"),
        ("train --algo sac --seed 1", "the recipe comes before its options: diffac train sac --seed 1"),
        ("train sac --preset Quick", "unknown preset of sac 'Quick'; did you mean 'quick'?"),
    ],
)
def test_mistakes_cost_one_sentence(line: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not list(tmp_path.iterdir())


def test_help_comes_before_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--no-such", "--help"]) == main(["evaluate", "--seed", "--help"]) == 0
    assert main(["train", "fake", "--gain", "1", "2", "--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_run_goes_on_in_a_backend_by_its_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "fake"]) == 0
    (run,) = Path().glob("runs/*/fake/*/*")
    assert main([command, str(run), "--backend", "jax"]) == 2
    assert "unknown backend 'jax'; did you mean 'equinox'?" in capsys.readouterr().err.splitlines()[-1]


def test_other_names_are_known_in_python_and_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values, said in [
        ({"lr": 1e-3}, "unknown key in recipe sac: 'lr'; did you mean 'learning_rate'?"),
        ({"total_steps": 9}, "did you mean 'total_timesteps'?"),
        ({"backend": "jax"}, "unknown backend 'jax'; did you mean 'equinox'?"),
    ]:
        with pytest.raises(UsageError, match=re.escape(said)):
            diffac.Agent.from_recipe("sac", "Pendulum-v1", **values)
    with pytest.raises(UsageError, match="unknown backend 'jax'; did you mean 'equinox'"):
        TrainConfig(backend="jax")
    Path("config.yaml").write_text("recipe: sac\nn_envs: 3\n")
    assert main(["train", "--config", "config.yaml"]) == 2
    assert "'n_envs'; did you mean 'num_envs'?" in capsys.readouterr().err


def test_a_backend_of_a_third_party_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffac.backend, "backend_names", lambda: ["equinox", "jax"])
    assert TrainConfig(backend="jax").backend == "jax"
    assert TrainConfig(backend="of a learner that needs none").backend == "of a learner that needs none"


def test_a_recipe_cannot_take_the_name_of_an_argument_of_the_command() -> None:
    module = ModuleType("mine")
    module.Config = dataclasses.make_dataclass(  # type: ignore[attr-defined]
        "Config", [("preset", str, "x")], bases=(TrainConfig,), frozen=True, kw_only=True
    )
    with pytest.raises(UsageError, match="every recipe has an argument preset; give the field another name"):
        run_recipe(module, [], "mine")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("lr", "learning_rate"),
        ("Learning-Rate", "learning_rate"),
        ("tua", "tau"),
        ("learning", "learning_rate"),
        ("learn", "learner"),
        ("ex", None),
        ("zzz", None),
    ],
)
def test_nearest(given: str, found: str | None) -> None:
    """Another name counts only where its field is allowed, a beginning only where it is that of one name alone."""
    names = ["learning_rate", "tau", "learner", "ex_one", "ex_two"]
    assert nearest(given, names, {"lr": "learning_rate", "zzz": "absent"}) == found
