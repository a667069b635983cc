"""Reads what a .tflite file says of itself, without running it."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

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


@dataclass(frozen=True, slots=True)
class TfliteTensor:
    """A tensor of the file; `scales` is empty where it is not quantised."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int


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
        return _parsed(schema.ModelT.InitFromPackedBuf(content), len(content))
    except DAMAGE as error:
        raise AlpharhoError(
            f"{path}: damaged TFLite file ({type(error).__name__}: {error}); get it again"
        ) from error


def _parsed(model: Any, size: int) -> TfliteFile:
    subgraph = model.subgraphs[0]
    codes = model.operatorCodes or []
    types, ops = _names(schema.TensorType), _names(schema.BuiltinOperator)
    return TfliteFile(
        tensors=tuple(_tensor(tensor, types) for tensor in subgraph.tensors),
        operators=tuple(_operator(operator, codes, ops) for operator in _list(subgraph.operators)),
        inputs=_indices(subgraph.inputs),
        outputs=_indices(subgraph.outputs),
        signatures=tuple(_text(signature.signatureKey) for signature in _list(model.signatureDefs)),
        metadata=tuple(_text(entry.name) for entry in _list(model.metadata)),
        bytes=size,
        constant_bytes=sum(len(buffer.data) for buffer in _list(model.buffers) if buffer.data is not None),
    )


def _tensor(tensor: Any, types: dict[int, str]) -> TfliteTensor:
    quantization = tensor.quantization
    scales = () if quantization is None else _numbers(quantization.scale, float)
    return TfliteTensor(
        name=_text(tensor.name),
        shape=_indices(tensor.shape),
        dtype=types[tensor.type].lower(),
        scales=tuple(scales),
        zero_points=() if quantization is None else _numbers(quantization.zeroPoint, int),
        axis=0 if quantization is None else quantization.quantizedDimension,
    )


def _operator(operator: Any, codes: list[Any], ops: dict[int, str]) -> TfliteOperator:
    code = codes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _text(code.customCode) if ops[number] == "CUSTOM" else ops[number]
    return TfliteOperator(name, code.version, _indices(operator.inputs), _indices(operator.outputs))


def _names(enum: type) -> dict[int, str]:
    return {number: name for name, number in vars(enum).items() if isinstance(number, int)}


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _indices(values: Any) -> tuple[int, ...]:
    return _numbers(values, int)


def _numbers(values: Any, kind: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(kind(value) for value in _list(values))
