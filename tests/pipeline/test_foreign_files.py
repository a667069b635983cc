"""The verb `inspect` on what other converters write: control flow, sparse, dynamic, custom, half-known."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

import pipeline.audit_apart
from export.check import DelegateAudit
from export.metadata import ENTRY, Metadata, described, entries
from export.read_tflite import TfliteFile, read_tflite
from export.write_tflite import write_tflite
from pipeline.__main__ import main
from pipeline.artifacts import AlpharhoError
from pipeline.file_cost import mult_adds, size_by_part, uncounted
from pipeline.findings import findings, shortened
from pipeline.inspection import report
from tests.pipeline.foreign import Part, Piece, Step, model, packed, with_constants_behind
from tests.pipeline.test_inspection import mutated, small_graph

MUTATIONS = 600
NONE_OUTSIDE = DelegateAudit(1, ())


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def read(tmp_path: Path, content: bytes) -> TfliteFile:
    path = tmp_path / "foreign.tflite"
    path.write_bytes(content)
    return read_tflite(path)


def dense(**changes: Any) -> Part:
    """A fully connected layer without a bias, 6 to 5."""
    part = Part(
        pieces={"x": Piece(shape=(3, 6)), "w": Piece(data=floats(5, 6)), "y": Piece(shape=(3, 5))},
        steps=[Step(op="FULLY_CONNECTED", inputs="xw", outputs="y", options=schema.FullyConnectedOptionsT())],
        inputs="x",
        outputs="y",
    )
    return replace(part, **changes)


def loop() -> Any:
    """Five times 7x7 matrix product, in the body of a WHILE."""
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    main_part = Part(
        pieces={name: Piece(shape=(1, 7)) for name in ("x", "y")},
        steps=[Step(op="WHILE", inputs="x", outputs="y", options=options)],
        inputs="x",
        outputs="y",
    )
    condition = Part(
        pieces={"x": Piece(shape=(1, 7)), "c": Piece(data=np.array(False))},
        steps=[],
        inputs="x",
        outputs="c",
        name="condition",
    )
    body = Part(
        pieces={"x": Piece(shape=(1, 7)), "w": Piece(data=floats(7, 7)), "y": Piece(shape=(1, 7))},
        steps=[Step(op="FULLY_CONNECTED", inputs="xw", outputs="y", options=schema.FullyConnectedOptionsT())],
        inputs="x",
        outputs="y",
        name="body",
    )
    return model(main_part, condition, body)


def test_what_a_loop_runs_is_told_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loop.tflite"
    path.write_bytes(packed(loop()))
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for line in (
        "subgraph 2: body",
        "Mult-Adds: 0, not counted: 1 WHILE",
        "Mult-Adds: 49",
        "weights 196",
        "XNNPACK partitions of subgraph 0 of 3: 0, operators outside: 1 WHILE",
        "note: outside the delegate: 1 WHILE: control flow is the runtime's own",
    ):
        assert line in text


def test_constants_behind_the_flatbuffer_are_found(tmp_path: Path) -> None:
    part = dense()
    saturated = np.full((5, 6), 127, np.int8)
    part.pieces = {**part.pieces, "w": Piece(data=np.tile(saturated, (1, 2)), scales=[0.1])}
    inside, behind = (read(tmp_path, make(model(part))) for make in (packed, with_constants_behind))
    assert [t.saturated for t in behind.tensors] == [t.saturated for t in inside.tensors] == [0, 1, 0]
    assert size_by_part(behind)["weights"] == size_by_part(inside)["weights"] == 60
    short = with_constants_behind(model(part))[:-1]
    with pytest.raises(AlpharhoError, match="a constant of 60 bytes at"):
        read(tmp_path, short)


def test_a_shared_constant_counts_once_and_an_unused_one_is_named(tmp_path: Path) -> None:
    weights = floats(5, 6)
    pieces = {
        **dense().pieces,
        "v": Piece(data=weights, same_buffer_as="w"),
        "z": Piece(shape=(3, 5)),
    }
    steps = [*dense().steps, Step(op="FULLY_CONNECTED", inputs="xv", outputs="z")]
    spare = schema.BufferT()
    spare.data = np.zeros(1000, np.uint8)
    file = read(tmp_path, packed(model(dense(pieces=pieces, steps=steps), extra_buffers=[spare])))
    parts = size_by_part(file)
    assert sum(parts.values()) == file.bytes
    assert (parts["weights"], parts["unused constants"]) == (5 * 6 * 4, 1000)
    assert mult_adds(file.subgraphs[0]) == 2 * 3 * 5 * 6


@pytest.mark.parametrize(
    ("shape", "signature", "level", "text"),
    [
        ((1, 6), (-1, 6), "note", "dynamic batch: a runtime takes 1 "),
        ((3, 6), (3, -1), "warning", "dynamic shape"),
        ((), (-1,), "warning", "dynamic shape"),
    ],
)
def test_a_dynamic_batch_is_a_note_and_a_dynamic_size_a_warning(
    shape: tuple[int, ...], signature: tuple[int, ...], level: str, text: str, tmp_path: Path
) -> None:
    pieces = {**dense().pieces, "x": Piece(shape=shape, signature=signature)}
    file = read(tmp_path, packed(model(dense(pieces=pieces))))
    assert [(f.level, text in f.text) for f in findings(file, NONE_OUTSIDE)] == [(level, True)]
    printed = "x".join("?" if size < 0 else str(size) for size in signature)
    assert f"input   x {printed} float32" in report(file, NONE_OUTSIDE)


def test_an_operator_is_left_out_for_its_own_reason(tmp_path: Path) -> None:
    """Of RESHAPE because its shape is computed, of the shape's arithmetic because of its type."""
    pieces = {
        "x": Piece(shape=(1, 6), signature=(-1, 6)),
        "size": Piece(shape=(2,), dtype=np.int32),
        "one": Piece(data=np.array([1], np.int32)),
        "part": Piece(shape=(1,), dtype=np.int32),
        "b": Piece(shape=(1, 6)),
        "w": Piece(data=np.ones((1, 6), np.int8), scales=[0.1]),
        "y": Piece(shape=(1, 6)),
    }
    steps = [
        Step(op="SHAPE", inputs=["x"], outputs=["size"]),
        Step(op="STRIDED_SLICE", inputs=["size", "one", "one", "one"], outputs=["part"]),
        Step(op="RESHAPE", inputs=["x", "size"], outputs=["b"]),
        Step(op="DEPTHWISE_CONV_2D", inputs=["b", "w"], outputs=["y"]),
        Step(op="ASSIGN_VARIABLE", inputs=["y"], outputs=[]),
    ]
    file = read(tmp_path, packed(model(Part(pieces=pieces, steps=steps, inputs="x", outputs="y"))))
    outside = DelegateAudit(2, tuple(op.name for op in file.operators))
    texts = [f.text.removeprefix("outside the delegate: ") for f in findings(file, outside)]
    assert texts[-4:] == [
        "1 SHAPE, 1 STRIDED_SLICE: XNNPACK does not compute with int32",
        "1 RESHAPE: the shape of its result is not a constant",
        "1 DEPTHWISE_CONV_2D: XNNPACK leaves it out (types: float32, int8)",
        "1 ASSIGN_VARIABLE: XNNPACK leaves it out (types: float32)",
    ]
    assert any(
        line.split() == ["ASSIGN_VARIABLE", "1", "none"] for line in report(file, outside).splitlines()
    )


def test_a_count_of_mult_adds_that_is_too_small_says_so(tmp_path: Path) -> None:
    pieces = {**dense().pieces, "y": Piece(shape=(1, 1, 5), signature=(-1, -1, 5))}
    text = report(read(tmp_path, packed(model(dense(pieces=pieces)))), NONE_OUTSIDE)
    assert "Mult-Adds: 30, too few: 1 operators have a size that is known only when it runs" in text


def test_weights_behind_decoders_count_and_the_decoders_are_not_listed(tmp_path: Path) -> None:
    pieces = {
        "x": Piece(shape=(3, 6)),
        "h": Piece(data=floats(5, 6).astype(np.float16)),
        "d": Piece(shape=(5, 6), dtype=np.float16),
        "w": Piece(shape=(5, 6)),
        "y": Piece(shape=(3, 5)),
    }
    steps = [
        Step(op="DENSIFY", inputs="h", outputs="d"),
        Step(op="DEQUANTIZE", inputs="d", outputs="w"),
        *dense().steps,
    ]
    file = read(tmp_path, packed(model(dense(pieces=pieces, steps=steps))))
    assert size_by_part(file)["weights"] == 5 * 6 * 2
    assert size_by_part(file)["other constants"] == 0
    text = report(file, NONE_OUTSIDE)
    assert "and 2 that make float32 of constants" in text
    assert not any(line.startswith(("DENSIFY", "DEQUANTIZE")) for line in text.splitlines())
    assert "operators: 1 DENSIFY, 1 DEQUANTIZE, 1 FULLY_CONNECTED" in text


COSTS = [
    ("BATCH_MATMUL", (2, 3, 6), (2, 6, 5), (2, 3, 5), 2 * 3 * 6 * 5),
    ("BATCH_MATMUL", (2, 6, 3), (2, 6, 5), (2, 3, 5), 2 * 3 * 6 * 5),
    ("CONV_3D", (1, 4, 5, 6, 2), (3, 2, 1, 2, 7), (1, 2, 4, 6, 7), 2 * 4 * 6 * 7 * 3 * 2 * 2),
    ("Convolution2DTransposeBias", (1, 4, 5, 6), (7, 2, 3, 6), (1, 8, 15, 7), 4 * 5 * 6 * 7 * 2 * 3),
    ("MyOwnCode", (1, 6), (5, 6), (1, 5), 0),
    ("SVDF", (1, 6), (5, 6), (1, 5), 0),
]


@pytest.mark.parametrize(("op", "source", "weights", "result", "expected"), COSTS)
def test_mult_adds_of_foreign_operators(
    op: str,
    source: tuple[int, ...],
    weights: tuple[int, ...],
    result: tuple[int, ...],
    expected: int,
    tmp_path: Path,
) -> None:
    pieces = {"x": Piece(shape=source), "w": Piece(data=floats(*weights)), "y": Piece(shape=result)}
    part = Part(pieces=pieces, steps=[Step(op=op, inputs="xw", outputs="y")], inputs="x", outputs="y")
    file = read(tmp_path, packed(model(part)))
    assert mult_adds(file.subgraphs[0]) == expected
    assert uncounted(file.subgraphs[0]) == ({} if expected else {op: 1})
    custom = [f.text for f in findings(file, NONE_OUTSIDE) if "custom operators" in f.text]
    assert bool(custom) == (op in ("MyOwnCode", "Convolution2DTransposeBias"))


def test_a_file_whose_custom_code_is_missing_is_told_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "custom.tflite"
    path.write_bytes(packed(model(dense(steps=[Step(op="MyOwnCode", inputs="xw", outputs="y")]))))
    assert main(["inspect", str(path)]) == 1
    printed = capsys.readouterr()
    assert "the runtime does not take it" in printed.out
    assert "linked in: 1 MyOwnCode" in printed.out
    assert "unresolved custom op: MyOwnCode" in printed.err
    assert printed.err.count("\n") == 1


def test_what_is_newer_than_the_schema_is_named_by_its_number(tmp_path: Path) -> None:
    pieces = {**dense().pieces, "y": Piece(shape=(3, 5), type_number=99)}
    file = read(tmp_path, packed(model(dense(pieces=pieces, steps=[Step(op=9999, inputs="x", outputs="y")]))))
    assert file.operators[0].name == "BUILTIN_9999"
    assert file.tensors[2].dtype == "type_99"
    assert "BUILTIN_9999" in report(file, NONE_OUTSIDE)


def test_names_cannot_steer_a_terminal_and_long_ones_show_their_end(tmp_path: Path) -> None:
    name = "layer/" * 30 + "Relu\x1b[2J\nwarning: none"
    pieces = {"x": Piece(shape=(3, 6)), "w": Piece(data=floats(5, 6)), name: Piece(shape=(3, 5))}
    steps = [Step(op="FULLY_CONNECTED", inputs=["x", "w"], outputs=[name])]
    file = read(tmp_path, packed(model(dense(pieces=pieces, steps=steps, outputs=[name]))))
    text = report(file, NONE_OUTSIDE)
    assert "\x1b" not in text
    assert "\nwarning" not in text
    assert shortened(file.tensors[2].name).endswith("warning: none")
    assert max(map(len, text.splitlines()[:2])) < 110


def test_few_values_in_a_channel_say_nothing_of_saturation(tmp_path: Path) -> None:
    """And a constant that is no weight, such as the first state of a variable, may be all at the limit."""
    few = Piece(data=np.full((5, 3), 127, np.int8), scales=[0.1] * 5)
    many = Piece(data=np.full((5, 9), 127, np.int8), scales=[0.1] * 5)
    file = read(tmp_path, packed(model(dense(pieces={**dense().pieces, "few": few, "many": many}))))
    assert [t.name for t in file.tensors if t.saturated] == ["many"]
    assert findings(file, NONE_OUTSIDE) == []
    weights = {**dense().pieces, "w": many}
    file = read(tmp_path, packed(model(dense(pieces=weights))))
    assert [f.text for f in findings(file, NONE_OUTSIDE) if f.level == "warning"] == [
        "1 weights have a channel with most values at the limit, the first is 'w'"
    ]


def test_eight_bit_weights_under_float_values_are_called_so(tmp_path: Path) -> None:
    pieces = {**dense().pieces, "w": Piece(data=np.ones((5, 6), np.int8), scales=[0.1])}
    file = read(tmp_path, packed(model(dense(pieces=pieces))))
    assert [f.text for f in findings(file, NONE_OUTSIDE)] == [
        "1 FULLY_CONNECTED: integer weights, float values (dynamic-range quantisation)"
    ]


def test_normalisation_and_labels_are_told(tmp_path: Path) -> None:
    about = Metadata(name="n", mean=127.5, std=64, labels=("a", "b"))
    file = read(tmp_path, write_tflite(small_graph(), entries(about, "image", "scores")))
    assert "input 'image': normalised with mean 127.5 and std 64" in file.about
    assert "output 'scores': labels.txt" in file.about


def test_damaged_metadata_does_not_hide_the_rest(tmp_path: Path) -> None:
    found = entries(Metadata(name="n", labels=("a",)), "image", "scores")
    damaged = {ENTRY: found[ENTRY][:8] + b"\xff" * (len(found[ENTRY]) - 8)}
    file = read(tmp_path, write_tflite(small_graph(), damaged))
    assert file.about == ("TFLITE_METADATA cannot be read, it is damaged",)
    assert file.operators
    assert described(b"\0\0\0\0XXXX") == ()


def test_an_archive_and_a_pipe_are_refused_with_what_to_do(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model.tflite", packed(model(dense())))
    with pytest.raises(AlpharhoError, match=r"a ZIP archive, as \.task bundles are: unpack it"):
        read(tmp_path, content.getvalue())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AlpharhoError, match="not a file"):
        read_tflite(tmp_path / "pipe")


def test_names_shared_by_many_tensors_do_not_fill_the_memory(tmp_path: Path) -> None:
    """One name of 100 kB for 2,000 tensors: 200 MB of names in a file of 200 kB."""
    stored = model(
        dense(pieces={f"{n:05}": Piece(shape=()) for n in range(2000)}, steps=[], inputs=[], outputs=[])
    )
    for tensor in stored.subgraphs[0].tensors:
        tensor.name = "one name"
    content = bytearray(packed_sharing(stored, b"x" * 100_000))
    with pytest.raises(AlpharhoError, match="names longer than a file"):
        read(tmp_path, bytes(content))


def packed_sharing(stored: Any, text: bytes) -> bytes:
    """The file with every tensor's name pointing at one text at its end."""
    content = bytearray(packed(stored))
    content += b"\0" * (-len(content) % 4)
    end = len(content)
    content += len(text).to_bytes(4, "little") + text + b"\0"
    graph = schema.Model.GetRootAs(bytes(content), 0).Subgraphs(0)
    for index in range(graph.TensorsLength()):
        table = graph.Tensors(index)._tab
        place = table.Pos + table.Offset(10)
        content[place : place + 4] = (end - place).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize("make", [loop, lambda: model(dense())])
def test_no_damaged_foreign_file_crashes_the_reader(make: Any, tmp_path: Path) -> None:
    contents = [packed(make()), with_constants_behind(make())]
    read_whole = 0
    for seed in range(MUTATIONS):
        try:
            file = read(tmp_path, mutated(contents[seed % 2], seed))
        except AlpharhoError:
            continue
        assert report(file, NONE_OUTSIDE)
        assert sum(size_by_part(file).values()) == file.bytes
        read_whole += 1
    assert 0 < read_whole < MUTATIONS


def test_the_runtime_may_not_take_all_memory(tmp_path: Path) -> None:
    """A damaged shape may ask for terabytes: the process ends, the machine does not."""
    pieces = {**dense().pieces, "x": Piece(shape=(500_000_000, 6)), "y": Piece(shape=(500_000_000, 5))}
    path = tmp_path / "huge.tflite"
    path.write_bytes(packed(model(dense(pieces=pieces))))
    with pytest.raises(AlpharhoError, match=str(path)):
        pipeline.audit_apart.audit_apart(path, seconds=60)


def test_the_runtime_is_asked_without_loading_pytorch() -> None:
    code = "import sys, pipeline.audit_apart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
