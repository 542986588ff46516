"""Mish in one pass over memory, in place of torch's kernel, which takes as long as a matrix product on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffac_torch.kernels.programs import is_recording, reason_of

_MIN_SIZE = 16_384
"""Entries from which a compiled kernel is faster than several of torch's own, or than one slow one."""


class _Kernel:
    """An elementwise function of equal, contiguous tensors on a CPU, which `torch.compile` makes one pass over memory.

    It is compiled when it is first called; torch keeps the result on disk for the next process. Without a C++ compiler,
    or with TORCH_COMPILE_DISABLE=1 in the environment, the function runs as it is, several times slower.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.compiled: Callable[..., Tensor] | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        if self.compiled is None:
            self.compiled = torch.compile(self.function, dynamic=True)
        flat = [tensor.detach().view(-1) for tensor in tensors]
        try:  # every call: torch compiles anew for another type or mode, long after the first one
            result = self.compiled(*flat)
        except Exception as error:  # torch promises no type: no compiler, a full disk, an unknown platform
            if self.compiled is self.function:
                raise
            self.compiled = self.function
            warnings.warn(
                f"torch.compile does not work here ({reason_of(error)}), so activations run several "
                "times slower; install a C++ compiler, or set TORCH_COMPILE_DISABLE=1 to do without this message",
                stacklevel=2,
            )
            result = self.function(*flat)
        return result.view(tensors[0].shape)


def mish_value(x: Tensor) -> Tensor:
    """Mish from one sigmoid: with s = e/(1+e), e = exp(x), tanh(log(1+e)) = q/(2-q), q = s(2-s).

    It needs no guard against overflow and keeps its relative accuracy for x << 0.
    """
    s = torch.sigmoid(x)
    q = s * (2 - s)
    return x * (q / (2 - q))


def _mish_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    p = 1 - s
    q = s * (2 - s)
    r = 1 / (1 + p * p)
    return (q + 4 * x * s * p * p * r) * r


def _mish_gradient(x: Tensor, grad: Tensor) -> Tensor:
    return grad * _mish_slope(x)


_compiled_value, _compiled_gradient = _Kernel(mish_value), _Kernel(_mish_gradient)


class _Mish(torch.autograd.Function):
    """Keeps only x for the backward pass; can be differentiated twice, where torch's own overflows for large x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _value(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        # somebody wants the derivative of this gradient, or its operations
        if torch.is_grad_enabled() or is_recording():
            return _mish_gradient(x, grads[0])
        if _is_for_kernel(x):
            return _compiled_gradient(x, grads[0].contiguous())
        return torch.ops.aten.mish_backward(grads[0], x)


def _value(x: Tensor) -> Tensor:
    if is_recording():
        return mish_value(x)
    return _compiled_value(x) if _is_for_kernel(x) else F.mish(x)


def _is_for_kernel(x: Tensor) -> bool:
    return x.numel() >= _MIN_SIZE and x.device.type == "cpu" and x.is_contiguous()


def mish(x: Tensor) -> Tensor:
    """Mish (Misra 2019, arXiv 1908.08681), x tanh(softplus(x)), to rounding.

    For many numbers on a CPU it is compiled; torch's own kernel is as slow there as a matrix product, but the fastest
    for few, and on a GPU.
    """
    if torch.compiler.is_compiling() and not is_recording():
        return F.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Mish.apply(x)  # type: ignore[return-value]
    return _value(x)
