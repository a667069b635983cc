"""Graph to the bytes of a .tflite file (TFLite flatbuffer schema v3).

The same graph gives the same bytes. Constants are stored inline, 16-byte aligned as the schema's
`force_align` asks. Operator versions are the oldest that are right, so that old runtimes load the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export.graph import Array, Attribute, Graph, Node, Quantization, Tensor
from export.op_versions import op_version
from pipeline.artifacts import AlpharhoError

SIGNATURE = "serving_default"


# fmt: off
OPTIONS = {  # the options table of every operator
    "ADD":                     "AddOptions",
    "AVERAGE_POOL_2D":         "Pool2DOptions",
    "BATCH_MATMUL":            "BatchMatMulOptions",
    "CONCATENATION":           "ConcatenationOptions",
    "CONV_2D":                 "Conv2DOptions",
    "DEPTHWISE_CONV_2D":       "DepthwiseConv2DOptions",
    "DEQUANTIZE":              "DequantizeOptions",
    "DIV":                     "DivOptions",
    "FULLY_CONNECTED":         "FullyConnectedOptions",
    "HARD_SWISH":              "HardSwishOptions",
    "LEAKY_RELU":              "LeakyReluOptions",
    "LOGISTIC":                None,
    "MAXIMUM":                 "MaximumMinimumOptions",
    "MAX_POOL_2D":             "Pool2DOptions",
    "MEAN":                    "ReducerOptions",
    "MINIMUM":                 "MaximumMinimumOptions",
    "MUL":                     "MulOptions",
    "PAD":                     "PadOptions",
    "PRELU":                   None,
    "QUANTIZE":                "QuantizeOptions",
    "RELU":                    None,
    "RELU6":                   None,
    "RESHAPE":                 "ReshapeOptions",
    "RESIZE_BILINEAR":         "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SLICE":                   "SliceOptions",
    "SOFTMAX":                 "SoftmaxOptions",
    "STRIDED_SLICE":           "StridedSliceOptions",
    "SUB":                     "SubOptions",
    "TANH":                    None,
    "TRANSPOSE":               "TransposeOptions",
    "TRANSPOSE_CONV":          "TransposeConvOptions",
}
# fmt: on

TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
}
NAMED_ATTRIBUTES = {"padding": schema.Padding, "fused_activation_function": schema.ActivationFunctionType}


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the generated schema is untyped
    """A buffer whose bytes start at a multiple of 16; the generated packer ignores `force_align`."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        content = self.data.tobytes()
        builder.StartVector(1, len(content), 16)
        builder.head = builder.Head() - len(content)
        builder.Bytes[builder.Head() : builder.Head() + len(content)] = content
        builder.vectorNumElems = len(content)
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


def write_tflite(
    graph: Graph, metadata: Mapping[str, bytes] | None = None, description: str = "alpharho"
) -> bytes:
    """Bytes of the .tflite file of `graph`, with a `serving_default` signature and metadata buffers."""
    graph.check()
    graph = _with_output_shapes(graph)
    buffers: list[Any] = [schema.BufferT()]  # buffer 0 is empty by convention
    index = {name: position for position, name in enumerate(graph.tensors)}
    model = schema.ModelT()
    model.version = 3
    model.description = description
    subgraph = schema.SubGraphT()
    subgraph.name = "main"
    subgraph.tensors = [_tensor(name, tensor, buffers) for name, tensor in graph.tensors.items()]
    subgraph.inputs = [index[name] for name in graph.inputs]
    subgraph.outputs = [index[name] for name in graph.outputs]
    codes: dict[tuple[str, int], int] = {}
    subgraph.operators = [_operator(node, graph, index, codes) for node in graph.nodes]
    model.subgraphs = [subgraph]
    model.operatorCodes = [_operator_code(op, version) for op, version in codes]
    model.signatureDefs = [_signature(graph, index)]
    model.metadata = [_metadata(name, content, buffers) for name, content in (metadata or {}).items()]
    model.buffers = buffers
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _with_output_shapes(graph: Graph) -> Graph:
    """TFLite stores a transposed convolution as (output shape, weights, input, bias)."""
    shapes = {
        f"{node.output}/output_shape": Tensor.constant(np.array(graph.tensors[node.output].shape, np.int32))
        for node in graph.nodes
        if node.op == "TRANSPOSE_CONV"
    }
    if not shapes:
        return graph
    nodes = [
        replace(node, inputs=(f"{node.output}/output_shape", node.inputs[1], node.inputs[0], node.inputs[2]))
        if node.op == "TRANSPOSE_CONV"
        else node
        for node in graph.nodes
    ]
    return graph.with_nodes(nodes, shapes)


def _tensor(name: str, tensor: Tensor, buffers: list[Any]) -> Any:
    stored = schema.TensorT()
    stored.name = name
    stored.shape = list(tensor.shape)
    stored.type = TENSOR_TYPES[tensor.dtype]
    stored.hasRank = True
    if tensor.quantization is not None:
        stored.quantization = _quantization(tensor.quantization)
    if tensor.data is not None:
        stored.buffer = _add_buffer(tensor.data, buffers)
    return stored


def _add_buffer(data: Array, buffers: list[Any]) -> int:
    buffers.append(_AlignedBuffer(data=np.ascontiguousarray(data)))
    return len(buffers) - 1


def _quantization(quantization: Quantization) -> Any:
    stored = schema.QuantizationParametersT()
    stored.scale = quantization.scale.astype(np.float32)
    stored.zeroPoint = quantization.zero_point.astype(np.int64)
    stored.quantizedDimension = quantization.axis or 0
    return stored


def _operator(node: Node, graph: Graph, index: Mapping[str, int], codes: dict[tuple[str, int], int]) -> Any:
    if node.op not in OPTIONS:
        raise AlpharhoError(f"{node.op} {node.output!r} has no TFLite form; known are {', '.join(OPTIONS)}")
    stored = schema.OperatorT()
    stored.opcodeIndex = codes.setdefault((node.op, op_version(node, graph)), len(codes))
    stored.inputs = [index[name] if name else -1 for name in node.inputs]
    stored.outputs = [index[name] for name in node.outputs]
    options = OPTIONS[node.op]
    if options is not None:
        stored.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        stored.builtinOptions = _options(getattr(schema, f"{options}T")(), node.attributes)
    return stored


def _options(table: Any, attributes: Mapping[str, Attribute]) -> Any:
    for name, value in attributes.items():
        first, *rest = name.split("_")
        key = first + "".join(part.capitalize() for part in rest)
        assert hasattr(table, key), f"{type(table).__name__} has no field {key}"
        setattr(
            table, key, getattr(NAMED_ATTRIBUTES[name], str(value)) if name in NAMED_ATTRIBUTES else value
        )
    return table


def _operator_code(op: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, op)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # the one byte that runtimes before 2020 read
    code.version = version
    return code


def _signature(graph: Graph, index: Mapping[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.inputs = [_tensor_map(name, index[name]) for name in graph.inputs]
    signature.outputs = [_tensor_map(name, index[name]) for name in graph.outputs]
    return signature


def _tensor_map(name: str, position: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name
    entry.tensorIndex = position
    return entry


def _metadata(name: str, content: bytes, buffers: list[Any]) -> Any:
    entry = schema.MetadataT()
    entry.name = name
    entry.buffer = _add_buffer(np.frombuffer(content, np.uint8), buffers)
    return entry
