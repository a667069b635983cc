"""Frozen records to JSON and back, exactly. The record's annotations are the schema."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.artifacts import AlpharhoError, write_text

T = TypeVar("T")


class RecordError(AlpharhoError):
    """A JSON value does not fit its record: names the field, what it holds and what it must hold."""


def to_plain(value: object) -> Any:
    """The JSON form of a record: dataclasses become objects, tuples arrays, enums their values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(record: type[T], plain: object, where: str = "") -> T:
    """The inverse of `to_plain` for the dataclass `record`. Raises RecordError at the first misfit."""
    decoded: T = _decode(record, plain, where or record.__name__)
    return decoded


def dumps(plain: object) -> str:
    """Indented, key-sorted JSON text with a final newline; NaN and infinities are refused."""
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The JSON value in the file. Raises RecordError when it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}; give the path of a result file") from error
    except ValueError as error:
        raise RecordError(f"{path}: not a JSON file ({error}); delete it and measure again") from error


def write_json(path: Path, plain: object) -> None:
    """Write `plain` as JSON text, whole or not at all."""
    write_text(path, dumps(plain))


def _decode(kind: Any, plain: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in _GENERIC:
        return _GENERIC[origin](get_args(kind), plain, where)
    if is_dataclass(kind):
        return _decode_record(kind, plain, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _decode_enum(kind, plain, where)
    if kind is object:  # JSON as it is
        return plain
    if kind is float and type(plain) is int:
        return float(plain)
    if type(plain) is not kind:
        raise _misfit(where, plain, kind.__name__)
    return plain


def _decode_record(kind: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise _misfit(where, plain, "an object")
    hints = get_type_hints(kind)
    unknown = sorted(plain.keys() - hints.keys())
    if unknown:
        raise RecordError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(hints)}")
    for field in fields(kind):
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if not optional and field.name not in plain:
            raise RecordError(f"{where}: field {field.name!r} is missing")
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in plain.items()})


def _decode_enum(kind: type[Enum], plain: Any, where: str) -> Enum:
    for member in kind:
        if member.value == plain:
            return member
    raise _misfit(where, plain, "one of " + ", ".join(str(member.value) for member in kind))


def _decode_tuple(arguments: tuple[Any, ...], plain: Any, where: str) -> Any:
    if not isinstance(plain, list):
        raise _misfit(where, plain, "an array")
    return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(plain))


def _decode_mapping(arguments: tuple[Any, ...], plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise _misfit(where, plain, "an object")
    return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in plain.items()}


def _decode_optional(arguments: tuple[Any, ...], plain: Any, where: str) -> Any:
    if plain is None:
        return None
    (kind,) = (argument for argument in arguments if argument is not types.NoneType)
    return _decode(kind, plain, where)


# Arrays are homogeneous tuples `tuple[T, ...]`; a union is always `T | None`.
_GENERIC: dict[object, Callable[[tuple[Any, ...], Any, str], Any]] = {
    tuple: _decode_tuple,
    Mapping: _decode_mapping,
    types.UnionType: _decode_optional,
    Union: _decode_optional,
}


def _misfit(where: str, plain: Any, needed: str) -> RecordError:
    found = repr(plain)
    return RecordError(f"{where}: found {found[:60]}, where {needed} is needed")
