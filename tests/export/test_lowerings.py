"""Every lowering against ONNX Runtime: same values from the .tflite file, with the operators that were expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from export.lowerings import LOWERINGS, UnsupportedOp, same_pads
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import channels_last, read_onnx
from export.run import Program
from export.write_tflite import write_tflite
from tests.export.graphs import SHAPE, node, onnx_model, random

TOLERANCE = 2e-6

Case = tuple[onnx.ModelProto, dict[str, int]]


def conv(group: int, channels: int, kernel: tuple[int, int], **attributes: Any) -> onnx.ModelProto:
    weights = random(channels, SHAPE[1] // group, *kernel, seed=1)
    constants = {"w": weights, "b": random(channels, seed=2)}
    return onnx_model([node("Conv", "x", "w", "b", group=group, **attributes)], constants)


def with_constant(op: str, *shape: int) -> onnx.ModelProto:
    return onnx_model([node(op, "x", "c")], {"c": np.abs(random(*shape, seed=3)) + 0.5})


def batch_norm() -> onnx.ModelProto:
    constants = {name: np.abs(random(6, seed=seed)) + 0.1 for seed, name in enumerate("sbmv")}
    return onnx_model([node("BatchNormalization", "x", "s", "b", "m", "v")], constants)


def classifier(flatten: onnx.NodeProto, **constants: NDArray[Any]) -> onnx.ModelProto:
    nodes = [
        node("GlobalAveragePool", output="p"),
        flatten,
        node("Gemm", "f", "w", "b", transB=1, alpha=0.5, beta=2.0),
    ]
    return onnx_model(nodes, {"w": random(5, 6), "b": random(5), **constants})


def axes(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


# fmt: off
CASES: dict[str, Case] = {
    "Add per channel":      (with_constant("Add", 1, 6, 1, 1), {"ADD": 1}),
    "Add row":              (with_constant("Add", 7), {"ADD": 1}),
    "Add self":             (onnx_model([node("Add", "x", "x")]), {"ADD": 1}),
    "AveragePool":          (onnx_model([node("AveragePool", kernel_shape=[3, 2], strides=[2, 1])]), {"AVERAGE_POOL_2D": 1}),
    "AveragePool SAME":     (onnx_model([node("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)]), {"AVERAGE_POOL_2D": 1}),
    "BatchNormalization":   (batch_norm(), {"ADD": 1, "MUL": 1}),
    "Clip relu6":           (onnx_model([node("Clip", "x", "lo", "hi")], {"lo": np.float32(0), "hi": np.float32(6)}), {"RELU6": 1}),
    "Clip relu":            (onnx_model([node("Clip", "x", "lo")], {"lo": np.float32(0)}), {"RELU": 1}),
    "Clip other":           (onnx_model([node("Clip", "x", "lo", "hi")], {"lo": np.float32(-0.5), "hi": np.float32(0.7)}), {"MAXIMUM": 1, "MINIMUM": 1}),
    "Clip attributes":      (onnx_model([node("Clip", min=0.0, max=6.0)], opset=10), {"RELU6": 1}),
    "Concat channels":      (onnx_model([node("Relu", output="r"), node("Concat", "x", "r", axis=1)]), {"RELU": 1, "CONCATENATION": 1}),
    "Concat rows":          (onnx_model([node("Relu", output="r"), node("Concat", "x", "r", axis=-2)]), {"RELU": 1, "CONCATENATION": 1}),
    "Conv valid":           (conv(1, 4, (3, 2), strides=[2, 1]), {"CONV_2D": 1}),
    "Conv same":            (conv(1, 4, (3, 3), pads=[1, 1, 1, 1]), {"CONV_2D": 1}),
    "Conv same asymmetric": (conv(1, 4, (3, 4), pads=[1, 1, 1, 2]), {"CONV_2D": 1}),
    "Conv explicit pads":   (conv(1, 4, (3, 3), pads=[2, 0, 1, 3]), {"CONV_2D": 1, "PAD": 1}),
    "Conv SAME_UPPER":      (conv(1, 4, (2, 4), auto_pad="SAME_UPPER", strides=[2, 2]), {"CONV_2D": 1}),
    "Conv SAME_LOWER":      (conv(1, 4, (2, 4), auto_pad="SAME_LOWER"), {"CONV_2D": 1, "PAD": 1}),
    "Conv dilated":         (conv(1, 4, (3, 3), dilations=[2, 2], pads=[2, 2, 2, 2]), {"CONV_2D": 1}),
    "Conv grouped":         (conv(2, 8, (3, 3), pads=[1, 1, 1, 1]), {"CONV_2D": 1}),
    "Conv depthwise":       (conv(6, 6, (5, 3), pads=[2, 1, 2, 1]), {"DEPTHWISE_CONV_2D": 1}),
    "Conv multiplier":      (conv(6, 12, (3, 3)), {"DEPTHWISE_CONV_2D": 1}),
    "Div constant":         (with_constant("Div", 6, 1, 1), {"MUL": 1}),
    "Flatten":              (classifier(node("Flatten", "p", output="f")), {"FULLY_CONNECTED": 1, "MEAN": 1}),
    "GlobalAveragePool":    (onnx_model([node("GlobalAveragePool")]), {"MEAN": 1, "RESHAPE": 1}),
    "HardSigmoid":          (onnx_model([node("HardSigmoid", alpha=1 / 6)]), {"ADD": 1, "MUL": 1}),
    "HardSigmoid spec":     (onnx_model([node("HardSigmoid")]), {"ADD": 1, "MUL": 2}),
    "HardSwish":            (onnx_model([node("HardSwish")]), {"HARD_SWISH": 1}),
    "MatMul":               (onnx_model([node("ReduceMean", "x", "a", output="m", keepdims=0), node("MatMul", "m", "w")], {"a": axes(2, 3), "w": random(6, 5)}), {"FULLY_CONNECTED": 1, "MEAN": 1}),
    "MaxPool":              (onnx_model([node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)]), {"MAX_POOL_2D": 1}),
    "Mul scalar":           (with_constant("Mul"), {"MUL": 1}),
    "Pad":                  (onnx_model([node("Pad", "x", "p")], {"p": axes(0, 0, 1, 2, 0, 3, 0, 1)}), {"PAD": 1}),
    "Pad then Conv":        (onnx_model([node("Pad", "x", "p", output="q"), node("Conv", "q", "w", strides=[2, 2])], {"p": axes(0, 0, 1, 1, 0, 0, 1, 1), "w": random(4, 6, 3, 3)}), {"CONV_2D": 1}),
    "ReduceMean":           (onnx_model([node("ReduceMean", "x", "a")], {"a": axes(2, 3)}), {"MEAN": 1, "RESHAPE": 1}),
    "ReduceMean attribute": (onnx_model([node("ReduceMean", axes=[1], keepdims=1)], opset=17), {"MEAN": 1, "RESHAPE": 1}),
    "Relu":                 (onnx_model([node("Relu")]), {"RELU": 1}),
    "Reshape":              (onnx_model([node("Reshape", "x", "s")], {"s": axes(1, 3, -1)}), {"RESHAPE": 1, "TRANSPOSE": 1}),
    "Sigmoid":              (onnx_model([node("Sigmoid")]), {"LOGISTIC": 1}),
    "Softmax":              (onnx_model([node("Softmax", axis=1)]), {"SOFTMAX": 1}),
    "Squeeze":              (onnx_model([node("GlobalAveragePool", output="p"), node("Squeeze", "p", "a")], {"a": axes(2, 3)}), {"MEAN": 1}),
    "Sub constant":         (with_constant("Sub", 1, 6, 1, 1), {"ADD": 1}),
    "Sub from constant":    (onnx_model([node("Sub", "c", "x")], {"c": random(1, 6, 1, 1)}), {"SUB": 1}),
    "Unsqueeze":            (onnx_model([node("ReduceMean", "x", "a", output="m", keepdims=0), node("Unsqueeze", "m", "b")], {"a": axes(2, 3), "b": axes(1)}), {"MEAN": 1, "RESHAPE": 1}),
}
# fmt: on


def reference(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": images})[0])


def converted(
    model: onnx.ModelProto, images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Output of the .tflite file in ONNX's element order, and its operators; checks the simulator on the way."""
    graph = run_passes(read_onnx(model), FLOAT_PASSES)
    interpreter = Interpreter(model_content=write_tflite(graph), num_threads=1)
    interpreter.allocate_tensors()
    rows = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], rows)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(Program(graph)(rows), found, atol=TOLERANCE, rtol=1e-5)
    return found, graph.op_counts()


@pytest.mark.parametrize("name", CASES)
def test_a_lowered_operator_gives_what_onnx_runtime_gives(name: str) -> None:
    model, ops = CASES[name]
    images = random(*SHAPE, seed=7)
    expected = reference(model, images)
    found, counts = converted(model, images)
    counts = {op: count for op, count in counts.items() if not (op == "TRANSPOSE" and op not in ops)}
    assert counts == ops
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=1e-5)


def test_every_lowering_has_a_case() -> None:
    covered = {node.op_type for model, _ in CASES.values() for node in model.graph.node}
    assert covered >= set(LOWERINGS)


def test_an_operator_without_lowering_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOp, match=r"'erf_y' \(Erf\).*supported are Add, "):
        read_onnx(onnx_model([node("Erf")]))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (onnx_model([node("MaxPool", kernel_shape=[2, 2], ceil_mode=1)]), "ceil_mode"),
        (onnx_model([node("MaxPool", kernel_shape=[3, 3], pads=[2, 0, 0, 1])]), "not TFLite's SAME"),
        (
            onnx_model([node("Pad", "x", "p", mode="reflect")], {"p": axes(0, 0, 1, 1, 0, 0, 1, 1)}),
            "zero padding",
        ),
        (onnx_model([node("Softmax", axis=2)]), "last axis"),
        (onnx_model([node("ReduceMean", "x", "a", keepdims=0)], {"a": axes(2)}), "keepdims=0"),
    ],
)
def test_an_attribute_that_tflite_lacks_is_refused_with_its_reason(
    model: onnx.ModelProto, reason: str
) -> None:
    with pytest.raises(UnsupportedOp, match=reason):
        read_onnx(model)


def test_tensorflow_puts_the_odd_padding_pixel_last() -> None:
    assert same_pads((56, 57), (3, 3), (2, 2), (1, 1)) == (0, 1, 1, 1)
    assert same_pads((7, 7), (5, 5), (1, 1), (2, 2)) == (4, 4, 4, 4)


def test_channels_last_is_the_permutation_of_images_and_of_sequences() -> None:
    assert channels_last(4) == (0, 2, 3, 1)
    assert channels_last(3) == (0, 2, 1)
