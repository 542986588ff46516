"""Matrix products by oneDNN, where it is faster than the library that torch takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffac_torch.kernels.programs import is_recording

_MIN_WORK = 1 << 21
"""Multiply-adds from which a product of oneDNN saves more than its call costs."""

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def is_for_onednn(x: Tensor, work: int) -> bool:
    """Whether oneDNN computes a product of so many multiply-adds.

    torch leaves float32 on a CPU to MKL, which has only 256-bit kernels for AMD's processors: half of what those with
    AVX-512 can do, and what oneDNN does.
    """
    return (
        _HAS_ONEDNN
        and not torch.compiler.is_compiling()  # first: an exported program must not depend on the number of rows
        and work >= _MIN_WORK
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.enabled  # type: ignore[truthy-function]
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias without gradient, for matrices or transposes of such: oneDNN is slow for any other strides."""
    return (_recorded_onednn if is_recording() else _call_onednn)(x, weight, bias)


def _call_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# torch.compile takes oneDNN's product for constant weights only
torch.library.define("diffac::onednn", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.impl("diffac::onednn", "CPU", _call_onednn)
torch.library.register_fake("diffac::onednn", lambda x, weight, bias: x.new_empty(len(x), len(weight)))
_recorded_onednn = torch.ops.diffac.onednn


class _Affine(torch.autograd.Function):
    """`_onednn` with its gradient, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_x, to_weight, to_bias = ctx.needs_input_grad
        product = F.linear if torch.is_grad_enabled() else _onednn
        return (
            product(grad, weight.mT) if to_x else None,
            product(grad.mT, x.mT) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: [*rows out] from x [*rows in], weight [out in] and bias [out]."""
    if not is_for_onednn(x, x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    result: Any = _Affine.apply(rows, weight.contiguous(), bias)
    return result.view(*x.shape[:-1], -1)


def ensemble_outputs(
    layers: Iterable[Any], activate: Callable[[Tensor], Tensor], obs: Tensor, action: Tensor
) -> Tensor:
    """Outputs [size *batch out] of networks with stacked parameters on concat(obs, action), which is never formed.

    The layers are linear, at least the first, and are called on [size rows in]. One product serves all members, or one
    each where oneDNN computes it; the share of an observation that lacks batch
    axes of the action is computed once.
    """
    batch = torch.broadcast_shapes(obs.shape[:-1], action.shape[:-1])
    linears = list(layers)
    first, size, obs_dim = linears[0], len(linears[0].weight), obs.shape[-1]
    perceptron = all(hasattr(layer, "weight") and layer.weight.ndim == 3 for layer in linears)
    if perceptron and is_for_onednn(action, math.prod(batch) * max(linear.weight[0].numel() for linear in linears)):
        parameters = [(linear.weight.unbind(), linear.bias.unbind()) for linear in linears]
        members = [[(weights[i], biases[i]) for weights, biases in parameters] for i in range(size)]
        return torch.stack([_member_outputs(member, activate, obs, action, batch) for member in members])
    missing = (1,) * (len(batch) - obs.ndim + 1)
    obs_weight, action_weight = first.weight.tensor_split([obs_dim], dim=2)
    rows = obs.reshape(1, -1, obs_dim).expand(size, -1, -1)
    share = torch.baddbmm(first.bias.unsqueeze(1), rows, obs_weight.mT)
    share = share.view(size, *missing, *obs.shape[:-1], -1)
    share = share.expand(size, *batch, -1)
    rows = action.expand(*batch, -1).reshape(1, -1, action.shape[-1]).expand(size, -1, -1)
    hidden = torch.bmm(rows, action_weight.mT).view(share.shape).add_(share).view(size, -1, share.shape[-1])
    for linear in linears[1:]:
        hidden = linear(activate(hidden))
    return hidden.view(*share.shape[:-1], -1)


def _member_outputs(
    parameters: list[tuple[Tensor, Tensor]],
    activate: Callable[[Tensor], Tensor],
    obs: Tensor,
    action: Tensor,
    batch: Sequence[int],
) -> Tensor:
    """[*batch out] of the member with these weights and biases."""
    (weight, bias), *rest = parameters
    obs_weight, action_weight = weight.tensor_split([obs.shape[-1]], dim=1)
    hidden = affine(action.expand(*batch, -1), action_weight).add_(affine(obs, obs_weight, bias))
    for weight, bias in rest:
        hidden = affine(activate(hidden), weight, bias)
    return hidden
