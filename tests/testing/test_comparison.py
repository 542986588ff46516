"""`diffac.testing.compare` and `diffac validate --module`: what agrees passes, what differs is named with its size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffac.commands import validate as validation
from diffac.commands.validate import ValidateArguments
from diffac.errors import RunError, UsageError
from diffac.noise import Normal, Uniform
from diffac.parts.schedules import flow_schedule, vp_schedule
from diffac.protocols import Loss
from diffac.testing import Disagreement, compare
from diffac.testing.parts import DIMS, LEARNERS, Ellipse
from diffac.testing.validation import Row, compare_module

SCHEDULE = vp_schedule(4)
SMALL = {"key": 0, "hidden_sizes": (4,)}


def shared_sum(b: Any) -> Any:
    sampler = b.DDPMSampler(SCHEDULE)
    return b.Sum((1.0, b.ValueThroughSampler(sampler)), rollout_of=sampler)


PARTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "denoiser": ("network", lambda b: b.MLPDenoiser(3, 2, **SMALL), {}),
    "critic": ("network", lambda b: b.GaussianCritic(3, 2, **SMALL), {}),
    "actor": ("network", lambda b: b.GaussianActor(3, 2, **SMALL), {}),
    "schedule": ("schedule", lambda b: Ellipse(7), {}),
    "sampler": ("sampler", lambda b: b.BestOf(b.DDPMSampler(SCHEDULE), 2), {"critic": "three"}),
    "flow": ("sampler", lambda b: b.DDIMSampler(flow_schedule(3)), {"actor": "velocity"}),
    "actor objective": ("actor objective", lambda b: b.ValueThroughSampler(b.DDPMSampler(SCHEDULE)), {}),
    "sum": ("actor objective", lambda b: shared_sum(b), {}),
    "proposal": ("proposal", lambda b: b.PolicyProposal(), {}),
    "critic objective": ("critic objective", lambda b: b.GaussianTD(), {}),
    "optimiser": ("optimiser", lambda b: b.Adam(1e-3, max_grad_norm=1.0), {}),
    "decay": ("optimiser", lambda b: b.AdamW(1e-3), {}),
    "learner": ("learner", lambda b: LEARNERS["td3"].make(b, DIMS), {"actor": "deterministic", "critic": "twin"}),
    "temperature": ("temperature", lambda b: b.TargetEntropyTemperature(2), {"actor": "gaussian"}),
    "normaliser": ("normaliser", lambda b: b.Standardiser(3), {}),
}
"""Kind, part of a backend, arguments."""


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_every_kind_agree(both: SimpleNamespace, name: str) -> None:
    kind, make, options = PARTS[name]
    found = compare(make(both.torch), make(both.equinox), draws=1, **options)
    assert found.kind == kind
    assert (found.gradients is not None) == (kind in ("network", "actor objective", "proposal", "critic objective"))
    assert max(found.values, found.gradients or 0) < 1e-10
    assert "agree to" in str(found)


def test_it_computes_in_float64_and_leaves_the_process_as_it_was(both: SimpleNamespace) -> None:
    """Parts and networks that were made in float32, too, which stay as they are."""
    import jax
    import torch

    torch.set_default_dtype(torch.float32)
    try:
        with jax.enable_x64(False):
            actor = tuple(b.MLPDenoiser(3, 2, **SMALL) for b in (both.torch, both.equinox))
            before = both.torch.to_arrays(actor[0])
            parts = (b.ValueThroughSampler(b.DDIMSampler(SCHEDULE)) for b in (both.torch, both.equinox))
            assert compare(*parts, actor=actor, draws=1).values < 1e-12
            assert not jax.config.jax_enable_x64
        assert torch.get_default_dtype() == torch.float32
        for name, array in both.torch.to_arrays(actor[0]).items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, before[name])
    finally:
        torch.set_default_dtype(torch.float64)


@dataclasses.dataclass(frozen=True)
class Square:
    """An actor objective with a metric and a state, in any framework; each field is a mistake."""

    factor: float = 1.0
    of_metric: float = 1.0
    of_state: float = 1.0
    law: Any = Normal
    names: tuple[str, ...] = ("a", "b")
    metric: str = "mean"

    def noise_spec(self, shape: Any) -> Any:
        return {name: self.law(shape) for name in self.names}

    def init_state(self) -> Any:
        return {"count": np.zeros(())}

    def __call__(self, actor: Any, critic: Any, batch: Any, noise: Any, temperature: Any, state: Any) -> Loss:
        value = ((self.factor * actor(batch.obs, noise["a"], 1) - noise["b"]) ** 2).mean()
        metrics = {self.metric: self.of_metric * batch.action.mean()}
        return Loss(value, metrics, {"count": state["count"] + self.of_state})


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "value and gradient": ({"factor": 1.01}, r"\n  value \(draw \d, batch \d\): [\d.e-]+ in torch, .*relative diff"),
    "gradient": ({"factor": 1.01}, r"\n  gradient of layers.1.weight \(draw \d.* in torch, .* at \[\d+, \d+\], rel"),
    "metric": ({"of_metric": 1 + 1e-8}, r"\n  metrics.mean \(draw \d, batch \d\): .* relative difference 1e-08$"),
    "state": (
        {"of_state": 2.0},
        r"\n  state.count \(draw \d, batch 1\): 2 in torch, 4 in equinox, relative diff.* 5e-01",
    ),
    "other metric": ({"metric": "average"}, r"metrics.average \(draw .*only in equinox"),
    "law": ({"law": Uniform}, r"noise_spec: .*Normal\(shape=\(5, 2\)\).* in torch, .*Uniform"),
    "order of noise": ({"names": ("b", "a")}, "noise_spec: {'a'.* in torch, {'b'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_differs_is_named_with_its_size(both: SimpleNamespace, mistake: str) -> None:
    arguments, sentence = MISTAKES[mistake]
    with pytest.raises(Disagreement, match=sentence) as caught:
        compare(Square(), Square(**arguments), draws=2)
    assert str(caught.value).startswith("Square differs between torch and equinox (1e-09 is allowed):\n  ")


def test_what_cannot_be_compared(both: SimpleNamespace) -> None:
    t, e = both.torch, both.equinox
    for one, other, options, sentence in (
        (
            t.GaussianTD(),
            e.PolicyProposal(),
            {},
            "GaussianTD is a critic objective in torch, and a proposal in equinox",
        ),
        (t.GaussianTD, e.GaussianTD, {}, "cannot be compared: it must be an object"),
        (3, 3, {}, "3 cannot be compared"),
        (Square(), Square(), {"actor": "denoisr"}, "did you mean 'denoiser'"),
        (
            Square(),
            Square(),
            {"critic": 3},
            r"critic must be a name \(twin, three, simba, gaussian, categorical\) or a pair",
        ),
        (Square(), Square(), {"draws": 0}, "draws must be"),
        (
            *(t.TwinCritic(3, 2, key=0, hidden_sizes=(4,)), e.TwinCritic(3, 2, key=0, hidden_sizes=(5,)), {}),
            r"same names and shapes in both backends: layers.0.weight: shape \(2, 4, 5\) in torch, \(2, 5, 5\)",
        ),
    ):
        with pytest.raises(UsageError, match=sentence):
            compare(one, other, **options)


def test_an_error_says_where_it_was_raised(both: SimpleNamespace) -> None:
    with pytest.raises(TypeError) as caught:
        compare(both.torch.TanhGaussianSampler(), both.equinox.TanhGaussianSampler())
    (note,) = caught.value.__notes__
    assert note == "(computing the part in torch, with the actor 'denoiser', with the critic 'gaussian')"


# the command

MODULE = """
import diffac_equinox as e, diffac_torch as t
PARTS = {
    "right": (t.MeanSquaredTD(), e.MeanSquaredTD()),
    "wrong": (t.MeanSquaredTD(factor=0.5), e.MeanSquaredTD()),
    "sampler": (t.TanhGaussianSampler(), e.TanhGaussianSampler(), {"actor": "gaussian"}),
}
"""


def test_a_module_of_a_user(both: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parts_of_a_user.py").write_text(MODULE)
    right, wrong, sampler = compare_module("parts_of_a_user", 1)
    assert [(row.kind, row.name, row.cases) for row in (right, wrong, sampler)] == [
        ("critic objective", "right", 1),
        ("critic objective", "wrong", 1),
        ("sampler", "sampler", 1),
    ]
    assert right.agrees
    assert right.worst == ""
    assert sampler.agrees
    assert sampler.gradients is None
    assert not wrong.agrees
    assert wrong.worst.startswith("value (draw 0, batch ")


WRONG_MODULES = {
    "": ("needs a table PARTS = ", UsageError),
    "PARTS = {}": ("needs a table PARTS = ", UsageError),
    "PARTS = {'a': 1}": (r"PARTS\['a'\] of .* must be \(part_in_torch, part_in_equinox\)", UsageError),
    "PARTS = {'a': (1, 2)}": ("part 'a' of .*: 1 cannot be compared", UsageError),
    "1 / 0": ("raised ZeroDivisionError", UsageError),
    "import diffac_equinox as e, diffac_torch as t\n"
    "PARTS = {'a': (t.TanhGaussianSampler(), e.TanhGaussianSampler())}": (
        r"part 'a' of .* raised TypeError: .*\(computing the part in torch, with the actor 'denoiser'",
        RunError,
    ),
}


@pytest.mark.parametrize("text", WRONG_MODULES)
@pytest.mark.usefixtures("both")
def test_a_module_that_will_not_do(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence, kind = WRONG_MODULES[text]
    name = f"wrong_module_{list(WRONG_MODULES).index(text)}"
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.py").write_text(text)
    with pytest.raises(kind, match=sentence):
        list(compare_module(name, 1))


def test_a_module_that_is_missing() -> None:
    with pytest.raises(UsageError, match="the module 'no_such_module' cannot be imported: No module named"):
        list(compare_module("no_such_module", 1))


def test_module_and_steps_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="leave out --steps and --backends"):
        ValidateArguments(module="my_parts", steps=3)


def test_the_report_of_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("sampler", "mine", "float64", "cpu", 3, 1e-15, None, "", 1e-9)
    monkeypatch.setattr(validation, "_run", lambda names, config: (["torch", "equinox"], [row]))
    assert validation.validate(ValidateArguments(module="my_parts"))
    said = capsys.readouterr().out
    assert "Compared: the parts of my_parts in torch and in equinox." in said
    assert "mine" in said
    assert "Learners" not in said
