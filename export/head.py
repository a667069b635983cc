"""What a classifier gives: logits, or the probabilities that applications expect."""

from __future__ import annotations

from dataclasses import replace

from export.graph import Graph, Node, Tensor
from pipeline.artifacts import AlpharhoError

HEADS = ("logits", "probabilities")
NAME = "probabilities"


def with_head(graph: Graph, head: str | None) -> Graph:
    """The float graph with a SOFTMAX at its end or without one, as `head` of HEADS asks; None leaves it.

    AlpharhoError for a graph that does not end in one vector of classes.
    """
    if head is None or has_softmax(graph) == (head == "probabilities"):
        return graph
    if len(graph.outputs) != 1 or len(graph.tensors[graph.outputs[0]].shape) != 2:
        shapes = [list(graph.tensors[name].shape) for name in graph.outputs]
        raise AlpharhoError(
            f"--head {head} needs one output [1, classes], this model has {shapes}; leave it out"
        )
    return _with_softmax(graph) if head == "probabilities" else _without_softmax(graph)


def has_softmax(graph: Graph) -> bool:
    """Whether the first output is a SOFTMAX's."""
    node = graph.producers().get(graph.outputs[0])
    return node is not None and node.op == "SOFTMAX"


def _with_softmax(graph: Graph) -> Graph:
    logits = graph.outputs[0]
    name = NAME if NAME not in graph.tensors else f"{logits}/{NAME}"
    nodes = (*graph.nodes, Node("SOFTMAX", (logits,), (name,), {"beta": 1.0}))
    tensors = {name: Tensor(graph.tensors[logits].shape)}
    return replace(graph, outputs=(name,)).with_nodes(nodes, tensors)


def _without_softmax(graph: Graph) -> Graph:
    softmax = graph.producers()[graph.outputs[0]]
    return replace(graph, outputs=(softmax.inputs[0],)).without_dead_nodes()
