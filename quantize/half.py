"""Exact rewrites of a float graph for sums that are taken in half precision, rounded step by step.

XNNPACK's half-precision kernels start a sum at the bias and add product after product; every step is rounded
to the running sum's own 11 bits. So running sums are kept small and short, which in float changes nothing but
rounding. Error bounds: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from export.graph import NO_ACTIVATION, Array, Graph, Node, Tensor, is_ungrouped
from quantize.ranges import Observations

LARGEST = float(np.finfo(np.float16).max)
LEAST_GAIN = 2.0  # in mean square of the running sum, for which a bias is worth an addition of its own
PARTS = 4  # of a classifier's sum, a power of two
LONG = 1024  # features, from which on it is cut
BETWEEN = frozenset({"DEPTHWISE_CONV_2D", "MEAN", "PAD"})  # what works channel by channel
ENDS = frozenset({"CONV_2D", "FULLY_CONNECTED"})

Chain = tuple[Node, ...]  # from the convolution that makes the channels to the layer that sums them
Floats = NDArray[np.float64]


def prepared(graph: Graph, seen: Observations) -> Graph:
    """The graph with its sums in the order, and in the parts, in which half precision errs least.

    `seen` are observations of every tensor of the float graph.
    """
    return reduce(lambda found, rewrite: rewrite(found, seen), HALF_PASSES, graph)


def rounded_together(weights: Array) -> NDArray[np.float16]:
    """Depthwise weights [1, H, W, C] in half precision whose sum over a window stays what it was.

    What the larger taps lose by rounding the smaller ones take up: an even surface is filtered exactly.
    """
    taps = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    result, lost = np.empty(taps.shape, np.float16), np.zeros(taps.shape[1])
    columns = np.arange(taps.shape[1])
    for row in np.argsort(-np.abs(taps), axis=0, kind="stable"):
        wanted = np.clip(taps[row, columns] + lost, -LARGEST, LARGEST)
        result[row, columns] = wanted
        lost = wanted - result[row, columns]
    return result.reshape(weights.shape)


# --- the order of a sum -------------------------------------------------------------------------------------


def in_order(graph: Graph, seen: Observations) -> Graph:
    """Channels between two layers in the order that keeps the second one's running sums small.

    The order is folded into the weights on both sides: nothing is added to the graph.
    """
    for chain in _chains(graph):
        products = _products(graph, chain[-1], seen[chain[-1].inputs[0]].rows)
        order = _smallest_first(products)
        if _running(products, order) < _running(products, np.arange(len(order))):
            graph = _permuted(graph, chain, order)
    return graph


def _chains(graph: Graph) -> list[Chain]:
    readers = graph.consumers()
    chains = (_followed(graph, node, readers) for node in graph.nodes if node.op == "CONV_2D")
    return [
        chain
        for chain in chains
        if len(chain) > 1
        and _is_whole(graph, chain)
        and all(len(readers[name]) == 1 for name in _axes(chain))
    ]


def _followed(graph: Graph, first: Node, readers: Mapping[str, list[Node]]) -> Chain:
    """The layer and its only readers, up to one that does not work channel by channel."""
    chain = [first]
    while len(readers[chain[-1].output]) == 1 and chain[-1].output not in graph.outputs:
        chain.append(readers[chain[-1].output][0])
        if chain[-1].op not in BETWEEN:
            break
    return tuple(chain)


def _is_whole(graph: Graph, chain: Chain) -> bool:
    """Whether all sums of the last see every channel that the first makes, once, and in its place."""
    channels = graph.tensors[chain[0].output].shape[-1]
    same = all(graph.tensors[node.output].shape[-1] == channels for node in chain[:-1])
    if chain[-1].op not in ENDS or not same or not is_ungrouped(graph, chain[0]):
        return False
    pads = [graph.constant(node.inputs[1]) for node in chain if node.op == "PAD"]
    one_by_one = int(np.prod(graph.tensors[chain[-1].inputs[1]].shape[1:])) == channels
    return one_by_one and all(pad is not None and not pad[-1].any() for pad in pads)


def _products(graph: Graph, node: Node, rows: NDArray[np.float32]) -> Floats:
    """Mean over rows, summed over outputs, of summand i times summand j; the bias is the last summand.

    `rows` are positions of the layer's input, [rows, channels]; a window is taken to see the same everywhere.
    """
    weights, bias = (graph.tensors[name].real().astype(np.float64) for name in node.inputs[1:3])
    weights = weights.reshape(len(weights), -1)
    window = np.tile(rows.astype(np.float64), weights.shape[1] // rows.shape[1])
    left, right = np.c_[window, np.ones(len(window))], np.c_[weights, bias]
    return np.asarray(left.T @ left / len(left) * (right.T @ right))


def _smallest_first(products: Floats) -> NDArray[np.intp]:
    """Summand by summand, the one that leaves the smallest mean square of the running sum."""
    count = len(products) - 1
    own, with_sum = products.diagonal()[:count], products[count, :count].copy()
    left, order = np.ones(count, bool), np.empty(count, np.intp)
    for step in range(count):
        order[step] = np.where(left, own + 2 * with_sum, np.inf).argmin()
        left[order[step]] = False
        with_sum += products[order[step], :count]
    return order


def _running(products: Floats, order: NDArray[np.intp]) -> float:
    """Sum over all steps of the mean square of the running sum, which starts at the bias."""
    places = np.r_[len(order), order]
    ordered = products[np.ix_(places, places)]
    steps = ordered.diagonal() + 2 * np.tril(ordered, -1).sum(1)
    return float(np.cumsum(steps)[1:].sum())


def _axes(chain: Chain) -> dict[str, int]:
    """The constants of a chain that hold its channels, and along which axis."""
    first, *between, last = chain
    depthwise = (name for node in between if node.op == "DEPTHWISE_CONV_2D" for name in node.inputs[1:3])
    return {first.inputs[1]: 0, first.inputs[2]: 0, **dict.fromkeys(depthwise, -1), last.inputs[1]: -1}


def _permuted(graph: Graph, chain: Chain, order: NDArray[np.intp]) -> Graph:
    tensors = {
        name: Tensor.constant(np.ascontiguousarray(graph.tensors[name].real().take(order, axis)))
        for name, axis in _axes(chain).items()
    }
    return graph.with_nodes(graph.nodes, tensors)


# --- the start of a sum -------------------------------------------------------------------------------------


def bias_last(graph: Graph, seen: Observations) -> Graph:
    """A convolution of the image with its bias added after its sum, where the sum starts too large at it.

    The channels of an image have the order they have, and camera normalisation leaves large biases.
    """
    makers = graph.producers()
    tensors: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        maker = makers.get(node.inputs[0])
        source = maker.inputs[0] if maker is not None and maker.op == "PAD" else node.inputs[0]
        sums_image = node.op == "CONV_2D" and source in graph.inputs and is_ungrouped(graph, node)
        pays = sums_image and _gain(graph, node, seen) >= LEAST_GAIN
        nodes += _with_bias_last(graph, node, tensors) if pays else [node]
    return graph.with_nodes(nodes, tensors)


def _gain(graph: Graph, node: Node, seen: Observations) -> float:
    """How many times smaller the mean square of the running sum is if it does not start at the bias."""
    products = _products(graph, node, seen[node.inputs[0]].rows)
    order, without = np.arange(len(products) - 1), products.copy()
    without[-1] = without[:, -1] = 0
    return _running(products, order) / max(_running(without, order), np.finfo(np.float64).tiny)


def _with_bias_last(graph: Graph, node: Node, tensors: dict[str, Tensor]) -> list[Node]:
    """The convolution and its bias; adds their tensors to `tensors`.

    The addition works on whole rows of the map: a broadcast over few channels takes more instructions.
    """
    name, shape, bias = node.output, graph.tensors[node.output].shape, graph.tensors[node.inputs[2]].real()
    flat = (*shape[:-3], 1, shape[-3], shape[-2] * shape[-1])
    tensors |= {
        f"{name}/zero": Tensor.constant(np.zeros_like(bias)),
        f"{name}/bias": Tensor.constant(np.tile(bias, shape[-2]).reshape(1, 1, 1, -1)),
        f"{name}/flat": Tensor.constant(np.array(flat, np.int32)),
        f"{name}/map": Tensor.constant(np.array(shape, np.int32)),
        f"{name}/sum": Tensor(shape),
        f"{name}/rows": Tensor(flat),
        f"{name}/biased": Tensor(flat),
    }
    inputs, attributes = (*node.inputs[:2], f"{name}/zero"), {**node.attributes, **NO_ACTIVATION}
    clamped = {"fused_activation_function": node.attributes["fused_activation_function"]}
    return [
        replace(node, inputs=inputs, outputs=(f"{name}/sum",), attributes=attributes),
        Node("RESHAPE", (f"{name}/sum", f"{name}/flat"), (f"{name}/rows",), {"new_shape": flat}),
        Node("ADD", (f"{name}/rows", f"{name}/bias"), (f"{name}/biased",), clamped),
        Node("RESHAPE", (f"{name}/biased", f"{name}/map"), (name,), {"new_shape": shape}),
    ]


# --- the length of a sum ------------------------------------------------------------------------------------


def in_parts(graph: Graph, seen: Observations) -> Graph:
    """Fully connected layers of many features as the sum of several of fewer features each."""
    tensors: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _cut(graph, node, tensors) if _is_long(graph, node) else [node]
    return graph.with_nodes(nodes, tensors)


def _is_long(graph: Graph, node: Node) -> bool:
    """Whether it is a fully connected layer, on [N, features], of features enough."""
    if node.op != "FULLY_CONNECTED" or len(graph.tensors[node.inputs[0]].shape) != 2:
        return False
    return graph.tensors[node.inputs[1]].shape[1] >= LONG


def _cut(graph: Graph, node: Node, tensors: dict[str, Tensor]) -> list[Node]:
    """The layer's parts and their sum; adds their tensors to `tensors`."""
    weights, shape = graph.tensors[node.inputs[1]].real(), graph.tensors[node.output].shape
    bounds = np.linspace(0, weights.shape[1], PARTS + 1).astype(int).tolist()
    tensors[f"{node.output}/zero"] = Tensor.constant(np.zeros(len(weights), np.float32))
    plain = {**node.attributes, **NO_ACTIVATION}
    nodes: list[Node] = []
    for part, (start, end) in enumerate(pairwise(bounds)):
        name = f"{node.output}/{part}"
        tensors |= {
            f"{name}/begin": Tensor.constant(np.array([0, start], np.int32)),
            f"{name}/size": Tensor.constant(np.array([shape[0], end - start], np.int32)),
            f"{name}/weights": Tensor.constant(np.ascontiguousarray(weights[:, start:end])),
            f"{name}/features": Tensor((shape[0], end - start)),
            name: Tensor(shape),
        }
        bias = f"{node.output}/zero" if part else node.inputs[2]
        nodes += [
            Node("SLICE", (node.inputs[0], f"{name}/begin", f"{name}/size"), (f"{name}/features",)),
            Node(node.op, (f"{name}/features", f"{name}/weights", bias), (name,), plain),
        ]
    sums = _summed(node, [f"{node.output}/{part}" for part in range(PARTS)])
    tensors |= {one.output: Tensor(shape) for one in sums}
    return [*nodes, *sums]


def _summed(node: Node, parts: list[str]) -> list[Node]:
    """The sum of the parts in pairs, then of those in pairs; the last one stands for `node`."""
    nodes: list[Node] = []
    while len(parts) > 1:
        sums = [f"{left}+" for left in parts[::2]] if len(parts) > 2 else [node.output]
        for left, right, result in zip(parts[::2], parts[1::2], sums, strict=True):
            nodes.append(Node("ADD", (left, right), (result,), NO_ACTIVATION))
        parts = sums
    activation = node.attributes["fused_activation_function"]
    nodes[-1] = replace(nodes[-1], attributes={"fused_activation_function": activation})
    return nodes


HALF_PASSES: tuple[Callable[[Graph, Observations], Graph], ...] = (in_order, bias_last, in_parts)
