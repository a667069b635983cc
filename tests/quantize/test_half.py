"""Half-precision rewrites: the same network in float, smaller errors where every step of a sum is rounded."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from export.graph import Attribute, Graph, Node, Tensor, added_operators
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.run import Program
from export.to_onnx import to_onnx
from models.registry import build
from quantize.half import LONG, PARTS, bias_last, in_order, in_parts, prepared, rounded_together
from quantize.ranges import observe

RNG = np.random.default_rng(3)
WINDOW: dict[str, Attribute] = {
    "padding": "VALID",
    "stride_h": 2,
    "stride_w": 2,
    "dilation_h_factor": 1,
    "dilation_w_factor": 1,
    "fused_activation_function": "NONE",
}


def graph_of(model: str, alpha: float = 0.35) -> Graph:
    network = build(model, alpha=alpha, num_classes=10)
    return run_passes(read_onnx(to_onnx(network.eval(), 64)), FLOAT_PASSES)


def images(count: int = 4) -> NDArray[np.float32]:
    return RNG.uniform(-1, 1, (count, 64, 64, 3)).astype(np.float32)


@pytest.mark.parametrize("model", ["v1", "v2", "v3_small", "v3_large_minimalistic"])
def test_the_network_stays_the_same_in_float(model: str) -> None:
    graph, some = graph_of(model), images()
    after = prepared(graph, observe(graph, [some]))
    after.check()
    assert any(after.constant(name) is not graph.constant(name) for name in after.tensors)
    np.testing.assert_allclose(Program(after)(some), Program(graph)(some), rtol=1e-4, atol=1e-5)


def half_sum(
    rows: NDArray[np.float32], matrix: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float16]:
    """As XNNPACK: from the bias on, product by product, each step rounded to half."""
    total = np.broadcast_to(bias, (len(rows), len(bias))).astype(np.float16)
    for column in range(rows.shape[1]):
        exact = total.astype(np.float64) + np.outer(rows[:, column], matrix[:, column]).astype(np.float64)
        total = exact.astype(np.float16)
    return total


def weights(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(0, 1, shape).astype(np.float32)


def halved(values: NDArray[np.generic]) -> NDArray[np.float32]:
    return values.astype(np.float16).astype(np.float32)


def everything(graph: Graph, some: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Every value that the graph computes, by name."""
    found: dict[str, NDArray[np.float32]] = {}
    Program(graph)(some, lambda name, values: found.update({name: values.numpy()}))
    return found


def test_running_sums_err_less_in_order() -> None:
    graph, some = graph_of("v2"), images()
    errors = []
    for one in (graph, in_order(graph, observe(graph, [some]))):
        node = next(n for n in one.nodes if n.output == "features/17/project/conv")
        seen = everything(one, some)
        matrix, bias = (halved(one.tensors[name].real()) for name in node.inputs[1:3])
        matrix = matrix.reshape(len(matrix), -1)
        rows = halved(seen[node.inputs[0]].reshape(-1, matrix.shape[1]))
        found = half_sum(rows, matrix, bias).astype(np.float64)
        errors.append(float(np.square(found - (rows.astype(np.float64) @ matrix.T + bias)).mean()))
    assert errors[1] < errors[0]


def first_convolution(bias: float) -> Graph:
    """Of an image of dark pixels, padded; weights that sum to what takes the bias away."""
    positive = RNG.uniform(0.5, 1.5, (16, 3, 3, 3)).astype(np.float32) * abs(bias) / 27
    tensors = {
        "image": Tensor((1, 9, 7, 3)),
        "pads": Tensor.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)),
        "padded": Tensor((1, 11, 9, 3)),
        "w": Tensor.constant(positive),
        "b": Tensor.constant(np.full(16, bias, np.float32)),
        "y": Tensor((1, 5, 4, 16)),
    }
    nodes = (
        Node("PAD", ("image", "pads"), ("padded",)),
        Node("CONV_2D", ("padded", "w", "b"), ("y",), {**WINDOW, "fused_activation_function": "RELU6"}),
    )
    return Graph(tensors, nodes, ("image",), ("y",))


def test_weights_that_two_layers_share_stay_in_order() -> None:
    tensors = {name: Tensor((1, 4, 5, 8)) for name in ("image", "a", "b", "y")}
    alone = {name: Tensor.constant(weights(8, 1, 1, 8)) for name in ("w", "v", "u")}
    biases = {name: Tensor.constant(weights(8)) for name in ("bias", "other")}
    nodes = tuple(
        Node("CONV_2D", inputs, (output,), {**WINDOW, "stride_h": 1, "stride_w": 1})
        for inputs, output in (
            (("image", "w", "bias"), "a"),
            (("a", "v", "bias"), "b"),
            (("b", "u", "other"), "y"),
        )
    )
    graph = Graph({**tensors, **alone, **biases}, nodes, ("image",), ("y",))
    some = weights(6, 4, 5, 8)
    after = in_order(graph, observe(graph, [some]))
    assert all(after.constant(name) is graph.constant(name) for name in ("bias", "w", "v"))
    np.testing.assert_allclose(Program(after)(some), Program(graph)(some), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bias", "added"), [(5.0, {"ADD": 1, "RESHAPE": 2}), (-0.1, {})])
def test_a_large_bias_is_added_last_and_a_small_one_is_not(bias: float, added: dict[str, int]) -> None:
    graph = first_convolution(bias)
    if not added:
        graph = graph.with_nodes(graph.nodes, {"w": Tensor.constant(weights(16, 3, 3, 3))})
    dark = RNG.uniform(-1, -0.8, (4, 9, 7, 3)).astype(np.float32)
    after = bias_last(graph, observe(graph, [dark]))
    after.check()
    assert added_operators(graph, after) == added
    np.testing.assert_allclose(Program(after)(dark), Program(graph)(dark), rtol=1e-4, atol=1e-5)


def test_a_window_of_one_value_is_filtered_exactly() -> None:
    window = 3 * weights(1, 3, 3, 64)
    wanted = window.sum((1, 2), np.float64)
    kept = np.abs(rounded_together(window).sum((1, 2), np.float64) - wanted)
    plain = np.abs(window.astype(np.float16).sum((1, 2), np.float64) - wanted)
    assert kept.mean() < plain.mean() / 4
    assert np.abs(rounded_together(window) - window).max() < 2e-2


@pytest.mark.parametrize(
    ("features", "parts"), [(1280, PARTS), (LONG + 1, PARTS), (LONG, PARTS), (LONG - 1, 1), (64, 1)]
)
def test_a_long_classifier_is_cut_and_a_short_one_is_not(features: int, parts: int) -> None:
    tensors = {
        "x": Tensor((1, features)),
        "w": Tensor.constant(weights(10, features)),
        "b": Tensor.constant(weights(10)),
        "y": Tensor((1, 10)),
    }
    node = Node("FULLY_CONNECTED", ("x", "w", "b"), ("y",), {"fused_activation_function": "RELU"})
    graph = Graph(tensors, (node,), ("x",), ("y",))
    after = in_parts(graph, {})
    after.check()
    assert after.op_counts()["FULLY_CONNECTED"] == parts
    x = weights(3, features)
    np.testing.assert_allclose(Program(after)(x), Program(graph)(x), rtol=1e-4, atol=1e-4)
