"""ReLU6 taken away where the network does not need it, which frees the layers around it to be equalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph
from export.run import Program
from quantize.equalize import groups_of

KEEP_RELU6_BELOW = 0.99  # of the images that must have the same first class without the clamp


@dataclass(frozen=True, slots=True)
class Unclamped:
    """The graph without the clamps, and what that does to the float network on the images looked at.

    `agreement` is the share of images with the same first class, `nodes` the number of clamps.
    """

    graph: Graph
    nodes: int
    agreement: float

    @property
    def holds(self) -> bool:
        """Whether the float network is still itself."""
        return self.agreement >= KEEP_RELU6_BELOW


def unclamped(graph: Graph, batches: Sequence[NDArray[np.float32]]) -> Unclamped:
    """The graph with RELU instead of RELU6 where equalisation gains by it (arXiv:1906.04721, section 5.1.1).

    `batches` are float32 [N, H, W, C] in the graph input's own scale. Hard-sigmoids keep their clamp.
    """
    clamps = {
        node.output
        for group in groups_of(graph)
        for node in group.producers
        if node.op in WEIGHTED and node.attributes["fused_activation_function"] == "RELU6"
    }
    nodes = [
        replace(node, attributes={**node.attributes, "fused_activation_function": "RELU"})
        if node.output in clamps
        else node
        for node in graph.nodes
    ]
    swapped = graph.with_nodes(nodes)
    if not clamps:
        return Unclamped(graph, 0, 1.0)
    before, after = (Program(either) for either in (graph, swapped))
    same = [_first_class(before(batch)) == _first_class(after(batch)) for batch in batches]
    return Unclamped(swapped, len(clamps), float(np.concatenate(same).mean()))


def _first_class(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.asarray(logits.reshape(len(logits), -1).argmax(1))
