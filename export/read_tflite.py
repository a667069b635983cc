"""Reads what a .tflite file says of itself, without running it.

The file may be foreign or damaged: every vector is measured before it is walked, and the walk as a whole is
bounded, so that no content makes reading hang.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export.metadata import ENTRY, described
from pipeline.artifacts import AlpharhoError

IDENTIFIER = b"TFL3"
DAMAGE = (
    struct.error,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    MemoryError,
)
MOST_ELEMENTS = 1_000_000  # of all vectors walked; a file of 10,000 operators has fewer
INT8_LIMIT = 127


@dataclass(frozen=True, slots=True)
class TfliteTensor:
    """A tensor of the file; `scales` is empty where it is not quantised.

    `constant_bytes` is 0 for a computed tensor, `is_dynamic` tells a size that is only known when it runs,
    `saturated` is the largest share of a channel's int8 values that stand at the limit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    is_dynamic: bool = False
    constant_bytes: int = 0
    saturated: float = 0.0


@dataclass(frozen=True, slots=True)
class TfliteOperator:
    """An operator by its builtin name; inputs and outputs are indices of tensors, -1 an absent one."""

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """The first subgraph of a .tflite file, its signatures and its metadata."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    signatures: tuple[str, ...]
    metadata: tuple[str, ...]
    bytes: int
    constant_bytes: int
    about: tuple[str, ...] = ()
    metadata_bytes: int = 0
    attached: tuple[str, ...] = ()
    attached_bytes: int = 0

    def op_counts(self) -> dict[str, int]:
        """How often each operator occurs, by name."""
        return dict(sorted(Counter(operator.name for operator in self.operators).items()))


def read_tflite(path: Path) -> TfliteFile:
    """Read the file; AlpharhoError if it is missing, not TFLite, or damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AlpharhoError(f"{path}: {error.strerror}; give a .tflite file") from error
    if content[4:8] != IDENTIFIER:
        raise AlpharhoError(f"{path}: not a TFLite file (no {IDENTIFIER.decode()} mark); give a .tflite file")
    try:
        return _Reader(content).read()
    except DAMAGE as error:
        raise AlpharhoError(
            f"{path}: damaged TFLite file ({type(error).__name__}: {error}); get it again"
        ) from error


class _Reader:
    """Walks one file's tables, counting what it walks."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.left = MOST_ELEMENTS
        self.model = schema.Model.GetRootAs(content, 0)
        self.types, self.ops = _names(schema.TensorType), _names(schema.BuiltinOperator)
        self.data_bytes: list[int] = []

    def read(self) -> TfliteFile:
        model = self.model
        self.data_bytes = [self._size(buffer) for buffer in self._each(model.BuffersLength, model.Buffers)]
        subgraph = self._first(model.SubgraphsLength, model.Subgraphs, "subgraph")
        codes = [self._code(code) for code in self._each(model.OperatorCodesLength, model.OperatorCodes)]
        tensors = tuple(self._tensor(t) for t in self._each(subgraph.TensorsLength, subgraph.Tensors))
        entries = [
            (_text(entry.Name()), entry.Buffer())
            for entry in self._each(model.MetadataLength, model.Metadata)
        ]
        signatures = self._each(model.SignatureDefsLength, model.SignatureDefs)
        attached, attached_bytes = _attached(self.content)
        file = TfliteFile(
            tensors=tensors,
            operators=tuple(
                self._operator(op, codes) for op in self._each(subgraph.OperatorsLength, subgraph.Operators)
            ),
            inputs=self._integers(subgraph.InputsLength, subgraph.InputsAsNumpy),
            outputs=self._integers(subgraph.OutputsLength, subgraph.OutputsAsNumpy),
            signatures=tuple(_text(signature.SignatureKey()) for signature in signatures),
            metadata=tuple(name for name, _ in entries),
            bytes=len(self.content),
            constant_bytes=sum(self.data_bytes),
            about=next(
                (described(self._data(index).tobytes()) for name, index in entries if name == ENTRY), ()
            ),
            metadata_bytes=sum(self.data_bytes[index] for _, index in entries),
            attached=attached,
            attached_bytes=attached_bytes,
        )
        _check_indices(file)
        return file

    def _each(self, length: Callable[[], int], item: Callable[[int], Any]) -> list[Any]:
        count = self._counted(length(), 4)
        return [item(index) for index in range(count)]

    def _counted(self, count: int, size: int) -> int:
        self.left -= count
        if count < 0 or count * size > len(self.content) or self.left < 0:
            raise ValueError(f"a vector of {count} elements in a file of {len(self.content)} bytes")
        return count

    def _first(self, length: Callable[[], int], item: Callable[[int], Any], what: str) -> Any:
        if self._counted(length(), 4) < 1:
            raise ValueError(f"no {what}")
        return item(0)

    def _integers(self, length: Callable[[], int], values: Callable[[], Any]) -> tuple[int, ...]:
        return tuple(int(value) for value in values()) if self._counted(length(), 1) else ()

    def _floats(self, length: Callable[[], int], values: Callable[[], Any]) -> tuple[float, ...]:
        return tuple(float(value) for value in values()) if self._counted(length(), 1) else ()

    def _size(self, buffer: Any) -> int:
        size = buffer.DataLength() or buffer.Size()
        if size > len(self.content):
            raise ValueError(f"a constant of {size} bytes in a file of {len(self.content)} bytes")
        return int(size)

    def _data(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The bytes of a buffer, inline or behind the flatbuffer."""
        buffer = self.model.Buffers(index)
        if buffer.DataLength():
            return np.asarray(buffer.DataAsNumpy(), np.uint8)
        return np.frombuffer(self.content, np.uint8)[buffer.Offset() : buffer.Offset() + buffer.Size()]

    def _tensor(self, tensor: Any) -> TfliteTensor:
        found = tensor.Quantization()
        scales = () if found is None else self._floats(found.ScaleLength, found.ScaleAsNumpy)
        zeros = () if found is None else self._integers(found.ZeroPointLength, found.ZeroPointAsNumpy)
        axis = 0 if found is None else int(found.QuantizedDimension())
        shape = self._integers(tensor.ShapeLength, tensor.ShapeAsNumpy)
        signature = self._integers(tensor.ShapeSignatureLength, tensor.ShapeSignatureAsNumpy)
        dtype = self.types[tensor.Type()].lower()
        return TfliteTensor(
            name=_text(tensor.Name()),
            shape=shape,
            dtype=dtype,
            scales=scales,
            zero_points=zeros,
            axis=axis,
            is_dynamic=any(size < 0 for size in (*shape, *signature)),
            constant_bytes=self.data_bytes[tensor.Buffer()],
            saturated=self._saturated(tensor.Buffer(), shape, axis) if dtype == "int8" and scales else 0.0,
        )

    def _saturated(self, index: int, shape: tuple[int, ...], axis: int) -> float:
        data = self._data(index).view(np.int8) if self.data_bytes[index] else np.empty(0, np.int8)
        if not data.size or math.prod(shape) != data.size or not 0 <= axis < len(shape):
            return 0.0
        at_limit = np.abs(data.reshape(shape).astype(np.int16)) >= INT8_LIMIT
        others = tuple(other for other in range(len(shape)) if other != axis)
        return float(at_limit.mean(axis=others).max())

    def _code(self, code: Any) -> tuple[str, int]:
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _text(code.CustomCode()) if self.ops[number] == "CUSTOM" else self.ops[number]
        return name, int(code.Version())

    def _operator(self, operator: Any, codes: list[tuple[str, int]]) -> TfliteOperator:
        name, version = codes[operator.OpcodeIndex()]
        return TfliteOperator(
            name,
            version,
            self._integers(operator.InputsLength, operator.InputsAsNumpy),
            self._integers(operator.OutputsLength, operator.OutputsAsNumpy),
        )


def _check_indices(file: TfliteFile) -> None:
    """ValueError where an operator or a door names a tensor that the file does not have."""
    used = [(-1, index) for op in file.operators for index in op.inputs]
    used += [(0, index) for op in file.operators for index in op.outputs]
    used += [(0, index) for index in (*file.inputs, *file.outputs)]
    if wrong := [index for lowest, index in used if not lowest <= index < len(file.tensors)]:
        raise ValueError(f"tensor {wrong[0]} of {len(file.tensors)}")


def _attached(content: bytes) -> tuple[tuple[str, ...], int]:
    """Names of the files in the ZIP behind the model, and the bytes of the ZIP."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, *DAMAGE, NotImplementedError):
        return (), 0
    start = min((entry.header_offset for entry in entries), default=len(content))
    return tuple(entry.filename for entry in entries), len(content) - start


def _names(enum: type) -> dict[int, str]:
    return {number: name for name, number in vars(enum).items() if isinstance(number, int)}


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
