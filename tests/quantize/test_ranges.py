"""Ranges cut to what the readers of a tensor can tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from export.graph import Graph, Node, Tensor
from export.run import Program
from quantize.ranges import Range, narrowed_to_use, observe_ranges, used_ranges

SHAPE = (1, 4, 4, 3)
ADD = {"fused_activation_function": "NONE"}


def _graph(*after: Node, outputs: tuple[str, ...] = ("y",), **constants: list[float] | float) -> Graph:
    """`x` = image + image, and then the nodes given."""
    nodes = (Node("ADD", ("image", "image"), ("x",), ADD), *after)
    tensors = {name: Tensor.constant(np.array(value, np.float32)) for name, value in constants.items()}
    shapes = {name: Tensor(SHAPE) for name in ("image", *(node.output for node in nodes))}
    graph = Graph({**shapes, **tensors}, nodes, ("image",), outputs)
    graph.check()
    return graph


def _clip(low: str = "low", high: str = "high") -> tuple[Node, Node]:
    return Node("MAXIMUM", ("x", low), ("m",)), Node("MINIMUM", (high, "m"), ("y",))


CASES = {
    "clip": (_graph(*_clip(), low=-1.5, high=2.5), Range(-1.5, 2.5)),
    "clip the other way round": (
        _graph(
            Node("MINIMUM", ("x", "high"), ("m",)), Node("MAXIMUM", ("m", "low"), ("y",)), low=0.5, high=2.0
        ),
        Range(0.5, 2.0),
    ),
    "clip per channel": (_graph(*_clip(), low=[-1.0, -2.0, 0.0], high=[1.0, 2.0, 3.0]), Range(-2.0, 3.0)),
    "relu": (_graph(Node("RELU", ("x",), ("y",))), Range(0.0, 8.0)),
    "relu6": (_graph(Node("RELU6", ("x",), ("y",))), Range(0.0, 6.0)),
    "hard-swish": (_graph(Node("HARD_SWISH", ("x",), ("y",))), Range(-3.0, 8.0)),
    "no clamp of what feeds hard-swish, whose result falls and rises": (
        _graph(
            Node("HARD_SWISH", ("x",), ("h",)),
            Node("RELU", ("h",), ("r",)),
            Node("ADD", ("r", "r"), ("y",), ADD),
        ),
        Range(-3.0, 8.0),
    ),
    "the wider of two readers": (
        _graph(
            Node("RELU6", ("x",), ("r",)),
            Node("HARD_SWISH", ("x",), ("h",)),
            Node("ADD", ("r", "h"), ("y",), ADD),
        ),
        Range(-3.0, 8.0),
    ),
    "a reader that sees all": (
        _graph(Node("RELU6", ("x",), ("r",)), Node("ADD", ("r", "x"), ("y",), ADD)),
        Range(-8.0, 8.0),
    ),
    "a computed bound": (
        _graph(Node("ADD", ("image", "x"), ("b",), ADD), Node("MAXIMUM", ("x", "b"), ("y",))),
        Range(-8.0, 8.0),
    ),
    "an output of the graph": (_graph(Node("RELU6", ("x",), ("y",)), outputs=("y", "x")), Range(-8.0, 8.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_range_is_cut_to_what_its_readers_tell_apart(case: str) -> None:
    graph, expected = CASES[case]
    found = narrowed_to_use(graph, {"x": Range(-8.0, 8.0), "image": Range(-4.0, 4.0)})
    assert found == {"x": expected, "image": Range(-4.0, 4.0)}


@pytest.mark.parametrize("case", CASES)
def test_what_is_cut_away_changes_no_result(case: str) -> None:
    graph, _ = CASES[case]
    images = np.random.default_rng(0).uniform(-4, 4, (8, *SHAPE[1:])).astype(np.float32)
    used = used_ranges(graph)["x"]
    bounds = {"used/low": used.low, "used/high": used.high}
    cut = (
        graph.nodes[0].renamed({"x": "whole"}),
        Node("MAXIMUM", ("whole", "used/low"), ("above",)),
        Node("MINIMUM", ("above", "used/high"), ("x",)),
    )
    tensors = {name: Tensor.constant(np.array(bound, np.float32)) for name, bound in bounds.items()}
    tensors |= {name: Tensor(SHAPE) for name in ("whole", "above")}
    assert np.array_equal(
        Program(graph.with_nodes((*cut, *graph.nodes[1:]), tensors))(images), Program(graph)(images)
    )


def test_a_range_beside_the_clamps_is_its_nearer_bound() -> None:
    graph = _graph(*_clip(), low=2.0, high=3.0)
    ranges = observe_ranges(graph, [np.full((2, *SHAPE[1:]), -4, np.float32)])
    assert narrowed_to_use(graph, ranges)["x"] == Range(2.0, 2.0)
