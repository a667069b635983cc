"""Operators that sum over whole axes: products with matrices, means, softmax."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from export.builder import Builder
from export.graph import NO_ACTIVATION, Array
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
    """FULLY_CONNECTED where one operand is a constant matrix, BATCH_MATMUL of others."""
    left, right = (_matrix(node, position) for position in range(2))
    if right is not None:
        _fully_connected(node, out, right.T, np.zeros(right.shape[1], np.float32))
    elif left is not None:
        _left_product(node, out, left)
    else:
        _batch_product(node, out)


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


def _matrix(node: OnnxNode, position: int) -> Array | None:
    """The operand as float32 [rows, columns] if it is constant, and neither a vector nor several matrices."""
    constant = node.optional_constant(position)
    if constant is None or constant.ndim < 2 or math.prod(constant.shape[:-2]) != 1:
        return None
    if constant.ndim == len(node.output_shapes[0]) > len(node.axes):
        return None
    return constant.reshape(constant.shape[-2:]).astype(np.float32)


def _left_product(node: OnnxNode, out: Builder, matrix: Array) -> None:
    """MATRIX x as the transpose of x' MATRIX', so that the constant is the weight."""
    x, name = node.inputs[1], node.outputs[0]
    rank = len(out.shape(x))
    if rank < 3:
        raise node.unsupported("the right operand has no batch axis", "unsqueeze it to three axes")
    swap = [*range(rank - 2), rank - 1, rank - 2]
    turned = out.permute(x, swap, f"{name}/turned")
    product = out.unique(f"{name}/product")
    shape = (*out.shape(turned)[:-1], matrix.shape[0])
    turned_node = replace(node, inputs=(turned,), outputs=(product,), output_shapes=(shape,))
    _fully_connected(turned_node, out, matrix, np.zeros(matrix.shape[0], np.float32))
    back = out.constant(f"{name}/permutation", np.array(swap, np.int32))
    out.emit("TRANSPOSE", (product, back), name, node.output_shapes[0])


def _batch_product(node: OnnxNode, out: Builder) -> None:
    name, shape = node.outputs[0], node.output_shapes[0]
    shapes = [
        constant.shape if constant is not None else out.shape(value)
        for value, constant in zip(node.inputs, node.constants, strict=True)
    ]
    if min(map(len, shapes)) < 2 or shape[0] != 1 or len(shape) < 3:
        raise node.unsupported(
            f"it multiplies {list(shapes[0])} by {list(shapes[1])}, "
            "supported are matrices behind a batch axis of 1",
            "unsqueeze its operands",
        )
    operands = []
    for value, constant, source in zip(node.inputs, node.constants, shapes, strict=True):
        wide = (*(1,) * (len(shape) - len(source)), *source)
        if constant is not None:
            value = out.constant(value, constant.astype(np.float32).reshape(wide))
        elif wide != source:
            value = out.reshape(value, wide, out.unique(f"{name}/wide"))
        operands.append(value)
    out.emit("BATCH_MATMUL", operands, name, shape, adj_x=False, adj_y=False)
