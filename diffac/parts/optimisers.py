"""Optimisers: from a gradient to a step of a network."""

from __future__ import annotations

from typing import Annotated, Any

from diffac.parts.arguments import coefficient, number
from diffac.parts.declaration import NotNegative, Part, Positive, declared
from diffac.parts.schedules import LinearSchedule
from diffac.protocols import Metrics

__all__ = ["Adam", "AdamW"]


LearningRate = Annotated[float | LinearSchedule, coefficient("(0, inf)", ends="[0, inf)")]
Decay = Annotated[float, number("[0, 1)")]


@declared
class Adam(Part):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), optionally behind a clip of the gradient's global norm.

    Args:
        learning_rate: a positive number, or a schedule over the number of steps done before the present one.
        max_grad_norm: gradients g become g min(1, max_grad_norm / ||g||); None: no clip.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.

    Raises:
        UsageError: a number is out of range.
    """

    learning_rate: LearningRate = 3e-4
    max_grad_norm: Positive | None = None
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8

    def init(self, module: Any) -> Any:
        """The state before the first step of a network."""
        raise NotImplementedError

    def step(self, opt_state: Any, module: Any, grads: Any) -> tuple[Any, Any, Metrics]:
        """One step, as `Optimiser` says; {"grad_norm"} is the norm before the clip."""
        raise NotImplementedError


@declared
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

    Before the step of `Adam` every parameter theta, biases too, becomes (1 - learning_rate weight_decay) theta. The
    decay is no part of the gradient, so neither moments nor the clip of the norm see it.

    Args:
        learning_rate: as for `Adam`; a schedule scales the decay too.
        max_grad_norm: as for `Adam`.
        b1: as for `Adam`.
        b2: as for `Adam`.
        eps: as for `Adam`.
        weight_decay: at least 0.

    Raises:
        UsageError: a number is out of range.
    """

    weight_decay: NotNegative = 0.01
