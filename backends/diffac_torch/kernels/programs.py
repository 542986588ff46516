"""Functions of tensors, compiled: one program in place of a thousand calls, with the same results to rounding."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from diffac.errors import UsageError
from diffac.protocols import Batch
from diffac.system.memory import large_blocks_returned

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_MIN_WORK = 1 << 21
"""Multiply-adds of the largest matrix product from which a program is worth the seconds that compiling it takes."""
_MAX_OPERATIONS = 5_000
"""Operations of torch up to which a function is compiled: beyond, that takes minutes."""

_recording: ContextVar[bool] = ContextVar("recording", default=False)


def is_recording() -> bool:
    """Whether operations are being recorded: then plain ones of torch must be called, nothing compiled already."""
    return _recording.get()


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """A context in which operations are being recorded."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def reason_of(error: Exception) -> str:
    """Type and first line of an error, of its cause where torch only says that its compiler failed."""
    error = getattr(error, "inner_exception", error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class Recording(NamedTuple):
    """The operations that a call of a function performed."""

    run: Callable[..., list[Tensor | None]]
    """Performs them with other tensors in place of those that the arguments contain."""
    structure: TreeSpec
    """Of the results."""
    constants: tuple[Any, ...]
    """The results that are no tensors, None in place of the others."""

    def results(self, tensors: list[Tensor]) -> Any:
        """What the function returns for the modules and tensors whose tensors these are, without gradients."""
        with torch.no_grad():
            found = self.run(*tensors)
        leaves = [constant if one is None else one for one, constant in zip(found, self.constants, strict=True)]
        return tree_unflatten(leaves, self.structure)


def record(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Recording:
    """Calls function(*arguments) and records the operations of torch, those of gradients included.

    Args:
        function: performs the same operations for all values of its tensors.
        arguments: trees of tensors, modules and other objects.

    Raises:
        UsageError: a tensor became a NumPy array, whose values would be taken for constants.
        RuntimeError: a branch, or a number in Python, depends on the value of a tensor.
    """
    structure, constants = TreeSpec(None, None, []), ()

    def perform(*_: Tensor) -> list[Tensor | None]:  # they are the very tensors in the arguments
        nonlocal structure, constants
        with recording(), _NoArrays():
            leaves, structure = tree_flatten(function(*arguments))
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return [leaf.detach() if isinstance(leaf, Tensor) else None for leaf in leaves]

    run = make_fx(perform)(*_take_apart(arguments)[0])
    return Recording(run, structure, constants)


class _NoArrays(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.numpy, Tensor.__array__):
            raise UsageError("a part of the update turns a tensor into a NumPy array")
        return func(*args, **(kwargs or {}))


@dataclasses.dataclass(frozen=True)
class _Compiled:
    recording: Recording
    others: tuple[Any, ...]
    """Arguments that are no tensors: while they are held here, nothing else gets their identity."""


class Programs:
    """Functions, compiled by `torch.compile` for each combination of sizes that they are called with.

    Small products and very long functions are left alone. Where a function cannot be recorded (see `record`) or
    compiled, which needs a C++ compiler, or with TORCH_COMPILE_DISABLE=1 in the environment, it runs as it is. On a GPU
    its program is replayed as a CUDA graph.
    """

    def __init__(self) -> None:
        self._compiled: dict[Any, _Compiled | None] = {}

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which every `program` is one of these."""
        token = _in_use.set(self)
        try:
            yield
        finally:
            _in_use.reset(token)

    def call(self, function: Callable[..., tuple[Any, Any]], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """function(*arguments)."""
        tensors, others, structure = _take_apart(arguments)
        layout = ((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        key = (function, structure, *map(id, others), *layout)
        if key not in self._compiled:
            self._compiled[key] = _compile(function, arguments, tensors, others)
        compiled = self._compiled[key]
        if compiled is None:
            return function(*arguments)
        try:
            kept, transient = compiled.recording.results(tensors)
        except Exception as error:  # torch promises no type: no compiler, a full disk, an unknown platform
            self._compiled[key] = None
            _warn(error)
            return function(*arguments)
        # the next run of a CUDA graph writes to the memory of its results
        return tree_map(_copy, kept) if tensors[0].is_cuda else kept, transient


_in_use: ContextVar[Programs | None] = ContextVar("in_use", default=None)


def program(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes a function one that an engine may compile; called outside of an engine it runs as it is.

    Args:
        function: takes trees of tensors, modules, and other objects that never change, among them a `Batch`. It returns
            a pair of trees of tensors without gradients: what is kept, and what is needed until the next call only.
    """

    plain: Callable[..., Any] = function

    @functools.wraps(plain)
    def call(*arguments: Any) -> Any:
        programs = _in_use.get()
        if programs is None:
            return plain(*arguments)
        token = _in_use.set(None)  # of programs within programs the outermost is one
        try:
            return programs.call(plain, arguments)
        finally:
            _in_use.reset(token)

    return cast(Any, call)


def _compile(
    function: Callable[..., Any], arguments: tuple[Any, ...], tensors: list[Tensor], others: list[Any]
) -> _Compiled | None:
    rows = next(argument.reward.numel() for argument in arguments if isinstance(argument, Batch))
    largest = max(math.prod(tensor.shape[-2:]) for tensor in tensors if isinstance(tensor, nn.Parameter))
    if rows * largest < _MIN_WORK or torch._dynamo.config.disable:
        return None
    function(*arguments)  # whose errors are not ours; what its parts keep, such as tables, is there afterwards
    try:
        with large_blocks_returned():
            recording = record(function, arguments)
    except Exception as error:  # parts of any origin are recorded
        _warn(error)
        return None
    if len(cast(Any, recording.run).graph.nodes) > _MAX_OPERATIONS:
        return None
    mode = "reduce-overhead" if tensors[0].is_cuda else None
    run = torch.compile(recording.run, fullgraph=True, dynamic=False, mode=mode)
    return _Compiled(recording._replace(run=run), tuple(others))


def _warn(error: Exception) -> None:
    warnings.warn(
        f"the update cannot be compiled ({reason_of(error)}), so it runs as it is, slower; it takes a C++ compiler, "
        "and parts that use torch only and branch on no value; set TORCH_COMPILE_DISABLE=1 to do without this message",
        stacklevel=4,
    )


def _take_apart(arguments: tuple[Any, ...]) -> tuple[list[Tensor], list[Any], TreeSpec]:
    """The tensors in a tree, those of its modules in their place; everything else in it; its structure."""
    leaves, structure = tree_flatten(arguments)
    tensors: list[Tensor] = []
    others: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif isinstance(leaf, nn.Module):
            tensors += leaf.parameters()
            tensors += leaf.buffers()
        elif "stands_for" in getattr(leaf, "__dict__", ()):  # a part with the present values of its schedules
            part, values = vars(leaf)["stands_for"]
            others.append(part)
            tensors += values
        else:
            others.append(leaf)
    return tensors, others, structure


def _copy(result: Any) -> Any:
    return result.clone() if isinstance(result, Tensor) else result
