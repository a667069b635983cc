"""Operators that slide a window over an image, or over one axis: convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from export.builder import Builder, Ends, Parts
from export.graph import NO_ACTIVATION, same_pads
from export.registry import Layout, Lowering, OnnxNode, Rules
from export.windows import (
    NO_PADS,
    Window,
    dense_transposed_weights,
    inside_correction,
    phases,
    pool_window,
    transposed_pads,
    window_of,
)

RULES = Rules()


UNIT = {
    "kernel_shape": 1,
    "strides": 1,
    "dilations": 1,
    "output_padding": 0,
    "output_shape": 1,
}  # of a new axis


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
        flat = out.reshape(node.inputs[0], (source[0], 1, *source[1:]), out.unique(f"{name}/unit_axis"))
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
        out.reshape(image, (batch, length, channels), name)

    return lower_either


def _with_unit_axis(key: str, value: Any) -> Any:
    if key == "pads":
        return (0, value[0], 0, value[1])
    return (UNIT[key], *value) if key in UNIT else value


@RULES.lowers("AveragePool", Layout.ANCHOR)
@over_one_axis
def lower_average_pool(node: OnnxNode, out: Builder) -> None:
    """AVERAGE_POOL_2D, behind a PAD where not SAME; a dilated one is a DEPTHWISE_CONV_2D; also 1-D."""
    window, counts_pad = pool_window(node, out), bool(node.attributes.get("count_include_pad", 0))
    x, name, shape = node.inputs[0], node.outputs[0], node.output_shapes[0]
    is_plain = window.dilation == (1, 1) and not window.skips
    if is_plain and (window.padding == "VALID" or (window.padding == "SAME" and not counts_pad)):
        out.emit("AVERAGE_POOL_2D", (x,), name, shape, **window.pool_attributes())
        return
    part = inside_correction(window, out.shape(x), shape, window.margins if counts_pad else NO_PADS)
    result = name if (part == 1).all() else out.unique(f"{name}/with_padding")
    if window.dilation == (1, 1):
        padded = out.zero_pad(x, window.pads, name) if any(window.pads) else x
        _pool_inside("AVERAGE_POOL_2D", padded, window, shape, result, out)
    else:
        _dilated_average(node, window, result, out)
    if result != name:
        out.emit("MUL", (result, out.constant(f"{name}/inside", part)), name, shape, **NO_ACTIVATION)


@RULES.lowers("Conv", Layout.ANCHOR)
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
    window = window_of(node, out.shape(x), weights.shape[2:])
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


@RULES.lowers("ConvTranspose", Layout.ANCHOR)
@over_one_axis
def lower_conv_transpose(node: OnnxNode, out: Builder) -> None:
    """TRANSPOSE_CONV, groups and dilation as zeros in the weights, cropped by SLICE if not SAME; also 1-D."""
    weights = dense_transposed_weights(node)
    x, name, target = node.inputs[0], node.outputs[0], node.output_shapes[0]
    source, stride = out.shape(x), tuple(node.attributes.get("strides", (1, 1)))
    full = [(n - 1) * s + k for n, s, k in zip(source[1:3], stride, weights.shape[1:3], strict=True)]
    begin = transposed_pads(node, full, target[1:3])
    beyond = [max(b + size - whole, 0) for b, size, whole in zip(begin, target[1:3], full, strict=True)]
    weights = np.pad(weights, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))  # where only the bias reaches
    kernel = weights.shape[1:3]
    bias = node.floats(2, "the bias B") if node.has(2) else np.zeros(weights.shape[0], np.float32)
    operands = (x, out.constant(f"{name}/weight", weights), out.constant(f"{name}/bias", bias))
    attributes = {"stride_h": stride[0], "stride_w": stride[1], **NO_ACTIVATION}
    whole = (source[0], *(size + more for size, more in zip(full, beyond, strict=True)), target[3])
    if target == whole and begin == (0, 0):
        out.emit("TRANSPOSE_CONV", operands, name, target, padding="VALID", **attributes)
        return
    same = same_pads(target[1:3], kernel, stride, (1, 1))
    scaled = tuple(size * s for size, s in zip(source[1:3], stride, strict=True))
    covered = all(s <= k for s, k in zip(stride, kernel, strict=True))
    if scaled == target[1:3] and begin == same[:2] and covered:
        out.emit("TRANSPOSE_CONV", operands, name, target, padding="SAME", **attributes)
        return
    uncut = out.emit(
        "TRANSPOSE_CONV", operands, out.unique(f"{name}/uncut"), whole, padding="VALID", **attributes
    )
    out.slice(uncut, (0, *begin, 0), target, name)


@RULES.lowers("GlobalMaxPool", Layout.ANCHOR)
@over_one_axis
def lower_global_max_pool(node: OnnxNode, out: Builder) -> None:
    """MAX_POOL_2D whose window is the whole image."""
    size = out.shape(node.inputs[0])[1:3]
    window = Window((size[0], size[1]), (1, 1), (1, 1), (0, 0, 0, 0), "VALID")
    out.emit(
        "MAX_POOL_2D", node.inputs[:1], node.outputs[0], node.output_shapes[0], **window.pool_attributes()
    )


@RULES.lowers("MaxPool", Layout.ANCHOR)
@over_one_axis
def lower_max_pool(node: OnnxNode, out: Builder) -> None:
    """MAX_POOL_2D; padding other than SAME repeats the edge, which never changes a maximum; also 1-D."""
    if len(node.outputs) > 1:
        raise node.unsupported("its second output, the indices, is used")
    window = pool_window(node, out)
    x = node.inputs[0]
    if window.dilation != (1, 1):
        _dilated_max(node, window, out)
        return
    name, shape = node.outputs[0], node.output_shapes[0]
    if window.padding == "SAME" and not window.skips:
        out.emit("MAX_POOL_2D", (x,), name, shape, **window.pool_attributes())
        return
    x = _edge_padded(x, window.pads, name, out) if any(window.pads) else x
    _pool_inside("MAX_POOL_2D", x, window, shape, name, out)


def _padded(x: str, window: Window, name: str, out: Builder) -> str:
    """`x`, behind a PAD when the window's padding is neither SAME nor VALID."""
    return x if window.padding != "EXPLICIT" else out.zero_pad(x, window.pads, name)


def _edge_padded(x: str, pads: tuple[int, int, int, int], name: str, out: Builder) -> str:
    top, left, bottom, right = pads
    return out.surround(x, [(1, top, bottom), (2, left, right)], out.edges(name), out.unique(f"{name}/pad"))


def _pool_inside(op: str, x: str, window: Window, shape: Sequence[int], name: str, out: Builder) -> None:
    """Pool `x`, already padded; steps wider than the window, which XNNPACK does not take, are taken after."""
    if not window.skips:
        out.emit(op, (x,), name, shape, **{**window.pool_attributes(), "padding": "VALID"})
        return
    batch, height, width, channels = out.shape(x)
    steps = [s if s > k else 1 for s, k in zip(window.stride, window.kernel, strict=True)]
    rest = (window.stride[0] // steps[0], window.stride[1] // steps[1])
    dense = Window(window.kernel, rest, (1, 1), NO_PADS, "VALID")
    sizes = ((n - k) // s + 1 for n, k, s in zip((height, width), window.kernel, rest, strict=True))
    if dense.kernel != (1, 1):
        pooled = out.unique(f"{name}/pooled")
        x = out.emit(op, (x,), pooled, (batch, *sizes, channels), **dense.pool_attributes())
    for axis, step in enumerate(steps, start=1):
        x = out.every(x, axis, 0, step, shape[axis], name)
    out.reshape(x, shape, name)


def _dilated_average(node: OnnxNode, window: Window, result: str, out: Builder) -> None:
    """Sums over the window's size, as a depthwise convolution of equal weights."""
    name, channels = node.outputs[0], out.shape(node.inputs[0])[3]
    weights = np.full((1, *window.kernel, channels), 1 / np.prod(window.kernel), np.float32)
    operands = (
        _padded(node.inputs[0], window, name, out),
        out.constant(f"{name}/weight", weights),
        out.constant(f"{name}/bias", np.zeros(channels, np.float32)),
    )
    attributes = {**window.conv_attributes(), "depth_multiplier": 1}
    out.emit("DEPTHWISE_CONV_2D", operands, result, node.output_shapes[0], **attributes)


def _dilated_max(node: OnnxNode, window: Window, out: Builder) -> None:
    """Along each axis: places that are a dilation apart become neighbours by RESHAPE, and are pooled."""
    x, name = node.inputs[0], node.outputs[0]
    for side in range(2):
        x = _dilated_max_along(x, window, side, node.output_shapes[0][1 + side], name, out)
    out.reshape(x, node.output_shapes[0], name)


def _dilated_max_along(x: str, window: Window, side: int, result: int, name: str, out: Builder) -> str:
    axis, kernel, stride = 1 + side, window.kernel[side], window.stride[side]
    dilation, before = window.dilation[side], window.pads[side]
    size, reach = out.shape(x)[axis], (kernel - 1) * dilation
    groups = -(-max(result * stride + reach, before + size) // dilation)
    after = groups * dilation - before - size
    padded = out.surround(
        x, [(axis, before, after)], _phase_ends(dilation, name, out), out.unique(f"{name}/pad")
    )
    _, height, width, channels = out.shape(padded)
    apart = (1, groups, dilation * width, channels) if axis == 1 else (1, height, groups, dilation * channels)
    rows = out.reshape(padded, apart, out.unique(f"{name}/apart"))
    window_here = Window((kernel, 1) if axis == 1 else (1, kernel), (1, 1), (1, 1), NO_PADS, "VALID")
    fewer = tuple(n - kernel + 1 if at == axis else n for at, n in enumerate(apart))
    pooled = out.emit(
        "MAX_POOL_2D", (rows,), out.unique(f"{name}/pooled"), fewer, **window_here.pool_attributes()
    )
    places = (groups - kernel + 1) * dilation
    together = (1, places, width, channels) if axis == 1 else (1, height, places, channels)
    flat = out.reshape(pooled, together, out.unique(f"{name}/together"))
    return out.every(flat, axis, 0, stride, result, name)


def _phase_ends(dilation: int, name: str, out: Builder) -> Ends:
    """Ends that repeat the pixels a multiple of `dilation` away."""

    def ends(x: str, axis: int, before: int, after: int) -> Parts:
        size = out.shape(x)[axis]
        places = phases(size, before, after, dilation)
        first, last = places[:before], places[before + size :]
        return out.parts(x, axis, first, name), out.parts(x, axis, last, name)

    return ends
