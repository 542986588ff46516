"""Optimisers: ours in both backends, those of torch.optim and optax as they are, and a user's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.errors import UsageError
from diffac.testing.parts import DIMS, make_batch, make_noise

RATE = 1e-3


def start(B: Any, optimiser: Any) -> tuple[Any, Any]:
    """A small SAC whose both networks an optimiser trains, and its first state."""
    sampler = B.TanhGaussianSampler()
    learner = B.Learner(
        sampler=sampler,
        actor_objective=B.EntropyRegularisedValue(sampler),
        critic_objective=B.MeanSquaredTD(),
        temperature=B.FixedTemperature(),
        actor_optimiser=optimiser,
        critic_optimiser=optimiser,
        actor_delay=1,
    )
    engine = B.Engine(learner)
    actor = B.GaussianActor(DIMS.obs, DIMS.action, key=1, hidden_sizes=DIMS.hidden)
    return engine, engine.init(actor, B.TwinCritic(DIMS.obs, DIMS.action, key=2, hidden_sizes=DIMS.hidden))


def trained(engine: Any, state: Any, updates: Sequence[int]) -> Any:
    """The state after updates that these numbers determine."""
    for number in updates:
        rng = np.random.default_rng(number)
        state, metrics = engine.step(state, make_batch(rng, filled=False), make_noise(rng, engine))
        assert engine.fetch([metrics])["actor_grad_norm"][0] > 0
    return state


def assert_goes_on(B: Any, optimiser: Any) -> None:
    """What is saved after two updates goes on as if nothing had happened, also in the memory of a new state."""
    engine, state = start(B, optimiser)
    before = B.to_arrays(state)
    state = trained(engine, state, [0, 1])
    saved = B.to_arrays(state)
    weight = "actor.layers.0.weight"
    assert not np.array_equal(before[weight], saved[weight])
    expected = B.to_arrays(trained(engine, state, [2, 3]))
    other, new = start(B, optimiser)
    found = B.to_arrays(trained(other, B.from_arrays(new, saved), [2, 3]))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


TORCH = ["SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "NAdam", "Rprop"]


@pytest.mark.parametrize("name", TORCH)
def test_torch_optim_as_it_is(name: str) -> None:
    B = load_backend("torch")
    import torch

    momentum = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    assert_goes_on(B, functools.partial(getattr(torch.optim, name), lr=RATE, **momentum))


def test_a_class_of_torch_optim() -> None:
    B = load_backend("torch")
    import torch

    assert_goes_on(B, torch.optim.AdamW)


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "lion", "chain"])
def test_optax_as_it_is(name: str) -> None:
    B = load_backend("equinox")
    import optax

    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(RATE, 0.0, 10)))
    assert_goes_on(B, chain if name == "chain" else getattr(optax, name)(RATE))


@pytest.mark.parametrize("name", ["torch", "equinox"])
def test_ours_are_theirs(name: str) -> None:
    """AdamW of the framework takes the same steps."""
    B = load_backend(name)
    if name == "torch":
        import torch

        theirs: Any = functools.partial(torch.optim.AdamW, lr=RATE, weight_decay=0.3)
    else:
        import optax

        theirs = optax.adamw(RATE, weight_decay=0.3)
    one, other = (
        B.to_arrays(trained(*start(B, optimiser), [0, 1, 2])) for optimiser in (B.AdamW(RATE, weight_decay=0.3), theirs)
    )
    for array, value in one.items():
        if array.startswith(("actor.", "critic.")):
            np.testing.assert_allclose(other[array], value, rtol=1e-5, atol=1e-6, err_msg=array)


def test_weights_decay(backend: Any) -> None:
    """The first step differs by learning_rate weight_decay theta, and moments do not see it."""
    (plain, first), (decayed, second) = (
        (backend.to_arrays(state), backend.to_arrays(trained(engine, state, [0])))
        for engine, state in (
            start(backend, kind) for kind in (backend.Adam(RATE), backend.AdamW(RATE, weight_decay=2.0))
        )
    )
    for name, array in first.items():
        if name.startswith(("actor.", "critic.")):
            np.testing.assert_array_equal(plain[name], decayed[name])
            np.testing.assert_allclose(array - second[name], 2 * RATE * plain[name], atol=1e-6, err_msg=name)
        elif "optimiser.m" in name:
            np.testing.assert_array_equal(array, second[name])


class Signs:
    """A user's: steps of one length, with a memory in a nest of dictionaries."""

    def init(self, module: Any) -> Any:
        import torch

        return {"steps": torch.zeros(()), "last": {name: torch.zeros_like(p) for name, p in module.named_parameters()}}

    def step(self, opt_state: Any, module: Any, grads: Any) -> Any:
        import torch

        with torch.no_grad():
            for (name, parameter), grad in zip(module.named_parameters(), grads, strict=True):
                opt_state["last"][name].mul_(0.5).add_(grad)
                parameter.sub_(RATE * opt_state["last"][name].sign())
        opt_state["steps"] += 1
        return module, opt_state, {"grad_norm": torch.nn.utils.get_total_norm(grads)}


def test_a_users_optimiser_in_torch() -> None:
    assert_goes_on(load_backend("torch"), Signs())


@pytest.mark.parametrize("name", ["exp_avg", "step"])
def test_what_an_optimiser_needs_is_not_missing(name: str) -> None:
    """A checkpoint of a stranger, or of another optimiser."""
    B = load_backend("torch")
    import torch

    engine, state = start(B, torch.optim.AdamW)
    arrays = B.to_arrays(trained(engine, state, [0]))
    gone = f"critic_optimiser.{name}.layers.0.weight"
    less = {key: array for key, array in arrays.items() if key != gone}
    with pytest.raises(UsageError, match=f"missing: {gone}"):
        B.from_arrays(start(B, torch.optim.AdamW)[1], less)
    more = {**arrays, "critic_optimiser.other.layers.0.weight": arrays[gone]}
    with pytest.raises(UsageError, match=r"unexpected: critic_optimiser\.other\.layers\.0\.weight"):
        B.from_arrays(start(B, torch.optim.AdamW)[1], more)


def test_what_torch_cannot_use() -> None:
    B = load_backend("torch")
    import torch

    actor = B.GaussianActor(DIMS.obs, DIMS.action, key=1)
    with pytest.raises(UsageError, match=r"without parameters, as torch\.optim\.SGD or functools\.partial"):
        start(B, torch.optim.SGD(actor.parameters(), lr=RATE))
    with pytest.raises(UsageError, match=r"made a list"):
        start(B, lambda parameters: parameters)
    with pytest.raises(UsageError, match=r"cannot be made with .*unexpected keyword argument 'rate'"):
        start(B, functools.partial(torch.optim.SGD, rate=1.0))
    with pytest.raises(UsageError, match="LBFGS"):
        start(B, torch.optim.LBFGS)

    class Forgetful(Signs):
        def init(self, module: Any) -> Any:
            return [torch.zeros(())]

        def step(self, opt_state: Any, module: Any, grads: Any) -> Any:
            return module, opt_state, {"grad_norm": torch.zeros(())}

    with pytest.raises(UsageError, match="must be a dictionary of tensors"):
        B.to_arrays(start(B, Forgetful())[1])


def test_a_copy_of_a_state_goes_on_alone() -> None:
    B = load_backend("torch")
    import torch

    engine, state = start(B, functools.partial(torch.optim.RMSprop, lr=RATE))
    other = copy.deepcopy(trained(engine, state, [0]))
    expected = B.to_arrays(trained(engine, state, [1]))
    for name, array in B.to_arrays(trained(engine, other, [1])).items():
        np.testing.assert_array_equal(array, expected[name], name)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_parameters_may_lie_in_memory_in_any_order(name: str) -> None:
    """The fused kernel walks parameter and gradient side by side: a transposed view steps as its copy does."""
    B = load_backend("torch")
    import torch

    matrix, grad = torch.randn(4, 3), torch.arange(12.0).reshape(3, 4)
    found = []
    for weight in (matrix.mT, matrix.mT.contiguous()):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight.detach().clone(memory_format=torch.preserve_format))
        optimiser = getattr(B, name)(RATE)
        state = optimiser.init(module)
        for given in (grad, grad.mT.contiguous().mT, torch.ones(1, 1).expand(3, 4)):
            module, state, _ = optimiser.step(state, module, [given])
        found.append(module.weight.detach())
    assert not found[0].is_contiguous()
    torch.testing.assert_close(*found, rtol=0, atol=0)
