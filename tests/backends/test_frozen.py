"""Networks of a user with buffers, frozen parameters and modes: all of it is kept, and none of it is trained."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import pickle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exported import TARGETS, check_exported

from diffac.errors import UsageError
from diffac.noise import draw
from diffac.testing import compare
from diffac.testing.parts import DIMS, LEARNERS, changed, make_batch, make_noise

FROZEN = ("order", "scale", "offset", "embed.weight", "embed.bias")
COPIES = ("actor", "critic", "target_critic", "ema_actor")


def own(B: ModuleType) -> ModuleType:
    return importlib.import_module(f"frozen_{B.name}")


def an_engine(B: ModuleType) -> tuple[Any, Any]:
    """TD3 with networks of a user, and its first state, the same in both backends."""
    engine = B.Engine(LEARNERS["td3"].make(B, DIMS))
    if B.name == "torch":
        import torch

        torch.manual_seed(0)
    state = engine.init(own(B).Actor(DIMS.obs, DIMS.action), own(B).Critic(DIMS.obs, DIMS.action))
    rng, arrays = np.random.default_rng(0), B.to_arrays(state)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not name.startswith(COPIES[2:]):
            arrays[name] = array + 0.1 * np.abs(rng.standard_normal(array.shape))
    for slow, fast in {"target_critic": "critic", "ema_actor": "actor"}.items():
        arrays |= {f"{slow}.{n.partition('.')[2]}": a for n, a in arrays.items() if n.startswith(f"{fast}.")}
    return engine, B.from_arrays(state, arrays)


def updated(B: ModuleType, engine: Any, state: Any, updates: int = 5) -> Any:
    """The state after some updates, each of which consumes the one before."""
    for key in range(updates):
        state, _ = engine.update(state, make_batch(np.random.default_rng(key), leading=(1,), filled=False), key)
    return state


def test_updates_leave_what_is_frozen(backend_also_compiled: ModuleType) -> None:
    """To the last bit, in all copies; and there is no optimiser state of it."""
    engine, state = an_engine(backend_also_compiled)
    before = backend_also_compiled.to_arrays(state)
    after = backend_also_compiled.to_arrays(updated(backend_also_compiled, engine, state))
    for network in COPIES:
        for name in FROZEN:
            np.testing.assert_array_equal(after[f"{network}.features.{name}"], before[f"{network}.features.{name}"])
        assert (after[f"{network}.last.weight"] != before[f"{network}.last.weight"]).all()
    assert after["actor.features.order"].dtype.kind == "i"
    assert not [name for name in after if "optimiser" in name and "features" in name]
    assert not [name for name in after if "ones" in name]


def test_optimisers_of_the_framework_leave_what_is_frozen(backend: ModuleType) -> None:
    """Though their weights decay."""
    if backend.name == "torch":
        import torch

        optimiser: Any = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)
    else:
        import optax

        optimiser = optax.adamw(1e-2, weight_decay=0.5)
    engine, state = an_engine(backend)
    engine = changed(backend, engine, actor_optimiser=optimiser, critic_optimiser=optimiser)
    state = engine.init(state.actor, state.critic)
    before = backend.to_arrays(state)
    after = backend.to_arrays(updated(backend, engine, state))
    for name in FROZEN:
        np.testing.assert_array_equal(after[f"actor.features.{name}"], before[f"actor.features.{name}"])
    assert (after["actor.last.weight"] != before["actor.last.weight"]).all()
    assert not [name for name in after if "optimiser" in name and "features" in name]


def test_slow_copies_take_over_what_is_frozen(backend: ModuleType) -> None:
    """Somebody has changed it in the originals: a mean of old and new would be neither."""
    engine, state = an_engine(backend)
    arrays = backend.to_arrays(state)
    for network in ("actor", "critic"):
        for name in FROZEN:
            arrays[f"{network}.features.{name}"] = arrays[f"{network}.features.{name}"][::-1] * 1
    state = updated(backend, engine, backend.from_arrays(state, arrays), 2)
    after = backend.to_arrays(state)
    for slow, fast in {"target_critic": "critic", "ema_actor": "actor"}.items():
        for name in FROZEN:
            np.testing.assert_array_equal(after[f"{slow}.features.{name}"], arrays[f"{fast}.features.{name}"])


def test_a_norm_is_of_what_is_trained(backend: ModuleType) -> None:
    engine, state = an_engine(backend)
    arrays = backend.to_arrays(state)
    trained = [arrays["actor.last.weight"], arrays["actor.last.bias"]]
    norm = engine.fetch([engine.measure(state)])["actor_param_norm"][0]
    assert norm == pytest.approx(np.sqrt(sum((array**2).sum() for array in trained)), rel=1e-12)


def test_from_one_backend_to_the_other_and_back(both: SimpleNamespace) -> None:
    """Names, values, and what comes of them: updates in one equal updates in the other."""
    (one, state), (other, other_state) = an_engine(both.torch), an_engine(both.equinox)
    arrays = both.torch.to_arrays(updated(both.torch, one, state, 3))
    other_state = both.equinox.from_arrays(other_state, arrays)
    back = both.equinox.to_arrays(other_state)
    assert sorted(back) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    state = both.torch.from_arrays(an_engine(both.torch)[1], back)
    rng = np.random.default_rng(1)
    for _ in range(4):
        batch, noise = make_batch(rng, filled=False), make_noise(rng, one)
        state, _ = one.step(state, batch, noise)
        other_state, _ = other.step(other_state, batch, noise)
    mine, theirs = both.torch.to_arrays(state), both.equinox.to_arrays(other_state)
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_single_precision(backend: ModuleType) -> None:
    """Arrays of another type are taken as they are, but whole numbers keep theirs."""
    engine, state = an_engine(backend)
    arrays = {
        name: array.astype(np.float32 if array.dtype.kind == "f" else np.int16)
        for name, array in backend.to_arrays(state).items()
    }
    state = updated(backend, engine, backend.from_arrays(state, arrays), 2)
    after = backend.to_arrays(state)
    assert after["actor.features.scale"].dtype == np.float32
    assert after["actor.features.order"].dtype in (np.int64, np.int32)


def test_networks_run_in_evaluation_mode(backend: ModuleType) -> None:
    """In losses, targets and when they act: dropout would draw numbers that nobody can repeat."""
    engine, state = an_engine(backend)
    obs = np.ones((3, DIMS.obs), np.float32)
    noise = draw(np.random.default_rng(0), engine.act_noise_spec((3, DIMS.action), deterministic=True))
    actions = [engine.act(state, obs, noise) for _ in range(2)]
    np.testing.assert_array_equal(*actions)
    assert (actions[0] == actions[0][:1]).all()
    runs = [backend.to_arrays(updated(backend, *an_engine(backend))) for _ in range(2)]
    for name, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][name], err_msg=name)


def test_copies_of_states(backend: ModuleType) -> None:
    engine, state = an_engine(backend)
    before = backend.to_arrays(state)
    for again in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        for name, array in backend.to_arrays(again).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        updated(backend, engine, again)
    assert "frozen" in repr(state).lower() or backend.name == "torch"


@pytest.mark.parametrize("target", TARGETS)
def test_exported_policies(both: SimpleNamespace, target: str, tmp_path: Path) -> None:
    B = both.equinox if target == "jax" else both.torch
    engine, state = an_engine(B)
    check_exported(B, engine, state, target, tmp_path)


def test_compare(both: SimpleNamespace) -> None:
    """Networks of users and parts that are called with them: what is frozen has no gradient in either backend."""
    actors, critics = (
        [getattr(own(B), name)(DIMS.obs, DIMS.action) for B in (both.torch, both.equinox)]
        for name in ("Actor", "Critic")
    )
    found = compare(*actors, draws=1)
    assert found.gradients is not None
    compare(*critics, draws=1)
    learners = [LEARNERS["td3"].make(B, DIMS) for B in (both.torch, both.equinox)]
    compare(*learners, actor=tuple(actors), critic=tuple(critics), draws=1)


def test_nothing_to_train_is_refused(backend: ModuleType) -> None:
    engine, actor = an_engine(backend)[0], own(backend).Actor(DIMS.obs, DIMS.action)
    if backend.name == "torch":
        actor.requires_grad_(False)
    else:
        actor = importlib.import_module("diffac_equinox").Frozen(actor)
    with pytest.raises(UsageError, match="with parameters, got "):
        engine.init(actor, own(backend).Critic(DIMS.obs, DIMS.action))
