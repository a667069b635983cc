"""Half precision: weights stored in float16, and the flag that makes the delegate compute in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.graph import WEIGHTED, Graph, Node, Tensor

FLOAT16_METADATA = {"reduced_precision_support": b"fp16accfp16"}
LARGEST = float(np.finfo(np.float16).max)


def to_float16(graph: Graph) -> Graph:
    """The graph with weights and biases in float16, each behind a DEQUANTIZE that the delegate folds.

    Together with `FLOAT16_METADATA` a core with half-precision arithmetic then computes in it.
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
            half = np.clip(constant.data, -LARGEST, LARGEST).astype(np.float16)
            tensors[name] = Tensor.constant(half)
            tensors[inputs[position]] = Tensor(constant.shape)
            nodes.append(Node("DEQUANTIZE", (name,), (inputs[position],)))
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.with_nodes(nodes, tensors)
