"""What a .tflite file says of itself: TFLite metadata (`metadata_schema.fbs`, M001), labels in a ZIP behind.

Task libraries refuse a float32 image model without the normalisation that stands here. The same metadata
gives the same bytes.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import flatbuffers
from flatbuffers.table import Table

ENTRY = "TFLITE_METADATA"
DETAILS_ENTRY = "alpharho.json"
IDENTIFIER = b"M001"
LABELS_FILE = "labels.txt"
MIN_PARSER_VERSION = "1.0.0"
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that ZIP knows, so that the same labels give the same bytes

NORMALIZATION_OPTIONS, FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 1, 2  # positions in their unions
RGB, TENSOR_AXIS_LABELS = 1, 2  # ColorSpaceType, AssociatedFileType
MOST_DESCRIBED = 100  # inputs, outputs, files and channels that are told of foreign metadata

Slot = Callable[[flatbuffers.Builder], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is known of a classifier.

    `mean` and `std` are of the pixels, 0 to 255, the same for all channels; `labels` one per class or empty;
    `details` are shown in the description and stand as JSON in a metadata entry of their own.
    """

    name: str
    description: str = ""
    version: str = "1"
    author: str = ""
    license: str = ""
    mean: float = 127.5
    std: float = 127.5
    labels: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def entries(metadata: Metadata, input_name: str, output_name: str) -> dict[str, bytes]:
    """Metadata buffers for `write_tflite`, for a model with one image input and one output of scores."""
    details = json.dumps(dict(metadata.details), indent=1, sort_keys=True, ensure_ascii=False)
    packed = _model_metadata(metadata, input_name, output_name)
    return {ENTRY: packed, DETAILS_ENTRY: details.encode()}


def with_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """The .tflite file with `labels.txt` in an uncompressed ZIP behind it; without labels as it is."""
    if not labels:
        return content
    file = io.BytesIO()
    file.write(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, ZIP_DATE), "".join(f"{label}\n" for label in labels))
    return file.getvalue()


# --- tables of metadata_schema.fbs; slots are numbered in the order of the schema ---------------------------


def _model_metadata(metadata: Metadata, input_name: str, output_name: str) -> bytes:
    builder = flatbuffers.Builder(1024)
    lines = [metadata.description, *(f"{key}: {value}" for key, value in metadata.details.items())]
    subgraph = _table(
        builder,
        10,
        {
            2: _vector(builder, [_image_input(builder, metadata, input_name)]),
            3: _vector(builder, [_scores(builder, metadata, output_name)]),
        },
    )
    texts = {
        0: metadata.name,
        1: "\n".join(filter(None, lines)),
        2: metadata.version,
        4: metadata.author,
        5: metadata.license,
        7: MIN_PARSER_VERSION,
    }
    slots = {slot: builder.CreateString(text) for slot, text in texts.items() if text}
    root = _table(builder, 8, {**slots, 3: _vector(builder, [subgraph])})
    builder.Finish(root, IDENTIFIER)
    return bytes(builder.Output())


def _image_input(builder: flatbuffers.Builder, metadata: Metadata, name: str) -> int:
    options = _table(builder, 2, {0: _floats(builder, [metadata.mean]), 1: _floats(builder, [metadata.std])})
    unit = _table(builder, 2, {1: options}, {0: NORMALIZATION_OPTIONS})
    image = _table(builder, 2, {}, {0: RGB})
    bounds = [(255 - metadata.mean) / metadata.std], [(0 - metadata.mean) / metadata.std]
    slots = {
        0: builder.CreateString(name),
        1: builder.CreateString(f"RGB image, (pixel - {metadata.mean:g}) / {metadata.std:g}"),
        3: _table(builder, 3, {1: image}, {0: IMAGE_PROPERTIES}),
        4: _vector(builder, [unit]),
        5: _table(builder, 2, {0: _floats(builder, bounds[0]), 1: _floats(builder, bounds[1])}),
    }
    return _table(builder, 7, slots)


def _scores(builder: flatbuffers.Builder, metadata: Metadata, name: str) -> int:
    slots = {
        0: builder.CreateString(name),
        1: builder.CreateString("one value per class"),
        3: _table(builder, 3, {1: _table(builder, 0, {})}, {0: FEATURE_PROPERTIES}),
    }
    if metadata.labels:
        texts = {0: builder.CreateString(LABELS_FILE), 1: builder.CreateString("class names, one a line")}
        file = _table(builder, 5, texts, {2: TENSOR_AXIS_LABELS})
        slots[6] = _vector(builder, [file])
    return _table(builder, 7, slots)


def _table(
    builder: flatbuffers.Builder,
    size: int,
    offsets: Mapping[int, int],
    small: Mapping[int, int] | None = None,
) -> int:
    """A table of `size` fields: offsets of what is written already, and one-byte numbers."""
    builder.StartObject(size)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in (small or {}).items():
        builder.PrependUint8Slot(slot, number, 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())


def described(packed: bytes) -> tuple[str, ...]:
    """Name, version, licence, description, normalisation of inputs and files of outputs, where given."""
    if packed[4:8] != IDENTIFIER:
        return ()
    model = Table(bytearray(packed), struct.unpack_from("<I", packed)[0])
    found = [
        f"{key}: {line}"
        for slot, key in ((0, "name"), (2, "version"), (5, "license"), (1, "description"))
        for line in _string(model, slot).splitlines()
    ]
    for subgraph in _children(model, 3):
        found += [line for tensor in _children(subgraph, 2) for line in _tensor_lines("input", tensor)]
        found += [line for tensor in _children(subgraph, 3) for line in _tensor_lines("output", tensor)]
    return tuple("".join(c if c.isprintable() else " " for c in line) for line in found)


def _tensor_lines(role: str, tensor: Table) -> list[str]:
    name = f"{role} {_string(tensor, 0)!r}"
    steps = [
        step
        for unit in _children(tensor, 4)
        if _byte(unit, 0) == NORMALIZATION_OPTIONS
        for step in _child(unit, 1)
    ]
    found = [
        f"{name}: normalised with mean {_listed(_numbers(step, 0))} and std {_listed(_numbers(step, 1))}"
        for step in steps
    ]
    return found + [f"{name}: {_string(file, 0)}" for file in _children(tensor, 6)]


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"


def _string(table: Table, slot: int) -> str:
    offset = table.Offset(4 + 2 * slot)
    return str(table.String(offset + table.Pos).decode(errors="replace")) if offset else ""


def _byte(table: Table, slot: int) -> int:
    offset = table.Offset(4 + 2 * slot)
    return int(table.Bytes[offset + table.Pos]) if offset else 0


def _child(table: Table, slot: int) -> list[Table]:
    """The table of a field, or none."""
    offset = table.Offset(4 + 2 * slot)
    return [Table(table.Bytes, table.Indirect(table.Pos + offset))] if offset else []


def _children(table: Table, slot: int) -> list[Table]:
    """The tables of a vector."""
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return []
    start, count = table.Vector(offset), min(table.VectorLen(offset), MOST_DESCRIBED)
    return [Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(count)]


def _numbers(table: Table, slot: int) -> tuple[float, ...]:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return ()
    count = min(table.VectorLen(offset), MOST_DESCRIBED)
    return struct.unpack_from(f"<{count}f", table.Bytes, table.Vector(offset))
