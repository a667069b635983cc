"""Operators that look at one element, or one channel, at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from export.builder import Builder
from export.graph import NO_ACTIVATION
from export.registry import Layout, OnnxNode, Rules, renamed

LARGEST_FLOAT = float(np.finfo(np.float32).max)
RULES = Rules()


RULES.lowers("Add", Layout.FOLLOW)(renamed("ADD", **NO_ACTIVATION))


@RULES.lowers("BatchNormalization", Layout.ANCHOR)
def lower_batch_norm(node: OnnxNode, out: Builder) -> None:
    """MUL and ADD per channel, folded into the convolution before it where there is one."""
    if node.attributes.get("training_mode", 0):
        raise node.unsupported("training_mode=1 takes statistics of the images", "export in evaluation mode")
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


@RULES.lowers("Clip", Layout.FOLLOW)
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


RULES.lowers("Div", Layout.FOLLOW)(renamed("DIV", **NO_ACTIVATION))


@RULES.lowers("HardSigmoid", Layout.FOLLOW)
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


RULES.lowers("HardSwish", Layout.FOLLOW)(renamed("HARD_SWISH"))


@RULES.lowers("LeakyRelu", Layout.FOLLOW)
def lower_leaky_relu(node: OnnxNode, out: Builder) -> None:
    """LEAKY_RELU."""
    alpha = float(node.attributes.get("alpha", 0.01))
    out.emit("LEAKY_RELU", node.inputs, node.outputs[0], node.output_shapes[0], alpha=alpha)


@RULES.lowers("Max", Layout.FOLLOW)
def lower_max(node: OnnxNode, out: Builder) -> None:
    """MAXIMUM, a chain of them for more than two operands."""
    _variadic("MAXIMUM", node, out)


@RULES.lowers("Min", Layout.FOLLOW)
def lower_min(node: OnnxNode, out: Builder) -> None:
    """MINIMUM, a chain of them for more than two operands."""
    _variadic("MINIMUM", node, out)


RULES.lowers("Mul", Layout.FOLLOW)(renamed("MUL", **NO_ACTIVATION))


@RULES.lowers("PRelu", Layout.FOLLOW)
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


RULES.lowers("Relu", Layout.FOLLOW)(renamed("RELU"))

RULES.lowers("Sigmoid", Layout.FOLLOW)(renamed("LOGISTIC"))

RULES.lowers("Sub", Layout.FOLLOW)(renamed("SUB", **NO_ACTIVATION))

RULES.lowers("Tanh", Layout.FOLLOW)(renamed("TANH"))


def _chain(
    x: str, steps: Sequence[tuple[str, str, float]], name: str, shape: Sequence[int], out: Builder
) -> None:
    """`x` through operators with one constant each; without any it is passed on."""
    for position, (op, key, value) in enumerate(steps):
        last = position == len(steps) - 1
        operand = out.constant(f"{name}/{key}", np.float32(value).reshape(1))
        x = out.emit(op, (x, operand), name if last else out.unique(f"{name}/to_{key}"), shape)
    if not steps:
        out.reshape(x, shape, name)


def _variadic(op: str, node: OnnxNode, out: Builder) -> None:
    name, shape, x = node.outputs[0], node.output_shapes[0], node.inputs[0]
    if len(node.inputs) == 1:
        out.reshape(x, shape, name)
        return
    for position, other in enumerate(node.inputs[1:], start=2):
        last = position == len(node.inputs)
        partial = np.broadcast_shapes(out.shape(x), out.shape(other))
        x = out.emit(op, (x, other), name if last else out.unique(f"{name}/first_{position}"), partial)
