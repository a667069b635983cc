"""The version of every operator is TensorFlow's own for the same node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from export.graph import Graph, Node, Quantization, Tensor
from export.op_versions import op_version

NONE = {"fused_activation_function": "NONE"}
CONV = {**NONE, "dilation_h_factor": 1, "dilation_w_factor": 1}
DILATED = {**CONV, "dilation_w_factor": 2}

Spec = tuple[tuple[int, ...], Any, Sequence[float]]  # shape, type, scales
IMAGE: Spec = ((1, 9, 7, 6), np.float32, ())
IMAGE8: Spec = ((1, 9, 7, 6), np.int8, (0.5,))
WIDE: Spec = ((1, 9, 7, 3, 2), np.float32, ())
WIDE8: Spec = ((1, 9, 7, 3, 2), np.int8, (0.5,))
WIDEST: Spec = ((1, 3, 3, 7, 3, 2), np.float32, ())


def weights(dtype: Any, *scales: float, channels: int = 6) -> Spec:
    return ((4, 3, 3, channels), dtype, scales)


# fmt: off
NODES: tuple[tuple[str, dict[str, Any], Sequence[Spec], Spec, int], ...] = (
    ("ADD", NONE, (IMAGE, IMAGE), IMAGE, 1),
    ("ADD", NONE, (IMAGE8, IMAGE8), IMAGE8, 2),
    ("BATCH_MATMUL", {}, (IMAGE, IMAGE), IMAGE, 1),
    ("BATCH_MATMUL", {}, (IMAGE8, IMAGE8), IMAGE8, 2),
    ("CONCATENATION", NONE, (IMAGE8, IMAGE8), IMAGE8, 2),
    ("CONV_2D", CONV, (IMAGE, weights(np.float32)), IMAGE, 1),
    ("CONV_2D", DILATED, (IMAGE, weights(np.float32)), IMAGE, 1),
    ("CONV_2D", CONV, (IMAGE8, weights(np.int8, 1, 1)), IMAGE8, 3),
    ("CONV_2D", CONV, (IMAGE, weights(np.int8, 1)), IMAGE, 2),
    ("CONV_2D", CONV, (IMAGE, weights(np.int8, 1, 1)), IMAGE, 5),
    ("CONV_2D", CONV, (IMAGE8, weights(np.int8, 1, 1, channels=3)), IMAGE8, 6),
    ("DEPTHWISE_CONV_2D", CONV, (IMAGE, weights(np.float32)), IMAGE, 1),
    ("DEPTHWISE_CONV_2D", DILATED, (IMAGE, weights(np.float32)), IMAGE, 2),
    ("DEPTHWISE_CONV_2D", DILATED, (IMAGE8, weights(np.int8, 1, 1)), IMAGE8, 3),
    ("DEPTHWISE_CONV_2D", CONV, (IMAGE, weights(np.int8, 1)), IMAGE, 4),
    ("DEPTHWISE_CONV_2D", CONV, (IMAGE, weights(np.int8, 1, 1)), IMAGE, 6),
    ("DEQUANTIZE", {}, (((1, 5), np.float16, ()),), IMAGE, 3),
    ("DEQUANTIZE", {}, (IMAGE8,), IMAGE, 2),
    ("DEQUANTIZE", {}, (((1, 5), np.uint8, (1,)),), IMAGE, 1),
    ("DIV", NONE, (IMAGE, IMAGE), IMAGE, 1),
    ("DIV", NONE, (WIDE, ((2,), np.float32, ())), WIDE, 2),
    ("FULLY_CONNECTED", NONE, (IMAGE, ((4, 6), np.float32, ())), IMAGE, 1),
    ("FULLY_CONNECTED", {**NONE, "keep_num_dims": True}, (IMAGE, ((4, 6), np.float32, ())), IMAGE, 5),
    ("FULLY_CONNECTED", NONE, (IMAGE, ((4, 6), np.int8, (1,))), IMAGE, 3),
    ("FULLY_CONNECTED", NONE, (IMAGE8, ((4, 6), np.int8, (1, 1))), IMAGE8, 4),
    ("FULLY_CONNECTED", NONE, (IMAGE, ((4, 6), np.int8, (1, 1))), IMAGE, 12),
    ("HARD_SWISH", {}, (IMAGE,), IMAGE, 1),
    ("LEAKY_RELU", {"alpha": 0.1}, (IMAGE,), IMAGE, 1),
    ("LOGISTIC", {}, (IMAGE8,), IMAGE8, 2),
    ("MAXIMUM", {}, (WIDE, ((2,), np.float32, ())), WIDE, 3),
    ("MEAN", {"keep_dims": True}, (IMAGE8,), IMAGE8, 2),
    ("MUL", NONE, (IMAGE, IMAGE), IMAGE, 1),
    ("MUL", NONE, (IMAGE8, IMAGE8), ((1,), np.int8, (0.5,)), 2),
    ("MUL", NONE, (IMAGE8, IMAGE8), ((1,), np.int8, (0.25,)), 3),
    ("PAD", {}, (IMAGE8,), IMAGE8, 2),
    ("PAD", {}, (WIDE8,), WIDE8, 4),
    ("PRELU", {}, (IMAGE,), IMAGE, 1),
    ("QUANTIZE", {}, (IMAGE,), IMAGE8, 1),
    ("QUANTIZE", {}, (IMAGE8,), IMAGE8, 2),
    ("RESHAPE", {}, (IMAGE8,), IMAGE8, 1),
    ("RESIZE_BILINEAR", {"align_corners": True, "half_pixel_centers": False}, (IMAGE8,), IMAGE8, 2),
    ("RESIZE_BILINEAR", {"align_corners": False, "half_pixel_centers": True}, (IMAGE,), IMAGE, 3),
    ("RESIZE_NEAREST_NEIGHBOR", {"align_corners": True, "half_pixel_centers": False}, (IMAGE,), IMAGE, 3),
    ("SLICE", {}, (IMAGE8,), IMAGE8, 2),
    ("SLICE", {}, (WIDE8,), WIDE8, 5),
    ("SOFTMAX", {"beta": 1.0}, (IMAGE,), IMAGE, 1),
    ("STRIDED_SLICE", {}, (WIDE,), WIDE, 4),
    ("SUB", NONE, (WIDE, ((2,), np.float32, ())), WIDE, 3),
    ("TANH", {}, (IMAGE,), IMAGE, 1),
    ("TRANSPOSE", {}, (IMAGE8,), IMAGE8, 2),
    ("TRANSPOSE", {}, (WIDE8,), WIDE8, 4),
    ("TRANSPOSE", {}, (WIDEST,), WIDEST, 6),
    ("TRANSPOSE_CONV", NONE, (IMAGE8, weights(np.int8, 1)), IMAGE8, 3),
    ("TRANSPOSE_CONV", {"fused_activation_function": "RELU"}, (IMAGE, weights(np.float32)), IMAGE, 4),
)
# fmt: on


def tensor(spec: Spec) -> Tensor:
    shape, dtype, scales = spec
    zeros = np.zeros(len(scales), np.int64)
    grid = (
        Quantization(np.array(scales, np.float32), zeros, 0 if len(scales) > 1 else None) if scales else None
    )
    return Tensor(shape, np.dtype(dtype), quantization=grid)


@pytest.mark.parametrize(("op", "attributes", "operands", "result", "version"), NODES)
def test_a_node_has_the_oldest_version_that_is_right(
    op: str, attributes: dict[str, Any], operands: Sequence[Spec], result: Spec, version: int
) -> None:
    names = tuple(f"operand_{position}" for position in range(len(operands)))
    tensors = {**dict(zip(names, map(tensor, operands), strict=True)), "y": tensor(result)}
    assert op_version(Node(op, names, ("y",), attributes), Graph(tensors, (), (), ())) == version
