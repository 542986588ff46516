"""Devices and precision of products. What needs a GPU is skipped without one; `diffac validate` compares there too."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import load_backend

from diffac.agent import Agent
from diffac.data.replay import ReplayBuffer
from diffac.errors import UsageError
from diffac.noise import draw
from diffac.protocols import Batch
from diffac.runs.engine import start_engine
from diffac.training.loop import Loop, train
from diffac_recipes import sdac

SMALL: dict[str, Any] = {
    "hidden_sizes": (8, 8),
    "num_diffusion_steps": 2,
    "num_candidates": 2,
    "num_particles": 2,
    "env_id": "Pendulum-v1",
}


def updated(backend: ModuleType, device: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Learner and state after two steps with given noise, and its arrays."""
    engine, state = start_engine(sdac, sdac.Config(backend=backend.name, device=device, **SMALL), 3, 1)
    rng = np.random.default_rng(0)
    batch = Batch(*(rng.uniform(-1, 1, (4, *shape)) for shape in ((3,), (1,), (), (3,), ())))
    for _ in range(2):
        state, _ = engine.step(state, batch, draw(rng, engine.learner.noise_spec((4, 1)), float))
    return engine, state, backend.to_arrays(state)


def test_everything_runs_on_the_cpu_if_asked(backend: ModuleType) -> None:
    engine, state, arrays = updated(backend, "cpu")
    _, _, by_default = updated(backend, "auto")
    if backend.testing.devices() == ["cpu"]:
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, by_default[name], err_msg=name)
    action = engine.act(state, np.zeros((2, 3)), draw(np.random.default_rng(0), engine.act_noise_spec((2, 1)), float))
    again = backend.from_arrays(state, arrays)
    assert action.shape == (2, 1)
    for name, array in backend.to_arrays(again).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_replay_on_the_device(backend: ModuleType) -> None:
    """The same run: only where the batches come from differs."""
    sizes = {"total_timesteps": 60, "learning_starts": 20, "batch_size": 8, "num_envs": 2, "buffer_size": 40}
    config = sdac.Config(backend=backend.name, device="cpu", **sizes, **SMALL)
    runs = []
    for choice in (False, True):
        run = dataclasses.replace(config, replay_on_device=choice)
        engine, state = start_engine(sdac, run, 3, 1)
        with Loop(engine, state, run) as training:
            assert isinstance(training.buffer._storage, backend.DeviceStorage) == choice  # type: ignore[attr-defined]
            training.advance(run.total_timesteps)
        runs.append(backend.to_arrays(training.state))
    for name, array in runs[0].items():
        np.testing.assert_array_equal(runs[1][name], array, err_msg=name)


def test_replay_on_the_device_of_nobody(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sdac.Config(backend=backend.name, replay_on_device=True, total_timesteps=600, learning_starts=20, **SMALL)
    engine, state = start_engine(sdac, config, 3, 1)
    with pytest.raises(UsageError, match="give your own replay memory the device yourself"):
        train(engine, state, config, replay=lambda *sizes, **given: ReplayBuffer(*sizes, **given))
    monkeypatch.setattr("diffac.training.state.get_backend", lambda name: SimpleNamespace())
    with pytest.raises(UsageError, match=r"offers no DeviceStorage; leave out replay_on_device"):
        train(engine, state, config)


def test_a_gpu_agrees_with_the_cpu(backend: ModuleType) -> None:
    if "cuda" not in backend.testing.devices():
        pytest.skip("needs a GPU")
    arrays = updated(backend, "cpu")[2]
    for name, array in updated(backend, "cuda")[2].items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_device_that_is_not_there(backend: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"sees no device 'cuda:99' on this machine; it sees: cpu"):
        updated(backend, "cuda:99")


def test_an_agent_is_loaded_where_one_wants(backend: ModuleType, tmp_path: Path) -> None:
    """Not where it was trained, unless that is asked for."""
    agent = Agent.from_recipe("sdac", backend=backend.name, device="cpu", **SMALL)
    agent.save(tmp_path / "agent")
    assert Agent.load(tmp_path / "agent").config.device == "auto"
    assert Agent.load(tmp_path / "agent", device="cpu").config.device == "cpu"
    with pytest.raises(UsageError, match="sees no device 'cuda:99'"):
        Agent.load(tmp_path / "agent", device="cuda:99")


def cache_folder(temporary: Path, **variables: str) -> str:
    """Where a fresh process keeps the programs of JAX."""
    load_backend("equinox")
    code = "import diffac_equinox as b, jax; b.configure(); print(jax.config.jax_compilation_cache_dir)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**kept, "TMPDIR": str(temporary), "USER": "me", "LOGNAME": "me", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_jax_keeps_its_programs(tmp_path: Path) -> None:
    """In a folder of the user's own, or where the environment says, or nowhere."""
    ours = tmp_path / "diffac_jax_me"
    assert cache_folder(tmp_path) == str(ours)
    assert cache_folder(tmp_path) == str(ours)
    assert cache_folder(tmp_path, JAX_COMPILATION_CACHE_DIR="/elsewhere") == "/elsewhere"
    assert cache_folder(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    ours.chmod(0o777)
    assert cache_folder(tmp_path) == "None"
    ours.rmdir()
    ours.symlink_to(tmp_path)
    assert cache_folder(tmp_path) == "None"


@pytest.fixture
def restored(backend: ModuleType) -> Iterator[None]:
    yield
    backend.configure()


def test_less_exact_products(backend: ModuleType, restored: None) -> None:
    """The name reaches the framework; what it makes of it depends on the hardware."""
    backend.configure(matmul_precision="bfloat16")
    if backend.name == "torch":
        import torch

        assert torch.get_float32_matmul_precision() == "medium"
    else:
        import jax

        assert jax.config.jax_default_matmul_precision == "bfloat16"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"'float8'.*float32"):
        backend.configure(matmul_precision="float8")


def test_a_backend_without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(init=lambda *networks: networks, update=None)
    module = SimpleNamespace(build=lambda *_: (engine, "actor", "critic"))
    monkeypatch.setattr("diffac.backend.get_backend", lambda name: SimpleNamespace(name=name))
    config = sdac.Config(backend="third", **SMALL)
    assert start_engine(module, config, 3, 1)[1] == ("actor", "critic")
    with pytest.raises(UsageError, match=r"backend 'third' offers no choice of device.*'cuda'"):
        start_engine(module, dataclasses.replace(config, device="cuda"), 3, 1)
