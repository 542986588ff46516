"""The acting policy as a program that runs without diffac: `torch.export`, and ONNX made from the same program."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffac.parts.export import BATCH, Signature
from diffac.protocols import Policy
from diffac_torch.engine.programs import quiet
from diffac_torch.kernels.mish import mish_value
from diffac_torch.learner import Learner
from diffac_torch.state import LearnerState

_EXAMPLE_BATCH = 3
"""Batch size with which the program is traced; its value does not matter, but torch takes 0 and 1 for constants."""


class _Policy(nn.Module):
    """(obs, *noise) -> action in the environment's units, float32 on the CPU."""

    def __init__(self, learner: Learner, state: LearnerState, signature: Signature) -> None:
        super().__init__()
        *networks, temperature = learner.policy(state, deterministic=True)
        self.actor, self.critic = (
            copy.deepcopy(network).to("cpu", torch.float32).requires_grad_(False) for network in networks
        )
        self.learner, self.signature = learner, signature
        self.moments = list(state.obs_moments)
        for name, array in state.obs_moments.items():
            self.register_buffer(f"obs_{name}", array.to("cpu", torch.float32))
        self.temperature = float(temperature)
        for name, array in zip(
            ("half_range", "centre", "low", "high"), (*signature.scale, *signature.bounds), strict=True
        ):
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32))

    def forward(self, obs: Tensor, *noise: Tensor) -> Tensor:
        nested = self.signature.nest(noise, obs.new_zeros, obs.shape[0])
        seen = self.learner.seen(obs, {name: getattr(self, f"obs_{name}") for name in self.moments})
        action = self.learner.acting(True)(Policy(self.actor, self.critic, self.temperature), seen, nested)
        return (action.clamp(-1, 1) * self.half_range + self.centre).clamp(self.low, self.high)


def export_policy(learner: Learner, state: LearnerState, signature: Signature, target: str, description: str) -> bytes:
    """The content of a file that holds a learner's policy, without exploration, in float32.

    Args:
        learner: whose sampler of evaluations acts.
        state: its parameters.
        signature: of the function.
        target: "torch" (`torch.export.load` reads it) or "onnx".
        description: JSON text, put into the file as "diffac.json" (torch) or as the metadata "diffac" (ONNX).
    """
    policy = _Policy(learner, state, signature).eval()
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((_EXAMPLE_BATCH, signature.obs_dim), np.float32)
    inputs = [torch.from_numpy(array) for array in (obs, *signature.draw(rng, _EXAMPLE_BATCH))]
    with quiet():
        program = _trace(policy, inputs, signature)
        if not _uses(program, "critic."):  # only where candidates are ranked
            policy.critic = None
            program = _trace(policy, inputs, signature)
        content = io.BytesIO()
        if target == "torch":
            torch.export.save(program, content, extra_files={"diffac.json": description})
        else:
            names = ["obs", *(entry.name for entry in signature.inputs)]
            shapes = _dynamic_shapes(signature)  # again, for the name of the axis
            # onnxruntime has no kernel for ONNX's Mish, and makes it from slower functions than our formula does
            program = program.run_decompositions({torch.ops.aten.mish.default: mish_value})
            onnx = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=["action"], dynamic_shapes=shapes
            )
            assert onnx is not None
            onnx.model.metadata_props["diffac"] = description
            content.write(onnx.model_proto.SerializeToString())
    return content.getvalue()


def load_policy(path: Path) -> Callable[..., np.ndarray]:
    """The function of NumPy arrays (obs, *noise) -> action that a file of the target "torch" holds."""
    program = torch.export.load(path).module()

    @torch.no_grad()
    def call(*arrays: np.ndarray) -> np.ndarray:
        return program(*map(torch.from_numpy, arrays)).numpy()

    return call


@torch.no_grad()
def critic_values(learner: Learner, state: LearnerState, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The smallest value of the ensemble that ranks candidates, [batch], for obs [batch obs] and action [batch act]."""
    critic = learner.policy(state, deterministic=True).critic
    parameter = next(critic.parameters())
    seen, actions = (torch.as_tensor(x).to(parameter) for x in (obs, action))
    return critic(learner.seen(seen, state.obs_moments), actions).amin(0).cpu().numpy()


def _trace(policy: _Policy, inputs: list[Tensor], signature: Signature) -> torch.export.ExportedProgram:
    return torch.export.export(policy, tuple(inputs), dynamic_shapes=_dynamic_shapes(signature), strict=False)


def _dynamic_shapes(signature: Signature) -> tuple[Any, ...]:
    """For `forward(obs, *noise)`: the batch axis of each input."""
    batch = torch.export.Dim(BATCH)
    noise = tuple({entry.shape.index(BATCH): batch} if BATCH in entry.shape else {} for entry in signature.inputs)
    return ({0: batch}, noise) if noise else ({0: batch},)


def _uses(program: torch.export.ExportedProgram, prefix: str) -> bool:
    """Whether a program uses a parameter whose name begins with the prefix."""
    names = program.graph_signature.inputs_to_parameters
    return any(node.users for node in program.graph.nodes if names.get(node.name, "").startswith(prefix))
