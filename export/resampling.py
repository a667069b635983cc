"""Resizing as a product with a matrix: what ONNX Runtime makes of unit images with the node's attributes.

It tells which pixels a Resize reads, and computes those that no operator of TFLite does: cubic, antialiased.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.builder import Builder
from export.graph import NO_ACTIVATION
from export.registry import OnnxNode
from export.runtime import load_plain_session

TO_NEXT_AXIS = (0, 2, 3, 1)
"""Brings height behind the channels, then width behind them, then both back before them."""


def interpolated(node: OnnxNode, out: Builder) -> None:
    """Resize NHWC height and width, each as the last axis of a FULLY_CONNECTED without a bias."""
    x, name, target = node.inputs[0], node.outputs[0], node.output_shapes[0]
    for axis in (2, 3):
        size, result = out.shape(x)[1], target[axis - 1]
        matrix = resize_matrix(node, axis, size, result)
        x = out.permute(x, TO_NEXT_AXIS, f"{name}/axis_{axis}_last")
        weight = out.constant(f"{name}/along_{axis}", matrix)
        bias = out.constant(f"{name}/zero", np.zeros(result, np.float32))
        shape = (*out.shape(x)[:3], result)
        output = out.unique(f"{name}/axis_{axis}")
        x = out.emit("FULLY_CONNECTED", (x, weight, bias), output, shape, keep_num_dims=True, **NO_ACTIVATION)
    order = out.constant(f"{name}/permutation", np.array(TO_NEXT_AXIS, np.int32))
    out.emit("TRANSPOSE", (x, order), name, target)


def resize_matrix(node: OnnxNode, axis: int, size: int, result: int) -> NDArray[np.float32]:
    """What a Resize does along one ONNX axis (2 or 3) of `size` pixels, float32 [result, size]."""
    shape = [size, 1, size if axis == 2 else 1, size if axis == 3 else 1]
    model = _along(node, axis, shape, result)
    rows = load_plain_session(model.SerializeToString()).run(
        None, {"x": np.eye(size, dtype=np.float32).reshape(shape)}
    )[0]
    return np.ascontiguousarray(np.reshape(rows, (size, result)).T)


def _along(node: OnnxNode, axis: int, shape: list[int], result: int) -> onnx.ModelProto:
    """A model of the node alone, on `size` images of one channel, which it resizes along `axis`."""
    given = node.optional_constant(2 if node.opset > 10 else 1)
    scales, sizes = np.zeros(0, np.float32), np.zeros(0, np.int64)
    if given is not None and given.size:
        axes = [a % len(node.axes) for a in node.attributes.get("axes", range(len(node.axes)))]
        scales = np.ones(4, np.float32)
        scales[axis] = given[axes.index(axis)] if axis in axes else 1.0
    else:
        sizes = np.array([result if other == axis else n for other, n in enumerate(shape)], np.int64)
    operands = {"roi": np.zeros(0, np.float32), "scales": scales, "sizes": sizes}
    names = ["scales"] if node.opset == 10 else ["roi", "scales", "sizes"][: 3 if sizes.size else 2]
    attributes = {key: value for key, value in node.attributes.items() if key != "axes"}
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", *names], ["y"], **attributes)],
        "axis",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_value_info("y", helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(np.asarray(operands[name]), name) for name in names],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)], ir_version=8)
