"""The benchmark compares equal mathematics, counts right and judges right. Nothing here is timed."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmarks.cases import CASES, SIZES, configure
from benchmarks.chart import draw_chart
from benchmarks.flops import Network, q_gradient, update_flops
from benchmarks.measure import block, take_turns
from benchmarks.page import page
from benchmarks.protocol import ROOT, Process
from benchmarks.ratios import ratios, read_recorded, record, too_low
from benchmarks.results import Results, Row
from benchmarks.switches import SWITCHES
from benchmarks.targets import targets
from conftest import INSTALLED, load_backend

from diffac.noise import draw
from diffac.protocols import Batch
from diffac.runs.recipes import load_recipe

DOCS = ROOT / "docs"
SMALL: dict[str, dict[str, Any]] = {
    "dacer2": {"num_diffusion_steps": 3, "eta": 0.7},
    "dacer": {"num_diffusion_steps": 3},
    "sdac": {"num_diffusion_steps": 4, "num_candidates": 3, "num_particles": 5},
    "idem": {"num_diffusion_steps": 4, "num_candidates": 3, "num_particles": 5},
    "dpmd": {"num_diffusion_steps": 4, "num_candidates": 3},
    "rfm": {"num_diffusion_steps": 4, "num_candidates": 3, "num_particles": 5},
    "fpmd": {"num_diffusion_steps": 4, "num_candidates": 3},
    "maxentdp": {"num_diffusion_steps": 4, "num_particles": 5, "num_noises": 3},
    "qsm": {"num_diffusion_steps": 3, "gradient_scale": 2.0},
    "qvpo": {
        "num_diffusion_steps": 4,
        "num_candidates": 3,
        "training_candidates": 5,
        "num_uniform": 2,
        "max_grad_norm": 0.1,
    },
    "dime": {"num_diffusion_steps": 3, "value_range": 2.0},
    "dipo": {
        "num_diffusion_steps": 4,
        "batch_size": 4,
        "buffer_size": 5,
        "improvement_steps": 3,
        "improvement_grad_norm": 0.01,
    },
    "dsact": {"log_std_max": -1.0},
    "meanflow": {"num_diffusion_steps": 2, "num_candidates": 3},
}


def small(recipe: str, backend: str) -> tuple[Any, Any, Any]:
    """A learner and its networks, for three observation and two action entries."""
    module = load_recipe(recipe)
    return module.build(module.Config(backend=backend, hidden_sizes=(8, 8), **SMALL[recipe]), 3, 2)


def batch_of(rng: np.random.Generator) -> Batch:
    """Four transitions with three observation and two action entries."""
    obs, action, reward, next_obs = (rng.uniform(-1, 1, shape) for shape in ((4, 3), (4, 2), (4,), (4, 3)))
    return Batch(obs, action, reward, next_obs, np.array([0.99, 0, 0.99, 0.99]), number=rng.permutation(5)[:4])


@pytest.mark.parametrize("recipe", SMALL)
def test_naive_is_the_same_mathematics(backend: ModuleType, recipe: str) -> None:
    """Three updates with the same noise: with the actor, without and with it again."""
    naive = importlib.import_module(f"benchmarks.naive_{backend.name}")
    learner, actor, critic = small(recipe, backend.name)
    temperature = float(np.exp(learner.temperature.init_state()["log_temperature"]))
    learner = dataclasses.replace(learner, temperature=backend.FixedTemperature(temperature))  # naive has no rule
    other = naive.Naive(learner, actor, critic)
    engine = backend.Engine(learner)
    state = engine.init(actor, critic)
    before = backend.to_arrays(state)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch, noise = batch_of(rng), draw(rng, engine.learner.noise_spec((4, 2)), float)
        state, metrics = engine.step(state, batch, noise)
        assert float(other.step(batch, noise)) == pytest.approx(float(metrics["critic_loss"]), rel=1e-9)
    ours, theirs = backend.to_arrays(state), other.arrays()
    networks = ("actor.", "critic.", "target_critic.", "ema_actor.")
    assert set(theirs) == {name for name in ours if name.startswith(networks)}
    for name, array in theirs.items():
        assert np.abs(ours[name] - before[name]).max() > 0, name
        np.testing.assert_allclose(array, ours[name], rtol=1e-9, atol=1e-12, err_msg=name)


def after_two_updates(recipe: str, backend: ModuleType) -> dict[str, np.ndarray]:
    """The learner's state."""
    if backend.name == "equinox":
        importlib.import_module("jax").clear_caches()  # programs made of other parts
    learner, actor, critic = small(recipe, backend.name)
    engine = backend.Engine(learner)
    state, rng = engine.init(actor, critic), np.random.default_rng(0)
    for key in range(2):
        batches = Batch(*(array[None] for array in batch_of(rng)[:5]))
        state, _ = engine.update(state, batches, key)
    return backend.to_arrays(state)


@pytest.mark.parametrize("recipe", ["dacer2", "sdac"])
def test_switched_off_is_the_same_mathematics(
    backend: ModuleType, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates with all optimisations, and without any that can be switched off."""
    expected = after_two_updates(recipe, backend)
    for name, switch in SWITCHES.items():
        if backend.name in switch.backends:
            switch.off(name, backend.name, monkeypatch.setattr)
    result = after_two_updates(recipe, backend)
    for entry, array in expected.items():
        np.testing.assert_allclose(result[entry], array, rtol=1e-9, atol=1e-12, err_msg=entry)
    monkeypatch.undo()
    if backend.name == "equinox":
        importlib.import_module("jax").clear_caches()


@pytest.mark.parametrize(("case", "env", "gflop"), [("sdac", "HalfCheetah", 77.5), ("sdac", "Humanoid", 81.0)])
def test_necessary_operations(case: str, env: str, gflop: float) -> None:
    """The count that the aims were set with."""
    module, config = configure(case, env, "torch" if INSTALLED["torch"] else "equinox")
    load_backend(config.backend)
    learner, _, _ = module.build(config, *SIZES[env])
    assert update_flops(learner, config, *SIZES[env]) / 1e9 == pytest.approx(gflop, abs=0.05)


def test_necessary_operations_of_dacer2() -> None:
    """The aims were set with one noisy action for each state in the second term; ours has one for each time."""
    batch, steps = 256, 5
    actor, critic = Network(17, 6, (256,) * 3, 6, time=16), Network(17, 6, (256,) * 3, 2, members=2)
    module, config = configure("dacer2", "HalfCheetah", "torch" if INSTALLED["torch"] else "equinox")
    load_backend(config.backend)
    ours = update_flops(module.build(config, 17, 6)[0], config, 17, 6)
    more = q_gradient(actor, critic, batch, steps, steps) - q_gradient(actor, critic, batch, steps, 1)
    assert (ours - more) / 1e9 == pytest.approx(1.80, abs=0.005)


@pytest.mark.parametrize("case", list(CASES))
def test_necessary_operations_of_every_case(case: str) -> None:
    """A mean flow evaluates its network as often as it draws candidates, and thrice in its loss; others run chains."""
    module, config = configure(case, "HalfCheetah", "torch" if INSTALLED["torch"] else "equinox")
    load_backend(config.backend)
    count = update_flops(module.build(config, 17, 6)[0], config, 17, 6)
    hidden = sum(a * b for a, b in itertools.pairwise((17 + 6, *config.hidden_sizes, 6)))
    assert count > 2 * config.batch_size * hidden * 3 * 2, "the critics' gradient alone"
    if case == "meanflow":
        candidates = 2 * config.batch_size * hidden * config.num_candidates * 3  # the actor, and two critics
        assert candidates < count < 1.3 * candidates
    if case == "dipo":  # the target's chain, and Q and its slope at every step
        parts = 2 * config.batch_size * hidden * (100 + 40 * 2 * 2)
        assert 0.95 * parts < count < 1.3 * parts
    if case == "dime":  # chains of 16: of the target, and of every third update's loss, forward and back
        parts = 2 * config.batch_size * hidden * 16 * (1 + 3 / 3)
        assert 0.95 * parts < count < 1.5 * parts
    if case == "qvpo":
        chains = 2 * config.batch_size * hidden * 20 * (4 + 64)
        assert chains < count < 1.3 * chains


def test_necessary_operations_of_a_product() -> None:
    """Two layers by hand: 3 x 5 and 5 x 2 multiply-adds; the gradient in the hidden layer is 5 x 2 more."""
    network = Network(obs=3, action=0, hidden=(5,), out=2)
    assert network.forward(7, 7) == 7 * 25
    assert network.parameters(7, 7) == 7 * (25 + 10)
    assert Network(obs=2, action=1, hidden=(5,), out=2).forward(rows=70, states=7) == 7 * 10 + 70 * 15
    assert Network(obs=2, action=1, hidden=(5,), out=2).to_action(7) == 7 * 15


def results(update: float = 10.0) -> Results:
    """A made-up run: naive needs 30 ms, a quarter of peak at 10 ms."""
    place = ("dacer2", "HalfCheetah", "torch")
    return Results(
        [
            Row("dacer2", "HalfCheetah", "", "", "work", 1.0, "GFLOP", ""),
            Row(*place, "naive", "update", 30.0, "ms", ""),
            Row(*place, "ours", "update", update, "ms", ""),
            Row(*place, "ours", "fraction", 2.5 / update, "of peak", ""),
            Row(*place, "ours", "act 1", 0.4, "ms", ""),
            Row(*place, "synchronous", "steps", 100.0, "1/s", ""),
            Row(*place, "synchronous", "learner", 0.95, "share", ""),
        ],
        {"machine": "m", "processor": "p", "threads": "2", "system": "s", "python": "3", "versions": {"torch": "2"},
         "peers": {}, "commit": "c", "command": "nox -s bench", "date": "2026-01-01"},
    )  # fmt: skip


def test_check_notices_what_has_become_slower(tmp_path: Path) -> None:
    """By more than a fifth, and ratios only."""
    path = tmp_path / "recorded.json"
    record("this", ratios(results()), path)
    recorded = read_recorded("this", path)
    assert recorded == {
        "dacer2, HalfCheetah, torch: fraction of peak": 0.25,
        "dacer2, HalfCheetah, torch: learner's share of a run": 0.95,
        "dacer2, HalfCheetah, torch: naive / ours": 3.0,
    }
    assert too_low(ratios(results(12.4)), recorded) == {}
    assert len(too_low(ratios(results(12.6)), recorded)) == 2
    assert too_low({"dacer2, HalfCheetah, torch: naive / ours": 3.1}, recorded) == {}
    assert read_recorded("another", path) == {}
    with pytest.raises(ValueError, match="nothing that was measured"):
        too_low({"something else": 1.0}, recorded)


def test_results_survive_a_file(tmp_path: Path) -> None:
    results().write(tmp_path)
    read = Results.read(tmp_path)
    assert read.rows == results().rows
    assert read.origin == results().origin
    assert read.get("dacer2", "HalfCheetah", "torch", "ours", "compile") is None


def test_targets_say_by_how_much() -> None:
    found = {target.text: target for target in targets(results(20.0))}
    gain = found["DACER2, HalfCheetah, torch: naive update over ours"]
    assert (gain.value, gain.met, gain.verdict) == (1.5, False, "missed by 32%")
    assert found["DACER2, HalfCheetah, torch: action for one observation"].met


def test_page_has_every_table_and_its_origin(tmp_path: Path) -> None:
    text = page(results())
    for title in ("Where the numbers come from", "Targets", "Updates", "Action latency", "Whole training runs"):
        assert f"\n## {title}\n" in text
    assert "| DACER2, T=5 | HalfCheetah | PyTorch | naive | 3.00x | 25% |" in text
    assert "`nox -s bench`, on 2026-01-01" in text
    if find_spec("matplotlib"):
        draw_chart(results(), tmp_path / "chart.svg")
        assert (tmp_path / "chart.svg").stat().st_size > 1_000


def test_published_page_is_made_of_the_published_numbers() -> None:
    """Nobody edits it by hand."""
    assert page(Results.read(DOCS / "data")) == (DOCS / "results/benchmarks.md").read_text()


def test_a_contender_that_dies_says_why() -> None:
    """Another process, which knows no such framework."""
    with Process("peak", {"backend": "nothing"}) as process, pytest.raises(RuntimeError, match="_nothing"):
        process("measure")


def test_help_can_be_printed() -> None:
    """A % in a text of argparse's breaks it, but only when somebody asks."""
    from benchmarks.__main__ import parser

    assert "--publish" in parser().format_help()


def test_rounded_products() -> None:
    """To nearest, ties to even, as bfloat16 of torch; the distance from float64 grows as bits are dropped."""
    load_backend("torch")
    import torch
    from benchmarks.precision import gradients, rounded

    x = torch.linspace(-3, 3, 1001, dtype=torch.float32)
    assert torch.equal(rounded(x, 7), x.bfloat16().float())
    assert torch.equal(rounded(x, 23), x)
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20], dtype=torch.float32)
    assert rounded(ties, 10).tolist() == [1, 1 + 2**-9, 1 + 2**-10]
    exact = gradients("sac", "HalfCheetah", torch.float64, 23)
    near, far = (gradients("sac", "HalfCheetah", torch.float32, bits)["actor gradient"] for bits in (10, 7))
    assert 0 < (near - exact["actor gradient"]).norm() < (far - exact["actor gradient"]).norm()


def test_turns_alternate() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) or name for name in "ab"]
    assert take_turns(calls, 2) == [["a", "a"], ["b", "b"]]
    assert order == ["a", "b", "b", "a"]
    assert block(0.3) == 2
    assert block(0.01) == 50
