"""What stands in a .tflite file about its inputs and outputs, read here for tools that do not say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from device_bench.device import DeviceError, ModelInfo, ResultClass, TensorInfo
from pipeline.artifacts import AlpharhoError, sha256_of

_DTYPES = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}


def describe(path: Path) -> ModelInfo:
    """The file's record, shapes as a runtime without further wishes allocates them.

    Raises AlpharhoError when it cannot be read, DeviceError(model-unsupported) when it is no TFLite file or
    has an input whose size is unknown beyond the batch.
    """
    try:
        content = path.read_bytes()
        digest = sha256_of(path)
    except OSError as error:
        raise AlpharhoError(f"{path}: {error.strerror}; give the path of a .tflite file") from error
    inputs, outputs = _tensors(content, path.name)
    return ModelInfo(name=path.name, sha256=digest, size_bytes=len(content), inputs=inputs, outputs=outputs)


def _tensors(content: bytes, name: str) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    if content[4:8] != b"TFL3":
        raise DeviceError(ResultClass.MODEL_UNSUPPORTED, f"{name}: not a TFLite file", remedy=_EXPORT)
    try:
        graph = schema.Model.GetRootAs(content).Subgraphs(0)
        inputs = [graph.Tensors(graph.Inputs(index)) for index in range(graph.InputsLength())]
        outputs = [graph.Tensors(graph.Outputs(index)) for index in range(graph.OutputsLength())]
        return tuple(_checked(item) for item in inputs), tuple(_info(item) for item in outputs)
    # What a flatbuffer accessor raises when an offset in the file points anywhere.
    except (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        found = f"{name}: a damaged TFLite file ({type(error).__name__})"
        raise DeviceError(ResultClass.MODEL_UNSUPPORTED, found, remedy=_EXPORT) from error


_EXPORT = "give a file that export wrote"


def _checked(tensor: Any) -> TensorInfo:
    """-1 outside the batch allocates as 1 and gives absurdly fast runs in silence."""
    info = _info(tensor)
    signature = [tensor.ShapeSignature(axis) for axis in range(tensor.ShapeSignatureLength())]
    if -1 in signature[1:]:
        found = f"input {info.name!r} has shape {signature}; only the batch may be -1"
        raise DeviceError(ResultClass.MODEL_UNSUPPORTED, found)
    return info


def _info(tensor: Any) -> TensorInfo:
    return TensorInfo(
        name=tensor.Name().decode(errors="replace"),
        dtype=_DTYPES[tensor.Type()],
        shape=tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength())),
    )
