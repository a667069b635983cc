"""The rescue ladder: which layers to keep in float, tried one after the other, each for what it brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from export.graph import WEIGHTED, Graph
from quantize.diagnose import BEST_DB, LayerReport
from quantize.recipes import gates

STEPS = 6  # candidates that are tried
LEAST_GAIN_DB = 0.5
DEAREST_PER_DB = 5.0  # percent more of bytes, or of instructions, for one dB


@dataclass(frozen=True, slots=True)
class Candidate:
    """Nodes that are kept in float together, and what they are."""

    name: str
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A quantised model on held-out images; `instructions` of one inference, None where not counted."""

    agreement: float
    sqnr_db: float
    bytes: int
    partitions: int
    instructions: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A candidate, what keeping it changed in points, dB, bytes and instructions, and what became of it."""

    candidate: str
    nodes: tuple[str, ...]
    agreement_points: float
    sqnr_db: float
    bytes: int
    instructions: float | None
    kept: bool
    reason: str


Measure = Callable[[Set[str]], Rung]


def candidates(graph: Graph, reports: Sequence[LayerReport]) -> list[Candidate]:
    """What may be kept in float, worst first: gates, layers with their hard-swish, whole blocks.

    A candidate is as bad as the worst of its nodes alone in 8 bits. Left out is what computes on real values
    already, and what reads the input, whose bytes are exact in 8 bits only.
    """
    first = {node.output for node in graph.nodes if graph.inputs[0] in node.inputs}
    losses = {r.name: r.alone_db for r in reports if not r.in_float and r.name not in first}
    found = {
        candidate.nodes: candidate
        for candidate in (*_blocks(graph), *_layers(graph), *_gates(graph))
        if candidate.nodes & losses.keys() and not candidate.nodes & first
    }
    return sorted(
        found.values(), key=lambda one: (min(losses[n] for n in one.nodes if n in losses), -len(one.nodes))
    )


def _layers(graph: Graph) -> Iterator[Candidate]:
    """Every layer with weights; one that feeds a hard-swish alone goes with it, unrounded between them."""
    readers = graph.consumers()
    of_gates = gates(graph)
    for node in graph.nodes:
        if node.op in WEIGHTED and node.output not in of_gates:
            after = readers[node.output]
            swish = [after[0].output] if [reader.op for reader in after] == ["HARD_SWISH"] else []
            what = "layer and hard-swish" if swish else "layer"
            yield Candidate(f"{what} {node.output}", frozenset((node.output, *swish)))


def _gates(graph: Graph) -> Iterator[Candidate]:
    """Every squeeze-and-excite gate, from the mean up to the product."""
    of_gates, producers = gates(graph), graph.producers()
    for node in graph.nodes:
        gated = [name for name in node.inputs if name in of_gates] if node.op == "MUL" else []
        if gated and node.output not in of_gates:
            found: set[str] = set()
            pending = list(gated)
            while pending:
                name = pending.pop()
                if name in of_gates and name not in found:
                    found.add(name)
                    pending += [source for source in producers[name].inputs if source in producers]
            yield Candidate(f"gate of {node.output}", frozenset(found))


def _blocks(graph: Graph) -> Iterator[Candidate]:
    """The computed nodes between two narrow places: linear layers and sums."""
    block: list[str] = []
    readers = graph.consumers()
    for node in graph.nodes:
        block += [] if graph.inputs[0] in node.inputs else [node.output]
        linear = node.op == "CONV_2D" and node.attributes.get("fused_activation_function") == "NONE"
        swish = any(reader.op == "HARD_SWISH" for reader in readers[node.output])
        if (linear and not swish) or node.op == "ADD":
            if len(block) > 1:
                yield Candidate(f"block up to {node.output}", frozenset(block))
            block = []


def climb(
    tried: Sequence[Candidate], measure: Measure, hear: Callable[[Step], None]
) -> tuple[frozenset[str], list[Step]]:
    """Try each candidate on top of those that were kept; the nodes to keep in float, and all steps.

    `measure(nodes)` is the model that keeps `nodes` in float. A candidate is kept when it gains
    LEAST_GAIN_DB, agrees on no fewer images, stays one delegate partition and costs at most DEAREST_PER_DB;
    `hear` is told of every step.
    """
    kept: frozenset[str] = frozenset()
    below = measure(kept)
    steps = []
    for candidate in tried:
        if candidate.nodes <= kept:
            continue
        rung = measure(kept | candidate.nodes)
        reason = refusal(below, rung)
        steps.append(_step(candidate, below, rung, reason))
        hear(steps[-1])
        if not reason:
            kept, below = kept | candidate.nodes, rung
    return kept, steps


def refusal(below: Rung, rung: Rung) -> str:
    """Why the step does not pay, or nothing."""
    gain = _gained(below, rung)
    if rung.partitions != 1:
        return f"{rung.partitions} delegate partitions"
    if gain < LEAST_GAIN_DB:
        return f"gains less than {LEAST_GAIN_DB:g} dB"
    if rung.agreement < below.agreement:
        return "agrees on fewer images"
    prices = {"bytes": _dearer(below.bytes, rung.bytes)}
    if below.instructions is not None and rung.instructions is not None:
        prices["instructions"] = _dearer(below.instructions, rung.instructions)
    dear = [
        f"{price / gain:.1f} % more {what} a dB"
        for what, price in prices.items()
        if price > DEAREST_PER_DB * gain
    ]
    return " and ".join(dear)


def _gained(below: Rung, rung: Rung) -> float:
    """Decibels won, of which nothing has more than BEST_DB, so that two exact models are equal."""
    before, after = (min(max(one.sqnr_db, -BEST_DB), BEST_DB) for one in (below, rung))
    return after - before


def _dearer(before: float, after: float) -> float:
    return 100 * (after - before) / before


def _step(candidate: Candidate, below: Rung, rung: Rung, reason: str) -> Step:
    counted = below.instructions is not None and rung.instructions is not None
    return Step(
        candidate=candidate.name,
        nodes=tuple(sorted(candidate.nodes)),
        agreement_points=round(rung.agreement - below.agreement, 2),
        sqnr_db=round(_gained(below, rung), 2),
        bytes=rung.bytes - below.bytes,
        instructions=(rung.instructions or 0) - (below.instructions or 0) if counted else None,
        kept=not reason,
        reason=reason or "pays",
    )
