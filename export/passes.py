"""Rewrites of the float Graph, each exact, in the one order in which they run (`FLOAT_PASSES`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.graph import (
    NO_ACTIVATION,
    WEIGHTED,
    Array,
    Graph,
    GraphError,
    Node,
    Tensor,
    same_pads,
    strides_and_dilations,
)
from export.hard_functions import clamp_of, hard_swish_input
from export.rearrangements import merge_rearrangements

Pass = Callable[[Graph], Graph]

CLAMPS = {"RELU": "RELU", "RELU6": "RELU6"}
ELEMENTWISE = frozenset(
    {
        "ADD",
        "HARD_SWISH",
        "LEAKY_RELU",
        "LOGISTIC",
        "MAXIMUM",
        "MINIMUM",
        "MUL",
        "RELU",
        "RELU6",
        "TANH",
    }
)
# A CONCATENATION's activation is ignored by the runtime; MAX_POOL_2D in 8 bits passes its values on.
CLAMPABLE = (WEIGHTED - {"TRANSPOSE_CONV"}) | {"ADD", "SUB", "MUL", "DIV", "AVERAGE_POOL_2D"}


def run_passes(graph: Graph, passes: Sequence[Pass]) -> Graph:
    """Apply `passes` in order; the graph is checked after each, and the failing pass is named."""
    for transform in passes:
        graph = transform(graph).without_dead_nodes()
        try:
            graph.check()
        except GraphError as error:
            name = getattr(transform, "__name__", repr(transform))
            raise GraphError(f"pass {name} broke the graph: {error}") from error
    return graph


class Rewriter:
    """One walk in execution order, in which a node may be merged into the producer of its input."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: dict[str, Tensor] = {}
        self._nodes: dict[str, Node] = {}
        self._names: dict[str, str] = {}
        self._readers = {name: len(nodes) for name, nodes in graph.consumers().items()}

    def incoming(self) -> list[Node]:
        """The graph's nodes; read each through `current` so that earlier merges are seen."""
        return list(self.graph.nodes)

    def current(self, node: Node) -> Node:
        """The node with its inputs renamed by the merges so far."""
        return node.renamed(self._names)

    def keep(self, node: Node) -> None:
        """Add the node to the result."""
        self._nodes[node.output] = node

    def private_producer(self, name: str) -> Node | None:
        """The node that computes `name`, if nothing but one node reads it."""
        if name in self.graph.outputs or self._readers.get(name, 0) != 1:
            return None
        return self._nodes.get(name)

    def producer(self, name: str) -> Node | None:
        """The node that computes `name`, whoever else reads it."""
        return self._nodes.get(name)

    def drop(self, node: Node, source: str) -> bool:
        """Let readers of `node` read `source` instead; not possible for a graph output."""
        if node.output in self.graph.outputs:
            return False
        self._names[node.output] = source
        self._readers[source] = self._readers.get(source, 0) + self._readers[node.output] - 1
        return True

    def merge(self, producer: Node, node: Node) -> None:
        """Let `producer` stand for `node` too, under its own name unless `node` computes a graph output."""
        del self._nodes[producer.output]
        if node.output in self.graph.outputs:
            producer = replace(producer, outputs=node.outputs)
        else:
            self._names[node.output] = producer.output
            self._readers[producer.output] = self._readers[node.output]
        shape = self.tensor(node.output).shape
        self.tensors[producer.output] = replace(self.tensor(node.output), shape=shape)
        self.keep(producer)

    def insert_after(self, name: str, make: Callable[[str, str], Node], suffix: str) -> None:
        """Add the node `make(input, output)` between `name`, which is kept already, and all its readers."""
        output = f"{name}/{suffix}"
        self.tensors[output] = self.tensor(name)
        self._readers[output], self._readers[name] = self._readers[name], 1
        if name in self.graph.outputs:
            producer = replace(self._nodes.pop(name), outputs=(output,))
            self.keep(producer)
            self.keep(make(output, name))
        else:
            self._names[name] = output
            self.keep(make(name, output))

    def tensor(self, name: str) -> Tensor:
        """The tensor as this walk has left it."""
        return self.tensors.get(name) or self.graph.tensors[name]

    def constant(self, name: str) -> Array | None:
        """The constant's array as this walk has left it, None for a computed or absent tensor."""
        return self.tensor(name).data if name else None

    def floats(self, name: str) -> NDArray[np.float64] | None:
        """As `constant`, in double precision."""
        data = self.constant(name)
        return None if data is None else data.astype(np.float64)

    def replace_constant(self, name: str, data: Array) -> str:
        """A constant `name` with new `data`; a fresh name if others read the old one too."""
        if self._readers.get(name, 0) > 1:
            self._readers[name] -= 1
            name = f"{name}/of_{len(self.tensors)}"
            self._readers[name] = 1
        self.tensors[name] = Tensor.constant(np.ascontiguousarray(data))
        return name

    def result(self) -> Graph:
        """The rewritten graph."""
        return self.graph.with_nodes(self._nodes.values(), self.tensors)


def constants_to_mul_and_add(graph: Graph) -> Graph:
    """SUB and DIV by a constant as ADD and MUL, so that later passes know one form."""
    walk = Rewriter(graph)
    rules: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
        "SUB": ("ADD", np.negative),
        "DIV": ("MUL", np.reciprocal),
    }
    for node in map(walk.current, walk.incoming()):
        constant = walk.constant(node.inputs[1]) if node.op in rules else None
        if constant is not None:
            op, inverse = rules[node.op]
            node = replace(
                node, op=op, inputs=(node.inputs[0], walk.replace_constant(node.inputs[1], inverse(constant)))
            )
        walk.keep(node)
    return walk.result()


def fold_pads(graph: Graph) -> Graph:
    """A PAD before a VALID convolution becomes its SAME padding where the amounts are TFLite's own."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        pad = walk.private_producer(node.inputs[0]) if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D") else None
        if pad is None or pad.op != "PAD" or node.attributes["padding"] != "VALID":
            walk.keep(node)
            continue
        source = pad.inputs[0]
        wanted = _same_paddings(node, walk.tensor(source).shape, walk.tensor(node.inputs[1]).shape)
        if np.array_equal(walk.constant(pad.inputs[1]), wanted):  # type: ignore[arg-type]  # a PAD's amounts are constant
            node = replace(
                node, inputs=(source, *node.inputs[1:]), attributes={**node.attributes, "padding": "SAME"}
            )
        walk.keep(node)
    return walk.result()


def fold_affine_into_weights(graph: Graph) -> Graph:
    """A constant MUL or ADD (batch norm, hard-sigmoid's offset) joins the weighted node before it."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        source, constant = _split_constant(walk, node)
        producer = walk.private_producer(source) if constant is not None else None
        if constant is None or producer is None or not _takes_affine(walk, producer, constant):
            walk.keep(node)
            continue
        walk.merge(_with_affine(walk, producer, node, constant.astype(np.float64).reshape(-1)), node)
    return walk.result()


def push_scalars_forward(graph: Graph) -> Graph:
    """A MUL by one scalar moves past a MUL of two tensors, towards weights that can take it."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        scaled = _scaled_operand(walk, node)
        if scaled is None:
            walk.keep(node)
            continue
        source, factor = scaled.inputs
        walk.keep(
            replace(node, inputs=tuple(source if name == scaled.output else name for name in node.inputs))
        )
        walk.insert_after(node.output, _scale_by(factor), "scaled")
    return walk.result()


def fold_scalars_into_weights(graph: Graph) -> Graph:
    """A MUL by one scalar before a weighted node joins its weights."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        scaled = walk.private_producer(node.inputs[0]) if node.op in WEIGHTED - {"TRANSPOSE_CONV"} else None
        weights = walk.floats(node.inputs[1]) if scaled is not None else None
        if scaled is not None and weights is not None and _is_scalar_mul(walk, scaled):
            factor = np.asarray(walk.constant(scaled.inputs[1]), np.float64).item()
            folded = walk.replace_constant(node.inputs[1], (weights * factor).astype(np.float32))
            node = replace(node, inputs=(scaled.inputs[0], folded, *node.inputs[2:]))
        walk.keep(node)
    return walk.result()


def fuse_activations(graph: Graph) -> Graph:
    """RELU and RELU6 become the fused activation of the node before them."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        producer = walk.private_producer(node.inputs[0]) if node.op in CLAMPS else None
        if producer is None or producer.op not in CLAMPABLE or _activation(producer) != "NONE":
            walk.keep(node)
            continue
        walk.merge(_with_activation(producer, CLAMPS[node.op]), node)
    return walk.result()


def clamps_to_activations(graph: Graph) -> Graph:
    """MAXIMUM with 0 and MINIMUM with 6 of it are RELU and RELU6, whichever comes first."""
    producers, nodes = graph.producers(), []
    for node in graph.nodes:
        clamp = clamp_of(graph, producers, node.output)
        activation = (
            {(0.0, 6.0): "RELU6", (0.0, np.inf): "RELU"}.get((clamp.low, clamp.high)) if clamp else None
        )
        if clamp is not None and activation is not None and node.op in ("MAXIMUM", "MINIMUM"):
            node = Node(activation, (clamp.source,), node.outputs)
        nodes.append(node)
    return graph.with_nodes(nodes)


def recognise_hard_functions(graph: Graph) -> Graph:
    """HARD_SWISH for x * clip(x / 6 + 1/2, 0, 1), however written; RELU6 for other clips from 0."""
    producers = graph.producers()
    nodes: list[Node] = []
    added: dict[str, Tensor] = {}
    for node in graph.nodes:
        source = hard_swish_input(graph, producers, node)
        if source is not None:
            nodes.append(Node("HARD_SWISH", (source,), node.outputs))
            continue
        nodes += _as_relu6(graph, producers, node, added)
    return graph.with_nodes(nodes, added)


def _as_relu6(
    graph: Graph, producers: Mapping[str, Node], node: Node, added: dict[str, Tensor]
) -> list[Node]:
    """A clip to [0, high] of a shifted value as relu6 of it, scaled to 6 and back: all of which folds."""
    clamp = clamp_of(graph, producers, node.output) if node.op in ("MAXIMUM", "MINIMUM") else None
    shifted = producers.get(clamp.source) if clamp is not None else None
    if clamp is None or shifted is None or shifted.op not in ("ADD", "MUL"):
        return [node]
    if (
        clamp.low != 0.0
        or not 0.0 < clamp.high < np.inf
        or all(graph.constant(n) is None for n in shifted.inputs)
    ):
        return [node]
    name, tensor = node.output, graph.tensors[node.output]
    scalars = {f"{name}/to_six": 6 / clamp.high, f"{name}/from_six": clamp.high / 6}
    added.update({key: Tensor.constant(np.array([value], np.float32)) for key, value in scalars.items()})
    added.update({f"{name}/scaled": tensor, f"{name}/relu6": tensor})
    up, down = scalars
    return [
        Node("MUL", (clamp.source, up), (f"{name}/scaled",), NO_ACTIVATION),
        Node("RELU6", (f"{name}/scaled",), (f"{name}/relu6",)),
        Node("MUL", (f"{name}/relu6", down), node.outputs, NO_ACTIVATION),
    ]


def merge_transposes(graph: Graph) -> Graph:
    """A TRANSPOSE of a TRANSPOSE is one, or none where the second undoes the first."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        first = walk.producer(node.inputs[0]) if node.op == "TRANSPOSE" else None
        if first is not None and first.op == "TRANSPOSE":
            order = np.asarray(walk.constant(first.inputs[1]))[np.asarray(walk.constant(node.inputs[1]))]
            if (order == np.arange(len(order))).all() and walk.drop(node, first.inputs[0]):
                continue
            node = replace(node, inputs=(first.inputs[0], walk.replace_constant(node.inputs[1], order)))
        walk.keep(node)
    return walk.result()


def sink_reshapes(graph: Graph) -> Graph:
    """A RESHAPE that keeps the last axis moves behind an element-wise node, towards another RESHAPE."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        position = _reshaped_operand(walk, node)
        if position is None:
            walk.keep(node)
            continue
        reshape = walk.private_producer(node.inputs[position])
        assert reshape is not None
        source, inner = reshape.inputs[0], f"{node.output}/before_reshape"
        inputs = tuple(source if at == position else name for at, name in enumerate(node.inputs))
        walk.tensors[inner] = walk.tensor(source)
        walk.keep(replace(node, inputs=inputs, outputs=(inner,)))
        walk.keep(replace(reshape, inputs=(inner, reshape.inputs[1]), outputs=node.outputs))
    return walk.result()


def merge_reshapes(graph: Graph) -> Graph:
    """A RESHAPE of a RESHAPE reads the first one's input; one that changes nothing goes."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        first = walk.producer(node.inputs[0]) if node.op == "RESHAPE" else None
        if first is not None and first.op == "RESHAPE":
            node = replace(node, inputs=(first.inputs[0], *node.inputs[1:]))
        if node.op == "RESHAPE" and walk.tensor(node.inputs[0]).shape == walk.tensor(node.output).shape:
            if walk.drop(node, node.inputs[0]):
                continue
        walk.keep(node)
    return walk.result()


def fold_reshape_into_mean(graph: Graph) -> Graph:
    """MEAN over height and width, then RESHAPE to (batch, channels), is a MEAN that drops the axes."""
    walk = Rewriter(graph)
    for node in map(walk.current, walk.incoming()):
        mean = walk.private_producer(node.inputs[0]) if node.op == "RESHAPE" else None
        if mean is None or mean.op != "MEAN" or not _drops_means_axes(walk, mean, node):
            walk.keep(node)
            continue
        walk.merge(replace(mean, attributes={"keep_dims": False}), node)
    return walk.result()


FLOAT_PASSES: tuple[Pass, ...] = (
    constants_to_mul_and_add,
    clamps_to_activations,
    recognise_hard_functions,
    merge_transposes,
    merge_rearrangements,
    fold_pads,
    sink_reshapes,
    merge_reshapes,
    fold_affine_into_weights,
    push_scalars_forward,
    fold_scalars_into_weights,
    fuse_activations,
    fold_reshape_into_mean,
)


def _reshaped_operand(walk: Rewriter, node: Node) -> int | None:
    """Position of the operand that a private RESHAPE computes, if `node` can as well come before it."""
    if node.op not in ELEMENTWISE:
        return None
    computed = [at for at, name in enumerate(node.inputs) if walk.constant(name) is None]
    reshape = walk.private_producer(node.inputs[computed[0]]) if len(computed) == 1 else None
    if reshape is None or reshape.op != "RESHAPE":
        return None
    source, target = walk.tensor(reshape.inputs[0]).shape, walk.tensor(reshape.output).shape
    if source[-1] != target[-1] or target != walk.tensor(node.output).shape:
        return None
    constants = [walk.tensor(name).shape for at, name in enumerate(node.inputs) if at != computed[0]]
    fits = all(np.prod(shape[:-1]) == 1 and len(shape) <= len(source) for shape in constants)
    return computed[0] if fits else None


def _same_paddings(node: Node, source: Sequence[int], weights: Sequence[int]) -> Array:
    top, left, bottom, right = same_pads(source[1:3], weights[1:3], *strides_and_dilations(node))
    return np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)


def _split_constant(walk: Rewriter, node: Node) -> tuple[str, Array | None]:
    """The computed operand and the constant one of a MUL or ADD; None if there is no constant one."""
    if node.op in ("MUL", "ADD"):
        for position, name in enumerate(node.inputs):
            constant = walk.constant(name)
            if constant is not None:
                return node.inputs[1 - position], constant
    return "", None


def _takes_affine(walk: Rewriter, producer: Node, constant: Array) -> bool:
    if producer.op not in WEIGHTED or producer.attributes["fused_activation_function"] != "NONE":
        return False
    channels = walk.tensor(producer.output).shape[-1]
    return constant.size == 1 or (constant.size == channels and constant.shape[-1] == channels)


def _with_affine(walk: Rewriter, producer: Node, node: Node, constant: NDArray[np.float64]) -> Node:
    source, weight_name, bias_name = producer.inputs
    weights, bias = walk.floats(weight_name), walk.floats(bias_name)
    assert weights is not None and bias is not None
    one, zero = np.ones(1), np.zeros(1)
    factor, offset = (constant, zero) if node.op == "MUL" else (one, constant)
    if node.op == "MUL":
        shape = (1, 1, 1, -1) if producer.op == "DEPTHWISE_CONV_2D" else (-1, *(1,) * (weights.ndim - 1))
        scaled = (weights * np.reshape(factor, shape)).astype(np.float32)
        weight_name = walk.replace_constant(weight_name, scaled)
    bias_name = walk.replace_constant(bias_name, (bias * factor + offset).astype(np.float32))
    merged = replace(producer, inputs=(source, weight_name, bias_name))
    return _with_activation(merged, str(node.attributes["fused_activation_function"]))


def _activation(node: Node) -> object:
    return node.attributes["fused_activation_function"]


def _with_activation(node: Node, activation: str) -> Node:
    return replace(node, attributes={**node.attributes, "fused_activation_function": activation})


def _is_scalar_mul(walk: Rewriter, node: Node) -> bool:
    if node.op != "MUL" or node.attributes["fused_activation_function"] != "NONE":
        return False
    constant = walk.constant(node.inputs[1])
    return constant is not None and constant.size == 1


def _scaled_operand(walk: Rewriter, node: Node) -> Node | None:
    """The scalar MUL that feeds a MUL of two tensors without activation, if there is one."""
    if node.op != "MUL" or node.attributes["fused_activation_function"] != "NONE":
        return None
    if any(walk.constant(name) is not None for name in node.inputs):
        return None
    producers = (walk.private_producer(name) for name in node.inputs)
    return next((p for p in producers if p is not None and _is_scalar_mul(walk, p)), None)


def _scale_by(factor: str) -> Callable[[str, str], Node]:
    return lambda source, output: Node("MUL", (source, factor), (output,), NO_ACTIVATION)


def _drops_means_axes(walk: Rewriter, mean: Node, reshape: Node) -> bool:
    axes = np.asarray(walk.constant(mean.inputs[1])).tolist()
    source, target = walk.tensor(mean.inputs[0]).shape, walk.tensor(reshape.output).shape
    return target == tuple(size for axis, size in enumerate(source) if axis not in axes)
