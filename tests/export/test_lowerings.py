"""Every lowering against ONNX Runtime: the same values from the .tflite file, by the expected operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from export.graph import same_pads
from export.lowerings import LOWERINGS
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import channels_last, read_onnx, refusals
from export.registry import UnsupportedOp
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


def unary(op: str, **attributes: Any) -> onnx.ModelProto:
    return onnx_model([node(op, **attributes)])


def transposed(group: int, kernel: tuple[int, int], **attributes: Any) -> onnx.ModelProto:
    constants = {"w": random(SHAPE[1], 4 // group, *kernel, seed=1), "b": random(4, seed=2)}
    return onnx_model([node("ConvTranspose", "x", "w", "b", group=group, **attributes)], constants)


def resized(scales: tuple[float, ...], **attributes: Any) -> onnx.ModelProto:
    return onnx_model([node("Resize", "x", "", "s", **attributes)], {"s": np.array(scales, np.float32)})


def over_one_axis() -> onnx.ModelProto:
    """[1, 6, 63] through everything that slides over one axis."""
    norm = {name: np.abs(random(5, seed=seed)) + 0.1 for seed, name in enumerate("cdmv")}
    nodes = [
        node("Reshape", "x", "shape", output="l"),
        node("Conv", "l", "w", "b", output="k", pads=[1, 1]),
        node("BatchNormalization", "k", "c", "d", "m", "v", output="n"),
        node("Relu", "n", output="r"),
        node("MaxPool", "r", output="p", kernel_shape=[3], strides=[2], pads=[1, 1]),
        node("AveragePool", "p", output="a", kernel_shape=[2]),
        node("GlobalAveragePool", "a"),
    ]
    constants = {"shape": axes(1, 6, 63), "w": random(5, 6, 3), "b": random(5), **norm}
    return onnx_model(nodes, constants)


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
    "AveragePool explicit": (unary("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 0, 1]), {"AVERAGE_POOL_2D": 1, "MUL": 1, "PAD": 1}),
    "AveragePool counted":  (unary("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), {"AVERAGE_POOL_2D": 1, "PAD": 1}),
    "AveragePool ceil":     (unary("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), {"AVERAGE_POOL_2D": 1}),
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
    "Conv over one axis":   (over_one_axis(), {"AVERAGE_POOL_2D": 1, "CONV_2D": 1, "MAX_POOL_2D": 1, "MEAN": 1, "RESHAPE": 3}),
    "Conv uneven strides":  (conv(1, 4, (1, 3), strides=[2, 1], pads=[0, 1, 0, 1]), {"CONV_2D": 1}),
    "Clip from zero":       (onnx_model([node("Clip", "x", "lo", "hi")], {"lo": np.float32(0), "hi": np.float32(1)}), {"MINIMUM": 1, "RELU": 1}),
    "Clip from above":      (onnx_model([node("Clip", "x", "", "hi")], {"hi": np.float32(0.4)}), {"MINIMUM": 1}),
    "Concat constant":      (onnx_model([node("Concat", "x", "c", axis=1)], {"c": random(1, 2, 9, 7)}), {"CONCATENATION": 1}),
    "ConvTranspose":        (transposed(1, (3, 2), strides=[2, 2]), {"TRANSPOSE_CONV": 1}),
    "ConvTranspose SAME":   (transposed(1, (4, 4), strides=[2, 2], pads=[1] * 4), {"TRANSPOSE_CONV": 1}),
    "ConvTranspose cut":    (transposed(2, (3, 3), strides=[2, 1], pads=[1, 1, 1, 0], output_padding=[1, 0]), {"SLICE": 1, "TRANSPOSE_CONV": 1}),
    "ConvTranspose dilated": (transposed(1, (2, 3), dilations=[2, 2]), {"TRANSPOSE_CONV": 1}),
    "Div constant":         (with_constant("Div", 6, 1, 1), {"MUL": 1}),
    "Flatten":              (classifier(node("Flatten", "p", output="f")), {"FULLY_CONNECTED": 1, "MEAN": 1}),
    "GlobalAveragePool":    (onnx_model([node("GlobalAveragePool")]), {"MEAN": 1, "RESHAPE": 1}),
    "GlobalMaxPool":        (unary("GlobalMaxPool"), {"MAX_POOL_2D": 1, "RESHAPE": 1}),
    "HardSigmoid":          (onnx_model([node("HardSigmoid", alpha=1 / 6)]), {"ADD": 1, "MUL": 1}),
    "HardSigmoid spec":     (onnx_model([node("HardSigmoid")]), {"ADD": 1, "MUL": 2}),
    "HardSwish":            (onnx_model([node("HardSwish")]), {"HARD_SWISH": 1}),
    "LeakyRelu":            (unary("LeakyRelu", alpha=0.2), {"LEAKY_RELU": 1}),
    "MatMul":               (onnx_model([node("ReduceMean", "x", "a", output="m", keepdims=0), node("MatMul", "m", "w")], {"a": axes(2, 3), "w": random(6, 5)}), {"FULLY_CONNECTED": 1, "MEAN": 1}),
    "MaxPool":              (onnx_model([node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)]), {"MAX_POOL_2D": 1}),
    "MatMul of rows":       (onnx_model([node("MatMul", "x", "w")], {"w": random(7, 5)}), {"FULLY_CONNECTED": 1, "TRANSPOSE": 1}),
    "Max":                  (onnx_model([node("Sigmoid", output="s"), node("Max", "x", "s", "c")], {"c": random(6, 1, 1)}), {"LOGISTIC": 1, "MAXIMUM": 2}),
    "MaxPool explicit":     (unary("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]), {"CONCATENATION": 2, "MAX_POOL_2D": 1, "SLICE": 2}),
    "MaxPool ceil":         (unary("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1), {"CONCATENATION": 1, "MAX_POOL_2D": 1, "SLICE": 1}),
    "Min":                  (onnx_model([node("Min", "x", "c")], {"c": random(7)}), {"MINIMUM": 1}),
    "Mul scalar":           (with_constant("Mul"), {"MUL": 1}),
    "PRelu":                (onnx_model([node("PRelu", "x", "c")], {"c": random(6, 1, 1)}), {"PRELU": 1}),
    "PRelu one slope":      (onnx_model([node("PRelu", "x", "c")], {"c": random(1)}), {"PRELU": 1}),
    "Pad edge":             (onnx_model([node("Pad", "x", "p", mode="edge")], {"p": axes(0, 0, 1, 2, 0, 0, 0, 1)}), {"CONCATENATION": 2, "SLICE": 3}),
    "Pad axes":             (onnx_model([node("Pad", "x", "p", "", "a")], {"p": axes(1, 2), "a": axes(3)}), {"PAD": 1}),
    "Pad":                  (onnx_model([node("Pad", "x", "p")], {"p": axes(0, 0, 1, 2, 0, 3, 0, 1)}), {"PAD": 1}),
    "Pad then Conv":        (onnx_model([node("Pad", "x", "p", output="q"), node("Conv", "q", "w", strides=[2, 2])], {"p": axes(0, 0, 1, 1, 0, 0, 1, 1), "w": random(4, 6, 3, 3)}), {"CONV_2D": 1}),
    "ReduceMean":           (onnx_model([node("ReduceMean", "x", "a")], {"a": axes(2, 3)}), {"MEAN": 1, "RESHAPE": 1}),
    "ReduceMean attribute": (onnx_model([node("ReduceMean", axes=[1], keepdims=1)], opset=17), {"MEAN": 1, "RESHAPE": 1}),
    "ReduceMean rows":      (onnx_model([node("ReduceMean", "x", "a", keepdims=0)], {"a": axes(2)}), {"MEAN": 1, "RESHAPE": 1, "TRANSPOSE": 1}),
    "ReduceMean channels":  (onnx_model([node("ReduceMean", "x", "a", keepdims=0)], {"a": axes(-3)}), {"MEAN": 1}),
    "Relu":                 (onnx_model([node("Relu")]), {"RELU": 1}),
    "Reshape":              (onnx_model([node("Reshape", "x", "s")], {"s": axes(1, 3, -1)}), {"RESHAPE": 1, "TRANSPOSE": 1}),
    "Resize nearest":       (resized((1, 1, 2, 3), mode="nearest"), {"CONCATENATION": 2, "RESHAPE": 3}),
    "Resize floor":         (resized((1, 1, 2, 2), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"), {"CONCATENATION": 2, "RESHAPE": 3}),
    "Resize by a sixth":    (onnx_model([node("Resize", "x", "", "", "z", mode="nearest")], {"z": axes(1, 6, 18, 9)}), {"FULLY_CONNECTED": 2, "RESHAPE": 1, "TRANSPOSE": 2}),
    "Resize bilinear":      (resized((1, 1, 2, 3), mode="linear"), {"RESIZE_BILINEAR": 1}),
    "Resize aligned":       (resized((1, 1, 2, 3), mode="linear", coordinate_transformation_mode="align_corners"), {"RESIZE_BILINEAR": 1}),
    "Resize sizes":         (onnx_model([node("Resize", "x", "", "", "z", mode="linear", coordinate_transformation_mode="pytorch_half_pixel")], {"z": axes(1, 6, 5, 11)}), {"RESIZE_BILINEAR": 1}),
    "Slice":                (onnx_model([node("Slice", "x", "b", "e", "a")], {"b": axes(1, -5), "e": axes(5, 2**31), "a": axes(1, 3)}), {"SLICE": 1}),
    "Slice steps":          (onnx_model([node("Slice", "x", "b", "e", "a", "t")], {"b": axes(1), "e": axes(8), "a": axes(2), "t": axes(3)}), {"RESHAPE": 2, "SLICE": 1}),
    "Split":                (onnx_model([onnx.helper.make_node("Split", ["x", "z"], ["p", "q"], axis=1, name="split"), node("Concat", "q", "p", axis=1)], {"z": axes(2, 4)}), {"CONCATENATION": 1, "SLICE": 2}),
    "Softmax rows":         (unary("Softmax", axis=2), {"SOFTMAX": 1, "TRANSPOSE": 2}),
    "Sigmoid":              (onnx_model([node("Sigmoid")]), {"LOGISTIC": 1}),
    "Softmax":              (onnx_model([node("Softmax", axis=1)]), {"SOFTMAX": 1}),
    "Squeeze":              (onnx_model([node("GlobalAveragePool", output="p"), node("Squeeze", "p", "a")], {"a": axes(2, 3)}), {"MEAN": 1}),
    "Sub constant":         (with_constant("Sub", 1, 6, 1, 1), {"ADD": 1}),
    "Sub from constant":    (onnx_model([node("Sub", "c", "x")], {"c": random(1, 6, 1, 1)}), {"SUB": 1}),
    "Tanh":                 (unary("Tanh"), {"TANH": 1}),
    "Transpose":            (unary("Transpose", perm=[0, 1, 3, 2]), {"TRANSPOSE": 1}),
    "Transpose to rows":    (onnx_model([node("Relu", output="r"), node("Transpose", "r", perm=[0, 2, 3, 1])]), {"RELU": 1}),
    "Transpose there and back": (onnx_model([node("Relu", output="r"), node("Transpose", "r", output="t", perm=[0, 2, 3, 1]), node("Softmax", "t", output="s"), node("Transpose", "s", output="b", perm=[0, 3, 1, 2]), node("GlobalMaxPool", "b")]), {"MAX_POOL_2D": 1, "RELU": 1, "RESHAPE": 1, "SOFTMAX": 1}),
    "Unsqueeze":            (onnx_model([node("ReduceMean", "x", "a", output="m", keepdims=0), node("Unsqueeze", "m", "b")], {"a": axes(2, 3), "b": axes(1)}), {"MEAN": 1, "RESHAPE": 1}),
}
# fmt: on


def reference(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": images})[0])


def converted(
    model: onnx.ModelProto, images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Output of the .tflite file in ONNX's element order, and its operators; checks the simulator too."""
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
    with pytest.raises(UnsupportedOp, match=r"'erf_y' \(Erf\).*no such operator"):
        read_onnx(onnx_model([node("Erf")]))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            unary("MaxPool", kernel_shape=[2, 2], dilations=[2, 2], auto_pad="SAME_UPPER"),
            "auto_pad with dilations; give explicit pads",
        ),
        (
            unary("AveragePool", kernel_shape=[2, 2], strides=[2, 3], pads=[2, 2, 0, 0]),
            "nothing but padding; use smaller pads",
        ),
        (onnx_model([node("MatMul", "x", "w")], {"w": random(7)}), r"\[1, 6, 9, 7\] by \[7\].*unsqueeze"),
        (
            onnx_model(
                [node("Pad", "x", "p", "v")],
                {"p": axes(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(-np.inf)},
            ),
            "value is -inf.*MaxPool",
        ),
        (onnx_model([node("ReduceMean", "x", "a")], {"a": axes(0)}), "batch axis"),
        (
            onnx_model([node("Cast", output="c", to=onnx.TensorProto.INT32), node("Cast", "c", to=1)]),
            r"\(Cast\).*it computes no float32",
        ),
        (
            onnx_model(
                [node("Resize", "x", "r", "s", coordinate_transformation_mode="tf_crop_and_resize")],
                {"r": random(8), "s": np.array((1, 1, 2, 2), np.float32)},
            ),
            "tf_crop_and_resize is not supported; use one of half_pixel,",
        ),
        (resized((1, 2, 1, 1), mode="nearest"), "only height and width"),
        (onnx_model([node("Reshape", "x", "s")], {"s": axes(-1)}), "gives up the batch axis"),
        (onnx_model([node("Conv", "x", "x")], shape=(1, 1, 3, 3)), "computed"),
    ],
)
def test_an_attribute_that_tflite_lacks_is_refused_with_its_reason(
    model: onnx.ModelProto, reason: str
) -> None:
    with pytest.raises(UnsupportedOp, match=reason):
        read_onnx(model)


def test_all_refusals_are_listed_at_once() -> None:
    nodes = [
        node("Erf", output="e"),
        node("MaxPool", "e", output="m", kernel_shape=[2, 2], dilations=[2, 2], auto_pad="SAME_LOWER"),
        node("Relu", "m", output="r"),
        node("Cos", "r"),
    ]
    found = [str(error) for error in refusals(onnx_model(nodes))]
    assert len(found) == 3
    assert all("; " in line for line in found)
    assert [
        word for line, word in zip(found, ("erf_e", "maxpool_m", "cos_y"), strict=True) if word in line
    ] == [
        "erf_e",
        "maxpool_m",
        "cos_y",
    ]
    assert not refusals(CASES["Conv same"][0])


def test_tensorflow_puts_the_odd_padding_pixel_last() -> None:
    assert same_pads((56, 57), (3, 3), (2, 2), (1, 1)) == (0, 1, 1, 1)
    assert same_pads((7, 7), (5, 5), (1, 1), (2, 2)) == (4, 4, 4, 4)


def test_channels_last_is_the_permutation_of_images_and_of_sequences() -> None:
    assert channels_last(4) == (0, 2, 3, 1)
    assert channels_last(3) == (0, 2, 1)
