"""The float parts of the default recipe, as the file stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.check import audit_delegate
from export.graph import Graph, Node, Tensor
from export.read_tflite import read_tflite
from export.write_tflite import write_tflite
from quantize.int8 import Io, to_int8
from quantize.ranges import observe_ranges


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
