"""One small function or table row per ONNX operator, in the order of the ONNX operator list.

A lowering never moves data: it declares how its operator reacts to the change from NCHW to NHWC (`Layout`),
and `read_onnx` hands it operands that already are in that layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph import Array, Attribute, Node, Tensor
from pipeline.artifacts import AlpharhoError

NO_ACTIVATION = {"fused_activation_function": "NONE"}


class Layout(Enum):
    """How an operator reacts to the change from NCHW to NHWC."""

    ANCHOR = auto()  # its tensors are channels last: Conv, pools
    FOLLOW = auto()  # any layout, the same on all its tensors: Add, HardSwish
    REMAP = auto()  # follows, but its axes are renumbered: Concat, ReduceMean
    BARRIER = auto()  # element order matters: back to ONNX's order


class UnsupportedOp(AlpharhoError):
    """An ONNX node that cannot be lowered: names the node and the reason."""


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One ONNX node with decoded attributes and its operands in the layout that its lowering declares.

    `inputs` are graph tensor names ("" if absent), `constants` the arrays of those that are constant, already
    in the layout of the node; `axes[i]` is the graph axis of ONNX axis i of the first input, `output_shapes`
    the shapes that the lowering must produce.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: tuple[Array | None, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...]

    def constant(self, position: int, what: str) -> Array:
        """The constant at `position`, or an UnsupportedOp that says `what` must be constant."""
        value = self.optional_constant(position)
        if value is None:
            raise self.unsupported(f"{what} must be constant")
        return value

    def floats(self, position: int, what: str) -> NDArray[np.float32]:
        """The constant at `position` as float32; UnsupportedOp as `constant`."""
        return self.constant(position, what).astype(np.float32)

    def optional_constant(self, position: int) -> Array | None:
        """The constant at `position`, None if the operand is absent or computed."""
        return self.constants[position] if position < len(self.constants) else None

    def has(self, position: int) -> bool:
        """Whether the optional operand at `position` is given."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def unsupported(self, reason: str) -> UnsupportedOp:
        """The error that names this node."""
        return UnsupportedOp(f"ONNX node {self.name!r} ({self.op}) cannot be converted: {reason}")


class Builder:
    """Collects graph nodes and tensors while ONNX nodes are lowered one after the other."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []

    def constant(self, name: str, data: Array) -> str:
        """Add a constant and return its name, made unique."""
        name = self.unique(name)
        self.tensors[name] = Tensor.constant(np.ascontiguousarray(data))
        return name

    def unique(self, name: str) -> str:
        """`name`, or `name_1`, `name_2` ... if it is taken."""
        candidate, suffix = name, 0
        while candidate in self.tensors:
            suffix += 1
            candidate = f"{name}_{suffix}"
        return candidate

    def emit(
        self, op: str, inputs: Sequence[str], output: str, shape: Sequence[int], **attributes: Attribute
    ) -> str:
        """Add a float32 node with one output and return the output's name."""
        self.tensors[output] = Tensor(tuple(shape))
        self.nodes.append(Node(op, tuple(inputs), (output,), attributes))
        return output

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor already in the graph."""
        return self.tensors[name].shape


Lowering = Callable[[OnnxNode, Builder], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one ONNX operator is lowered; the first line of `lower.__doc__` documents it."""

    layout: Layout
    lower: Lowering


LOWERINGS: dict[str, Rule] = {}


def lowers(op: str, layout: Layout) -> Callable[[Lowering], Lowering]:
    """Register a lowering; a second one for the same operator is an error of ours."""

    def register(lower: Lowering) -> Lowering:
        assert op not in LOWERINGS, f"{op} is lowered twice"
        LOWERINGS[op] = Rule(layout, lower)
        return lower

    return register


def renamed(tflite_op: str, **attributes: Attribute) -> Lowering:
    """A lowering for an operator that TFLite has with the same operands and no attributes."""

    def lower(node: OnnxNode, out: Builder) -> None:
        out.emit(tflite_op, node.inputs, node.outputs[0], node.output_shapes[0], **attributes)

    lower.__doc__ = f"{tflite_op}."
    return lower


# --- operators, in the order of the ONNX list ---------------------------------------------------------------

lowers("Add", Layout.FOLLOW)(renamed("ADD", **NO_ACTIVATION))


@lowers("AveragePool", Layout.ANCHOR)
def lower_average_pool(node: OnnxNode, out: Builder) -> None:
    """AVERAGE_POOL_2D where padding does not enter the mean."""
    window = _window(node, out.shape(node.inputs[0]), node.attributes["kernel_shape"])
    if window.padding == "EXPLICIT" or (
        window.padding == "SAME" and node.attributes.get("count_include_pad", 0)
    ):
        raise node.unsupported("its padding is counted in the mean or is not TFLite's SAME")
    out.emit(
        "AVERAGE_POOL_2D", node.inputs[:1], node.outputs[0], node.output_shapes[0], **window.pool_attributes()
    )


@lowers("BatchNormalization", Layout.ANCHOR)
def lower_batch_norm(node: OnnxNode, out: Builder) -> None:
    """MUL and ADD per channel, folded into the convolution before it where there is one."""
    scale, bias, mean, variance = (
        node.constant(i, what).astype(np.float64)
        for i, what in enumerate(("scale", "B", "mean", "var"), start=1)
    )
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    name, shape = node.outputs[0], node.output_shapes[0]
    factor_name = out.constant(f"{name}/factor", factor.astype(np.float32))
    offset_name = out.constant(f"{name}/offset", (bias - mean * factor).astype(np.float32))
    scaled = out.emit(
        "MUL", (node.inputs[0], factor_name), out.unique(f"{name}/scaled"), shape, **NO_ACTIVATION
    )
    out.emit("ADD", (scaled, offset_name), name, shape, **NO_ACTIVATION)


@lowers("Clip", Layout.FOLLOW)
def lower_clip(node: OnnxNode, out: Builder) -> None:
    """RELU6 for [0, 6], RELU for [0, inf), otherwise MAXIMUM and MINIMUM; bounds also as attributes."""
    low, high = (
        float(np.asarray(node.constant(i, key)).item())
        if node.has(i)
        else float(node.attributes.get(key, default))
        for i, (key, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1)
    )
    name, shape, x = node.outputs[0], node.output_shapes[0], node.inputs[0]
    fused = {(0.0, 6.0): "RELU6", (0.0, math.inf): "RELU"}.get((low, high))
    if fused is not None:
        out.emit(fused, (x,), name, shape)
        return
    bound = out.constant(f"{name}/min", np.float32(low).reshape(1))
    clamped = out.emit("MAXIMUM", (x, bound), out.unique(f"{name}/clamped"), shape)
    out.emit("MINIMUM", (clamped, out.constant(f"{name}/max", np.float32(high).reshape(1))), name, shape)


@lowers("Concat", Layout.REMAP)
def lower_concat(node: OnnxNode, out: Builder) -> None:
    """CONCATENATION along the renumbered axis."""
    axis = node.axes[node.attributes["axis"]]
    out.emit("CONCATENATION", node.inputs, node.outputs[0], node.output_shapes[0], axis=axis, **NO_ACTIVATION)


@lowers("Conv", Layout.ANCHOR)
def lower_conv(node: OnnxNode, out: Builder) -> None:
    """CONV_2D, also grouped, weights OIHW to OHWI; DEPTHWISE_CONV_2D, weights O1HW to 1HWO."""
    weights = node.constant(1, "the weight W")
    if weights.ndim != 4:
        raise node.unsupported(f"only 2-D convolutions are, its weights have {weights.ndim} dimensions")
    x, name = node.inputs[0], node.outputs[0]
    channels = out.shape(x)[3]
    group = node.attributes.get("group", 1)
    window = _window(node, out.shape(x), weights.shape[2:])
    x = _padded(x, window, name, out)
    bias = node.constant(2, "the bias B") if node.has(2) else np.zeros(weights.shape[0], np.float32)
    depthwise = 1 < group == channels
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    operands = (
        x,
        out.constant(f"{name}/weight", weights.transpose(order)),
        out.constant(f"{name}/bias", bias),
    )
    attributes = window.conv_attributes()
    if depthwise:
        attributes["depth_multiplier"] = weights.shape[0] // channels
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    out.emit(op, operands, name, node.output_shapes[0], **attributes)


lowers("Div", Layout.FOLLOW)(renamed("DIV", **NO_ACTIVATION))


@lowers("Flatten", Layout.BARRIER)
def lower_flatten(node: OnnxNode, out: Builder) -> None:
    """RESHAPE."""
    _reshape(node, out)


@lowers("Gemm", Layout.BARRIER)
def lower_gemm(node: OnnxNode, out: Builder) -> None:
    """FULLY_CONNECTED with weights OI; alpha and beta folded."""
    if node.attributes.get("transA", 0):
        raise node.unsupported("transA=1 is not")
    weights = node.floats(1, "the weight B") * np.float32(node.attributes.get("alpha", 1.0))
    weights = weights if node.attributes.get("transB", 0) else weights.T
    bias = np.zeros(weights.shape[0], np.float32)
    if node.has(2):
        bias = bias + node.floats(2, "the bias C").reshape(-1) * np.float32(node.attributes.get("beta", 1.0))
    _fully_connected(node, out, weights, bias)


@lowers("GlobalAveragePool", Layout.ANCHOR)
def lower_global_average_pool(node: OnnxNode, out: Builder) -> None:
    """MEAN over height and width, which the delegate takes in int8 (AVERAGE_POOL_2D it does not)."""
    spatial = out.constant(f"{node.outputs[0]}/axes", np.array([1, 2], np.int32))
    out.emit("MEAN", (node.inputs[0], spatial), node.outputs[0], node.output_shapes[0], keep_dims=True)


@lowers("HardSigmoid", Layout.FOLLOW)
def lower_hard_sigmoid(node: OnnxNode, out: Builder) -> None:
    """clip(alpha x + beta, 0, 1) as relu6(6 alpha x + 6 beta) / 6, whose parts fold into convolutions."""
    alpha, beta = (
        6 * float(node.attributes.get(key, default)) for key, default in (("alpha", 0.2), ("beta", 0.5))
    )
    name, shape, x = node.outputs[0], node.output_shapes[0], node.inputs[0]
    if not math.isclose(alpha, 1.0, rel_tol=1e-6):
        factor = out.constant(f"{name}/alpha", np.array([alpha], np.float32))
        x = out.emit("MUL", (x, factor), out.unique(f"{name}/scaled"), shape, **NO_ACTIVATION)
    offset = out.constant(f"{name}/beta", np.array([beta], np.float32))
    x = out.emit("ADD", (x, offset), out.unique(f"{name}/shifted"), shape, fused_activation_function="RELU6")
    out.emit(
        "MUL", (x, out.constant(f"{name}/sixth", np.array([1 / 6], np.float32))), name, shape, **NO_ACTIVATION
    )


lowers("HardSwish", Layout.FOLLOW)(renamed("HARD_SWISH"))


@lowers("MatMul", Layout.BARRIER)
def lower_matmul(node: OnnxNode, out: Builder) -> None:
    """FULLY_CONNECTED where the right operand is a constant matrix."""
    weights = node.constant(1, "the right operand")
    if weights.ndim != 2:
        raise node.unsupported(f"the right operand has {weights.ndim} dimensions, only a matrix is supported")
    _fully_connected(node, out, weights.T, np.zeros(weights.shape[1], np.float32))


@lowers("MaxPool", Layout.ANCHOR)
def lower_max_pool(node: OnnxNode, out: Builder) -> None:
    """MAX_POOL_2D; SAME padding never wins a maximum, so it is exact."""
    window = _window(node, out.shape(node.inputs[0]), node.attributes["kernel_shape"])
    if window.padding == "EXPLICIT":
        raise node.unsupported(f"pads {list(window.pads)} are not TFLite's SAME")
    out.emit(
        "MAX_POOL_2D", node.inputs[:1], node.outputs[0], node.output_shapes[0], **window.pool_attributes()
    )


lowers("Mul", Layout.FOLLOW)(renamed("MUL", **NO_ACTIVATION))


@lowers("Pad", Layout.REMAP)
def lower_pad(node: OnnxNode, out: Builder) -> None:
    """PAD with zeros; merged into a following convolution where its padding allows."""
    value = float(np.asarray(node.constant(2, "the pad value")).item()) if node.has(2) else 0.0
    if node.attributes.get("mode", "constant") != "constant" or value != 0.0:
        raise node.unsupported("only constant zero padding is")
    amounts = np.asarray(node.constant(1, "pads")).reshape(2, -1)
    table = np.zeros((len(node.axes), 2), np.int32)
    table[list(node.axes)] = amounts.T
    if (table < 0).any():
        raise node.unsupported("negative pads are not")
    paddings = out.constant(f"{node.outputs[0]}/paddings", table)
    out.emit("PAD", (node.inputs[0], paddings), node.outputs[0], node.output_shapes[0])


@lowers("ReduceMean", Layout.REMAP)
def lower_reduce_mean(node: OnnxNode, out: Builder) -> None:
    """MEAN over the renumbered axes; axes as an input or (opset < 18) an attribute."""
    axes = (
        node.constant(1, "axes").tolist()
        if node.has(1)
        else node.attributes.get("axes", range(len(node.axes)))
    )
    mapped = sorted(node.axes[axis] for axis in axes)
    operand = out.constant(f"{node.outputs[0]}/axes", np.array(mapped, np.int32))
    keep = bool(node.attributes.get("keepdims", 1))
    if not keep and len(node.output_shapes[0]) > 2:
        raise node.unsupported("keepdims=0 is only where a matrix or a vector remains")
    out.emit("MEAN", (node.inputs[0], operand), node.outputs[0], node.output_shapes[0], keep_dims=keep)


lowers("Relu", Layout.FOLLOW)(renamed("RELU"))


@lowers("Reshape", Layout.BARRIER)
def lower_reshape(node: OnnxNode, out: Builder) -> None:
    """RESHAPE to the inferred static shape."""
    _reshape(node, out)


lowers("Sigmoid", Layout.FOLLOW)(renamed("LOGISTIC"))


@lowers("Softmax", Layout.REMAP)
def lower_softmax(node: OnnxNode, out: Builder) -> None:
    """SOFTMAX over the last axis, which is the only one TFLite has."""
    if node.axes[node.attributes.get("axis", -1)] != len(node.axes) - 1:
        raise node.unsupported("only the last axis (of the channels-last tensor) is")
    out.emit("SOFTMAX", node.inputs[:1], node.outputs[0], node.output_shapes[0], beta=1.0)


@lowers("Squeeze", Layout.BARRIER)
def lower_squeeze(node: OnnxNode, out: Builder) -> None:
    """RESHAPE without the axes of size one."""
    _reshape(node, out)


lowers("Sub", Layout.FOLLOW)(renamed("SUB", **NO_ACTIVATION))


@lowers("Unsqueeze", Layout.BARRIER)
def lower_unsqueeze(node: OnnxNode, out: Builder) -> None:
    """RESHAPE with new axes of size one."""
    _reshape(node, out)


# --- shared parts -------------------------------------------------------------------------------------------


def _reshape(node: OnnxNode, out: Builder) -> None:
    shape = node.output_shapes[0]
    operand = out.constant(f"{node.outputs[0]}/shape", np.array(shape, np.int32))
    out.emit("RESHAPE", (node.inputs[0], operand), node.outputs[0], shape, new_shape=shape)


def _fully_connected(node: OnnxNode, out: Builder, weights: Array, bias: Array) -> None:
    name = node.outputs[0]
    operands = (node.inputs[0], out.constant(f"{name}/weight", weights), out.constant(f"{name}/bias", bias))
    out.emit("FULLY_CONNECTED", operands, name, node.output_shapes[0], **NO_ACTIVATION)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over height and width; `pads` is (top, left, bottom, right) as in ONNX."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]
    padding: str  # VALID, SAME (TFLite's own amounts) or EXPLICIT

    def conv_attributes(self) -> dict[str, Attribute]:
        """Attributes of CONV_2D and DEPTHWISE_CONV_2D."""
        return {
            "padding": "SAME" if self.padding == "SAME" else "VALID",
            "stride_h": self.stride[0],
            "stride_w": self.stride[1],
            "dilation_h_factor": self.dilation[0],
            "dilation_w_factor": self.dilation[1],
            **NO_ACTIVATION,
        }

    def pool_attributes(self) -> dict[str, Attribute]:
        """Attributes of the pooling operators."""
        return {
            "padding": self.padding,
            "stride_h": self.stride[0],
            "stride_w": self.stride[1],
            "filter_height": self.kernel[0],
            "filter_width": self.kernel[1],
            **NO_ACTIVATION,
        }


def same_pads(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding of an H, W input as (top, left, bottom, right): the odd pixel goes last."""
    totals = [
        max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]
    before = [total // 2 for total in totals]
    return (before[0], before[1], totals[0] - before[0], totals[1] - before[1])


def _window(node: OnnxNode, shape: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window over an NHWC input of `shape`, with its padding named as TFLite would name it."""
    if len(kernel) != 2:
        raise node.unsupported(
            f"only windows over height and width are, this one has {len(kernel)} dimensions"
        )
    if node.attributes.get("ceil_mode", 0):
        raise node.unsupported("ceil_mode=1 is not")
    stride, dilation = (tuple(node.attributes.get(key, (1, 1))) for key in ("strides", "dilations"))
    same = same_pads(shape[1:3], kernel, stride, dilation)
    auto_pad = node.attributes.get("auto_pad", "NOTSET")
    by_mode = {"VALID": (0, 0, 0, 0), "SAME_UPPER": same, "SAME_LOWER": (same[2], same[3], same[0], same[1])}
    pads = by_mode.get(auto_pad, tuple(node.attributes.get("pads", (0, 0, 0, 0))))
    if pads == same:
        padding = "SAME"
    else:
        padding = "VALID" if not any(pads) else "EXPLICIT"
    return Window((kernel[0], kernel[1]), stride, dilation, pads, padding)


def _padded(x: str, window: Window, name: str, out: Builder) -> str:
    """`x`, behind a PAD when the window's padding is neither SAME nor VALID."""
    if window.padding != "EXPLICIT":
        return x
    top, left, bottom, right = window.pads
    batch, height, width, channels = out.shape(x)
    paddings = out.constant(
        f"{name}/paddings", np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    )
    shape = (batch, height + top + bottom, width + left + right, channels)
    return out.emit("PAD", (x, paddings), out.unique(f"{name}/pad"), shape)
