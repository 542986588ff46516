"""Derivatives of functions along a direction of their inputs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def value_and_derivative(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """function(*inputs), and its derivative along a direction of its inputs, which has no gradient.

    The derivative is that of the gradient <w, function>, which is linear in w, along the direction: two passes
    backwards. Forward mode (`torch.func.jvp`) would lose the direction in kernels that torch does not know.

    Args:
        function: of the inputs; the gradient of its value in anything else stays.
        inputs: floating tensors.
        direction: a tensor of the shape of each.
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        value = function(*inputs)
        weight = torch.zeros_like(value, requires_grad=True)
        slopes = torch.autograd.grad(value, inputs, weight, create_graph=True)
        along = torch.stack([(slope * x).sum() for slope, x in zip(slopes, direction, strict=True)]).sum()
        (derivative,) = torch.autograd.grad(along, weight, retain_graph=True)
    return value, derivative
