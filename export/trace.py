"""One run of a module without arithmetic: which operators it calls, on what, and from which submodule.

The image has a shape and no values; weights are recorded where they are used, neither copied nor changed.
What depends on weights alone is computed at once, and is a constant as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.aten import ROWS, NoForm, Operand, Row
from pipeline.artifacts import AlpharhoError

REMEDY = (
    "export this network with torch.onnx.export and convert the file with "
    "'python -m pipeline convert', or add a row to export/aten.py"
)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A weight, named as in the module's state, or a nameless number of an operator. As ONNX stores it."""

    data: NDArray[Any]
    name: str = ""


Value = Tensor | Constant
"""What is made of the image, without values and known by identity; or a constant."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """An ONNX operator, its inputs, its result, and where it was called.

    `path` is that of the module, `features/0/conv`, or where it has children, with the name of PyTorch's
    operator behind it: `features/3/add`.
    """

    op: str
    inputs: tuple[Value, ...]
    attributes: Mapping[str, Any]
    result: Tensor
    path: str


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Calls in the order in which they ran; `image` and `results` are tensors without values."""

    calls: tuple[Call, ...]
    image: Tensor
    results: tuple[Tensor, ...]


def trace(module: nn.Module, shape: Sequence[int]) -> Trace:
    """What `module`, in evaluation mode, computes of a float32 image of `shape`.

    AlpharhoError for an operator or a form of one that `aten.ROWS` lacks, or results not made of the image.
    """
    weights = [*module.named_parameters(), *module.named_buffers()]
    for name, weight in weights:
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise AlpharhoError(
                f"{name} is {weight.dtype}, only float32 is exported; call the module's .float()"
            )
    names = {_place(weight): name for name, weight in weights}
    image = torch.empty(*shape, device="meta")
    with _scopes(module) as scopes, torch.no_grad(), _Recorder(image, scopes, names) as recorder:
        made = module(image)
    results = tuple(made) if isinstance(made, tuple | list) else (made,)
    known = {id(call.result) for call in recorder.calls} & set(map(id, results))
    if not results or len(known) < len(results):
        raise AlpharhoError(
            f"{type(module).__name__} returns {type(made).__name__}; what is exported returns a tensor that "
            "is computed from the image, or a tuple of such, all different"
        )
    return Trace(tuple(recorder.calls), image, results)


@dataclass(frozen=True, slots=True)
class _Scope:
    path: str
    is_leaf: bool


@contextlib.contextmanager
def _scopes(module: nn.Module) -> Iterator[list[_Scope]]:
    """The modules that are running at a time, outermost first."""
    running: list[_Scope] = []

    def leave(*_: object) -> None:
        running.pop()

    handles = []
    for name, child in module.named_modules():
        scope = _Scope(name.replace(".", "/"), not any(child.children()))
        handles.append(child.register_forward_pre_hook(lambda *_, entered=scope: running.append(entered)))
        handles.append(child.register_forward_hook(leave))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where and how its numbers lie: a view of a weight that is turned twice is the weight again."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves its hooks untyped
    """Sees every operator that is called inside, and records those that the image takes part in."""

    def __init__(
        self, image: Tensor, scopes: Sequence[_Scope], names: Mapping[tuple[object, ...], str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.computed = {id(image): image}
        self.calls: list[Call] = []
        self.scopes, self.names = scopes, names

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; to be kept out of it costs an import of PyTorch's compiler: a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(tensor.is_meta for tensor in _tensors(args)):
            return func(*args, **kwargs)
        try:
            return self._recorded(func, args, kwargs)
        except NoForm as reason:
            raise AlpharhoError(
                f"PyTorch's operator {func.name()} in {self._path(func)!r} cannot be exported: {reason}; "
                f"{REMEDY}"
            ) from None

    def _recorded(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        row = ROWS.get(func.name())
        if row is None:
            raise NoForm("it is not among those that are exported")
        if any(tensor.is_meta and id(tensor) not in self.computed for tensor in _tensors(args)):
            raise NoForm("it reads the second result of another operator")
        form = row.form(*args, **kwargs)
        inputs = tuple(self._value(operand) for operand in form.inputs)
        result = _without_values(row, func, args, kwargs)
        self.computed[id(result)] = result
        self.calls.append(Call(form.op, inputs, form.attributes, result, self._path(func, form.called)))
        return result if row.results == 1 else (result, *(result.new_empty(0) for _ in range(1, row.results)))

    def _value(self, operand: Operand) -> Value:
        if isinstance(operand, np.ndarray):
            return Constant(operand)
        if operand.is_meta:
            return operand
        if operand.dtype != torch.float32:
            raise NoForm(f"it reads {operand.dtype}, only float32 is exported")
        return Constant(operand.detach().cpu().numpy(), self.names.get(_place(operand), ""))

    def _path(self, func: Any, called: str = "") -> str:
        scope = self.scopes[-1]
        operator = called or func.overloadpacket.__name__.strip("_")
        return scope.path if scope.is_leaf and scope.path else f"{scope.path}/{operator}".lstrip("/")


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def _without_values(row: Row, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """What the operator gives, as far as its shape goes."""
    result: Tensor = (
        func(*args, **kwargs)
        if row.shape is None
        else torch.empty(tuple(row.shape(*args, **kwargs)), device="meta")
    )
    return result
