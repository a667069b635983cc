"""TFLite files of one convolution, written with the runtime's own schema: the models of these tests."""

from __future__ import annotations

from typing import NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Quantization = tuple[list[float], list[int], int]  # scales, zero points, quantized dimension

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
}


class _Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.generic] | None = None
    quantization: Quantization | None = None


def conv_model(size: int = 8, channels: int = 16, *, seed: int = 0, signature: tuple[int, ...] = ()) -> bytes:
    """Float32 3x3 SAME convolution with ReLU6, NHWC [1, size, size, channels] to the same shape."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.2, (channels, 3, 3, channels)).astype(np.float32)
    shape = (1, size, size, channels)
    tensors = [
        _Tensor("input", "float32", shape),
        _Tensor("weights", "float32", weights.shape, weights),
        _Tensor("bias", "float32", (channels,), np.zeros(channels, np.float32)),
        _Tensor("output", "float32", shape),
    ]
    return _pack(tensors, signature)


def int8_conv_model(size: int = 8, channels: int = 16, *, seed: int = 0) -> bytes:
    """The int8 twin of `conv_model`: per-channel weights, zero point 0."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (channels, 3, 3, channels), dtype=np.int8)
    shape = (1, size, size, channels)
    weight_scales = [0.002] * channels
    tensors = [
        _Tensor("input", "int8", shape, None, ([0.02], [0], 0)),
        _Tensor("weights", "int8", weights.shape, weights, (weight_scales, [0] * channels, 0)),
        _Tensor(
            "bias",
            "int32",
            (channels,),
            np.zeros(channels, np.int32),
            ([0.02 * scale for scale in weight_scales], [0] * channels, 0),
        ),
        _Tensor("output", "int8", shape, None, ([6 / 255], [-128], 0)),
    ]
    return _pack(tensors, ())


def with_float16(model: bytes) -> bytes:
    """The same file with the metadata that switches XNNPACK to half-precision arithmetic."""
    packed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(b"fp16accfp16", np.uint8)
    packed.buffers.append(buffer)
    metadata = schema.MetadataT()
    metadata.name, metadata.buffer = "reduced_precision_support", len(packed.buffers) - 1
    packed.metadata = [metadata]
    return _bytes(packed)


def _pack(tensors: list[_Tensor], signature: tuple[int, ...]) -> bytes:
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], [graph]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version = 3
    model.operatorCodes = [code]
    graph.tensors = [_tensor(model, tensor) for tensor in tensors]
    if signature:
        graph.tensors[0].shapeSignature = np.array(signature, np.int32)
    graph.inputs, graph.outputs, graph.operators = [0], [3], [_convolution()]
    return _bytes(model)


def _tensor(model: schema.ModelT, tensor: _Tensor) -> schema.TensorT:
    made = schema.TensorT()
    made.name, made.shape, made.type = tensor.name, list(tensor.shape), TYPES[tensor.dtype]
    made.buffer = 0
    if tensor.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(tensor.data.tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.buffer = len(model.buffers) - 1
    if tensor.quantization is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint, dimension = tensor.quantization
        made.quantization.quantizedDimension = dimension
    return made


def _convolution() -> schema.OperatorT:
    op, options = schema.OperatorT(), schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.SAME, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1, 2], [3]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.Conv2DOptions, options
    return op


def _bytes(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
