"""Every network from PyTorch to the three kinds of file, checked as the main job checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

import models
from export.check import audit_delegate, check_delegate, check_op_budget, check_parity, parity
from export.read_onnx import load_onnx
from export.read_tflite import read_tflite
from export.run import Program
from export.runtime import load_onnx_predictor, load_tflite_predictor
from export.to_onnx import to_onnx
from export.write_tflite import write_tflite
from pipeline.artifacts import AlpharhoError, CheckError
from pipeline.budget import op_budget
from pipeline.data import normalise
from pipeline.variant import Variant
from quantize.float16 import FLOAT16_METADATA, to_float16
from quantize.int8 import Io, to_int8
from quantize.ranges import narrowed_to_use, observe_ranges
from tests.export.conftest import ALPHA, RESOLUTION, Exported

Export = Callable[..., Exported]
Pixels = NDArray[np.uint8]
NAMES = [name for name in models.MODELS if not name.startswith("micronet")]


def logits_of(module: torch.nn.Module, pixels: Pixels) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(normalise(pixels).transpose(0, 3, 1, 2))).numpy())


def sqnr(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(10 * np.log10((reference**2).sum() / ((found - reference) ** 2).sum()))


@pytest.mark.parametrize("name", NAMES)
def test_onnx_and_float32_agree_with_pytorch(
    name: str, export_model: Export, pixels: Pixels, tmp_path: Path
) -> None:
    exported = export_model(name)
    onnx_path, tflite_path = tmp_path / "model.onnx", tmp_path / "float32.tflite"
    onnx_path.write_bytes(exported.onnx.SerializeToString())
    tflite_path.write_bytes(write_tflite(exported.graph))
    expected = logits_of(exported.module, pixels)
    for predictor in (
        load_onnx_predictor(onnx_path, normalise),
        load_tflite_predictor(tflite_path, normalise),
    ):
        check_parity(parity(predictor(pixels), expected), name)
    check_parity(parity(Program(exported.graph)(normalise(pixels)), expected), "simulator")
    check_op_budget(
        read_tflite(tflite_path).op_counts(), op_budget(Variant(name, ALPHA, RESOLUTION), "tf"), tflite_path
    )
    check_delegate(audit_delegate(tflite_path), tflite_path)


@pytest.mark.parametrize("name", NAMES)
def test_float16_halves_the_file_and_stays_one_partition(
    name: str, export_model: Export, pixels: Pixels, tmp_path: Path
) -> None:
    graph, path = export_model(name).graph, tmp_path / "float16.tflite"
    path.write_bytes(write_tflite(to_float16(graph), FLOAT16_METADATA))
    file = read_tflite(path)
    assert file.bytes < 0.6 * len(write_tflite(graph))
    assert file.metadata == ("reduced_precision_support",)
    check_delegate(audit_delegate(path), path)
    reference = Program(graph)(normalise(pixels))
    assert sqnr(load_tflite_predictor(path, normalise)(pixels), reference) > 40


@pytest.mark.parametrize(
    "io",
    [Io(input=i, output=o) for i in ("uint8", "int8", "float32") for o in ("float32", "int8", "uint8")][::2],
)
@pytest.mark.parametrize("name", ["v2", "v3_small"])
def test_int8_is_one_partition_whatever_its_doors(
    name: str, io: Io, export_model: Export, pixels: Pixels, tmp_path: Path
) -> None:
    graph, path = export_model(name).graph, tmp_path / "int8.tflite"
    ranges = narrowed_to_use(graph, observe_ranges(graph, [normalise(pixels)]))
    path.write_bytes(write_tflite(to_int8(graph, ranges, io)))
    file = read_tflite(path)
    assert file.tensors[file.inputs[0]].dtype == io.input
    assert file.tensors[file.outputs[0]].dtype == io.output
    check_delegate(audit_delegate(path), path)
    assert sqnr(load_tflite_predictor(path, normalise)(pixels), Program(graph)(normalise(pixels))) > 14


def test_int8_weights_are_per_channel_and_never_minus_128(export_model: Export, pixels: Pixels) -> None:
    graph = export_model("v2").graph
    quantised = to_int8(graph, observe_ranges(graph, [normalise(pixels)]))
    weights = [quantised.tensors[node.inputs[1]] for node in quantised.nodes if len(node.inputs) == 3]
    assert len(weights) == 53
    for tensor in weights:
        assert tensor.data is not None and tensor.quantization is not None
        assert tensor.dtype == np.int8 and tensor.data.min() >= -127
        assert len(tensor.quantization.scale) == tensor.shape[tensor.quantization.axis or 0]
        assert not tensor.quantization.zero_point.any()


def test_torch_padding_is_one_pad_before_each_strided_convolution(export_model: Export) -> None:
    counts = export_model("v1", "torch").graph.op_counts()
    assert counts["PAD"] == 5
    assert "TRANSPOSE" not in counts


def test_tensors_are_named_by_module_path(export_model: Export) -> None:
    graph = export_model("v3_small").graph
    assert graph.inputs == ("image",) and graph.outputs == ("logits",)
    assert {"features/0/conv", "features/1/squeeze_excite/reduce", "features/4/project/conv/weight"} <= set(
        graph.tensors
    )


def test_the_same_module_gives_the_same_bytes(export_model: Export) -> None:
    exported = export_model("v1")
    again = to_onnx(exported.module, RESOLUTION)
    assert again.SerializeToString() == exported.onnx.SerializeToString()
    assert b"site-packages" not in again.SerializeToString()
    assert write_tflite(exported.graph) == write_tflite(exported.graph)


def test_constants_lie_inline_at_multiples_of_16(export_model: Export) -> None:
    content = write_tflite(export_model("v1").graph)
    model = schema.Model.GetRootAs(content)
    offsets = [
        buffer._tab.Vector(buffer._tab.Offset(4))
        for buffer in map(model.Buffers, range(model.BuffersLength()))
        if buffer.DataLength()
    ]
    assert len(offsets) > 50
    assert not any(offset % 16 for offset in offsets)
    assert all(model.Buffers(i).Size() == 0 for i in range(model.BuffersLength()))


def test_a_file_has_the_serving_default_signature(export_model: Export, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(write_tflite(export_model("v1").graph))
    assert read_tflite(path).signatures == ("serving_default",)


def test_a_truncated_onnx_file_is_refused(export_model: Export, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    content = export_model("v1").onnx.SerializeToString()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(AlpharhoError, match=r"cut\.onnx"):
            load_onnx(path)


def test_a_damaged_tflite_file_is_refused(export_model: Export, tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    content = write_tflite(export_model("v1").graph)
    for length in (0, 7, 100, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(AlpharhoError, match=r"cut\.tflite"):
            read_tflite(path)


def test_a_second_partition_is_told(tmp_path: Path, export_model: Export, pixels: Pixels) -> None:
    """Hard-swish as TFLite's builtin int8 operator is what cuts other tools' files apart."""
    graph = export_model("v3_small").graph
    ranges = observe_ranges(graph, [normalise(pixels)])
    quantised = to_int8(graph, ranges)
    joined = {
        node.output: next(n for n in quantised.nodes if n.output == node.inputs[0]).inputs[0]
        for node in quantised.nodes
        if node.op == "HARD_SWISH"
    }
    nodes = [node.renamed({}) if node.op != "HARD_SWISH" else None for node in quantised.nodes]
    builtin = []
    for node in filter(None, nodes):
        source = joined.get(node.inputs[0]) if node.op == "QUANTIZE" else None
        builtin.append(node if source is None else type(node)("HARD_SWISH", (source,), node.outputs))
    path = tmp_path / "cut.tflite"
    path.write_bytes(write_tflite(quantised.with_nodes(builtin).without_dead_nodes()))
    audit = audit_delegate(path)
    assert audit.partitions > 10
    assert audit.undelegated_ops.count("HARD_SWISH") == 19
    with pytest.raises(CheckError, match="HARD_SWISH outside, expected 1"):
        check_delegate(audit, path)


def test_a_missed_budget_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"1 TRANSPOSE \(expected 0\), 3 ADD \(expected 4\)"):
        check_op_budget({"TRANSPOSE": 1, "ADD": 3}, {"TRANSPOSE": 0, "ADD": 4, "PAD": 0}, tmp_path)


def test_missing_parity_is_told() -> None:
    reference = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10)
    check_parity(parity(reference + 0.0019, reference), "near")
    with pytest.raises(CheckError, match=r"far: logits differ by 0\.0021, at most 0\.002"):
        check_parity(parity(reference + 0.0021, reference), "far")
    with pytest.raises(CheckError):
        check_parity(parity(reference * np.float32(np.nan), reference), "not a number")
