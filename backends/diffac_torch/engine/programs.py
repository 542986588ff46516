"""A function of networks and tensors, compiled for batches of every size."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from diffac_torch.kernels.programs import recording


class AnyBatchProgram:
    """A function, compiled before it is called and once for all sizes of a batch, by `torch.export` and AOTInductor.

    No Python runs between its operations. It reads the networks' parameters anew in each call.

    Args:
        function: function(*networks, **arguments) is one tensor; arguments are nested mappings of tensors.
        networks: those that it is compiled with.
        two: arguments for a batch of two; the batch is the first axis of the first tensor.
        three: arguments for a batch of three; axes that are longer than with `two` are those of the batch.

    Raises:
        Exception: of any type: the function cannot be exported or compiled, which takes a C++ compiler.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        networks: Sequence[nn.Module],
        two: Mapping[str, Any],
        three: Mapping[str, Any],
    ) -> None:
        self._names, leaves = _flatten(three)
        self._batch_axes = [
            [axis for axis, (short, long) in enumerate(zip(before.shape, leaf.shape, strict=True)) if short != long]
            for before, leaf in zip(_flatten(two)[1], leaves, strict=True)
        ]
        self._networks, self._parameters = networks, list(_named_tensors(networks).values())
        tensors = [tensor.contiguous() for tensor in (*self._parameters, *leaves)]
        self._layouts = {3: _layout(tensors)}
        exported = _OfTensors(function, networks, tree_flatten(three)[1])
        batch = torch.export.Dim("batch")
        shapes = [{}] * len(self._parameters) + [dict.fromkeys(axes, batch) for axes in self._batch_axes]
        with recording(), torch.no_grad(), quiet(), tempfile.TemporaryDirectory() as folder:
            program = torch.export.export(exported, tuple(tensors), dynamic_shapes=(tuple(shapes),), strict=False)
            path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder, "act.pt2")))
            # older loaders do not have this argument, and take the first GPU
            options: dict[str, Any] = {"device_index": index} if (index := tensors[0].device.index) else {}
            model = torch._inductor.aoti_load_package(path, **options)
            # its own __call__ takes longer than an action, to find what trees the exported function had
            self._run = model.loader.boxed_run

    def __call__(self, networks: Sequence[nn.Module], arguments: Mapping[str, Any]) -> Tensor | None:
        """function(*networks, **arguments), or None where they are unlike those that it was compiled for."""
        if any(new is not old for new, old in zip(networks, self._networks, strict=True)):
            self._networks, self._parameters = networks, list(_named_tensors(networks).values())
        names, leaves = _flatten(arguments)
        tensors = [tensor.contiguous() for tensor in (*self._parameters, *leaves)]
        # the program trusts its caller, and would read memory that is not there
        if names != self._names or _layout(tensors) != self._expected(len(leaves[0])):
            return None
        return self._run(tensors)[0]

    def _expected(self, batch: int) -> list[Any]:
        if batch not in self._layouts:
            layout = list(self._layouts[3])
            for index, axes in enumerate(self._batch_axes, len(layout) - len(self._batch_axes)):
                shape, *place = layout[index]
                layout[index] = (torch.Size(batch if i in axes else size for i, size in enumerate(shape)), *place)
            self._layouts[batch] = layout
        return self._layouts[batch]


class _OfTensors(nn.Module):
    """A function of networks and mappings as one of tensors alone: the networks' own, then those in the mappings."""

    def __init__(self, function: Callable[..., Tensor], networks: Sequence[nn.Module], structure: TreeSpec) -> None:
        super().__init__()
        self.function, self.networks, self.structure = function, tuple(networks), structure

    def forward(self, *tensors: Tensor) -> Tensor:
        names = list(_named_tensors(self.networks))
        parameters = dict(zip(names, tensors, strict=False))
        arguments = tree_unflatten(tensors[len(names) :], self.structure)
        return functional_call(_Call(self.function, self.networks), parameters, kwargs=arguments)


class _Call(nn.ModuleList):
    """Networks, as the first arguments of a function."""

    def __init__(self, function: Callable[..., Tensor], networks: Sequence[nn.Module]) -> None:
        super().__init__(networks)
        self.function = function

    def forward(self, **arguments: Any) -> Tensor:
        return self.function(*self, **arguments)


def _flatten(tree: Mapping[str, Any]) -> tuple[list[str], list[Tensor]]:
    """All names in a nested mapping, and its tensors, in the order of `tree_flatten`, which takes ten times as long."""
    names: list[str] = []
    tensors: list[Tensor] = []

    def visit(tree: Mapping[str, Any]) -> None:
        for name, value in tree.items():
            names.append(name)
            if isinstance(value, Tensor):
                tensors.append(value)
            else:
                visit(value)

    visit(tree)
    return names, tensors


def _named_tensors(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    modules = nn.ModuleList(networks)
    return {**dict(modules.named_parameters()), **dict(modules.named_buffers())}


def _layout(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch tells its own developers during an export."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
