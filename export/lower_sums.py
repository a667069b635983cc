"""Operators that sum over whole axes: products with matrices, means, softmax."""

from __future__ import annotations

import math

import numpy as np

from export.builder import NO_ACTIVATION, Builder
from export.graph import Array
from export.registry import Layout, OnnxNode, Rules

RULES = Rules()


@RULES.lowers("Gemm", Layout.BARRIER)
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


@RULES.lowers("GlobalAveragePool", Layout.ANCHOR)
def lower_global_average_pool(node: OnnxNode, out: Builder) -> None:
    """MEAN over height and width, which the delegate takes in int8 (AVERAGE_POOL_2D it does not)."""
    rank = len(node.output_shapes[0])
    spatial = out.constant(f"{node.outputs[0]}/axes", np.arange(1, rank - 1, dtype=np.int32))
    out.emit("MEAN", (node.inputs[0], spatial), node.outputs[0], node.output_shapes[0], keep_dims=True)


@RULES.lowers("MatMul", Layout.BARRIER)
def lower_matmul(node: OnnxNode, out: Builder) -> None:
    """FULLY_CONNECTED where the right operand is a constant matrix."""
    weights = node.constant(1, "the right operand")
    if weights.ndim != 2:
        raise node.unsupported(f"the right operand has {weights.ndim} dimensions, only a matrix is supported")
    _fully_connected(node, out, weights.T, np.zeros(weights.shape[1], np.float32))


@RULES.lowers("ReduceMean", Layout.REMAP)
def lower_reduce_mean(node: OnnxNode, out: Builder) -> None:
    """MEAN over the renumbered axes; axes as an input or (opset < 18) an attribute."""
    axes = node.integers(1, "axes") or range(len(node.axes))
    if node.attributes.get("noop_with_empty_axes", 0) and not node.integers(1, "axes"):
        out.reshape(node.inputs[0], node.output_shapes[0], node.outputs[0])
        return
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
    out.reshape(out.permute(mean, node.axes, f"{name}/axes_in_order"), shape, name)


@RULES.lowers("Softmax", Layout.REMAP)
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
    moved = out.permute(x, order, f"{name}/axis_last")
    result = out.emit("SOFTMAX", (moved,), out.unique(f"{name}/softmax"), out.shape(moved), beta=1.0)
    back = out.constant(f"{name}/permutation", np.argsort(order).astype(np.int32))
    out.emit("TRANSPOSE", (result, back), name, shape)


def _fully_connected(node: OnnxNode, out: Builder, weights: Array, bias: Array) -> None:
    name = node.outputs[0]
    operands = (node.inputs[0], out.constant(f"{name}/weight", weights), out.constant(f"{name}/bias", bias))
    shape = node.output_shapes[0]
    keeps = {"keep_num_dims": True} if len(shape) > 2 else {}
    out.emit("FULLY_CONNECTED", operands, name, shape, **NO_ACTIVATION, **keeps)
