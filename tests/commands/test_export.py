"""`diffac export`: the files compute what the run computes, know what they want, and are not written otherwise."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_recipe
import fakes  # noqa: F401  (registers the environments)
import numpy as np
import pytest
from conftest import INSTALLED, load_backend
from odd import EVERYDAY

import diffac.commands.export
import diffac.runs.recipes
from diffac.agent import Agent
from diffac.commands.export import FORMATS, _check, _load_onnx
from diffac.commands.main import main
from diffac.commands.script import run_recipe
from diffac.data.spaces import action_scaler
from diffac.errors import UsageError
from diffac.noise import Integers, Noise, NoiseSpec, Normal, Uniform, Zeros, draw
from diffac.parts.export import NoiseEntry, Signature, signature
from diffac.testing.conformance import unchecked_shapes
from diffac_recipes import RECIPES

ROOT = Path(__file__).parents[2]
ENV = "fakes:Named-v0"
TINY: dict[str, Any] = {"num_diffusion_steps": 2, "num_candidates": 3, "evaluation_candidates": 4, "hidden_sizes": (8,)}


@pytest.fixture(autouse=True)
def single_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Both frameworks as a user has them; the recipe `fake` is a third party's; everything in an empty folder."""
    entries = [importlib.metadata.EntryPoint("fake", "fake_recipe", diffac.runs.recipes.GROUP)]
    monkeypatch.setattr(diffac.runs.recipes, "entry_points", lambda *, group: entries)
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(unchecked_shapes())
        if INSTALLED["torch"]:
            import torch

            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, torch.float64)
        if INSTALLED["equinox"]:
            import jax

            stack.callback(jax.config.update, "jax_enable_x64", True)
            jax.config.update("jax_enable_x64", False)
        yield


def needs(name: str) -> None:
    """Skips where a format cannot be written."""
    load_backend(FORMATS[name].backend)
    for package in FORMATS[name].packages:
        pytest.importorskip(package)


def saved(recipe: str = "sac", backend: str = "torch", env_id: str = ENV, **fields: Any) -> Agent:
    """An agent in the folder "agent" whose slow actor, actor and critics all differ from new ones."""
    load_backend(backend)
    known = importlib.import_module(RECIPES[recipe]).Config.__dataclass_fields__
    tiny = {name: value for name, value in {**TINY, **fields}.items() if name in known}
    agent = Agent.from_recipe(recipe, env_id, backend=backend, **tiny)
    rng = np.random.default_rng(5)
    arrays = agent._codec.to_arrays(agent.state)
    for name, array in arrays.items():
        if name.partition(".")[0] in ("actor", "ema_actor", "critic"):
            array += 0.2 * rng.standard_normal(array.shape).astype(array.dtype)
    agent._state = agent._codec.from_arrays(agent.state, arrays)
    agent.save("agent", replay=False)
    return agent


def export(name: str, *argv: str) -> Path:
    """The file that the command writes."""
    before = set(Path().rglob(f"*{FORMATS[name].suffix}"))
    assert main(["export", "agent", "--format", name, *argv]) == 0
    (path,) = set(Path().rglob(f"*{FORMATS[name].suffix}")) - before
    return path


def reader(name: str) -> Callable[[Path], Callable[..., np.ndarray]]:
    if name == "onnx":
        return _load_onnx
    return importlib.import_module(f"diffac_{FORMATS[name].backend}.engine.export").load_policy


def drawn(spec: NoiseSpec, noise: Noise) -> list[Any]:
    """The arrays that are not switched off, in their order."""
    found: list[Any] = []
    for name, law in spec.items():
        if isinstance(law, Mapping):
            found += drawn(law, noise[name])
        elif not isinstance(law, Zeros):
            found.append(noise[name])
    return found


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_file_computes_what_the_run_computes(recipe: str, backend: str, name: str) -> None:
    """For another number of observations than the command checks; from each backend into each format."""
    needs(name)
    agent = saved(recipe, backend)
    path = export(name)
    assert path == Path("agent/exports/step0").with_suffix(FORMATS[name].suffix)
    rng = np.random.default_rng(1)
    obs = rng.standard_normal((5, 6), np.float32)
    spec = agent.engine.act_noise_spec((5, 1), deterministic=True)
    noise = draw(rng, spec)
    expected = action_scaler(agent.action_space)(agent.engine.act(agent.state, obs, noise, deterministic=True))
    arrays = drawn(spec, noise)
    assert len(arrays) == {"sac": 0, "dsact": 0, "td3": 0, "fpmd": 1, "meanflow": 1}.get(recipe, 2)
    found = reader(name)(path)(obs, *arrays)
    assert (found.shape, found.dtype) == ((5, 1), np.float32)
    assert np.ptp(found) > 0.1, "the test would be empty"
    np.testing.assert_allclose(found, expected, atol=1e-5 * 3)


@pytest.mark.parametrize("name", FORMATS)
def test_actions_stay_in_the_box(name: str, tmp_path: Path) -> None:
    """Of doubles with all everyday bounds, which are no numbers of the file's single precision."""
    needs(name)
    b = load_backend(FORMATS[name].backend)
    sampler, dim = b.TanhGaussianSampler(), len(EVERYDAY)
    learner = b.Learner(
        sampler=sampler, actor_objective=b.EntropyRegularisedValue(sampler), critic_objective=b.MeanSquaredTD(),
        temperature=b.FixedTemperature(), actor_optimiser=b.Adam(), critic_optimiser=b.Adam(),
    )  # fmt: skip
    actor = b.GaussianActor(3, dim, key=1, hidden_sizes=(8,))
    state = learner.init(actor, b.TwinCritic(3, dim, key=2, hidden_sizes=(8,)))
    low, high = np.array(EVERYDAY, np.float64).T
    contract = signature(b.Engine(learner), 3, low, high)
    path = tmp_path / f"policy{FORMATS[name].suffix}"
    exporter = importlib.import_module(f"{b.__name__}.engine.export")
    path.write_bytes(exporter.export_policy(learner, state, contract, name, "{}"))
    rng = np.random.default_rng(0)
    obs = 1000 * rng.standard_normal((64, 3), np.float32)
    action = reader(name)(path)(obs, *contract.draw(rng, 64)).astype(np.float64)
    assert ((action >= low) & (action <= high)).all()
    assert (abs(action - low) < 1e-6).sum() > 1_000  # they were at the bounds


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs(name)
    saved("sdac", FORMATS[name].backend, num_diffusion_steps=4)
    path = export(name, "--out", f"policy{FORMATS[name].suffix}")
    about = json.loads(Path(f"{path}.json").read_text())
    assert [entry["name"] for entry in about["inputs"]] == [
        "obs", "noise.inner.candidates.start", "noise.inner.candidates.steps",
    ]  # fmt: skip
    assert [entry["shape"] for entry in about["inputs"]] == [["batch", 6], [3, "batch", 1], [3, 3, "batch", 1]]
    assert [entry.get("law") for entry in about["inputs"]] == [None, "normal", "normal"]
    assert about["inputs"][0]["low"] == [-10, -10, 0, 0, 0, 0]
    (action,) = about["outputs"]
    assert (action["name"], action["shape"], action["low"], action["high"]) == ("action", ["batch", 1], [-1], [3])
    assert (about["recipe"], about["env_id"], about["format"]) == ("sdac", ENV, name)
    assert about["versions"]["diffac"] == diffac.__version__
    text = Path(f"{path}.json").read_text()
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert session.get_modelmeta().custom_metadata_map["diffac"] == text
        assert [entry.name for entry in session.get_inputs()] == [entry["name"] for entry in about["inputs"]]
        assert [entry.shape for entry in session.get_inputs()] == [entry["shape"] for entry in about["inputs"]]
    if name == "torch":
        import torch

        inside = {"diffac.json": ""}
        torch.export.load(path, extra_files=inside)
        assert inside["diffac.json"] == text
    out = capsys.readouterr().out
    assert "inputs: obs [batch 6], noise.inner.candidates.start [3 batch 1] normal, noise.inner.candidates.steps" in out
    assert "output: action [batch 1]\n" in out
    assert re.search(
        rf"largest difference from backend {FORMATS[name].backend}: \S+ of the largest action, over 66", out
    )
    assert out.endswith(f"{path}\n")


def test_an_unbounded_observation_is_null_and_other_laws_have_names() -> None:
    assert diffac.commands.export._bounds(np.array([-np.inf, 0]), np.array([1.5, np.inf])) == {
        "low": [None, 0.0],
        "high": [1.5, None],
    }
    about = [
        diffac.commands.export._about_noise(NoiseEntry("noise.x", law, ("batch", 2)))
        for law in (Uniform((2, 2)), Integers((2, 2), 1, 7))
    ]
    assert [(entry["law"], entry["dtype"]) for entry in about] == [("uniform", "float32"), ("integers", "int32")]
    assert (about[1]["low"], about[1]["high"]) == (1, 7)


@pytest.mark.parametrize(("recipe", "ranked"), [("sac", False), ("dpmd", True)])
def test_only_what_acts_is_exported(recipe: str, ranked: bool) -> None:
    torch = pytest.importorskip("torch")
    saved(recipe)
    program = torch.export.load(export("torch"))
    assert any(name.startswith("critic.") for name in program.state_dict) == ranked
    assert any(name.startswith("actor.") for name in program.state_dict)


def test_onnx_has_the_cheap_mish() -> None:
    needs("onnx")
    import onnx

    saved("dacer2")
    model = onnx.load(export("onnx"))
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    operations = {node.op_type for node in nodes}
    assert "Sigmoid" in operations
    assert not operations & {"Mish", "Softplus", "Tanh"}


def test_one_step_has_no_noise_between_steps() -> None:
    """Its array would be empty, which not every runtime takes."""
    needs("torch")
    saved("dacer2", num_diffusion_steps=1)
    about = json.loads(Path(f"{export('torch')}.json").read_text())
    assert [entry["name"] for entry in about["inputs"]] == ["obs", "noise.inner.start"]


class Noisy:
    """A learner of which only the noise is asked for."""

    def __init__(self, spec: Callable[[tuple[int, ...]], dict[str, Any]]) -> None:
        self.act_noise_spec = lambda shape, *, deterministic: spec(shape)


def sign(spec: Callable[[tuple[int, ...]], dict[str, Any]]) -> Signature:
    learner: Any = Noisy(spec)
    return signature(learner, 4, np.array([-1.0, 0.0]), np.array([3.0, 0.5]))


def test_signature() -> None:
    nested = sign(
        lambda shape: {"a": {"b": Uniform((7, *shape)), "none": {}, "quiet": Zeros(shape)}, "still": Normal((5,))}
    )
    assert [(entry.name, entry.shape) for entry in nested.inputs] == [
        ("noise.a.b", (7, "batch", 2)),
        ("noise.still", (5,)),
    ]
    arrays = nested.draw(np.random.default_rng(0), 9)
    assert [array.shape for array in arrays] == [(7, 9, 2), (5,)]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    noise = nested.nest(arrays, np.zeros, 9)
    assert noise["a"]["b"] is arrays[0]
    assert noise["a"]["none"] == {}
    assert noise["a"]["quiet"].shape == (9, 2)
    assert noise["still"] is arrays[1]
    half_range, centre = nested.scale
    np.testing.assert_array_equal([centre - half_range, centre + half_range], np.float32([[-1, 0], [3, 0.5]]))
    with pytest.raises(
        UsageError, match=r"noise\.x has shape \(4, 2\) for 2 observations and \(6, 2\) for 3; a policy"
    ):
        sign(lambda shape: {"x": Normal((2 * shape[0], 2))})


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize(
    ("case", "ties", "right"), [("other", True, True), ("other", False, True), ("first", False, False)]
)
def test_near_ties(backend: str, case: str, ties: bool, right: bool) -> None:
    """A function that looks at the candidates in another order is right; one that does not choose is wrong."""
    agent = saved("sdac", backend)
    state = agent.state
    if ties:
        arrays = agent._codec.to_arrays(state)
        arrays |= {name: 0 * array for name, array in arrays.items() if name.startswith("critic.")}
        agent._state = state = agent._codec.from_arrays(state, arrays)
    described = signature(agent.engine, 6, agent.action_space.low, agent.action_space.high)

    def call(obs: np.ndarray, start: np.ndarray, steps: np.ndarray) -> np.ndarray:
        order = [2, 1, 0] if case == "other" else [0, 0, 0]
        noise = described.nest([start[order], steps[:, order]], np.zeros, len(obs))
        return action_scaler(agent.action_space)(agent.engine.act(state, obs, noise, deterministic=True))

    exporter = importlib.import_module(f"diffac_{backend}.engine.export")
    check = _check(call, agent, described, lambda *pair: exporter.critic_values(agent.engine.learner, state, *pair))
    assert (check.difference <= 1e-5) == right
    assert (check.ties > 20) == ties
    assert check.observations == 66


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_computes_something_else_is_not_kept(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(name)
    saved("dacer2", FORMATS[name].backend)
    half_range, centre = np.float32([2.001]), np.float32([1])
    monkeypatch.setattr(Signature, "scale", property(lambda self: (half_range, centre)))
    assert main(["export", "agent", "--format", name]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: the exported policy differs from backend {FORMATS[name].backend} by \S+ of the largest action, more "
        r"than 1e-05; nothing was written\n",
        error,
    )
    assert list(Path("agent/exports").iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["agent"], "diffac export needs --format {onnx,torch,jax}: ONNX, torch.export"),
        (["agent", "--format", "onyx"], "--format must be one of onnx, torch, jax, got 'onyx'"),
        (["nowhere", "--format", "torch"], "nowhere is no folder; give that of a run"),
        (
            ["agent", "--format", "torch", "--out", "x.onnx"],
            "a file of format 'torch' must end in .pt2, got --out /",
        ),
        (["agent", "--format", "torch", "--out", "no/x.pt2"], "/no/x.pt2"),
        (
            ["agent", "--format", "torch", "--out", "there.pt2"],
            "there.pt2 exists and is not overwritten; remove it, or",
        ),
        (["agent", "--format", "torch", "--out", "half.pt2"], "half.pt2.json exists and is not overwritten; remove it"),
    ],
)
def test_mistakes_cost_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Agent.from_recipe("fake", ENV).save("agent", replay=False)
    for name in ("there.pt2", "half.pt2.json"):
        Path(name).write_text("mine")
    before = sorted(Path().rglob("*"))
    assert main(["export", *argv]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(Path().rglob("*")) == before
    assert Path("there.pt2").read_text() == "mine"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript", "flatbuffers"])
def test_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = SimpleNamespace()
    monkeypatch.setattr(diffac.commands.export, "find_spec", lambda name: None if name == package else there)
    name = "jax" if package == "flatbuffers" else "onnx"
    assert main(["export", "agent", "--format", name]) == 2
    assert capsys.readouterr().err == (
        f"error: format {name!r} needs the package {package!r}, which is not installed; "
        "run: python -m pip install 'diffac[export]'\n"
    )


def test_a_learner_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    needs("torch")
    Agent.from_recipe("fake", ENV, backend="torch").save("agent", replay=False)
    assert main(["export", "agent", "--format", "torch"]) == 2
    assert "fake builds a FakeEngine; only the Learner of a backend can be exported" in capsys.readouterr().err


def test_a_policy_that_cannot_be_traced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needs("torch")
    saved()
    sampler = importlib.import_module("diffac_torch").TanhGaussianSampler

    def stubborn(self: Any, actor: Any, obs: Any, noise: Any, **others: Any) -> Any:
        return obs[: int(obs.shape[0])].sum() if float(obs.sum()) > 0 else obs

    monkeypatch.setattr(sampler, "__call__", stubborn)
    assert main(["export", "agent", "--format", "torch"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the policy cannot be exported to format 'torch': ")
    assert error.count("\n") == 1
    assert not Path("agent/exports").exists()


def test_best_and_last_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    needs("torch")
    short = ["--total-timesteps", "90", "--learning-starts", "30", "--eval-interval", "30", "--eval-episodes", "1"]
    small = ["--hidden-sizes", "8", "--batch-size", "8", "--num-envs", "2", "--backend", "torch", "--no-progress"]
    assert main(["train", "sac", "--env-id", ENV, *short, *small]) == 0
    (run,) = Path().glob("runs/*/sac/*/seed*")
    assert main(["export", str(run), "--format", "torch"]) == 0
    assert main(["export", str(run), "--format", "torch", "--checkpoint", "last"]) == 0
    names = sorted(path.name for path in (run / "exports").glob("*.pt2"))
    assert [bool(re.fullmatch(r"best_step\d+\.pt2", name)) for name in names] == [True, False]
    assert names[1] == "step90.pt2"
    capsys.readouterr()
    assert main(["export", str(run), "--format", "torch", "--checkpoint", "last"]) == 2
    assert "step90.pt2 exists and is not overwritten" in capsys.readouterr().err


def test_a_script_exports_its_runs() -> None:
    needs("torch")
    saved()
    run_recipe(importlib.import_module(RECIPES["sac"]), ["export", "agent", "--format", "torch"])
    assert Path("agent/exports/step0.pt2").exists()
    Agent.from_recipe(fake_recipe, ENV, backend="torch").save("fake", replay=False)
    with pytest.raises(UsageError, match="FakeEngine"):
        run_recipe(fake_recipe, ["export", "fake", "--format", "torch"])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert "--format {onnx,torch,jax}" in capsys.readouterr().out
    assert main([]) == 0
    assert "export RUN --format" in capsys.readouterr().out


def programs() -> dict[str, str]:
    """Format -> the program in the documentation that runs it."""
    page = (ROOT / "docs/use/export.md").read_text()
    found = re.findall(r"^ +```python title=\"run_(\w+).py\"\n(.*?)^ +```$", page, re.DOTALL | re.MULTILINE)
    return {name: textwrap.dedent(code) for name, code in found}


@pytest.mark.parametrize("name", FORMATS)
def test_the_documented_program_runs_without_diffac(name: str) -> None:
    """An episode of Pendulum, in an interpreter that has no diffac."""
    needs(name)
    code = "import sys\nsys.modules.update(dict.fromkeys(['diffac', 'diffac_torch', 'diffac_equinox']))\n"
    Path("program.py").write_text(code + programs()[name])
    saved("sdac", FORMATS[name].backend, "Pendulum-v1")
    export(name, "--out", f"policy{FORMATS[name].suffix}")
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_ENABLE_X64", "PYTHONPATH")}
    environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "program.py"], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert -2000 < float(done.stdout.split()[-1]) < 0


def test_every_format_has_a_program() -> None:
    assert set(programs()) == set(FORMATS)
