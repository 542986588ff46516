"""What `--matmul-precision` does to an update, without hardware that has such products:

    python -m tests.benchmarks.precision

The operands of every matrix product are rounded as a GPU's tensor cores round them (TensorFloat32: 10 bits of mantissa,
bfloat16: 7), the sums are float32's. Everything else is float32. The table shows the distance from the same update in
float64 with the same networks, batch and noise, relative to its norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffac.backend import get_backend
from diffac.noise import draw
from diffac.protocols import Batch

from .cases import BATCH_SIZE, CASES, SIZES, configure

aten = torch.ops.aten
OPERANDS = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2), aten.baddbmm.default: (1, 2)}
"""Product -> positions of the matrices."""
MANTISSA = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}


class RoundedProducts(TorchDispatchMode):
    """Rounds the operands of all products of float32 to so many bits of mantissa, to nearest, ties to even."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OPERANDS and args[-1].dtype == torch.float32:
            self.products += 1
            args = tuple(rounded(x, self.bits) if i in OPERANDS[func] else x for i, x in enumerate(args))
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor, bits: int) -> Tensor:
    """float32 with so many bits of mantissa."""
    drop = 23 - bits
    if not drop:
        return x
    whole = x.contiguous().view(torch.int32)
    half = (1 << (drop - 1)) - 1 + ((whole >> drop) & 1)
    return ((whole + half) & (-1 << drop)).view(torch.float32)


def gradients(case: str, env: str, dtype: Any, bits: int) -> dict[str, Any]:
    """Losses and gradients of one update, and actions, in numbers of that type."""
    module, config = configure(case, env, "torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # the same networks in both types: float64's are these, converted
    try:
        learner, actor, critic = module.build(config, *SIZES[env])
        torch.set_default_dtype(dtype)
        engine = get_backend(config.backend).Engine(learner)
        state = engine.init(actor.to(dtype), critic.to(dtype))
        rng, (obs_dim, action_dim) = np.random.default_rng(0), SIZES[env]
        batch = Batch(
            obs=rng.standard_normal((BATCH_SIZE, obs_dim)),
            action=rng.uniform(-1, 1, (BATCH_SIZE, action_dim)),
            reward=rng.standard_normal(BATCH_SIZE),
            next_obs=rng.standard_normal((BATCH_SIZE, obs_dim)),
            discount=0.99 * (rng.random(BATCH_SIZE) >= 0.01),
        )
        noise = draw(rng, learner.noise_spec((BATCH_SIZE, action_dim)), float)
        # the products must come by as operations of torch
        plain = torch._dynamo.config.patch(disable=True), torch.backends.mkldnn.flags(enabled=False)
        with plain[0], plain[1], RoundedProducts(bits) as mode:
            _, metrics = engine.step(state, batch, noise)
        assert mode.products > 10 or dtype != torch.float32
        found = {f"{name} loss": metrics[f"{name}_loss"].reshape(1) for name in ("critic", "actor")}
        for name, optimiser in (("critic", state.critic_optimiser), ("actor", state.actor_optimiser)):
            moments = [moment["exp_avg"].flatten() for moment in optimiser.optimiser.state.values()]
            found[f"{name} gradient"] = torch.cat(moments)  # of the first step: a tenth of the gradient
        return {name: value.double() for name, value in found.items()}
    finally:
        torch.set_default_dtype(before)


def distances(case: str, env: str) -> dict[str, dict[str, float]]:
    """Precision -> what -> distance from float64, relative."""
    exact = gradients(case, env, torch.float64, 23)
    found = {name: gradients(case, env, torch.float32, bits) for name, bits in MANTISSA.items()}
    return {
        name: {what: float((value - exact[what]).norm() / exact[what].norm()) for what, value in results.items()}
        for name, results in found.items()
    }


def main() -> None:
    """Prints the table."""
    columns = ("critic loss", "critic gradient", "actor loss", "actor gradient")
    print(f"| update of | products | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    for case in ("dacer2", "sdac_small", "sac"):
        for precision, errors in distances(case, "HalfCheetah").items():
            cells = " | ".join(f"{errors[column]:.0e}" for column in columns)
            print(f"| {CASES[case].title} | {precision} | {cells} |")


if __name__ == "__main__":
    main()
