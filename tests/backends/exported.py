"""A policy that was exported and loaded again, for tests of what it must contain."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffac.parts.export import signature
from diffac.testing.conformance import unchecked_shapes
from diffac.testing.parts import DIMS

TARGETS = ("onnx", "torch", "jax")


def check_exported(B: Any, engine: Any, state: Any, target: str, folder: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """Asserts that an exported policy acts as the engine in evaluations does; its exporter, observations, actions."""
    if target == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("needs onnxruntime")
    sign = signature(engine, DIMS.obs, np.full(DIMS.action, -1.0), np.full(DIMS.action, 1.0))
    exporter = importlib.import_module(f"diffac_{B.name}.engine.export")
    path = folder / "policy.pt2"
    with unchecked_shapes():
        path.write_bytes(exporter.export_policy(engine.learner, state, sign, target, "{}"))
    rng = np.random.default_rng(2)
    obs = rng.standard_normal((6, DIMS.obs)).astype(np.float32)
    inputs = sign.draw(rng, 6)
    if target == "onnx":
        import onnxruntime

        names = ("obs", *(entry.name for entry in sign.inputs))
        arrays = dict(zip(names, (obs, *inputs), strict=True))
        action: Any = onnxruntime.InferenceSession(path).run(None, arrays)[0]
    else:
        action = exporter.load_policy(path)(obs, *inputs)
    noise = sign.nest(inputs, np.zeros, 6)
    np.testing.assert_allclose(action, engine.act(state, obs, noise, deterministic=True), atol=1e-6)
    return exporter, obs, action
