"""Every form of every operator: float32 is ONNX Runtime's result, int8 the simulator's, in one partition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.check import audit_delegate
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import input_order, read_onnx
from export.run import Program
from export.runtime import invoke, load_interpreter, run_onnx_as_it_is, run_tflite
from export.write_tflite import write_tflite
from quantize.int8 import Io, to_int8
from quantize.ranges import narrowed_to_use, observe_ranges
from tests.export.graphs import random
from tests.export.test_lowerings import CASES
from tests.export.variants import VARIANTS

FLOAT_TOLERANCE = 1e-5  # of the largest value
STEPS = 2
FAR_FROM_FLOAT = 4  # steps of the output's grid between int8 and float32, where the result is not cut off
CUT_OFF = {"Clip from Constants"}  # the range before the cut is wide, so is its step
IMAGES = 3
LEFT_OUT = {  # what XNNPACK has no kernel for
    "Resize nearest of a large image": "RESIZE_NEAREST_NEIGHBOR",
    "Slice backwards": "STRIDED_SLICE",
}


def inputs(model: onnx.ModelProto) -> NDArray[np.float32]:
    sizes = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    return random(IMAGES, *sizes[1:], seed=5).clip(-1, 1)


def converted(model: onnx.ModelProto) -> Graph:
    return run_passes(read_onnx(model), FLOAT_PASSES)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_form_of_an_operator_gives_what_onnx_runtime_gives(name: str, tmp_path: Path) -> None:
    model, path = VARIANTS[name], tmp_path / "float32.tflite"
    images = inputs(model)
    expected = run_onnx_as_it_is(model.SerializeToString(), images)
    graph, rows = converted(model), np.ascontiguousarray(images.transpose(input_order(model)))
    path.write_bytes(write_tflite(graph))
    limit = FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1.0)
    for found in (run_tflite(path, rows), Program(graph)(rows)):
        np.testing.assert_allclose(found, expected, atol=limit, rtol=0)


@pytest.mark.parametrize("name", [*CASES, *VARIANTS])
def test_its_int8_file_is_one_partition_and_what_the_simulator_says(name: str, tmp_path: Path) -> None:
    model, path = VARIANTS.get(name) or CASES[name][0], tmp_path / "int8.tflite"
    graph, rows = converted(model), np.ascontiguousarray(inputs(model).transpose(input_order(model)))
    ranges = narrowed_to_use(graph, observe_ranges(graph, [rows]))
    quantised = to_int8(graph, ranges, Io(input="int8", output="int8"))
    path.write_bytes(write_tflite(quantised))
    door, result = (
        quantised.tensors[names[0]].quantization for names in (quantised.inputs, quantised.outputs)
    )
    assert door is not None and result is not None
    stored = np.clip(np.round(rows / door.scale) + door.zero_point, -128, 127).astype(np.int8)
    real, step = result.dequantize(invoke(load_interpreter(path), stored)), float(result.scale[0])
    assert np.abs(real - Program(quantised)(door.dequantize(stored))).max() <= (STEPS + 1e-3) * step
    far = np.abs(real - Program(graph)(rows)).max() / step
    assert far <= FAR_FROM_FLOAT or name in CUT_OFF
    audit = audit_delegate(path)
    assert audit.partitions == 1
    assert set(audit.undelegated_ops) <= ({LEFT_OUT[name]} if name in LEFT_OUT else set())
