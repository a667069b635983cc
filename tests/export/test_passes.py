"""Each rewrite on a graph made for it: what it leaves, and that values stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from export.graph import Graph, GraphError, Node, Tensor
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.rearrangements import merge_rearrangements
from export.run import Program
from tests.export.graphs import SHAPE, node, onnx_model, random
from tests.export.variants import VARIANTS

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


def test_a_concatenation_takes_no_activation_because_the_runtime_ignores_it() -> None:
    nodes = [CONV, node("Concat", "x", "c", output="j", axis=1), node("Relu", "j")]
    _, after = both(onnx_model(nodes, WEIGHTS))
    assert after.op_counts() == {"CONCATENATION": 1, "CONV_2D": 1, "RELU": 1, "TRANSPOSE": 1}


def test_the_weights_of_two_users_are_folded_for_one_only() -> None:
    nodes = [
        CONV,
        node("Mul", "c", "two", output="m"),
        node("Conv", "m", "e", output="a"),
        node("Conv", "c", "e", output="d"),
        node("Add", "a", "d"),
    ]
    both(onnx_model(nodes, {**WEIGHTS, "two": np.array([2.0], np.float32), "e": random(4, 5, 1, 1)}))


def swish(shift: str, clip: str, *tail: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A hard-swish of `c` written out with the constants that are named."""
    bounds = {"clip": ["zero", "six"], "unit": ["zero", "one"]}[clip]
    return [CONV, node("Add", "c", shift, output="s"), node("Clip", "s", *bounds, output="r"), *tail]


SCALARS: dict[str, Any] = {
    "three": np.float32(3),
    "six": np.float32(6),
    "zero": np.float32(0),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "sixth": np.array([1 / 6], np.float32),
}
# fmt: off
HARD_SWISHES = {
    "x * (relu6(x + 3) / 6)": swish("three", "clip", node("Div", "r", "six", output="g"), node("Mul", "c", "g")),
    "x * relu6(x + 3) / 6":   swish("three", "clip", node("Mul", "c", "r", output="g"), node("Div", "g", "six")),
    "(x / 6) * relu6(x + 3)": swish("three", "clip", node("Mul", "c", "sixth", output="g"), node("Mul", "r", "g")),
    "x * clip(x / 6 + 1/2)":  [CONV, node("Mul", "c", "sixth", output="m"), node("Add", "half", "m", output="s"), node("Clip", "s", "zero", "one", output="r"), node("Mul", "r", "c")],
    "min before max":         [CONV, node("Add", "c", "three", output="s"), node("Min", "s", "six", output="n"), node("Max", "n", "zero", output="r"), node("Mul", "c", "r", output="g"), node("Mul", "g", "sixth")],
    "x * hardsigmoid(x)":     [CONV, node("HardSigmoid", "c", output="h", alpha=1 / 6, beta=0.5), node("Mul", "c", "h")],
}
ALMOST = {
    "another slope":   [CONV, node("HardSigmoid", "c", output="h", alpha=0.2, beta=0.5), node("Mul", "c", "h")],
    "another offset":  swish("one", "clip", node("Mul", "c", "r", output="g"), node("Mul", "g", "sixth")),
    "another ceiling": swish("three", "unit", node("Mul", "c", "r", output="g"), node("Mul", "g", "sixth")),
    "another factor":  swish("three", "clip", node("Mul", "c", "r", output="g"), node("Mul", "g", "half")),
    "another operand": swish("three", "clip", node("Mul", "x", "r", output="g"), node("Mul", "g", "sixth")),
}
# fmt: on


@pytest.mark.parametrize("name", HARD_SWISHES)
def test_a_written_out_hard_swish_is_recognised(name: str) -> None:
    _, after = both(onnx_model(HARD_SWISHES[name], {**WEIGHTS, **SCALARS}))
    assert after.op_counts() == {"CONV_2D": 1, "HARD_SWISH": 1, "TRANSPOSE": 1}


@pytest.mark.parametrize("name", ALMOST)
def test_what_only_looks_like_hard_swish_is_left_alone(name: str) -> None:
    weights = {"w": random(6, 6, 3, 3), "b": random(6)}
    _, after = both(onnx_model(ALMOST[name], {**weights, **SCALARS}))
    assert "HARD_SWISH" not in after.op_counts()


def test_a_clip_of_a_shifted_value_becomes_relu6_and_folds() -> None:
    nodes = [*HARD_SWISHES["x * clip(x / 6 + 1/2)"][:-1], node("Conv", "r", "e")]
    _, after = both(onnx_model(nodes, {**WEIGHTS, **SCALARS, "e": random(4, 5, 1, 1)}))
    assert after.op_counts() == {"CONV_2D": 2, "TRANSPOSE": 1}
    assert after.nodes[0].attributes["fused_activation_function"] == "RELU6"


def test_a_graph_output_keeps_its_name() -> None:
    _, after = both(onnx_model([node("GlobalAveragePool", output="p"), node("Flatten", "p")]))
    assert after.outputs == ("y",)
    assert after.op_counts() == {"MEAN": 1}


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    def forgets_a_tensor(graph: Graph) -> Graph:
        return Graph({"x": Tensor((1,))}, (Node("RELU", ("gone",), ("y",)),), ("x",), ("y",))

    with pytest.raises(GraphError, match=r"forgets_a_tensor broke the graph: .*'gone'"):
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


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("shuffle of two groups", {"CONV_2D": 2, "RESHAPE": 2, "TRANSPOSE": 2}),
        ("shuffle of three groups", {"CONV_2D": 2, "RESHAPE": 2, "TRANSPOSE": 2}),
        (
            "channels last",
            {"ADD": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1, "PAD": 1},
        ),
    ],
)
def test_a_detour_through_another_order_is_cut_short(name: str, ops: dict[str, int]) -> None:
    """One TRANSPOSE for a shuffle and one for the ONNX order of the result; none around NHWC networks."""
    assert run_passes(read_onnx(VARIANTS[name]), FLOAT_PASSES).op_counts() == ops


def rearranged(*steps: tuple[str, tuple[int, ...]]) -> tuple[Graph, Graph]:
    """A chain from [1, 4, 6, 5], before and after it is merged."""
    shape: tuple[int, ...] = (1, 4, 6, 5)
    tensors, nodes, name = {"x": Tensor(shape)}, [], "x"
    for place, (op, values) in enumerate(steps):
        shape = values if op == "RESHAPE" else tuple(shape[axis] for axis in values)
        result = f"t{place}"
        tensors |= {f"c{place}": Tensor.constant(np.array(values, np.int32)), result: Tensor(shape)}
        attributes = {"new_shape": values} if op == "RESHAPE" else {}
        nodes.append(Node(op, (name, f"c{place}"), (result,), attributes))
        name = result
    graph = Graph(tensors, tuple(nodes), ("x",), (name,))
    return graph, run_passes(graph, [merge_rearrangements])


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([("TRANSPOSE", (0, 3, 1, 2)), ("TRANSPOSE", (0, 2, 3, 1))], ["RESHAPE"]),
        ([("TRANSPOSE", (0, 3, 1, 2)), ("RESHAPE", (1, 5, 24)), ("TRANSPOSE", (0, 2, 1))], ["RESHAPE"]),
        ([("RESHAPE", (1, 24, 5)), ("TRANSPOSE", (0, 2, 1)), ("RESHAPE", (1, 5, 4, 6))], None),
        (
            [("TRANSPOSE", (0, 2, 1, 3)), ("RESHAPE", (1, 2, 3, 20)), ("TRANSPOSE", (0, 3, 2, 1))],
            ["RESHAPE", "TRANSPOSE", "RESHAPE"],
        ),
        ([("TRANSPOSE", (0, 2, 1, 3)), ("RESHAPE", (1, 8, 15)), ("TRANSPOSE", (0, 2, 1))], None),
    ],
)
def test_a_chain_of_rearrangements_becomes_the_shortest(
    steps: list[tuple[str, tuple[int, ...]]], left: list[str] | None
) -> None:
    before, after = rearranged(*steps)
    values = np.arange(2 * 120, dtype=np.float32).reshape(2, 4, 6, 5)
    np.testing.assert_array_equal(Program(after)(values), Program(before)(values))
    assert [entry.op for entry in after.nodes] == (left or [op for op, _ in steps])
