"""The verb `convert` on foreign files: what it writes, what it refuses, what the files say of themselves."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.metadata import DETAILS_ENTRY, ENTRY, IDENTIFIER, Metadata, entries, with_labels
from pipeline.__main__ import main

CLASSES = 5
SIZE = 12


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node(
        "Constant", [], [name], name=f"constant_{name}", value=numpy_helper.from_array(value)
    )


def classifier(
    batch: int | str = 1, size: int | str = SIZE, rows: bool = False, softmax: bool = False
) -> onnx.ModelProto:
    """A network as a foreign exporter writes it: weights in Constant nodes, a flatten by shape arithmetic."""
    nodes = [
        constant("w", weights(8, 3, 3, 3)),
        constant("d", weights(8, 1, 3, 3, seed=1)),
        constant("f", weights(8, CLASSES, seed=2)),
        constant("three", np.float32(3)),
        constant("zero", np.float32(0)),
        constant("six", np.float32(6)),
        constant("first", np.array([0], np.int64)),
        constant("rest", np.array([-1], np.int64)),
        *([helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2])] if rows else []),
        helper.make_node(
            "Conv", ["planes" if rows else "image", "w"], ["c"], "stem", strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("Add", ["c", "three"], ["s"]),
        helper.make_node("Clip", ["s", "zero", "six"], ["r"]),
        helper.make_node("Mul", ["c", "r"], ["m"]),
        helper.make_node("Div", ["m", "six"], ["h"]),
        helper.make_node("Conv", ["h", "d"], ["k"], "depthwise", group=8, pads=[1] * 4),
        helper.make_node("Relu", ["k"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Shape", ["p"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["p", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "f"], ["scores"]),
        *([helper.make_node("Softmax", ["scores"], ["likely"], axis=-1)] if softmax else []),
    ]
    shape = [batch, size, size, 3] if rows else [batch, 3, size, size]
    door = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(
        "likely" if softmax else "scores", TensorProto.FLOAT, [batch, CLASSES]
    )
    graph = helper.make_graph(nodes, "foreign", [door], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def saved(folder: Path, model: onnx.ModelProto, *, rows: bool = False, count: int = 24) -> list[str]:
    """The beginning of a command line: model and calibration written into `folder`."""
    onnx.save(model, folder / "model.onnx")
    images = np.random.default_rng(5).uniform(-1, 1, (count, 3, SIZE, SIZE)).astype(np.float32)
    np.save(folder / "images.npy", images.transpose(0, 2, 3, 1) if rows else images)
    words = [
        "convert",
        "model.onnx",
        "--out",
        "out",
        "--calibration",
        "images.npy",
        "--recipe",
        "int8_min_max",
    ]
    return [str(folder / word) if word in ("model.onnx", "out", "images.npy") else word for word in words]


def interpreter(path: Path) -> Interpreter:
    loaded = Interpreter(str(path), num_threads=1)
    loaded.allocate_tensors()
    return loaded


def metadata_of(path: Path) -> dict[str, bytes]:
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    return {entry.name.decode(): bytes(model.buffers[entry.buffer].data) for entry in model.metadata}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (classifier(), []),
        (classifier(batch="N"), []),
        (classifier(batch="N", size="side"), ["--shape", f"1,3,{SIZE},{SIZE}"]),
        (classifier(rows=True), []),
    ],
    ids=["static", "dynamic batch", "dynamic size", "channels last"],
)
def test_a_foreign_network_becomes_three_verified_files(
    model: onnx.ModelProto, words: Sequence[str], tmp_path: Path
) -> None:
    rows = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3
    assert main([*saved(tmp_path, model, rows=rows), *words]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["artifacts"]) == {"float32", "float16", "int8"}
    assert manifest["parity"]["float32"]["max_abs_diff"] < 1e-4
    assert manifest["parity"]["int8"]["cosine"] > 0.98
    for precision, audit in manifest["delegate"].items():
        assert audit["partitions"] == 1, precision
    door = interpreter(tmp_path / "out" / "float32.tflite").get_input_details()[0]
    assert list(door["shape"]) == [1, SIZE, SIZE, 3]


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_io_sets_both_doors(kind: str, tmp_path: Path) -> None:
    assert main([*saved(tmp_path, classifier()), "--io", kind]) == 0
    loaded = interpreter(tmp_path / "out" / "int8.tflite")
    doors = (loaded.get_input_details()[0], loaded.get_output_details()[0])
    assert [np.dtype(door["dtype"]).name for door in doors] == [kind, kind]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("head", ["logits", "probabilities"])
def test_the_head_is_chosen(head: str, softmax: bool, tmp_path: Path) -> None:
    assert main([*saved(tmp_path, classifier(softmax=softmax)), "--head", head]) == 0
    loaded = interpreter(tmp_path / "out" / "float32.tflite")
    loaded.set_tensor(loaded.get_input_details()[0]["index"], np.ones((1, SIZE, SIZE, 3), np.float32))
    loaded.invoke()
    total = float(loaded.get_tensor(loaded.get_output_details()[0]["index"]).sum())
    assert (abs(total - 1) < 1e-5) == (head == "probabilities")


def test_pictures_calibrate_and_labels_travel_with_the_file(tmp_path: Path) -> None:
    words = saved(tmp_path, classifier())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 31, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index}.png")
    labels = [f"class {index}" for index in range(CLASSES)]
    (tmp_path / "names.txt").write_text("\n".join(labels))
    words[words.index("--calibration") + 1] = str(pictures)
    assert main([*words, "--labels", str(tmp_path / "names.txt")]) == 0
    path = tmp_path / "out" / "int8.tflite"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == labels
    found = metadata_of(path)
    assert found[ENTRY][4:8] == IDENTIFIER
    assert json.loads(found[DETAILS_ENTRY])["recipe"] == "int8_min_max"
    assert interpreter(path).get_signature_list()["serving_default"]["inputs"] == ["image"]
    first = path.read_bytes()
    assert main([*words, "--labels", str(tmp_path / "names.txt")]) == 0
    assert path.read_bytes() == first


def test_explain_lists_every_node_that_cannot_be_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Erf"
    model.graph.node.append(helper.make_node("Det", ["c"], ["unused"], "det_1"))
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["convert", str(tmp_path / "model.onnx"), "--explain"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "(Erf)" in lines[0] and "det_1" in lines[1] and "(2 found)" in lines[2]
    assert main([*saved(tmp_path, model)]) == 1
    assert "and 1 more; list all with --explain" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    model = classifier()
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["convert", str(tmp_path / "model.onnx"), "--explain"]) == 0
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, (1, 8, 6, 6)))
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["convert", str(tmp_path / "model.onnx"), "--explain"]) == 1
    assert "it has 2 outputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "words", "reason"),
    [
        (classifier(size="side"), [], "every size must be fixed.*--shape 1,3,224,224"),
        (classifier(batch=2), [], "one image at a time"),
        (classifier(), ["--shape", "1,3,12"], "every size must be fixed"),
        (classifier(), ["--labels", "{folder}/two.txt"], "has 2 lines.*5 classes"),
        (classifier(), ["--calibration", "{folder}/other.npy"], r"has shape \[4, 3\].*\[N, 3, 12, 12\]"),
        (classifier(), ["--calibration", "{folder}/text.npy"], "calibration needs numbers"),
        (classifier(), ["--std", "0"], "choose a number above 0"),
        (classifier(), ["--shape", "big"], "give whole numbers"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    model: onnx.ModelProto,
    words: Sequence[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    np.save(tmp_path / "other.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "text.npy", np.full((4, 3, SIZE, SIZE), "x"))
    code = main([*saved(tmp_path, model), *(word.format(folder=tmp_path) for word in words)])
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(reason, error), error


def test_the_same_metadata_gives_the_same_bytes() -> None:
    about = Metadata(name="m", description="d", labels=("a", "ü"), details={"alpha": "0.5"})
    assert entries(about, "image", "logits") == entries(about, "image", "logits")
    content = with_labels(b"0123", about.labels)
    assert content == with_labels(b"0123", about.labels)
    assert content.startswith(b"0123")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.getinfo("labels.txt").date_time == (1980, 1, 1, 0, 0, 0)
        assert archive.read("labels.txt").decode() == "a\nü\n"
    assert with_labels(b"0123", ()) == b"0123"
