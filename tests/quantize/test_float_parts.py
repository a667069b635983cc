"""The float parts of the default recipe, as the file stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models
from export.check import audit_delegate
from export.graph import Graph, Node, Tensor
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.read_tflite import read_tflite
from export.to_onnx import to_onnx
from export.write_tflite import write_tflite
from quantize.int8 import Io, to_int8
from quantize.ranges import observe_ranges
from quantize.recipes import residual_sums


def test_a_float_classifier_with_per_channel_weights_asks_for_a_runtime_that_knows_them(
    tmp_path: Path,
) -> None:
    """Runtimes before version 12 read one scale for all channels: they must refuse the file."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(5, 7)).astype(np.float32) * np.arange(1, 6, dtype=np.float32)[:, None]
    graph = Graph(
        {
            "x": Tensor((1, 7)),
            "y": Tensor((1, 5)),
            "w": Tensor.constant(weights),
            "b": Tensor.constant(np.zeros(5, np.float32)),
        },
        (Node("FULLY_CONNECTED", ("x", "w", "b"), ("y",), {"fused_activation_function": "NONE"}),),
        ("x",),
        ("y",),
    )
    ranges = observe_ranges(graph, [generator.uniform(-1, 1, (4, 7)).astype(np.float32)])
    versions = {}
    for name, in_float in (("float", frozenset({"y"})), ("integer", frozenset[str]())):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(write_tflite(to_int8(graph, ranges, Io(input="int8"), in_float)))
        versions[name] = {op.version for op in read_tflite(path).operators if op.name == "FULLY_CONNECTED"}
        assert audit_delegate(path).partitions == 1
    assert versions == {"float": {12}, "integer": {4}}


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("v2", (8, 9, 10, 12, 13, 15, 16)),  # not 3, the one of its stage, nor 5 and 6 on an eighth
        ("v3_small", (5, 6, 10, 11)),
        ("v3_large", (8, 9, 10, 14, 15)),
    ],
)
@pytest.mark.parametrize("resolution", [56, 64])
def test_the_deep_stages_of_several_sums_add_up_in_float(
    model: str, blocks: tuple[int, ...], resolution: int
) -> None:
    assert residual_sums(_graph(model, resolution)) == {f"features/{block}/add" for block in blocks}


def test_sums_that_are_not_residual_are_all_in_float() -> None:
    graph = _graph("micronet_m0", 56)
    maxima = {node.output for node in graph.nodes if node.op == "ADD" and "/act/" in node.output}
    assert maxima and maxima <= residual_sums(graph)


def _graph(model: str, resolution: int) -> Graph:
    module = models.deployed(models.build(model, 1.0, 10).eval())
    return run_passes(read_onnx(to_onnx(module, resolution)), FLOAT_PASSES)
