"""Recognises hard-sigmoid and hard-swish that an exporter wrote out as sums, products and clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from export.graph import Graph, Node

TOLERANCE = 1e-5
ACTIVATION_BOUNDS = {"RELU": (0.0, math.inf), "RELU6": (0.0, 6.0)}
Producers = Mapping[str, Node]


@dataclass(frozen=True, slots=True)
class Clamp:
    """clip(source, low, high)."""

    source: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gate:
    """factor * clip(slope * source + offset, 0, high)."""

    source: str
    slope: float
    offset: float
    high: float
    factor: float

    def is_hard_sigmoid(self) -> bool:
        """Whether it is clip(source / 6 + 1/2, 0, 1)."""
        found = (self.slope * self.factor, self.offset * self.factor, self.high * self.factor)
        return all(
            math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(found, (1 / 6, 1 / 2, 1.0), strict=True)
        )


def clamp_of(graph: Graph, producers: Producers, name: str) -> Clamp | None:
    """The clip that computes `name`: RELU, RELU6, or MAXIMUM and MINIMUM with scalars in any order."""
    node = producers.get(name)
    if node is None:
        return None
    if node.op in ACTIVATION_BOUNDS:
        return Clamp(node.inputs[0], *ACTIVATION_BOUNDS[node.op])
    if node.op not in ("MAXIMUM", "MINIMUM"):
        return None
    source, bound = _scalar_operand(graph, node)
    if bound is None:
        return None
    inner = clamp_of(graph, producers, source) or Clamp(source, -math.inf, math.inf)
    if node.op == "MAXIMUM":
        return replace(inner, low=max(inner.low, bound), high=max(inner.high, bound))
    return replace(inner, low=min(inner.low, bound), high=min(inner.high, bound))


def hard_swish_input(graph: Graph, producers: Producers, node: Node) -> str | None:
    """The x of a product x * clip(x / 6 + 1/2, 0, 1), wherever its constant factors stand."""
    if node.op != "MUL" or node.attributes.get("fused_activation_function") != "NONE":
        return None
    scale, factors = _product(graph, producers, node)
    for x, other in (factors, reversed(factors)) if len(factors) == 2 else ():
        for gate in _gates(graph, producers, other):
            if gate.source == x and replace(gate, factor=gate.factor * scale).is_hard_sigmoid():
                return x
    return None


def _gates(graph: Graph, producers: Producers, name: str) -> Iterator[Gate]:
    """Every reading of `name` as a Gate: of the clip's operand, and of what that is a sum and product of."""
    clamp = clamp_of(graph, producers, name)
    fused = producers.get(name)
    if clamp is None and fused is not None and fused.op == "ADD":
        bounds = ACTIVATION_BOUNDS.get(str(fused.attributes["fused_activation_function"]))
        source, offset = _scalar_operand(graph, fused)
        if bounds is not None and offset is not None:
            yield Gate(source, 1.0, offset, bounds[1], 1.0)
        return
    if clamp is None or clamp.low != 0.0:
        return
    gate = Gate(clamp.source, 1.0, 0.0, clamp.high, 1.0)
    while True:
        yield gate
        node = producers.get(gate.source)
        if node is None or node.op not in ("ADD", "MUL"):
            return
        source, value = _scalar_operand(graph, node)
        if value is None or node.attributes["fused_activation_function"] != "NONE":
            return
        if node.op == "ADD":
            gate = replace(gate, source=source, offset=gate.offset + gate.slope * value)
        else:
            gate = replace(gate, source=source, slope=gate.slope * value)


def _product(graph: Graph, producers: Producers, node: Node) -> tuple[float, list[str]]:
    """The constant factor and the two others of a product written as up to a few MULs."""
    scale, factors = 1.0, []
    pending = [node.output]
    while pending:
        name = pending.pop()
        found = producers.get(name)
        if found is None or found.op != "MUL" or found.attributes["fused_activation_function"] != "NONE":
            factors.append(name)
            continue
        source, value = _scalar_operand(graph, found)
        if value is not None:
            scale *= value
            pending.append(source)
        elif name == node.output or len(pending) + len(factors) == 0:
            pending += found.inputs
        else:
            factors.append(name)
    return scale, factors


def _scalar_operand(graph: Graph, node: Node) -> tuple[str, float | None]:
    """The computed operand and the value of the constant one, None unless it is one number."""
    for position, name in enumerate(node.inputs[:2]):
        constant = graph.constant(name)
        if constant is not None and constant.size == 1:
            return node.inputs[1 - position], float(constant.reshape(-1)[0])
    return node.inputs[0], None
