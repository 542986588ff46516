"""A policy that was exported and loaded again, for tests of what it must contain."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffac.noise import draw
from diffac.parts.export import signature
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import DIMS

TARGETS = ("onnx", "torch", "jax")


def check_exported(B: Any, engine: Any, state: Any, target: str, folder: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """Asserts that an exported policy without noise acts as the engine does; its exporter, observations and actions."""
    if target == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("needs onnxruntime")
    sign = signature(engine, DIMS.obs, np.full(DIMS.action, -1.0), np.full(DIMS.action, 1.0))
    exporter = importlib.import_module(f"diffac_{B.name}.engine.export")
    path = folder / "policy.pt2"
    with unchecked_shapes():
        path.write_bytes(exporter.export_policy(engine.learner, state, sign, target, "{}"))
    obs = np.random.default_rng(2).standard_normal((6, DIMS.obs)).astype(np.float32)
    if target == "onnx":
        import onnxruntime

        action: Any = onnxruntime.InferenceSession(path).run(None, {"obs": obs})[0]
    else:
        action = exporter.load_policy(path)(obs)
    noise = draw(np.random.default_rng(0), engine.act_noise_spec((6, DIMS.action), deterministic=True))
    np.testing.assert_allclose(action, engine.act(state, obs, noise), atol=1e-6)
    return exporter, obs, action
