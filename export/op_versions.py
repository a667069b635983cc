"""The oldest version of every operator that can run a node as it is meant (TensorFlow's `op_version.cc`).

A runtime refuses a file whose versions it does not know, and computes wrongly where a version is too low.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from export.graph import Graph, Node

FLOAT16, FLOAT32, INT8, UINT8 = (np.dtype(kind) for kind in (np.float16, np.float32, np.int8, np.uint8))
EIGHT_BIT = (INT8, UINT8)
CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
BROADCASTING = frozenset({"MAXIMUM", "MINIMUM", "SUB"})
INT8_FIRST = frozenset(  # whose second version is the one for int8
    {
        "ADD",
        "AVERAGE_POOL_2D",
        "BATCH_MATMUL",
        "CONCATENATION",
        "DEQUANTIZE",
        "LOGISTIC",
        "MAXIMUM",
        "MAX_POOL_2D",
        "MEAN",
        "MINIMUM",
        "MUL",
        "PAD",
        "RELU",
        "RELU6",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "SOFTMAX",
        "STRIDED_SLICE",
        "SUB",
        "TANH",
        "TRANSPOSE",
    }
)
Condition = Callable[[Node, Graph], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """Nodes of `ops` that meet the condition need this version."""

    ops: frozenset[str]
    version: int
    holds: Condition


def op_version(node: Node, graph: Graph) -> int:
    """The version of the first rule that holds, 1 without one."""
    return next((rule.version for rule in RULES if node.op in rule.ops and rule.holds(node, graph)), 1)


def _source_is(*dtypes: np.dtype[np.generic]) -> Condition:
    return lambda node, graph: graph.tensors[node.inputs[0]].dtype in dtypes


def _axes_above(count: int) -> Condition:
    return lambda node, graph: len(graph.tensors[node.inputs[0]].shape) > count


def _is_set(*attributes: str) -> Condition:
    return lambda node, graph: any(node.attributes.get(attribute, False) for attribute in attributes)


def _is_dilated(node: Node, graph: Graph) -> bool:
    return any(node.attributes[f"dilation_{side}_factor"] != 1 for side in "hw")


def _is_grouped(node: Node, graph: Graph) -> bool:
    source, weights = (graph.tensors[name].shape for name in node.inputs[:2])
    return source[-1] != weights[-1]


def _is_activated(node: Node, graph: Graph) -> bool:
    return node.attributes["fused_activation_function"] != "NONE"


def _multiplies_floats(node: Node, graph: Graph) -> bool:
    """Whether float32 values meet int8 weights."""
    source, weights = (graph.tensors[name].dtype for name in node.inputs[:2])
    return source == FLOAT32 and weights == INT8


def _multiplies_floats_per_channel(node: Node, graph: Graph) -> bool:
    grid = graph.tensors[node.inputs[1]].quantization
    return _multiplies_floats(node, graph) and grid is not None and len(grid.scale) > 1


def _scales_up(node: Node, graph: Graph) -> bool:
    """Whether the product of 8-bit steps is at least one step of the result."""
    grids = [graph.tensors[name].quantization for name in (*node.inputs, node.output)]
    scales = [float(grid.scale[0]) for grid in grids if grid is not None]
    return len(scales) == len(grids) and scales[0] * scales[1] >= scales[2]


def _broadcasts_many_axes(node: Node, graph: Graph) -> bool:
    shapes = [graph.tensors[name].shape for name in node.inputs]
    return shapes[0] != shapes[1] and max(map(len, shapes)) > 4


def _rules(version: int, holds: Condition, *ops: str) -> Rule:
    return Rule(frozenset(ops), version, holds)


RULES = (
    _rules(6, _is_grouped, "CONV_2D"),
    _rules(5, _multiplies_floats_per_channel, "CONV_2D"),
    _rules(6, _multiplies_floats_per_channel, "DEPTHWISE_CONV_2D"),
    _rules(2, _multiplies_floats, "CONV_2D"),
    _rules(4, _multiplies_floats, "DEPTHWISE_CONV_2D"),
    Rule(CONVOLUTIONS, 3, _source_is(INT8)),
    _rules(2, _is_dilated, "DEPTHWISE_CONV_2D"),
    # Runtimes before it ignore all scales but the first, and answer wrongly.
    _rules(12, _multiplies_floats_per_channel, "FULLY_CONNECTED"),
    _rules(5, _is_set("keep_num_dims"), "FULLY_CONNECTED"),
    _rules(4, _source_is(INT8), "FULLY_CONNECTED"),
    _rules(3, _multiplies_floats, "FULLY_CONNECTED"),
    _rules(4, _is_activated, "TRANSPOSE_CONV"),
    _rules(3, lambda node, graph: True, "TRANSPOSE_CONV"),  # it has a bias
    _rules(3, _source_is(FLOAT16), "DEQUANTIZE"),
    _rules(2, _source_is(*EIGHT_BIT), "QUANTIZE"),  # from one grid to another
    _rules(3, _is_set("half_pixel_centers"), "RESIZE_BILINEAR"),
    _rules(3, _is_set("half_pixel_centers", "align_corners"), "RESIZE_NEAREST_NEIGHBOR"),
    _rules(3, _scales_up, "MUL"),
    _rules(6, _axes_above(5), "TRANSPOSE"),
    _rules(5, _axes_above(4), "SLICE"),
    _rules(4, _axes_above(4), "PAD", "STRIDED_SLICE", "TRANSPOSE"),
    Rule(BROADCASTING, 3, _broadcasts_many_axes),
    _rules(2, _broadcasts_many_axes, "DIV"),
    Rule(INT8_FIRST, 2, _source_is(INT8)),
)
