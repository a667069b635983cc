"""Each rewrite on a graph made for it: what it leaves, and that values stay."""

from __future__ import annotations

import numpy as np
import pytest

from export.graph import Graph, GraphError, Node, Tensor
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.run import Program
from tests.export.graphs import SHAPE, node, onnx_model, random

CONV = node("Conv", "x", "w", "b", output="c", kernel_shape=[3, 3], pads=[1] * 4)
WEIGHTS = {"w": random(5, 6, 3, 3), "b": random(5)}


def both(model: object) -> tuple[Graph, Graph]:
    """The graph as read and after all passes; asserts that they compute the same."""
    before = read_onnx(model)  # type: ignore[arg-type]
    after = run_passes(before, FLOAT_PASSES)
    images = np.ascontiguousarray(random(3, *SHAPE[1:]).transpose(0, 2, 3, 1))
    np.testing.assert_allclose(Program(after)(images), Program(before)(images), atol=2e-5, rtol=1e-4)
    return before, after


def test_batch_norm_and_activation_join_the_convolution() -> None:
    norm = {name: np.abs(random(5, seed=seed)) + 0.1 for seed, name in enumerate("sbmv")}
    constants = {"w": WEIGHTS["w"], "n": norm["b"], **{f"{k}1": v for k, v in norm.items()}}
    nodes = [
        node("Conv", "x", "w", "n", output="c", kernel_shape=[3, 3]),
        node("BatchNormalization", "c", "s1", "b1", "m1", "v1", output="n1"),
        node("Relu", "n1"),
    ]
    _, after = both(onnx_model(nodes, constants))
    assert after.op_counts() == {"CONV_2D": 1, "TRANSPOSE": 1}
    assert after.nodes[0].attributes["fused_activation_function"] == "RELU"
    assert after.nodes[0].output == "c"


def test_a_value_that_is_read_twice_is_not_folded_away() -> None:
    nodes = [CONV, node("Relu", "c", output="r"), node("Add", "c", "r")]
    _, after = both(onnx_model(nodes, WEIGHTS))
    assert after.op_counts() == {"ADD": 1, "CONV_2D": 1, "RELU": 1, "TRANSPOSE": 1}


def test_a_scaled_gate_is_folded_into_the_projection() -> None:
    gate = [
        node("GlobalAveragePool", "c", output="p"),
        node("Conv", "p", "g", "gb", output="q"),
        node("HardSigmoid", "q", output="h", alpha=1 / 6, beta=0.5),
        node("Mul", "c", "h", output="m"),
        node("Conv", "m", "e", output="y"),
    ]
    constants = {**WEIGHTS, "g": random(5, 5, 1, 1), "gb": random(5), "e": random(4, 5, 1, 1)}
    _, after = both(onnx_model([CONV, *gate], constants))
    assert after.op_counts() == {"CONV_2D": 3, "MEAN": 1, "MUL": 1, "TRANSPOSE": 1}
    assert [n.attributes["fused_activation_function"] for n in after.nodes if n.op == "CONV_2D"][1] == "RELU6"


def test_the_weights_of_two_users_are_folded_for_one_only() -> None:
    nodes = [
        CONV,
        node("Mul", "c", "two", output="m"),
        node("Conv", "m", "e", output="a"),
        node("Conv", "c", "e", output="d"),
        node("Add", "a", "d"),
    ]
    both(onnx_model(nodes, {**WEIGHTS, "two": np.float32([2.0]), "e": random(4, 5, 1, 1)}))


def test_a_graph_output_keeps_its_name() -> None:
    _, after = both(onnx_model([node("GlobalAveragePool", output="p"), node("Flatten", "p")]))
    assert after.outputs == ("y",)
    assert after.op_counts() == {"MEAN": 1}


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    def forgets_a_tensor(graph: Graph) -> Graph:
        return Graph({"x": Tensor((1,))}, (Node("RELU", ("gone",), ("y",)),), ("x",), ("y",))

    with pytest.raises(GraphError, match="forgets_a_tensor broke the graph: .*'gone'"):
        run_passes(forgets_a_tensor(Graph({}, (), (), ())), [forgets_a_tensor])


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        (Graph({"x": Tensor((1, 0))}, (), ("x",), ("x",)), "at least 1"),
        (Graph({"x": Tensor((1,)), "y": Tensor((1,))}, (), ("x",), ("y",)), "never computed"),
        (
            Graph({"x": Tensor((1,))}, (Node("RELU", ("x",), ("x",)),), ("x",), ("x",)),
            "already defined",
        ),
    ],
)
def test_a_malformed_graph_is_named(graph: Graph, found: str) -> None:
    with pytest.raises(GraphError, match=found):
        graph.check()
