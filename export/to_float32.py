"""An ONNX model as one that computes in float32 throughout, whatever kind of float it was stored in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

OTHER_FLOATS = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16, bfloat16 and float64 values as float32; its own functions are written out.

    The same model if there is nothing to change, else a changed copy.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    kinds = {tensor.data_type for tensor in _tensors(graph)}
    kinds |= {value.type.tensor_type.elem_type for value in _values(graph)}
    kinds |= {attribute.i for attribute in _cast_targets(graph)}
    if not kinds & OTHER_FLOATS:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in _tensors(changed.graph):
        if tensor.data_type in OTHER_FLOATS:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    for value in _values(changed.graph):
        if value.type.tensor_type.elem_type in OTHER_FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for attribute in _cast_targets(changed.graph):
        if attribute.i in OTHER_FLOATS:
            attribute.i = TensorProto.FLOAT
    return changed


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)


def _cast_targets(graph: onnx.GraphProto) -> Iterable[onnx.AttributeProto]:
    for node in graph.node:
        if node.op_type == "Cast":
            yield from (attribute for attribute in node.attribute if attribute.name == "to")
