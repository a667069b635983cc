"""Small ONNX graphs for tests: one operator each, every dimension a different size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 6, 9, 7)  # N, C, H, W
OPSET = 20

Arrays = Mapping[str, Any]  # arrays, or single numbers


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Arrays | None = None,
    shape: Sequence[int] = SHAPE,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A checked model from `x` to `y`; the output's shape is left to shape inference."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_value_info("y", helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.checker.check_model(model)
    return model


def node(op: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    """An ONNX node, by default from `x` to `y`."""
    return helper.make_node(op, list(inputs or ("x",)), [output], name=f"{op.lower()}_{output}", **attributes)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal values of the shape."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
