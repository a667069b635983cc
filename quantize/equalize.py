"""Exact rescaling and recentring of channels, so that one scale per tensor suits every channel of it.

A group is a set of tensors whose channels carry the same scale: a convolution's result, the sums of a
residual stage, a pooled or padded copy. Multiplying channel c of all of them by s[c] > 0 changes nothing if
the producers' weights and biases take s[c] and the readers' weights 1 / s[c]. Below a ReLU that is
cross-layer equalisation (arXiv:1906.04721, section 4.1); below a ReLU6 it is exact up to the clamp, so a
channel may be stretched until its calibrated maximum reaches 6; over a residual stage it gives every channel
of the stream the whole 8-bit range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph, Node, Tensor, channel_axis, is_ungrouped
from quantize.ranges import Observation, Observations

Floats = NDArray[np.float64]

CLAMP = 6.0
POOLS = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "PAD"})
WEIGHT_ROUNDS = 3  # over all groups; a layer lies between two
LARGEST_FACTOR = 64.0  # between channels; a nearly dead channel is not blown up without bound
BLOCKED = ""  # the group of tensors that must stay as they are


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share their channels' scale, and the weighted nodes that write and read them."""

    tensors: tuple[str, ...]
    producers: tuple[Node, ...]
    readers: tuple[Node, ...]


def groups_of(graph: Graph) -> list[Group]:
    """Every group whose channels can be rescaled exactly, in execution order."""
    leader = _leaders(graph)
    members: dict[str, list[str]] = {}
    for name in leader:
        members.setdefault(_find(leader, name), []).append(name)
    found = []
    for root, names in members.items():
        producers = tuple(node for node in graph.nodes if node.output in names and node.op in WEIGHTED)
        readers = tuple(node for node in graph.nodes if node.op in WEIGHTED and node.inputs[0] in names)
        if root != _find(leader, BLOCKED) and producers and readers:
            found.append(Group(tuple(names), producers, readers))
    return found


def _find(leader: Mapping[str, str], name: str) -> str:
    while leader[name] != name:
        name = leader[name]
    return name


def _leaders(graph: Graph) -> dict[str, str]:
    """Union-find over tensors; whatever an operator cannot pass a scale through is joined with BLOCKED."""
    leader = {name: name for name in (BLOCKED, *graph.inputs, *(node.output for node in graph.nodes))}

    def join(first: str, second: str) -> None:
        leader[_find(leader, first)] = _find(leader, second)

    for name in (*graph.inputs, *graph.outputs):
        join(name, BLOCKED)
    readers = graph.consumers()
    for node in graph.nodes:
        absorbs = node.op in WEIGHTED and _absorbs(graph, node, readers)
        computed = [name for name in node.inputs if name in leader]
        scaled = _scaled_with_output(graph, node, computed)
        for name in scaled:
            join(name, node.output)
        for name in computed:
            if name not in scaled and not absorbs:
                join(name, BLOCKED)
        if not scaled and not absorbs:
            join(node.output, BLOCKED)
    return leader


def _scaled_with_output(graph: Graph, node: Node, computed: list[str]) -> list[str]:
    """The operands whose channel scale the output inherits."""
    activation = node.attributes.get("fused_activation_function", "NONE")
    shapes = [graph.tensors[name].shape for name in computed]
    target = graph.tensors[node.output].shape
    if node.op in POOLS and activation in ("NONE", "RELU"):
        return computed if target[-1] == shapes[0][-1] else []
    if node.op == "RESHAPE":
        return computed if np.prod(target) == target[-1] == shapes[0][-1] else []
    if node.op == "ADD" and activation in ("NONE", "RELU"):
        return computed if len(computed) == 2 and shapes[0] == shapes[1] else []
    if node.op == "MUL" and activation == "NONE" and len(computed) == 2 and computed[0] != computed[1]:
        return [name for name, shape in zip(computed, shapes, strict=True) if shape == target][:1]
    return []


def _absorbs(graph: Graph, node: Node, readers: Mapping[str, Sequence[Node]]) -> bool:
    """Whether the node's weights can take a factor per input channel and per output channel."""
    if node.op == "TRANSPOSE_CONV":
        return False
    return all(len(readers[name]) == 1 for name in node.inputs[1:]) and is_ungrouped(graph, node)


# --- scales -------------------------------------------------------------------------------------------------


def equalized(
    graph: Graph, observations: Observations, strength: float
) -> tuple[Graph, dict[str, Observation]]:
    """The graph with every group's channels brought towards one range, and the observations it would give.

    `strength` 1 makes the ranges equal; less leaves more of their differences, to spare the dense layers'
    weights. Where only depthwise layers read, whose weights have a scale per channel, it is always 1.
    """
    seen = dict(observations)
    for group in groups_of(graph):
        graph, seen = _scaled(graph, seen, group, _factors(group, seen, strength))
    return graph, seen


def _factors(group: Group, seen: Observations, strength: float) -> Floats:
    magnitude = np.max([seen[name].magnitude for name in group.tensors], axis=0)
    only_depthwise = all(node.op == "DEPTHWISE_CONV_2D" for node in group.readers)
    clamped = [seen[node.output].magnitude for node in group.producers if _clamps(node)]
    target = CLAMP if clamped else float(magnitude.max())
    alive = magnitude > target / LARGEST_FACTOR
    factors = np.where(alive, target / np.where(alive, magnitude, 1.0), LARGEST_FACTOR)
    factors = np.where(magnitude > 0, factors, 1.0) ** (1.0 if only_depthwise else strength)
    for peak in clamped:
        factors = np.minimum(factors, CLAMP / np.maximum(peak, CLAMP / LARGEST_FACTOR))
    return np.asarray(np.maximum(factors, 1.0) if clamped else factors)


def weights_equalized(graph: Graph, observations: Observations) -> tuple[Graph, dict[str, Observation]]:
    """The graph with the weights on both sides of every group brought to one range, and its observations.

    What one scale for all of a layer's weights needs (arXiv:1906.04721, equation 11); channels that reach
    ReLU6's clamp stay as they are.
    """
    seen = dict(observations)
    for _ in range(WEIGHT_ROUNDS):
        for group in groups_of(graph):
            graph, seen = _scaled(graph, seen, group, _weight_factors(graph, group, seen))
    return graph, seen


def _weight_factors(graph: Graph, group: Group, seen: Observations) -> Floats:
    written = np.max([weight_peaks(graph, node, channel_axis(node)) for node in group.producers], axis=0)
    read = np.max([weight_peaks(graph, node, -1) for node in group.readers], axis=0)
    alive = (written > 0) & (read > 0)
    factors = np.sqrt(np.where(alive, read, 1.0) / np.where(alive, written, 1.0))
    factors = np.clip(factors / np.median(factors), 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    for node in filter(_clamps, group.producers):
        peak = seen[node.output].magnitude
        factors = np.where(peak >= CLAMP, 1.0, np.minimum(factors, CLAMP / np.maximum(peak, 1e-6)))
    return np.asarray(factors)


def weight_peaks(graph: Graph, node: Node, axis: int) -> Floats:
    """Largest absolute weight of a weighted node at each place along `axis`, float64."""
    weights = np.abs(graph.tensors[node.inputs[1]].real().astype(np.float64))
    return np.asarray(np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).max(1))


def _clamps(node: Node) -> bool:
    return node.attributes["fused_activation_function"] == "RELU6"


def _scaled(
    graph: Graph, seen: Observations, group: Group, factors: Floats
) -> tuple[Graph, dict[str, Observation]]:
    scaled = {name: seen[name].scaled(factors) for name in group.tensors}
    return rescaled(graph, group, factors), {**seen, **scaled}


def rescaled(graph: Graph, group: Group, factors: Floats) -> Graph:
    """The graph with channel c of the group's tensors multiplied by `factors[c]`."""
    tensors: dict[str, Tensor] = {}

    def data(name: str) -> Floats:
        return (tensors.get(name) or graph.tensors[name]).real().astype(np.float64)

    for node in group.producers:
        axis = channel_axis(node)
        weights, bias = data(node.inputs[1]), data(node.inputs[2])
        tensors[node.inputs[1]] = _constant(weights * _along(factors, weights.ndim, axis))
        tensors[node.inputs[2]] = _constant(bias * factors)
    for node in group.readers:
        weights = data(node.inputs[1])
        tensors[node.inputs[1]] = _constant(weights / _along(factors, weights.ndim, weights.ndim - 1))
    return graph.with_nodes(graph.nodes, tensors)


# --- offsets ------------------------------------------------------------------------------------------------


def centred(graph: Graph, observations: Observations) -> tuple[Graph, dict[str, Observation]]:
    """The graph with the channels of linear groups moved to be symmetric about zero, and its observations.

    Exact where no clamp and no zero padding lies between: results of convolutions and their sums, read by 1x1
    convolutions and fully connected layers.
    """
    return _moved(graph, observations, _is_linear, lambda seen: -(seen.low + seen.high) / 2)


def absorbed(graph: Graph, observations: Observations) -> tuple[Graph, dict[str, Observation]]:
    """The graph with biases that always lift a channel above its clamp moved to the next layer.

    High-bias absorption (arXiv:1906.04721, section 4.1.3), by the smallest value that was seen instead of
    three standard deviations below the mean, so it is exact on the calibration images; not for a channel that
    reached ReLU6's upper clamp, nor into a layer with zero padding.
    """
    return _moved(graph, observations, _is_lifted, _lift)


def _lift(seen: Observation) -> Floats:
    return np.where(seen.high < CLAMP, -np.maximum(seen.low, 0), 0.0)


def _moved(
    graph: Graph,
    observations: Observations,
    suits: Callable[[Graph, Group], bool],
    offset: Callable[[Observation], Floats],
) -> tuple[Graph, dict[str, Observation]]:
    seen = dict(observations)
    for group in groups_of(graph):
        if suits(graph, group):
            graph, seen = _with_offsets(graph, group, seen, offset)
    return graph, seen


def _is_linear(graph: Graph, group: Group) -> bool:
    inner = _inner(graph, group)
    plain = all(_activation(node) == "NONE" for node in (*inner, *group.producers))
    return plain and _only_pointwise(graph, group) and all(node.op in ("ADD", "MEAN") for node in inner)


def _is_lifted(graph: Graph, group: Group) -> bool:
    clamped = all(_activation(node) in ("RELU", "RELU6") for node in group.producers)
    return (
        clamped
        and len(group.producers) == 1
        and _only_pointwise(graph, group)
        and all(node.op == "MEAN" for node in _inner(graph, group))
    )


def _inner(graph: Graph, group: Group) -> list[Node]:
    return [node for node in graph.nodes if node.output in group.tensors and node.op not in WEIGHTED]


def _activation(node: Node) -> object:
    return node.attributes.get("fused_activation_function", "NONE")


def _only_pointwise(graph: Graph, group: Group) -> bool:
    return all(
        node.op == "FULLY_CONNECTED"
        or (node.op == "CONV_2D" and graph.tensors[node.inputs[1]].shape[1:3] == (1, 1))
        for node in group.readers
    )


def _with_offsets(
    graph: Graph, group: Group, seen: dict[str, Observation], offset: Callable[[Observation], Floats]
) -> tuple[Graph, dict[str, Observation]]:
    offsets: dict[str, Floats] = {}
    tensors: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node in group.producers:
            offsets[node.output] = offset(seen[node.output])
            bias = graph.tensors[node.inputs[2]].real()
            tensors[node.inputs[2]] = _constant(bias.astype(np.float64) + offsets[node.output])
        elif node.output in group.tensors:
            offsets[node.output] = np.sum([offsets[name] for name in node.inputs if name in offsets], axis=0)
        if node in group.readers:
            weights, old = (graph.tensors[name].real().astype(np.float64) for name in node.inputs[1:])
            taken = weights.reshape(len(weights), -1) @ offsets[node.inputs[0]]
            tensors[node.inputs[2]] = _constant(old - taken)
    moved = {name: seen[name].shifted(by) for name, by in offsets.items()}
    return graph.with_nodes(graph.nodes, tensors), {**seen, **moved}


def _constant(values: Floats) -> Tensor:
    return Tensor.constant(values.astype(np.float32))


def _along(values: Floats, rank: int, axis: int) -> Floats:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
