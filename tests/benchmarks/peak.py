"""The matrix products of the recipes alone, as fast as each framework can: what a fraction of peak refers to.

The machine's peak is the best of both frameworks and all shapes, measured in the same run, between the contenders.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from .devices import choose, wait
from .protocol import serve

WIDTH = 256
SHAPES = {
    "256 rows": (1, 256),
    "256 rows, two critics": (2, 256),
    "2,048 rows": (1, 2048),
    "8,192 rows": (1, 8192),
    "8,192 rows, two critics": (2, 8192),
}
"""Title -> members and rows of products with square weights of the hidden width."""


class Peak:
    """Products in one framework."""

    def __init__(self, backend: str) -> None:
        choose(backend)
        self.programs = {title: getattr(self, f"_{backend}")(*shape) for title, shape in SHAPES.items()}

    def _torch(self, members: int, rows: int) -> Any:
        import torch

        shape = (members, rows, WIDTH) if members > 1 else (rows, WIDTH)
        x, y, weight = torch.randn(shape), torch.empty(shape), torch.randn(*shape[:-2], WIDTH, WIDTH) / WIDTH**0.5

        def run(count: int) -> None:
            for _ in range(count):
                torch.matmul(x, weight, out=y)
            wait("torch", y)

        return run

    def _equinox(self, members: int, rows: int) -> Any:
        import jax
        import jax.numpy as jnp

        shape = (members, rows, WIDTH) if members > 1 else (rows, WIDTH)
        x = jnp.ones(shape, jnp.float32)
        weight = jnp.ones((*shape[:-2], WIDTH, WIDTH), jnp.float32) / WIDTH

        @jax.jit
        def chain(x: Any, weight: Any, count: int) -> Any:
            return jax.lax.fori_loop(0, count, lambda _, x: jnp.matmul(x, weight), x)

        return lambda count: jax.block_until_ready(chain(x, weight, count))

    def measure(self, seconds: float = 0.1) -> dict[str, float]:
        """Operations per second for each shape."""
        speeds = {}
        for title, (members, rows) in SHAPES.items():
            work, run = 2 * members * rows * WIDTH * WIDTH, self.programs[title]
            count = max(2, int(seconds * 5e10 / work))
            run(2)
            begin = time.perf_counter()
            run(count)
            speeds[title] = work * count / (time.perf_counter() - begin)
        return speeds


if __name__ == "__main__":
    peak = Peak(json.loads(sys.argv[1])["backend"])
    serve({"measure": peak.measure})
