"""Chains of RESHAPE and TRANSPOSE as one rearrangement: a channel shuffle, or a detour through ONNX's order.

Every axis is split into the factors that the chain moves apart. The chain is then a permutation of factors,
which at most one TRANSPOSE between two RESHAPEs computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.graph import Graph, Node, Tensor

REARRANGING = ("RESHAPE", "TRANSPOSE")
MOST_AXES = 5  # that old runtimes transpose
Factor = tuple[int, ...]  # its place: the axis, then first or second part of each splitting


@dataclass
class Factors:
    """The axes behind the batch as lists of factors; `sizes` knows every factor in use."""

    axes: list[list[Factor]]
    sizes: dict[Factor, int]

    @classmethod
    def of(cls, shape: Sequence[int]) -> Factors:
        """One factor for every axis."""
        places = [(axis,) for axis in range(len(shape))]
        return cls([[place] for place in places], dict(zip(places, shape, strict=True)))

    def transpose(self, order: Sequence[int]) -> None:
        """Put the axes in another order."""
        self.axes = [self.axes[axis] for axis in order]

    def reshape(self, shape: Sequence[int]) -> bool:
        """Regroup the factors into axes of `shape`; whether that can be done."""
        pending, axes = [factor for axis in self.axes for factor in axis], []
        for size in shape:
            axis: list[Factor] = []
            while math.prod(self.sizes[factor] for factor in axis) != size:
                if not pending:
                    return False
                factor, rest = pending.pop(0), size // math.prod(self.sizes[f] for f in axis)
                if rest == 0 or (self.sizes[factor] % rest and rest % self.sizes[factor]):
                    return False
                if self.sizes[factor] > rest:
                    factor, other = self._split(factor, rest)
                    pending.insert(0, other)
                axis.append(factor)
            axes.append(axis)
        if any(self.sizes[factor] != 1 for factor in pending):
            return False
        self.axes = axes
        return True

    def _split(self, factor: Factor, outer: int) -> tuple[Factor, Factor]:
        first, second = (*factor, 0), (*factor, 1)
        self.sizes[first], self.sizes[second] = outer, self.sizes.pop(factor) // outer
        return first, second

    def permutation(self) -> tuple[list[int], list[int]]:
        """Sizes of the factors in the source's order, and which of them stand where in the result."""
        found = [factor for axis in self.axes for factor in axis if self.sizes[factor] != 1]
        source = sorted(found)
        order = [source.index(factor) for factor in found]
        sizes = [self.sizes[factor] for factor in source]
        return _joined(sizes, order)


def _joined(sizes: list[int], order: list[int]) -> tuple[list[int], list[int]]:
    """Neighbours that stay neighbours as one."""
    for place in range(len(order) - 1):
        if order[place + 1] == order[place] + 1:
            first = order[place]
            merged = [*sizes[:first], sizes[first] * sizes[first + 1], *sizes[first + 2 :]]
            kept = [at - (at > first) for at in order if at != first + 1]
            return _joined(merged, kept)
    return sizes, order


def merge_rearrangements(graph: Graph) -> Graph:
    """A chain of RESHAPE and TRANSPOSE as at most one TRANSPOSE between two RESHAPEs."""
    producers, readers = graph.producers(), graph.consumers()
    replaced: dict[str, list[Node]] = {}
    dropped: set[str] = set()
    added: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op not in REARRANGING or _goes_on(graph, readers[node.output], node):
            continue
        chain = [node]
        while (before := producers.get(chain[0].inputs[0])) and _goes_on(
            graph, readers[before.output], before
        ):
            chain.insert(0, before)
        shorter = _as_one(graph, chain, added)
        if shorter is not None:
            replaced[node.output] = shorter
            dropped.update(link.output for link in chain[:-1])
    nodes = [
        step
        for node in graph.nodes
        if node.output not in dropped
        for step in replaced.get(node.output, [node])
    ]
    return graph.with_nodes(nodes, added)


def _goes_on(graph: Graph, readers: Sequence[Node], node: Node) -> bool:
    """Whether the node is a link of a chain, but not its last."""
    alone = len(readers) == 1 and readers[0].op in REARRANGING and readers[0].inputs[0] == node.output
    return node.op in REARRANGING and alone and node.output not in graph.outputs


def _as_one(graph: Graph, chain: Sequence[Node], added: dict[str, Tensor]) -> list[Node] | None:
    """The steps that do what the chain does; None unless they are fewer, or transpose less."""
    factors = _followed(graph, chain)
    if factors is None or sum(node.op == "TRANSPOSE" for node in chain) == 0:
        return None
    sizes, order = factors.permutation()
    steps = _steps(graph, chain, [1, *sizes], [0, *(place + 1 for place in order)], added)
    before, after = ([node.op for node in nodes] for nodes in (chain, steps))
    better = (after.count("TRANSPOSE"), len(after)) < (before.count("TRANSPOSE"), len(before))
    return steps if better and len(sizes) < MOST_AXES else None


def _followed(graph: Graph, chain: Sequence[Node]) -> Factors | None:
    """Where the chain moves the factors of its input's axes, if that can be told."""
    factors = Factors.of(graph.tensors[chain[0].inputs[0]].shape[1:])
    for node in chain:
        if node.op == "TRANSPOSE":
            order = np.asarray(graph.constant(node.inputs[1])).tolist()
            assert order[0] == 0, "a TRANSPOSE moves the batch axis"
            factors.transpose([axis - 1 for axis in order[1:]])
        elif not factors.reshape(graph.tensors[node.output].shape[1:]):
            return None
    return factors


def _steps(
    graph: Graph, chain: Sequence[Node], sizes: list[int], order: list[int], added: dict[str, Tensor]
) -> list[Node]:
    """RESHAPE to `sizes`, TRANSPOSE to `order`, RESHAPE to the chain's result, as far as they do anything."""
    source, result = chain[0].inputs[0], chain[-1].output
    moved, target = tuple(sizes[axis] for axis in order), graph.tensors[result].shape
    nodes: list[Node] = []
    if order == sorted(order):
        return [_reshape(source, target, result, added)]
    if tuple(sizes) != graph.tensors[source].shape:
        nodes.append(_reshape(source, tuple(sizes), f"{result}/factors", added))
    last = moved == target
    name = f"{result}/order"
    added[name] = Tensor.constant(np.array(order, np.int32))
    output = result if last else f"{result}/moved"
    added[output] = Tensor(moved)
    nodes.append(Node("TRANSPOSE", (nodes[-1].output if nodes else source, name), (output,)))
    return nodes if last else [*nodes, _reshape(output, target, result, added)]


def _reshape(source: str, shape: tuple[int, ...], result: str, added: dict[str, Tensor]) -> Node:
    added[f"{result}/shape_of"] = Tensor.constant(np.array(shape, np.int32))
    added[result] = Tensor(shape)
    return Node("RESHAPE", (source, f"{result}/shape_of"), (result,), {"new_shape": shape})
