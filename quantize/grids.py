"""The 8-bit grid of every activation: its own range, what operators share, and what the delegate can take.

Some operators only move values, so their result lies on their operand's grid; some results have a grid that
the TFLite 8-bit specification prescribes; and the delegate leaves an ADD, SUB or MUL out of its partition
whose scales are too far apart. An operand that cannot be on the grid that its reader needs is brought there
in front of that reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from export.graph import WEIGHTED, Graph, Node, Quantization
from quantize.affine import INT8_MAX, INT8_MIN, activation_quantization, per_tensor
from quantize.ranges import Range

MOVERS = frozenset(
    {
        "MAX_POOL_2D",
        "PAD",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "STRIDED_SLICE",
        "TRANSPOSE",
    }
)  # output on the input's grid
JOINERS = frozenset({"CONCATENATION"})  # every operand on the output's grid
FIXED_OUTPUTS = {
    "LOGISTIC": per_tensor(1 / 256, -128),
    "TANH": per_tensor(1 / 128, 0),
}  # prescribed by the TFLite 8-bit specification

# Operand scale / output scale of ADD and SUB, product of the operand scales / output scale of MUL, that
# XNNPACK takes: [first, second).
LIMITS = {"ADD": (2.0**-10, 2.0**8), "SUB": (2.0**-10, 2.0**8), "MUL": (2.0**-16, 2.0**8)}
MARGIN = 1.01  # inside the limits, so that float32 scales stay there
OUTPUT = -1


@dataclass(frozen=True, slots=True)
class Grids:
    """The grid of every activation and of every real constant operand, by tensor name.

    `brought` has the grid that an operand must be brought to first, by (node, position).
    """

    of: Mapping[str, Quantization]
    brought: Mapping[tuple[str, int], Quantization]


def grids_of(
    graph: Graph, ranges: Mapping[str, Range], input_grid: Quantization, float_nodes: Set[str]
) -> Grids:
    """The grids for `ranges` of the float `graph`; `float_nodes` compute on real values and set no limits."""
    groups = _Groups(graph, {**ranges, **_constant_ranges(graph)}, input_grid)
    brought: dict[tuple[str, int], Quantization] = {}
    integer = [node for node in graph.nodes if node.output not in float_nodes]
    while any([_widened(groups, brought, node) for node in integer]):  # all of them, in every round
        pass
    of = {name: groups.grid(name) for name in groups.leader}
    for node in integer:
        for at, name in enumerate(node.inputs if node.op in JOINERS else ()):
            if graph.constant(name) is None and not _same(of[name], of[node.output]):
                brought[node.output, at] = of[node.output]
    return Grids(of, brought)


def _constant_ranges(graph: Graph) -> dict[str, Range]:
    found = {}
    for node in graph.nodes:
        for name in node.inputs if node.op not in WEIGHTED | JOINERS else ():
            constant = graph.constant(name)
            if constant is not None and constant.dtype == np.float32:
                found[name] = Range(float(constant.min()), float(constant.max()))
    return found


class _Groups:
    """Tensors that share a grid: `leader` leads to each group's root, by which its grid is known."""

    def __init__(self, graph: Graph, ranges: Mapping[str, Range], input_grid: Quantization) -> None:
        self.leader = {
            name: name for name in (*graph.inputs, *(node.output for node in graph.nodes), *ranges)
        }
        self.fixed = {graph.inputs[0]: input_grid}
        for node in graph.nodes:
            if node.op in FIXED_OUTPUTS:
                self.fixed[node.output] = FIXED_OUTPUTS[node.op]
            computed = [name for name in node.inputs if name in self.leader and graph.constant(name) is None]
            for name in computed[:1] if node.op in MOVERS else ():
                self.leader[node.output] = self.root(name)
            for name in self._shareable(computed, ranges[node.output]) if node.op in JOINERS else ():
                self._join(node.output, name)
        merged: dict[str, Range] = {}
        for name, found in ranges.items():
            root = self.root(name)
            merged[root] = merged[root].union(found) if root in merged else found
        self.grids = {root: activation_quantization(found.low, found.high) for root, found in merged.items()}
        self.grids |= self.fixed

    def root(self, name: str) -> str:
        while self.leader[name] != name:
            name = self.leader[name]
        return name

    def grid(self, name: str) -> Quantization:
        return self.grids[self.root(name)]

    def is_fixed(self, name: str) -> bool:
        return self.root(name) in self.fixed

    def widen(self, name: str, scale: float) -> None:
        root = self.root(name)
        self.grids[root] = _with_scale(self.grids[root], max(scale, float(self.grids[root].scale[0])))

    def _join(self, output: str, name: str) -> None:
        first, second = self.root(output), self.root(name)
        if second != first:
            self.leader[first] = second

    def _shareable(self, operands: Sequence[str], wanted: Range) -> list[str]:
        """The operands of a joiner that can be on one grid that also covers `wanted`."""
        free = [name for name in operands if not self.is_fixed(name)]
        grids = [self.fixed[self.root(name)] for name in operands if name not in free]
        if free or not all(_same(grid, grids[0]) for grid in grids) or not _covers(grids[0], wanted):
            return free
        return list(operands)


def _same(a: Quantization, b: Quantization) -> bool:
    return bool(a.scale[0] == b.scale[0] and a.zero_point[0] == b.zero_point[0])


def _covers(grid: Quantization, wanted: Range) -> bool:
    scale, zero_point = float(grid.scale[0]), int(grid.zero_point[0])
    low, high = scale * (INT8_MIN - zero_point), scale * (INT8_MAX - zero_point)
    return low - scale <= wanted.low and wanted.high <= high + scale


def _with_scale(grid: Quantization, scale: float) -> Quantization:
    return replace(grid, scale=np.array([scale], np.float32))


def _widened(groups: _Groups, brought: dict[tuple[str, int], Quantization], node: Node) -> bool:
    """Widen the grids that keep the node out of the delegate's limits; whether there were any."""
    if node.op not in LIMITS:
        return False
    keys = [(node.output, at) for at in range(len(node.inputs))]
    grids = [brought.get(key, groups.grid(name)) for key, name in zip(keys, node.inputs, strict=True)]
    target = groups.grid(node.output)
    found = list(_beyond(node.op, [float(grid.scale[0]) for grid in grids], float(target.scale[0])))
    for at, scale in found:
        if at == OUTPUT:
            groups.widen(node.output, scale)
        elif groups.is_fixed(node.inputs[at]):
            brought[keys[at]] = _with_scale(grids[at], scale)
        else:
            groups.widen(node.inputs[at], scale)
    return bool(found)


def _beyond(op: str, operands: Sequence[float], target: float) -> Iterator[tuple[int, float]]:
    """The operands (by position) or the OUTPUT whose scale is too small, and the least that it must be."""
    low, high = LIMITS[op]
    terms = [float(np.prod(operands))] if op == "MUL" else operands
    for at, term in enumerate(terms):
        if term < low * target:
            yield at, operands[at] * (low * target / term) * MARGIN
        elif term >= high * target:
            yield OUTPUT, term / high * MARGIN
