"""Half precision: weights stored in float16, and the flag that makes the delegate compute in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.graph import WEIGHTED, Array, Graph, Node, Tensor
from quantize.half import LARGEST, rounded_together

FLOAT16_METADATA = {"reduced_precision_support": b"fp16accfp16"}


def to_float16(graph: Graph) -> Graph:
    """The graph with weights and biases in float16, each behind a DEQUANTIZE that the delegate folds.

    Together with `FLOAT16_METADATA` a core with half-precision arithmetic then computes in it, and errs least
    in a graph that is `half.prepared`.
    """
    tensors: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = list(node.inputs)
        for position in (1, 2) if node.op in WEIGHTED else ():
            name = inputs[position]
            inputs[position] = f"{name}/float32"
            if inputs[position] in tensors:
                continue
            constant = graph.tensors[name]
            assert constant.data is not None
            tensors[name] = Tensor.constant(_halved(node, position, constant.data))
            tensors[inputs[position]] = Tensor(constant.shape)
            nodes.append(Node("DEQUANTIZE", (name,), (inputs[position],)))
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.with_nodes(nodes, tensors)


def _halved(node: Node, position: int, values: Array) -> NDArray[np.float16]:
    """The node's operand at `position` in half precision, as large as that allows."""
    values = np.clip(values, -LARGEST, LARGEST)
    is_filter = position == 1 and node.op == "DEPTHWISE_CONV_2D"
    return rounded_together(values) if is_filter else values.astype(np.float16)
