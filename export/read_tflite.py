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
MOST_ELEMENTS = 1_000_000  # of all vectors walked in a small file; a file of 10,000 operators has fewer
BYTES_AN_ELEMENT = 8  # of a large file; a scale and a zero point take twelve
TIMES_READ = 4  # how often every byte may be looked at: names and constants can be shared
INT8_LIMIT = 127
TELLING_VALUES = 8  # of a channel: with fewer, most are near the largest, which sets the scale
ZIP_MARK = b"PK"
DATA_SLOT = 4  # of a buffer's table
Place = tuple[int, int]  # start and bytes


@dataclass(frozen=True, slots=True)
class TfliteTensor:
    """A tensor of the file; `scales` is empty where it is not quantised.

    `signature` is the shape with -1 for a size that is only known when it runs, `constant_bytes` is 0 for a
    computed tensor, `constants_at` their place in the file (tensors may share it), `saturated` is the largest
    share of a channel's int8 values that stand at the limit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    signature: tuple[int, ...] = ()
    constant_bytes: int = 0
    constants_at: int = 0
    saturated: float = 0.0

    @property
    def is_dynamic(self) -> bool:
        """Whether a size is only known when the file runs."""
        return any(size < 0 for size in (*self.shape, *self.signature))


@dataclass(frozen=True, slots=True)
class TfliteOperator:
    """An operator by its name; inputs and outputs are indices of tensors, -1 an absent one."""

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class TfliteSubgraph:
    """A graph of the file: the main one, the one of a signature, or what a control-flow operator runs."""

    name: str
    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """A .tflite file: its subgraphs, of which the first is what runs, its signatures and its metadata."""

    subgraphs: tuple[TfliteSubgraph, ...]
    signatures: tuple[str, ...]
    metadata: tuple[str, ...]
    bytes: int
    constant_bytes: int
    about: tuple[str, ...] = ()
    metadata_bytes: int = 0
    attached: tuple[str, ...] = ()
    attached_bytes: int = 0

    @property
    def tensors(self) -> tuple[TfliteTensor, ...]:
        """Tensors of the first subgraph."""
        return self.subgraphs[0].tensors

    @property
    def operators(self) -> tuple[TfliteOperator, ...]:
        """Operators of the first subgraph, in the order they run."""
        return self.subgraphs[0].operators

    @property
    def inputs(self) -> tuple[int, ...]:
        """Inputs of the first subgraph, as indices of its tensors."""
        return self.subgraphs[0].inputs

    @property
    def outputs(self) -> tuple[int, ...]:
        """Outputs of the first subgraph, as indices of its tensors."""
        return self.subgraphs[0].outputs

    def op_counts(self) -> dict[str, int]:
        """How often each operator occurs in the first subgraph, by name."""
        return dict(sorted(Counter(operator.name for operator in self.operators).items()))


def read_tflite(path: Path) -> TfliteFile:
    """Read the file; AlpharhoError if it is missing, not TFLite, or damaged."""
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise AlpharhoError(f"{path}: not a file; give a .tflite file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AlpharhoError(f"{path}: {error.strerror}; give a .tflite file") from error
    if content[4:8] != IDENTIFIER:
        raise AlpharhoError(f"{path}: not a TFLite file (no {IDENTIFIER.decode()} mark); {_instead(content)}")
    try:
        return _Reader(content).read()
    except DAMAGE as error:
        raise AlpharhoError(
            f"{path}: damaged TFLite file ({type(error).__name__}: {error}); get it again"
        ) from error


def _instead(content: bytes) -> str:
    if content.startswith(ZIP_MARK):
        return "it is a ZIP archive, as .task bundles are: unpack it and give a .tflite file in it"
    return "give a .tflite file"


class _Reader:
    """Walks one file's tables, counting what it walks."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.left = max(MOST_ELEMENTS, len(content) // BYTES_AN_ELEMENT)
        self.unread = TIMES_READ * len(content)
        self.model = schema.Model.GetRootAs(content, 0)
        self.types, self.ops = _names(schema.TensorType), _names(schema.BuiltinOperator)
        self.places: list[Place] = []

    def read(self) -> TfliteFile:
        model = self.model
        self.places = [self._place(buffer) for buffer in self._each(model.BuffersLength, model.Buffers)]
        constant_bytes = sum(size for _, size in set(self.places))
        if constant_bytes > len(self.content):
            raise ValueError(f"constants of {constant_bytes} bytes in a file of {len(self.content)} bytes")
        codes = [self._code(code) for code in self._each(model.OperatorCodesLength, model.OperatorCodes)]
        subgraphs = tuple(
            self._subgraph(graph, codes) for graph in self._each(model.SubgraphsLength, model.Subgraphs)
        )
        if not subgraphs:
            raise ValueError("no subgraph")
        entries = [
            (self._text(entry.Name()), self.places[entry.Buffer()])
            for entry in self._each(model.MetadataLength, model.Metadata)
        ]
        signatures = self._each(model.SignatureDefsLength, model.SignatureDefs)
        attached, attached_bytes = _attached(self.content)
        used = {tensor.constants_at for graph in subgraphs for tensor in graph.tensors}
        return TfliteFile(
            subgraphs=subgraphs,
            signatures=tuple(self._text(signature.SignatureKey()) for signature in signatures),
            metadata=tuple(name for name, _ in entries),
            bytes=len(self.content),
            constant_bytes=constant_bytes,
            about=next((self._about(place) for name, place in entries if name == ENTRY), ()),
            metadata_bytes=sum(size for start, size in {place for _, place in entries} if start not in used),
            attached=attached,
            attached_bytes=min(attached_bytes, len(self.content) - constant_bytes),
        )

    def _subgraph(self, graph: Any, codes: list[tuple[str, int, bool]]) -> TfliteSubgraph:
        found = TfliteSubgraph(
            name=self._text(graph.Name()),
            tensors=tuple(self._tensor(t) for t in self._each(graph.TensorsLength, graph.Tensors)),
            operators=tuple(
                self._operator(op, codes) for op in self._each(graph.OperatorsLength, graph.Operators)
            ),
            inputs=self._integers(graph.InputsLength, graph.InputsAsNumpy),
            outputs=self._integers(graph.OutputsLength, graph.OutputsAsNumpy),
        )
        _check_indices(found)
        return found

    def _about(self, place: Place) -> tuple[str, ...]:
        try:
            return described(self._data(place).tobytes())
        except DAMAGE:
            return (f"{ENTRY} cannot be read, it is damaged",)

    def _each(self, length: Callable[[], int], item: Callable[[int], Any]) -> list[Any]:
        count = self._counted(length(), 4)
        return [item(index) for index in range(count)]

    def _counted(self, count: int, size: int) -> int:
        self.left -= count
        if count < 0 or count * size > len(self.content) or self.left < 0:
            raise ValueError(f"a vector of {count} elements in a file of {len(self.content)} bytes")
        return count

    def _integers(self, length: Callable[[], int], values: Callable[[], Any]) -> tuple[int, ...]:
        return tuple(values().tolist()) if self._counted(length(), 1) else ()

    def _floats(self, length: Callable[[], int], values: Callable[[], Any]) -> tuple[float, ...]:
        return tuple(values().tolist()) if self._counted(length(), 1) else ()

    def _place(self, buffer: Any) -> Place:
        """Where a constant is, behind the flatbuffer (an offset above 1 says so) or inside."""
        start, size = int(buffer.Offset()), int(buffer.Size())
        if start <= 1:
            size = int(buffer.DataLength())
            start = int(buffer._tab.Vector(buffer._tab.Offset(DATA_SLOT))) if size else 0
        if start + size > len(self.content):
            raise ValueError(f"a constant of {size} bytes at {start} in a file of {len(self.content)} bytes")
        return start, size

    def _data(self, place: Place) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.frombuffer(self.content, np.uint8, place[1], place[0])

    def _tensor(self, tensor: Any) -> TfliteTensor:
        found = tensor.Quantization()
        scales = () if found is None else self._floats(found.ScaleLength, found.ScaleAsNumpy)
        zeros = () if found is None else self._integers(found.ZeroPointLength, found.ZeroPointAsNumpy)
        axis = 0 if found is None else int(found.QuantizedDimension())
        shape = self._integers(tensor.ShapeLength, tensor.ShapeAsNumpy)
        signature = self._integers(tensor.ShapeSignatureLength, tensor.ShapeSignatureAsNumpy)
        place = self.places[tensor.Buffer()]
        dtype = self.types.get(tensor.Type(), f"type_{tensor.Type()}").lower()
        return TfliteTensor(
            name=self._text(tensor.Name()),
            shape=shape,
            dtype=dtype,
            scales=scales,
            zero_points=zeros,
            axis=axis,
            signature=signature or shape,
            constant_bytes=place[1],
            constants_at=place[0],
            saturated=self._saturated(place, shape, axis) if dtype == "int8" and scales else 0.0,
        )

    def _saturated(self, place: Place, shape: tuple[int, ...], axis: int) -> float:
        size = place[1]
        if not size or math.prod(shape) != size or not 0 <= axis < len(shape) or size > self.unread:
            return 0.0
        if size // shape[axis] < TELLING_VALUES:
            return 0.0
        self.unread -= size
        data = self._data(place).view(np.int8).reshape(shape)
        at_limit = (data >= INT8_LIMIT) | (data <= -INT8_LIMIT)
        others = tuple(other for other in range(len(shape)) if other != axis)
        return float(at_limit.mean(axis=others).max())

    def _code(self, code: Any) -> tuple[str, int, bool]:
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = self.ops.get(number, f"BUILTIN_{number}")
        is_custom = name == "CUSTOM"
        return self._text(code.CustomCode()) if is_custom else name, int(code.Version()), is_custom

    def _operator(self, operator: Any, codes: list[tuple[str, int, bool]]) -> TfliteOperator:
        name, version, is_custom = codes[operator.OpcodeIndex()]
        return TfliteOperator(
            name,
            version,
            self._integers(operator.InputsLength, operator.InputsAsNumpy),
            self._integers(operator.OutputsLength, operator.OutputsAsNumpy),
            is_custom,
        )

    def _text(self, value: bytes | None) -> str:
        """On one line and without control characters, which a terminal would obey."""
        self.unread -= len(value or b"")
        if self.unread < 0:
            raise ValueError(f"names longer than a file of {len(self.content)} bytes can hold")
        text = (value or b"").decode(errors="replace")
        return (
            text
            if text.isprintable()
            else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        )


def _check_indices(graph: TfliteSubgraph) -> None:
    """ValueError where an operator or a door names a tensor that the subgraph does not have."""
    used = [(-1, index) for op in graph.operators for index in op.inputs]
    used += [(0, index) for op in graph.operators for index in op.outputs]
    used += [(0, index) for index in (*graph.inputs, *graph.outputs)]
    if wrong := [index for lowest, index in used if not lowest <= index < len(graph.tensors)]:
        raise ValueError(f"tensor {wrong[0]} of {len(graph.tensors)}")


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
