"""One small function or table row per ONNX operator, in the order of the ONNX operator list.

A lowering never moves data: it declares how its operator reacts to the change from NCHW to NHWC (`Layout`),
and `read_onnx` hands it operands that already are in that layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph import Array, Attribute, Node, Tensor, same_pads
from pipeline.artifacts import AlpharhoError

NO_ACTIVATION = {"fused_activation_function": "NONE"}
LARGEST_FLOAT = float(np.finfo(np.float32).max)
RESIZE_OPS = {"linear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR"}
UNIT = {
    "kernel_shape": 1,
    "strides": 1,
    "dilations": 1,
    "output_padding": 0,
    "output_shape": 1,
}  # of a new axis


class Layout(Enum):
    """How an operator reacts to the change from NCHW to NHWC."""

    ANCHOR = auto()  # its tensors are channels last: Conv, pools
    FOLLOW = auto()  # any layout, the same on all its tensors: Add, HardSwish
    REMAP = auto()  # follows, but its axes are renumbered: Concat, ReduceMean
    BARRIER = auto()  # element order matters: back to ONNX's order


class UnsupportedOp(AlpharhoError):
    """An ONNX node that cannot be lowered: names the node, the reason and a remedy."""


REPLACE_OP = "replace it in the source network and export again"
SIMPLIFY = "run the file through an ONNX simplifier, or export with fixed shapes"


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
    opset: int

    def constant(self, position: int, what: str) -> Array:
        """The constant at `position`, or an UnsupportedOp that says `what` must be constant."""
        value = self.optional_constant(position)
        if value is None:
            raise self.unsupported(f"{what} is computed, only a constant is supported", SIMPLIFY)
        return value

    def integers(self, position: int, key: str) -> list[int] | None:
        """Integers that newer opsets take as the operand at `position`, older ones as attribute `key`."""
        if self.has(position):
            return [int(value) for value in np.asarray(self.constant(position, key)).reshape(-1)]
        return [int(value) for value in self.attributes[key]] if key in self.attributes else None

    def floats(self, position: int, what: str) -> NDArray[np.float32]:
        """The constant at `position` as float32; UnsupportedOp as `constant`."""
        return self.constant(position, what).astype(np.float32)

    def optional_constant(self, position: int) -> Array | None:
        """The constant at `position`, None if the operand is absent or computed."""
        return self.constants[position] if position < len(self.constants) else None

    def has(self, position: int) -> bool:
        """Whether the optional operand at `position` is given."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def unsupported(self, reason: str, remedy: str = REPLACE_OP) -> UnsupportedOp:
        """The error that names this node, and what the user can do."""
        return UnsupportedOp(f"ONNX node {self.name!r} ({self.op}) cannot be converted: {reason}; {remedy}")


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


def over_one_axis(lower: Lowering) -> Lowering:
    """The lowering of an operator over images, made to take [N, L, C] too: as an image of height 1."""

    @wraps(lower)
    def lower_either(node: OnnxNode, out: Builder) -> None:
        source = out.shape(node.inputs[0])
        if len(source) != 3:
            lower(node, out)
            return
        name, (batch, length, channels) = node.outputs[0], node.output_shapes[0]
        image = out.unique(f"{name}/image")
        flat = _reshape_to(node.inputs[0], (source[0], 1, *source[1:]), out.unique(f"{name}/unit_axis"), out)
        flat_node = replace(
            node,
            inputs=(flat, *node.inputs[1:]),
            outputs=(image, *node.outputs[1:]),
            attributes={key: _with_unit_axis(key, value) for key, value in node.attributes.items()},
            constants=tuple(c if c is None or c.ndim != 3 else c[:, :, None] for c in node.constants),
            output_shapes=((batch, 1, length, channels), *node.output_shapes[1:]),
            axes=(0, 3, 1, 2),
        )
        lower(flat_node, out)
        _reshape_to(image, (batch, length, channels), name, out)

    return lower_either


def _with_unit_axis(key: str, value: Any) -> Any:
    if key == "pads":
        return (0, value[0], 0, value[1])
    return (UNIT[key], *value) if key in UNIT else value


# --- operators, in the order of the ONNX list ---------------------------------------------------------------

lowers("Add", Layout.FOLLOW)(renamed("ADD", **NO_ACTIVATION))


@lowers("AveragePool", Layout.ANCHOR)
@over_one_axis
def lower_average_pool(node: OnnxNode, out: Builder) -> None:
    """AVERAGE_POOL_2D, behind a PAD where the padding is not SAME; one axis as an image of height 1."""
    window = _pool_window(node, out)
    counts_pad = bool(node.attributes.get("count_include_pad", 0))
    x, name, shape = node.inputs[0], node.outputs[0], node.output_shapes[0]
    if window.padding == "VALID" or (window.padding == "SAME" and not counts_pad):
        out.emit("AVERAGE_POOL_2D", (x,), name, shape, **window.pool_attributes())
        return
    if counts_pad and node.attributes.get("ceil_mode", 0):
        raise node.unsupported(
            "ceil_mode=1 with count_include_pad=1 is not supported", "use one of them only"
        )
    source = out.shape(x)
    padded = _zero_padded(x, window.pads, name, out)
    attributes = {**window.pool_attributes(), "padding": "VALID"}
    if counts_pad:
        out.emit("AVERAGE_POOL_2D", (padded,), name, shape, **attributes)
        return
    pooled = out.emit("AVERAGE_POOL_2D", (padded,), out.unique(f"{name}/with_padding"), shape, **attributes)
    part = out.constant(f"{name}/inside", _inside_correction(window, source, shape))
    out.emit("MUL", (pooled, part), name, shape, **NO_ACTIVATION)


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
    low, high = (
        -math.inf if low <= -LARGEST_FLOAT else low,
        math.inf if high >= LARGEST_FLOAT else high,
    )
    name, shape, x = node.outputs[0], node.output_shapes[0], node.inputs[0]
    fused = {(0.0, 6.0): "RELU6", (0.0, math.inf): "RELU"}.get((low, high))
    if fused is not None:
        out.emit(fused, (x,), name, shape)
        return
    bounds = [("MAXIMUM", "min", low), ("MINIMUM", "max", high)]
    _chain(x, [(op, key, bound) for op, key, bound in bounds if not math.isinf(bound)], name, shape, out)


@lowers("Concat", Layout.REMAP)
def lower_concat(node: OnnxNode, out: Builder) -> None:
    """CONCATENATION along the renumbered axis."""
    axis = node.axes[node.attributes["axis"]]
    if axis == 0:
        raise node.unsupported("it joins along the batch axis")
    order = np.argsort(node.axes)
    operands = [
        value if constant is None else out.constant(value, constant.astype(np.float32).transpose(order))
        for value, constant in zip(node.inputs, node.constants, strict=True)
    ]
    out.emit("CONCATENATION", operands, node.outputs[0], node.output_shapes[0], axis=axis, **NO_ACTIVATION)


@lowers("Conv", Layout.ANCHOR)
@over_one_axis
def lower_conv(node: OnnxNode, out: Builder) -> None:
    """CONV_2D, also grouped, weights OIHW to OHWI; DEPTHWISE_CONV_2D, weights O1HW to 1HWO; also 1-D."""
    weights = node.floats(1, "the weight W")
    if weights.ndim != 4:
        raise node.unsupported(
            f"its weights have {weights.ndim} dimensions, only one or two spatial axes are supported"
        )
    x, name = node.inputs[0], node.outputs[0]
    channels = out.shape(x)[3]
    group = node.attributes.get("group", 1)
    window = _window(node, out.shape(x), weights.shape[2:])
    x = _padded(x, window, name, out)
    bias = node.floats(2, "the bias B") if node.has(2) else np.zeros(weights.shape[0], np.float32)
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


@lowers("ConvTranspose", Layout.ANCHOR)
@over_one_axis
def lower_conv_transpose(node: OnnxNode, out: Builder) -> None:
    """TRANSPOSE_CONV, groups and dilation as zeros in the weights, cropped by SLICE if not SAME; also 1-D."""
    weights = _dense_transposed_weights(node)
    x, name, target = node.inputs[0], node.outputs[0], node.output_shapes[0]
    kernel, stride = weights.shape[1:3], tuple(node.attributes.get("strides", (1, 1)))
    bias = node.floats(2, "the bias B") if node.has(2) else np.zeros(weights.shape[0], np.float32)
    operands = (x, out.constant(f"{name}/weight", weights), out.constant(f"{name}/bias", bias))
    attributes = {"stride_h": stride[0], "stride_w": stride[1], **NO_ACTIVATION}
    source = out.shape(x)
    full = tuple((n - 1) * s + k for n, s, k in zip(source[1:3], stride, kernel, strict=True))
    begin = _transposed_pads(node, full, target[1:3])
    same = same_pads(target[1:3], kernel, stride, (1, 1))
    scaled = tuple(size * s for size, s in zip(source[1:3], stride, strict=True))
    if target[1:3] == full and begin == (0, 0):
        out.emit("TRANSPOSE_CONV", operands, name, target, padding="VALID", **attributes)
        return
    if (
        scaled == target[1:3]
        and begin == same[:2]
        and all(s <= k for s, k in zip(stride, kernel, strict=True))
    ):
        out.emit("TRANSPOSE_CONV", operands, name, target, padding="SAME", **attributes)
        return
    if any(b + size > whole for b, size, whole in zip(begin, target[1:3], full, strict=True)):
        raise node.unsupported("output_padding reaches beyond what the kernel covers", "use a larger kernel")
    whole = (source[0], *full, target[3])
    uncut = out.emit(
        "TRANSPOSE_CONV", operands, out.unique(f"{name}/uncut"), whole, padding="VALID", **attributes
    )
    _slice(uncut, (0, *begin, 0), target, name, out)


lowers("Div", Layout.FOLLOW)(renamed("DIV", **NO_ACTIVATION))


@lowers("Flatten", Layout.BARRIER)
def lower_flatten(node: OnnxNode, out: Builder) -> None:
    """RESHAPE."""
    _reshape(node, out)


@lowers("Gemm", Layout.BARRIER)
def lower_gemm(node: OnnxNode, out: Builder) -> None:
    """FULLY_CONNECTED with weights OI; alpha and beta folded."""
    if node.attributes.get("transA", 0):
        raise node.unsupported("transA=1 is not supported", "transpose before it")
    weights = node.floats(1, "the weight B") * np.float32(node.attributes.get("alpha", 1.0))
    weights = weights if node.attributes.get("transB", 0) else weights.T
    bias = np.zeros(weights.shape[0], np.float32)
    if node.has(2):
        bias = bias + node.floats(2, "the bias C").reshape(-1) * np.float32(node.attributes.get("beta", 1.0))
    _fully_connected(node, out, weights, bias)


@lowers("GlobalAveragePool", Layout.ANCHOR)
def lower_global_average_pool(node: OnnxNode, out: Builder) -> None:
    """MEAN over height and width, which the delegate takes in int8 (AVERAGE_POOL_2D it does not)."""
    rank = len(node.output_shapes[0])
    spatial = out.constant(f"{node.outputs[0]}/axes", np.arange(1, rank - 1, dtype=np.int32))
    out.emit("MEAN", (node.inputs[0], spatial), node.outputs[0], node.output_shapes[0], keep_dims=True)


@lowers("GlobalMaxPool", Layout.ANCHOR)
@over_one_axis
def lower_global_max_pool(node: OnnxNode, out: Builder) -> None:
    """MAX_POOL_2D whose window is the whole image."""
    size = out.shape(node.inputs[0])[1:3]
    window = Window((size[0], size[1]), (1, 1), (1, 1), (0, 0, 0, 0), "VALID")
    out.emit(
        "MAX_POOL_2D", node.inputs[:1], node.outputs[0], node.output_shapes[0], **window.pool_attributes()
    )


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


@lowers("LeakyRelu", Layout.FOLLOW)
def lower_leaky_relu(node: OnnxNode, out: Builder) -> None:
    """LEAKY_RELU."""
    alpha = float(node.attributes.get("alpha", 0.01))
    out.emit("LEAKY_RELU", node.inputs, node.outputs[0], node.output_shapes[0], alpha=alpha)


@lowers("MatMul", Layout.BARRIER)
def lower_matmul(node: OnnxNode, out: Builder) -> None:
    """FULLY_CONNECTED where the right operand is a constant matrix."""
    weights = node.constant(1, "the right operand")
    if weights.ndim != 2:
        raise node.unsupported(f"the right operand has {weights.ndim} dimensions, only a matrix is supported")
    _fully_connected(node, out, weights.T, np.zeros(weights.shape[1], np.float32))


@lowers("Max", Layout.FOLLOW)
def lower_max(node: OnnxNode, out: Builder) -> None:
    """MAXIMUM, a chain of them for more than two operands."""
    _variadic("MAXIMUM", node, out)


@lowers("MaxPool", Layout.ANCHOR)
@over_one_axis
def lower_max_pool(node: OnnxNode, out: Builder) -> None:
    """MAX_POOL_2D; padding other than SAME repeats the edge, which never changes a maximum; also 1-D."""
    if len(node.outputs) > 1:
        raise node.unsupported("its second output, the indices, is used")
    window = _pool_window(node, out)
    x = node.inputs[0]
    if window.padding == "EXPLICIT":
        x = _edge_padded(x, window.pads, node.outputs[0], out)
    attributes = {**window.pool_attributes(), "padding": "SAME" if window.padding == "SAME" else "VALID"}
    out.emit("MAX_POOL_2D", (x,), node.outputs[0], node.output_shapes[0], **attributes)


@lowers("Min", Layout.FOLLOW)
def lower_min(node: OnnxNode, out: Builder) -> None:
    """MINIMUM, a chain of them for more than two operands."""
    _variadic("MINIMUM", node, out)


lowers("Mul", Layout.FOLLOW)(renamed("MUL", **NO_ACTIVATION))


@lowers("PRelu", Layout.FOLLOW)
def lower_prelu(node: OnnxNode, out: Builder) -> None:
    """PRELU with constant slopes per channel."""
    slopes = node.floats(1, "the slope")
    shape = node.output_shapes[0]
    target = (1,) * max(len(shape) - 1 - slopes.ndim, 0) + slopes.shape[
        max(slopes.ndim - len(shape) + 1, 0) :
    ]
    if slopes.size != math.prod(target):
        raise node.unsupported("its slope differs from image to image")
    operand = out.constant(
        f"{node.outputs[0]}/slope", np.broadcast_to(slopes.reshape(target), (*target[:-1], shape[-1]))
    )
    out.emit("PRELU", (node.inputs[0], operand), node.outputs[0], shape)


@lowers("Pad", Layout.REMAP)
def lower_pad(node: OnnxNode, out: Builder) -> None:
    """PAD with zeros (merged into a convolution where it can), CONCATENATION of SLICEs in edge mode."""
    rank, mode = len(node.axes), node.attributes.get("mode", "constant")
    value = float(np.asarray(node.constant(2, "the pad value")).item()) if node.has(2) else 0.0
    if mode not in ("constant", "edge") or value != 0.0:
        raise node.unsupported(
            f"mode {mode} with value {value:g} is not supported", "pad with zeros or the edge"
        )
    axes = node.integers(3, "axes") or range(rank)
    table = np.zeros((rank, 2), np.int32)
    table[[node.axes[axis] for axis in axes]] = np.reshape(node.integers(1, "pads") or [], (2, -1)).T
    if (table < 0).any() or table[0].any():
        raise node.unsupported("it has negative pads or pads of the batch axis", "crop with Slice instead")
    if mode == "edge":
        amounts = [(axis, int(table[axis, 0]), int(table[axis, 1])) for axis in range(rank)]
        _edges(node.inputs[0], amounts, node.outputs[0], out)
        return
    paddings = out.constant(f"{node.outputs[0]}/paddings", table)
    out.emit("PAD", (node.inputs[0], paddings), node.outputs[0], node.output_shapes[0])


@lowers("ReduceMean", Layout.REMAP)
def lower_reduce_mean(node: OnnxNode, out: Builder) -> None:
    """MEAN over the renumbered axes; axes as an input or (opset < 18) an attribute."""
    axes = node.integers(1, "axes") or range(len(node.axes))
    mapped = sorted(node.axes[axis] for axis in axes)
    if 0 in mapped:
        raise node.unsupported("it averages over the batch axis", "name the axes without the first")
    name, shape, x = node.outputs[0], node.output_shapes[0], node.inputs[0]
    operand = out.constant(f"{name}/axes", np.array(mapped, np.int32))
    if bool(node.attributes.get("keepdims", 1)) or len(shape) <= 2:
        out.emit("MEAN", (x, operand), name, shape, keep_dims=bool(node.attributes.get("keepdims", 1)))
        return
    kept = tuple(1 if axis in mapped else size for axis, size in enumerate(out.shape(x)))
    mean = out.emit("MEAN", (x, operand), out.unique(f"{name}/kept"), kept, keep_dims=True)
    _reshape_to(_permuted_by(mean, node.axes, f"{name}/axes_in_order", out), shape, name, out)


lowers("Relu", Layout.FOLLOW)(renamed("RELU"))


@lowers("Reshape", Layout.BARRIER)
def lower_reshape(node: OnnxNode, out: Builder) -> None:
    """RESHAPE to the inferred static shape."""
    _reshape(node, out)


@lowers("Resize", Layout.ANCHOR)
def lower_resize(node: OnnxNode, out: Builder) -> None:
    """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR, where TFLite has the same sampling points."""
    source, target, mode = (
        out.shape(node.inputs[0]),
        node.output_shapes[0],
        node.attributes.get("mode", "nearest"),
    )
    if len(source) != 4 or source[0] != target[0] or source[3] != target[3]:
        raise node.unsupported("only height and width of an image can be resized")
    if mode not in RESIZE_OPS or node.attributes.get("antialias", 0):
        raise node.unsupported(f"mode {mode} or antialias is not supported", "use nearest or linear")
    attributes = _resize_sampling(node, source[1:3], target[1:3])
    size = out.constant(f"{node.outputs[0]}/size", np.array(target[1:3], np.int32))
    out.emit(RESIZE_OPS[mode], (node.inputs[0], size), node.outputs[0], target, **attributes)


lowers("Sigmoid", Layout.FOLLOW)(renamed("LOGISTIC"))


@lowers("Slice", Layout.REMAP)
def lower_slice(node: OnnxNode, out: Builder) -> None:
    """SLICE, STRIDED_SLICE where a step is above one."""
    starts, ends = node.integers(1, "starts") or [], node.integers(2, "ends") or []
    axes = node.integers(3, "axes") or range(len(starts))
    steps = node.integers(4, "steps") or [1] * len(starts)
    source, name, shape = out.shape(node.inputs[0]), node.outputs[0], node.output_shapes[0]
    if min(steps, default=1) < 1:
        raise node.unsupported("a step is negative", "flip the weights that read it instead")
    begin, step, stop = [0] * len(source), [1] * len(source), list(source)
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        position = node.axes[axis]
        begin[position], stop[position], step[position] = (
            *slice(start, end).indices(source[position])[:2],
            stride,
        )
    if begin[0] or stop[0] != source[0] or step[0] != 1:
        raise node.unsupported("it cuts the batch axis")
    if max(step) == 1:
        _slice(node.inputs[0], begin, shape, name, out)
        return
    parts = {"begin": begin, "end": stop, "strides": step}
    operands = [out.constant(f"{name}/{key}", np.array(part, np.int32)) for key, part in parts.items()]
    out.emit("STRIDED_SLICE", (node.inputs[0], *operands), name, shape)


@lowers("Softmax", Layout.REMAP)
def lower_softmax(node: OnnxNode, out: Builder) -> None:
    """SOFTMAX over the last axis; another axis is brought there by TRANSPOSE."""
    rank, x, name, shape = len(node.axes), node.inputs[0], node.outputs[0], node.output_shapes[0]
    onnx_axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1) % rank
    axis = node.axes[onnx_axis]
    onnx_shape = [out.shape(x)[position] for position in node.axes]
    if node.opset < 13 and math.prod(onnx_shape[onnx_axis + 1 :]) != 1:
        raise node.unsupported(
            "before opset 13 it flattens all axes from its axis on", "export with opset 13 or later"
        )
    if axis == rank - 1:
        out.emit("SOFTMAX", (x,), name, shape, beta=1.0)
        return
    if axis == 0:
        raise node.unsupported("it runs over the batch axis")
    order = [position for position in range(rank) if position != axis] + [axis]
    moved = _permuted_by(x, order, f"{name}/axis_last", out)
    result = out.emit("SOFTMAX", (moved,), out.unique(f"{name}/softmax"), out.shape(moved), beta=1.0)
    back = out.constant(f"{name}/permutation", np.argsort(order).astype(np.int32))
    out.emit("TRANSPOSE", (result, back), name, shape)


@lowers("Split", Layout.REMAP)
def lower_split(node: OnnxNode, out: Builder) -> None:
    """One SLICE per output."""
    axis = node.axes[node.attributes.get("axis", 0)]
    if axis == 0:
        raise node.unsupported("it cuts the batch axis")
    begin = [0] * len(node.axes)
    for name, shape in zip(node.outputs, node.output_shapes, strict=True):
        _slice(node.inputs[0], begin, shape, name, out)
        begin[axis] += shape[axis]


@lowers("Squeeze", Layout.BARRIER)
def lower_squeeze(node: OnnxNode, out: Builder) -> None:
    """RESHAPE without the axes of size one."""
    _reshape(node, out)


lowers("Sub", Layout.FOLLOW)(renamed("SUB", **NO_ACTIVATION))
lowers("Tanh", Layout.FOLLOW)(renamed("TANH"))


@lowers("Transpose", Layout.BARRIER)
def lower_transpose(node: OnnxNode, out: Builder) -> None:
    """TRANSPOSE; none where it only changes between channels first and channels last."""
    order = node.attributes.get("perm", tuple(reversed(range(len(node.axes)))))
    if order[0] != 0:
        raise node.unsupported("it moves the batch axis")
    operand = out.constant(f"{node.outputs[0]}/permutation", np.array(order, np.int32))
    out.emit("TRANSPOSE", (node.inputs[0], operand), node.outputs[0], node.output_shapes[0])


@lowers("Unsqueeze", Layout.BARRIER)
def lower_unsqueeze(node: OnnxNode, out: Builder) -> None:
    """RESHAPE with new axes of size one."""
    _reshape(node, out)


# --- shared parts -------------------------------------------------------------------------------------------


def _reshape(node: OnnxNode, out: Builder) -> None:
    source, shape = out.shape(node.inputs[0]), node.output_shapes[0]
    if not shape or shape[0] != source[0]:
        raise node.unsupported(
            f"from {list(source)} to {list(shape)} it gives up the batch axis", "keep the first axis as it is"
        )
    _reshape_to(node.inputs[0], shape, node.outputs[0], out)


def _reshape_to(x: str, shape: Sequence[int], name: str, out: Builder) -> str:
    operand = out.constant(f"{name}/shape", np.array(shape, np.int32))
    return out.emit("RESHAPE", (x, operand), name, shape, new_shape=tuple(shape))


def _permuted_by(x: str, order: Sequence[int], name: str, out: Builder) -> str:
    """`x` with its axes in `order`, by TRANSPOSE unless they are already."""
    if list(order) == sorted(order):
        return x
    operand = out.constant(f"{name}/permutation", np.array(order, np.int32))
    shape = [out.shape(x)[axis] for axis in order]
    return out.emit("TRANSPOSE", (x, operand), out.unique(name), shape)


def _slice(x: str, begin: Sequence[int], shape: Sequence[int], name: str, out: Builder) -> str:
    """The part of `x` that starts at `begin` and has `shape`."""
    first = out.constant(f"{name}/begin", np.array(begin, np.int32))
    size = out.constant(f"{name}/size", np.array(shape, np.int32))
    return out.emit("SLICE", (x, first, size), name, shape)


def _chain(
    x: str, steps: Sequence[tuple[str, str, float]], name: str, shape: Sequence[int], out: Builder
) -> None:
    """`x` through operators with one constant each; without any it is passed on."""
    for position, (op, key, value) in enumerate(steps):
        last = position == len(steps) - 1
        operand = out.constant(f"{name}/{key}", np.float32(value).reshape(1))
        x = out.emit(op, (x, operand), name if last else out.unique(f"{name}/to_{key}"), shape)
    if not steps:
        _reshape_to(x, shape, name, out)


def _variadic(op: str, node: OnnxNode, out: Builder) -> None:
    name, shape, x = node.outputs[0], node.output_shapes[0], node.inputs[0]
    if len(node.inputs) == 1:
        _reshape_to(x, shape, name, out)
        return
    for position, other in enumerate(node.inputs[1:], start=2):
        last = position == len(node.inputs)
        partial = np.broadcast_shapes(out.shape(x), out.shape(other))
        x = out.emit(op, (x, other), name if last else out.unique(f"{name}/first_{position}"), partial)


def _fully_connected(node: OnnxNode, out: Builder, weights: Array, bias: Array) -> None:
    name = node.outputs[0]
    operands = (node.inputs[0], out.constant(f"{name}/weight", weights), out.constant(f"{name}/bias", bias))
    shape = node.output_shapes[0]
    keeps = {"keep_num_dims": True} if len(shape) > 2 else {}
    out.emit("FULLY_CONNECTED", operands, name, shape, **NO_ACTIVATION, **keeps)


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


def _window(node: OnnxNode, shape: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window over an NHWC input of `shape`, with its padding named as TFLite would name it."""
    if len(kernel) != 2 or len(shape) != 4:
        raise node.unsupported(f"it slides over {len(kernel)} axes, only one or two are supported")
    stride, dilation = (tuple(node.attributes.get(key, (1, 1))) for key in ("strides", "dilations"))
    same = same_pads(shape[1:3], kernel, stride, dilation)
    auto_pad = node.attributes.get("auto_pad", "NOTSET")
    by_mode = {"VALID": (0, 0, 0, 0), "SAME_UPPER": same, "SAME_LOWER": (same[2], same[3], same[0], same[1])}
    pads = by_mode.get(auto_pad, tuple(node.attributes.get("pads", (0, 0, 0, 0))))
    if node.attributes.get("ceil_mode", 0):
        needed = [
            max((result - 1) * s + (k - 1) * d + 1 - size - before, 0)
            for result, s, k, d, size, before in zip(
                node.output_shapes[0][1:3], stride, kernel, dilation, shape[1:3], pads, strict=False
            )
        ]
        pads = (pads[0], pads[1], needed[0], needed[1])
    if pads == same and tuple(-(-n // s) for n, s in zip(shape[1:3], stride, strict=True)) == tuple(
        node.output_shapes[0][1:3]
    ):
        padding = "SAME"
    else:
        padding = "VALID" if not any(pads) else "EXPLICIT"
    return Window((kernel[0], kernel[1]), stride, dilation, pads, padding)


def _pool_window(node: OnnxNode, out: Builder) -> Window:
    window = _window(node, out.shape(node.inputs[0]), node.attributes["kernel_shape"])
    if window.dilation != (1, 1):
        raise node.unsupported(f"dilations {list(window.dilation)} are not supported in pooling")
    return window


def _padded(x: str, window: Window, name: str, out: Builder) -> str:
    """`x`, behind a PAD when the window's padding is neither SAME nor VALID."""
    return x if window.padding != "EXPLICIT" else _zero_padded(x, window.pads, name, out)


def _zero_padded(x: str, pads: tuple[int, int, int, int], name: str, out: Builder) -> str:
    top, left, bottom, right = pads
    batch, height, width, channels = out.shape(x)
    paddings = out.constant(
        f"{name}/paddings", np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    )
    shape = (batch, height + top + bottom, width + left + right, channels)
    return out.emit("PAD", (x, paddings), out.unique(f"{name}/pad"), shape)


def _edge_padded(x: str, pads: tuple[int, int, int, int], name: str, out: Builder) -> str:
    top, left, bottom, right = pads
    return _edges(x, [(1, top, bottom), (2, left, right)], out.unique(f"{name}/pad"), out)


def _edges(x: str, amounts: Sequence[tuple[int, int, int]], name: str, out: Builder) -> str:
    """`x` with its first and last slice of each (axis, before, after) repeated so often."""
    wanted = [(axis, before, after) for axis, before, after in amounts if before or after]
    if not wanted:
        return _reshape_to(x, out.shape(x), name, out)
    for position, (axis, before, after) in enumerate(wanted):
        shape = list(out.shape(x))
        edge = [size if other != axis else 1 for other, size in enumerate(shape)]
        ends = []
        for key, count, at in (("first", before, 0), ("last", after, shape[axis] - 1)):
            begin = [at if other == axis else 0 for other in range(len(shape))]
            ends.append(
                [_slice(x, begin, edge, out.unique(f"{name}/{key}_{axis}"), out)] * count if count else []
            )
        shape[axis] += before + after
        result = name if position == len(wanted) - 1 else out.unique(f"{name}/along_{axis}")
        x = out.emit("CONCATENATION", (*ends[0], x, *ends[1]), result, shape, axis=axis, **NO_ACTIVATION)
    return x


def _inside_correction(window: Window, source: Sequence[int], target: Sequence[int]) -> NDArray[np.float32]:
    """Window size over the number of its pixels inside the image, [1, H, W, 1]."""
    counts = []
    for side in range(2):
        starts = np.arange(target[1 + side]) * window.stride[side] - window.pads[side]
        ends = np.minimum(starts + window.kernel[side], source[1 + side])
        counts.append(ends - np.maximum(starts, 0))
    size = window.kernel[0] * window.kernel[1]
    return (size / np.outer(counts[0], counts[1]))[None, :, :, None].astype(np.float32)


def _dense_transposed_weights(node: OnnxNode) -> NDArray[np.float32]:
    """Weights of a ConvTranspose, IOHW per group, as OHWI of one group with its dilation written out."""
    weights = node.floats(1, "the weight W")
    if weights.ndim != 4:
        raise node.unsupported(
            f"its weights have {weights.ndim} dimensions, only one or two axes are supported"
        )
    group = node.attributes.get("group", 1)
    inputs, outputs = weights.shape[0], weights.shape[1] * group
    dilation = node.attributes.get("dilations", (1, 1))
    kernel = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilation, strict=True)]
    dense = np.zeros((outputs, *kernel, inputs), np.float32)
    for index in range(group):
        rows = slice(index * inputs // group, (index + 1) * inputs // group)
        columns = slice(index * outputs // group, (index + 1) * outputs // group)
        dense[columns, :: dilation[0], :: dilation[1], rows] = weights[rows].transpose(1, 2, 3, 0)
    return dense


def _transposed_pads(node: OnnxNode, full: Sequence[int], target: Sequence[int]) -> tuple[int, int]:
    """What a ConvTranspose cuts off at top and left of the `full` result."""
    if (
        "pads" in node.attributes
        and node.attributes.get("auto_pad", "NOTSET") == "NOTSET"
        and ("output_shape" not in node.attributes)
    ):
        return node.attributes["pads"][0], node.attributes["pads"][1]
    totals = [whole - size for whole, size in zip(full, target, strict=True)]
    upper = node.attributes.get("auto_pad", "NOTSET") == "SAME_UPPER"
    first, second = (max(total // 2 if upper else total - total // 2, 0) for total in totals)
    return first, second


def _resize_sampling(node: OnnxNode, source: Sequence[int], target: Sequence[int]) -> dict[str, Attribute]:
    """The attributes of TFLite's resize that reads the same source positions on both axes."""
    nearest = node.attributes.get("mode", "nearest") == "nearest"
    wanted = [
        _onnx_positions(node, axis, size, result)
        for axis, size, result in zip((2, 3), source, target, strict=True)
    ]
    for align, half in ((False, False), (False, True), (True, False)):
        sampling = bilinear_points if not nearest else nearest_pixels
        found = [sampling(size, result, align, half) for size, result in zip(source, target, strict=True)]
        if all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)):
            return {"align_corners": align, "half_pixel_centers": half}
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    raise node.unsupported(
        f"TFLite has no resize that samples as {mode} does from {list(source)} to {list(target)}",
        "use an integer factor, or linear with half_pixel, asymmetric or align_corners",
    )


def _onnx_positions(node: OnnxNode, axis: int, size: int, result: int) -> NDArray[np.float64]:
    """Where ONNX's Resize reads on one axis: whole numbers for nearest."""
    points = np.arange(result, dtype=np.float64)
    scales = node.optional_constant(2)
    scale = float(scales[axis]) if scales is not None and scales.size else result / size
    rule = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if rule not in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        raise node.unsupported(f"coordinate_transformation_mode {rule} is not supported", "use half_pixel")
    half = (points + 0.5) / scale - 0.5
    positions = {
        "half_pixel": half,
        "pytorch_half_pixel": half if result > 1 else np.zeros(result),
        "asymmetric": points / scale,
        "align_corners": points * (size - 1) / max(result - 1, 1),
    }[rule]
    if node.attributes.get("mode", "nearest") == "nearest":
        roundings: dict[str, Callable[..., Any]] = {
            "round_prefer_floor": lambda x: np.ceil(x - 0.5),
            "round_prefer_ceil": lambda x: np.floor(x + 0.5),
            "floor": np.floor,
            "ceil": np.ceil,
        }
        positions = roundings[node.attributes.get("nearest_mode", "round_prefer_floor")](
            np.round(positions, 9)
        )
    return np.asarray(np.clip(positions, 0, size - 1), np.float64)


def _tflite_scale(size: int, result: int, align: bool) -> float:
    return (size - 1) / (result - 1) if align and result > 1 else size / result


def bilinear_points(size: int, result: int, align: bool, half: bool) -> NDArray[np.float64]:
    """Where RESIZE_BILINEAR reads (reference kernel `ComputeInterpolationValues`)."""
    offset = 0.5 if half else 0.0
    points = (np.arange(result) + offset) * _tflite_scale(size, result, align) - offset
    return np.asarray(np.clip(points, 0, size - 1))


def nearest_pixels(size: int, result: int, align: bool, half: bool) -> NDArray[np.float64]:
    """Which pixels RESIZE_NEAREST_NEIGHBOR reads (reference kernel `GetNearestNeighbor`)."""
    points = (np.arange(result) + (0.5 if half else 0.0)) * _tflite_scale(size, result, align)
    return np.asarray(np.clip(np.floor(np.round(points + (0.5 if align else 0.0), 6)), 0, size - 1))
