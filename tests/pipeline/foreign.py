"""Small .tflite files of kinds that the project's own writer does not make, put together table by table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Shape = Sequence[int]
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(bool): schema.TensorType.BOOL,
}


@dataclass(kw_only=True)
class Piece:
    """A tensor: computed with a shape, or constant with data. `signature` has -1 for a dynamic size."""

    shape: Shape = ()
    data: NDArray[Any] | None = None
    dtype: Any = np.float32
    scales: Sequence[float] = ()
    signature: Shape = ()
    same_buffer_as: str = ""
    type_number: int | None = None


@dataclass(kw_only=True)
class Step:
    """An operator by builtin name, builtin number, or a custom name that no builtin has."""

    op: str | int
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: Any = None


@dataclass(kw_only=True)
class Part:
    """A subgraph."""

    pieces: Mapping[str, Piece]
    steps: Sequence[Step]
    inputs: Sequence[str]
    outputs: Sequence[str]
    name: str = "main"


@dataclass
class Maker:
    """Collects what the subgraphs of a file share."""

    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    codes: list[Any] = field(default_factory=list)

    def tensor(self, name: str, piece: Piece, places: dict[str, int]) -> Any:
        """The table of a tensor, its data in a buffer."""
        stored = schema.TensorT()
        shape = piece.shape if piece.data is None else piece.data.shape
        dtype = np.dtype(piece.dtype if piece.data is None else piece.data.dtype)
        stored.name, stored.shape = name, list(shape)
        stored.shapeSignature = list(piece.signature) or None
        stored.type = TYPES[dtype] if piece.type_number is None else piece.type_number
        if piece.scales:
            stored.quantization = schema.QuantizationParametersT()
            stored.quantization.scale = np.array(piece.scales, np.float32)
            stored.quantization.zeroPoint = np.zeros(len(piece.scales), np.int64)
        if piece.data is not None and not piece.same_buffer_as:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(piece.data.tobytes(), np.uint8)
            self.buffers.append(buffer)
            places[name] = len(self.buffers) - 1
        stored.buffer = places.get(piece.same_buffer_as or name, 0)
        return stored

    def code(self, op: str | int) -> int:
        """The position of the operator's code."""
        stored = schema.OperatorCodeT()
        builtin = getattr(schema.BuiltinOperator, str(op), None) if isinstance(op, str) else op
        stored.builtinCode = schema.BuiltinOperator.CUSTOM if builtin is None else builtin
        stored.deprecatedBuiltinCode = min(stored.builtinCode, 127)
        stored.customCode = op if builtin is None else None
        stored.version = 1
        self.codes.append(stored)
        return len(self.codes) - 1

    def subgraph(self, part: Part) -> Any:
        """The table of a subgraph."""
        index = {name: place for place, name in enumerate(part.pieces)}
        places: dict[str, int] = {}
        stored = schema.SubGraphT()
        stored.name = part.name
        stored.tensors = [self.tensor(name, piece, places) for name, piece in part.pieces.items()]
        stored.inputs = [index[name] for name in part.inputs]
        stored.outputs = [index[name] for name in part.outputs]
        stored.operators = [self.operator(step, index) for step in part.steps]
        return stored

    def operator(self, step: Step, index: Mapping[str, int]) -> Any:
        """The table of an operator."""
        stored = schema.OperatorT()
        stored.opcodeIndex = self.code(step.op)
        stored.inputs = [index[name] if name else -1 for name in step.inputs]
        stored.outputs = [index[name] for name in step.outputs]
        if step.options is not None:
            kind = type(step.options).__name__.removesuffix("T")
            stored.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            stored.builtinOptions = step.options
        return stored


def model(*parts: Part, extra_buffers: Sequence[Any] = ()) -> Any:
    """A model of these subgraphs, as the schema's objects; the extra buffers are used by no tensor."""
    maker = Maker()
    stored = schema.ModelT()
    stored.version = 3
    stored.subgraphs = [maker.subgraph(part) for part in parts]
    stored.operatorCodes = maker.codes
    stored.buffers = [*maker.buffers, *extra_buffers]
    return stored


def packed(stored: Any) -> bytes:
    """The bytes of a file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(stored.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_constants_behind(stored: Any) -> bytes:
    """The file with its constants behind the flatbuffer, as files beyond 2 GB have them."""
    contents = [None if buffer.data is None else bytes(buffer.data) for buffer in stored.buffers]
    for buffer, content in zip(stored.buffers, contents, strict=True):
        if content is not None:
            buffer.data, buffer.offset, buffer.size = None, 2, len(content)
    start = len(packed(stored))
    for buffer, content in zip(stored.buffers, contents, strict=True):
        if content is not None:
            buffer.offset = start
            start += len(content)
    return packed(stored) + b"".join(content for content in contents if content is not None)
