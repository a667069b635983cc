"""PyTorch's operators as ONNX's: for each, the node it becomes and the shape of its result.

A row is two functions with the operator's own signature. The shapes are PyTorch's; its own shape functions
for these operators import a compiler first, which takes longer than a whole export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = Sequence[int]
Operand = Tensor | NDArray[Any]
"""A computed value or a weight, or a constant of the operator itself."""


class NoForm(Exception):
    """A form of an operator that has no row here; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Form:
    """An ONNX node whose inputs are still tensors; its one result is that of the operator.

    `called` is the operator's name where modules know it by another one than PyTorch's core.
    """

    op: str
    inputs: tuple[Operand, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    called: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one operator. `shape` None leaves the shape to PyTorch; `results` are how many."""

    form: Callable[..., Form]
    shape: Callable[..., Size] | None = None
    results: int = 1


ROWS: dict[str, Row] = {}
"""Name of an operator, with its overload, to its row."""


def _row(name: str, shape: Callable[..., Size] | None = None, results: int = 1) -> Callable[..., Any]:
    def register(form: Callable[..., Form]) -> Callable[..., Form]:
        assert f"aten::{name}" not in ROWS, f"{name} has two rows"
        ROWS[f"aten::{name}"] = Row(form, shape, results)
        return form

    return register


def _as_first(x: Tensor, *_: object, **__: object) -> Size:
    return x.shape


def _broadcast(x: Operand | float, y: Operand | float, **_: object) -> Size:
    return np.broadcast_shapes(*(tuple(t.shape) for t in (x, y) if isinstance(t, Tensor)))


def _windows(
    sizes: Size, kernel: Size, stride: Size, padding: Size, dilation: Size, ceil: bool = False
) -> list[int]:
    """How many windows fit along each axis; with `ceil` also one that the far edge cuts off."""
    counts = []
    for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        room = size + 2 * p - d * (k - 1) - 1
        count = (room + (s - 1 if ceil else 0)) // s + 1
        counts.append(count - 1 if ceil and (count - 1) * s >= size + p else count)
    return counts


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size, dilation: Size, *_: object
) -> Size:
    counts = _windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return (x.shape[0], weight.shape[0], *counts)


def _pooled(
    x: Tensor,
    kernel: Size,
    stride: Size = (),
    padding: Size = (0, 0),
    dilation: Size = (1, 1),
    ceil_mode: bool = False,
) -> Size:
    sides = _windows(
        x.shape[-2:],
        _pair(kernel),
        _pair(stride or kernel),
        _pair(padding),
        _pair(dilation),
        ceil_mode,
    )
    return (*x.shape[:-2], *sides)


def _averaged(
    x: Tensor, kernel: Size, stride: Size = (), padding: Size = (0, 0), ceil: bool = False, *_: object
) -> Size:
    return _pooled(x, kernel, stride, padding, (1, 1), ceil)


def _pair(sides: Size) -> Size:
    """ATen's lists of one number stand for both axes."""
    return sides if len(sides) == 2 else (sides[0], sides[0])


def _reduced(x: Tensor, dim: Size | None, keepdim: bool = False, **_: object) -> Size:
    axes = _axes(x, dim)
    return [1 if i in axes else size for i, size in enumerate(x.shape) if keepdim or i not in axes]


def _axes(x: Tensor, dim: Size | None) -> tuple[int, ...]:
    return tuple(axis % x.dim() for axis in (dim or range(x.dim())))


def _product(a: Tensor, b: Tensor) -> Size:
    return (a.shape[0], b.shape[1])


def _sum_and_product(bias: Tensor, a: Tensor, b: Tensor, **_: object) -> Size:
    return _product(a, b)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Size:
    size = list(parts[0].shape)
    size[dim] = sum(part.shape[dim] for part in parts)
    return size


@_row("convolution", _convolved)
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
    transposed: bool,
    output_padding: Size,
    groups: int,
) -> Form:
    if transposed:
        raise NoForm("it is a transposed convolution")
    attributes = {
        "group": groups,
        "pads": [*padding, *padding],
        "strides": list(stride),
        "dilations": list(dilation),
        "kernel_shape": list(weight.shape[2:]),
    }
    return Form("Conv", (x, weight) if bias is None else (x, weight, bias), attributes)


@_row("native_batch_norm", _as_first, results=3)
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Form:
    if training or weight is None or bias is None or mean is None or variance is None:
        raise NoForm("it has no weight or bias, or takes its statistics from the batch")
    return Form("BatchNormalization", (x, weight, bias, mean, variance), {"epsilon": eps})


@_row("addmm", _sum_and_product)
def _linear(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Form:
    return Form(
        "Gemm", (x, _transposed(weight), bias), {"alpha": float(alpha), "beta": float(beta), "transB": 1}
    )


@_row("mm", _product)
def _linear_without_bias(x: Tensor, weight: Tensor) -> Form:
    return Form("Gemm", (x, _transposed(weight)), {"transB": 1})


def _transposed(weight: Tensor) -> Tensor:
    """As a linear layer stores it."""
    if weight.is_meta:
        raise NoForm("both factors are computed")
    return weight.t()


def _renamed(op: str) -> Callable[..., Form]:
    return lambda *operands: Form(op, operands)


_row("relu", _as_first)(_renamed("Relu"))
_row("sigmoid", _as_first)(_renamed("Sigmoid"))
_row("hardswish", _as_first)(_renamed("HardSwish"))
_row("maximum", _broadcast)(_renamed("Max"))


@_row("hardsigmoid", _as_first)
def _hardsigmoid(x: Tensor) -> Form:
    return Form("HardSigmoid", (x,), {"alpha": 1 / 6, "beta": 0.5})


@_row("hardtanh", _as_first)
def _hardtanh(x: Tensor, low: float = -1.0, high: float = 1.0) -> Form:
    called = "relu6" if (low, high) == (0, 6) else ""
    return Form("Clip", (x, _scalar(low), _scalar(high)), called=called)


@_row("add.Tensor", _broadcast)
def _add(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Form:
    return _scaled_sum("Add", x, y, alpha)


@_row("sub.Tensor", _broadcast)
def _sub(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Form:
    return _scaled_sum("Sub", x, y, alpha)


def _scaled_sum(op: str, x: Tensor, y: Tensor | float, alpha: float) -> Form:
    if alpha != 1:
        raise NoForm(f"its alpha is {alpha}")
    return Form(op, (x, _operand(y)))


@_row("mul.Tensor", _broadcast)
def _mul(x: Tensor, y: Tensor | float) -> Form:
    return Form("Mul", (x, _operand(y)))


@_row("div.Tensor", _broadcast)
def _div(x: Tensor, y: Tensor | float) -> Form:
    return Form("Div", (x, _operand(y)))


def _operand(value: Tensor | float) -> Operand:
    return value if isinstance(value, Tensor) else _scalar(value)


def _scalar(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@_row("mean.dim", _reduced)
def _mean(x: Tensor, dim: Size | None, keepdim: bool = False, *, dtype: object = None) -> Form:
    return Form("ReduceMean", (x, _integers(_axes(x, dim))), {"keepdims": int(keepdim)})


@_row("_softmax", _as_first)
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Form:
    return Form("Softmax", (x,), {"axis": dim})


@_row("max_pool2d_with_indices", _pooled, results=2)
def _max_pool(
    x: Tensor,
    kernel: Size,
    stride: Size = (),
    padding: Size = (0, 0),
    dilation: Size = (1, 1),
    ceil_mode: bool = False,
) -> Form:
    attributes = _window_attributes(kernel, stride, padding, ceil_mode)
    return Form("MaxPool", (x,), {**attributes, "dilations": list(_pair(dilation))})


@_row("avg_pool2d", _averaged)
def _average_pool(
    x: Tensor,
    kernel: Size,
    stride: Size = (),
    padding: Size = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Form:
    if divisor_override is not None:
        raise NoForm(f"its divisor is {divisor_override}")
    attributes = _window_attributes(kernel, stride, padding, ceil_mode)
    return Form("AveragePool", (x,), {**attributes, "count_include_pad": int(count_include_pad)})


def _window_attributes(kernel: Size, stride: Size, padding: Size, ceil_mode: bool) -> dict[str, Any]:
    return {
        "kernel_shape": list(_pair(kernel)),
        "strides": list(_pair(stride or kernel)),
        "pads": [*_pair(padding), *_pair(padding)],
        "ceil_mode": int(ceil_mode),
    }


@_row("constant_pad_nd")
def _pad(x: Tensor, pad: Size, value: float = 0.0) -> Form:
    """ATen names the last axis first and each axis' begin and end together."""
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, (first, last) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        before[-axis], after[-axis] = first, last
    return Form("Pad", (x, _integers([*before, *after]), _scalar(value)))


@_row("cat", _joined)
def _concatenate(parts: Sequence[Tensor], dim: int = 0) -> Form:
    return Form("Concat", tuple(parts), {"axis": dim})


@_row("slice.Tensor")
def _slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Form:
    last = np.iinfo(np.int64).max if end is None else end
    return Form("Slice", (x, *(_integers([value]) for value in (start or 0, last, dim, step))))


@_row("permute")
def _permute(x: Tensor, dims: Size) -> Form:
    return Form("Transpose", (x,), {"perm": [axis % x.dim() for axis in dims]})


@_row("transpose.int")
def _transpose(x: Tensor, first: int, second: int) -> Form:
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return Form("Transpose", (x,), {"perm": order})


@_row("view")
@_row("_unsafe_view")
def _reshape(x: Tensor, size: Size) -> Form:
    return Form("Reshape", (x, _integers(size)))


@_row("clone")
def _same(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Form:
    return Form("Identity", (x,))
