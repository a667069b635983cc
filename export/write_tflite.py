"""Graph to the bytes of a .tflite file (TFLite flatbuffer schema v3).

The same graph gives the same bytes. Constants are stored inline, 16-byte aligned as the schema's
`force_align` asks. Operator versions are the oldest that describe the operator, so that old runtimes load the
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export.graph import Array, Attribute, Graph, Node, Quantization, Tensor
from pipeline.artifacts import AlpharhoError

SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class OpFormat:
    """How one operator is stored: its options table and its version with float and with 8-bit tensors."""

    options: str | None
    float_version: int = 1
    int8_version: int = 2


# fmt: off
OP_FORMATS = {
    "ADD":                     OpFormat("AddOptions"),
    "AVERAGE_POOL_2D":         OpFormat("Pool2DOptions"),
    "CONCATENATION":           OpFormat("ConcatenationOptions"),
    "CONV_2D":                 OpFormat("Conv2DOptions", int8_version=3),
    "DEPTHWISE_CONV_2D":       OpFormat("DepthwiseConv2DOptions", int8_version=3),
    "DEQUANTIZE":              OpFormat("DequantizeOptions"),
    "DIV":                     OpFormat("DivOptions"),
    "FULLY_CONNECTED":         OpFormat("FullyConnectedOptions", int8_version=4),
    "HARD_SWISH":              OpFormat("HardSwishOptions", int8_version=1),
    "LEAKY_RELU":              OpFormat("LeakyReluOptions"),
    "LOGISTIC":                OpFormat(None),
    "MAXIMUM":                 OpFormat("MaximumMinimumOptions"),
    "MAX_POOL_2D":             OpFormat("Pool2DOptions"),
    "MEAN":                    OpFormat("ReducerOptions"),
    "MINIMUM":                 OpFormat("MaximumMinimumOptions"),
    "MUL":                     OpFormat("MulOptions"),
    "PAD":                     OpFormat("PadOptions"),
    "PRELU":                   OpFormat(None, int8_version=1),
    "QUANTIZE":                OpFormat("QuantizeOptions"),
    "RELU":                    OpFormat(None),
    "RELU6":                   OpFormat(None),
    "RESHAPE":                 OpFormat("ReshapeOptions", int8_version=1),
    "RESIZE_BILINEAR":         OpFormat("ResizeBilinearOptions"),
    "RESIZE_NEAREST_NEIGHBOR": OpFormat("ResizeNearestNeighborOptions"),
    "SLICE":                   OpFormat("SliceOptions"),
    "SOFTMAX":                 OpFormat("SoftmaxOptions"),
    "STRIDED_SLICE":           OpFormat("StridedSliceOptions"),
    "SUB":                     OpFormat("SubOptions"),
    "TANH":                    OpFormat(None),
    "TRANSPOSE":               OpFormat("TransposeOptions"),
    "TRANSPOSE_CONV":          OpFormat("TransposeConvOptions", float_version=3, int8_version=3),
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
EIGHT_BIT = (np.dtype(np.int8), np.dtype(np.uint8))
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


def op_version(node: Node, graph: Graph) -> int:
    """The oldest version of the operator that fits this node's types and attributes (`op_version.cc`)."""
    form = OP_FORMATS[node.op]
    dtypes = [graph.tensors[name].dtype for name in (*node.inputs, *node.outputs) if name]
    if node.op == "DEQUANTIZE":
        return {np.dtype(np.float16): 3, np.dtype(np.uint8): 1}.get(dtypes[0], 2)
    if node.op == "QUANTIZE":
        return 2 if dtypes[0] in EIGHT_BIT else 1
    if node.op == "FULLY_CONNECTED" and _multiplies_floats_per_channel(node, graph):
        return 12  # runtimes before it ignore all scales but the first, and answer wrongly
    if node.op == "FULLY_CONNECTED" and node.attributes.get("keep_num_dims", False):
        return 5
    if node.op == "TRANSPOSE_CONV" and node.attributes["fused_activation_function"] != "NONE":
        return 4
    if node.op.startswith("RESIZE_") and node.attributes["half_pixel_centers"]:
        return 3
    if any(dtype in EIGHT_BIT for dtype in dtypes):
        return form.int8_version
    dilated = any(node.attributes.get(f"dilation_{side}_factor", 1) != 1 for side in "hw")
    return 2 if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D") and dilated else form.float_version


def _multiplies_floats_per_channel(node: Node, graph: Graph) -> bool:
    source, weights = (graph.tensors[name] for name in node.inputs[:2])
    per_channel = weights.quantization is not None and len(weights.quantization.scale) > 1
    return source.dtype == np.float32 and weights.dtype == np.int8 and per_channel


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
    if node.op not in OP_FORMATS:
        raise AlpharhoError(
            f"{node.op} {node.output!r} has no TFLite form; known are {', '.join(OP_FORMATS)}"
        )
    stored = schema.OperatorT()
    stored.opcodeIndex = codes.setdefault((node.op, op_version(node, graph)), len(codes))
    stored.inputs = [index[name] if name else -1 for name in node.inputs]
    stored.outputs = [index[name] for name in node.outputs]
    options = OP_FORMATS[node.op].options
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
