"""What is wrong with a .tflite file, and what is worth knowing: one rule after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from export.check import DOOR_CONVERSIONS, DelegateAudit
from export.graph import WEIGHTED
from export.read_tflite import TfliteFile, TfliteOperator, TfliteSubgraph, TfliteTensor
from quantize.int8 import LIMITED_INT8_KERNEL, NO_INT8_KERNEL

EIGHT_BIT = ("int8", "uint8")
FLOATS = ("float32", "float16")
CONVOLUTIONS = WEIGHTED - {"FULLY_CONNECTED"}
SATURATED = 0.5  # of a channel's values at the limit; one of nine is normal for a 3x3 filter
JOINED_TENSORS = 5
MOST_PLACES = 40  # letters of a tensor's name

UNDIVIDED = DelegateAudit(1, ())
WARNING, NOTE = "warning", "note"
K = TypeVar("K")
V = TypeVar("V")
CONTROL_FLOW = {
    "CALL_ONCE": "it sets variables up, before the first run",
    "IF": "control flow is the runtime's own",
    "WHILE": "control flow is the runtime's own",
}
WHY = {
    "MIRROR_PAD": "XNNPACK pads with zeros only",
    "PADV2": "XNNPACK pads with zeros only",
    "RESIZE_NEAREST_NEIGHBOR": "XNNPACK has no nearest-neighbour kernel; RESIZE_BILINEAR it has",
    "STRIDED_SLICE": "XNNPACK takes only steps of one that keep all axes",
}
# Where operators have the shape of their result from; XNNPACK takes them only if that is a constant.
SHAPE_POSITIONS = {
    "BROADCAST_TO": (1,),
    "FILL": (0,),
    "PAD": (1,),
    "PADV2": (1,),
    "RANGE": (0, 1, 2),
    "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3),
    "TILE": (1,),
    "TRANSPOSE_CONV": (0,),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know (`note`) or to put right (`warning`) about a file."""

    level: str
    text: str


def findings(file: TfliteFile, audit: DelegateAudit) -> list[Finding]:
    """All that the rules below find, in their order; `audit` is of the first subgraph."""
    found = [finding for rule in RULES for finding in rule(file.subgraphs[0], audit)]
    for graph in file.subgraphs[1:]:
        found += [
            Finding(finding.level, f"in {shortened(graph.name)!r}: {finding.text}")
            for rule in RULES
            for finding in rule(graph, UNDIVIDED)
        ]
    return found


def shortened(name: str) -> str:
    """The end of a long name, which tells more than its beginning."""
    return name if len(name) <= MOST_PLACES else f"…{name[1 - MOST_PLACES :]}"


def _float_operators(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    computed = {index for op in graph.operators for index in op.outputs}
    if not any(graph.tensors[index].dtype in EIGHT_BIT for index in computed):
        return
    level = NOTE if audit.partitions == 1 else WARNING
    found = [op for op in graph.operators if op.name not in DOOR_CONVERSIONS and _is_float(graph, op)]
    for name, names in _grouped((op.name, graph.tensors[op.outputs[0]].name) for op in found).items():
        yield Finding(
            level, f"{len(names)} {name} in float in an 8-bit file, for example {shortened(names[0])!r}"
        )


def _hybrids(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    found = [
        op
        for op in graph.operators
        if op.name in WEIGHTED
        and _is_float(graph, op)
        and len(op.inputs) > 1
        and graph.tensors[op.inputs[1]].dtype in ("int4", "int8")
    ]
    if found:
        counts = counted(op.name for op in found)
        yield Finding(NOTE, f"{counts}: integer weights, float values (dynamic-range quantisation)")


def _transposes(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    found = [op for op in graph.operators if op.name == "TRANSPOSE" and op.outputs]
    names = [graph.tensors[op.outputs[0]].name for op in found]
    return _warned(names, "TRANSPOSE, which moves data without computing")


def _per_tensor_weights(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    weights = _weights(graph, CONVOLUTIONS)
    names = [
        t.name for t in weights if t.dtype in EIGHT_BIT and len(t.scales) == 1 and max(t.shape, default=1) > 1
    ]
    return _warned(names, "convolutions have one scale for all channels")


def _saturated_ranges(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    names = list(dict.fromkeys(t.name for t in _weights(graph, WEIGHTED) if t.saturated > SATURATED))
    yield from _warned(names, "weights have a channel with most values at the limit")
    scales = [t.name for t in graph.tensors if any(not (math.isfinite(s) and s > 0) for s in t.scales)]
    yield from _warned(scales, "tensors have a scale that is not above 0")


def _warned(names: Sequence[str], what: str) -> Iterable[Finding]:
    """A warning about all tensors of these names, if there are any."""
    if names:
        yield Finding(WARNING, f"{len(names)} {what}, the first is {shortened(names[0])!r}")


def _dynamic_shapes(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    for tensor in (graph.tensors[index] for index in graph.inputs if graph.tensors[index].is_dynamic):
        if not tensor.shape or any(size < 0 for size in tensor.signature[1:]):
            text = "has a dynamic shape: a benchmark may time it at the smallest size"
            yield Finding(WARNING, f"input {shortened(tensor.name)!r} {text}")
        else:
            text = f"has a dynamic batch: a runtime takes {tensor.shape[0]} unless it is resized"
            yield Finding(NOTE, f"input {shortened(tensor.name)!r} {text}")


def _custom_operators(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    names = [op.name for op in graph.operators if op.is_custom]
    if names:
        yield Finding(
            NOTE, f"custom operators, which run only where their code is linked in: {counted(names)}"
        )


def _partitions(graph: TfliteSubgraph, audit: DelegateAudit) -> Iterable[Finding]:
    outside = [name for name in audit.undelegated_ops if name not in DOOR_CONVERSIONS]
    level = WARNING if audit.partitions > 1 else NOTE
    reasons = _reasons(graph, frozenset(outside))
    for reason, names in _grouped((reasons[name], name) for name in outside).items():
        yield Finding(level, f"outside the delegate: {counted(names)}: {reason}")
    if audit.partitions == 0 and graph.operators:
        yield Finding(NOTE, "the delegate takes no operator of this file")


RULES: tuple[Callable[[TfliteSubgraph, DelegateAudit], Iterable[Finding]], ...] = (
    _float_operators,
    _hybrids,
    _transposes,
    _per_tensor_weights,
    _saturated_ranges,
    _dynamic_shapes,
    _custom_operators,
    _partitions,
)


def _reasons(graph: TfliteSubgraph, names: frozenset[str]) -> dict[str, str]:
    """Why the delegate leaves operators of these names out, as far as the file tells."""
    found = _grouped((op.name, op) for op in graph.operators if op.name in names)
    return {name: _reason(graph, name, found.get(name, [])) for name in names}


def _reason(graph: TfliteSubgraph, name: str, ops: list[TfliteOperator]) -> str:
    dtypes = {graph.tensors[op.outputs[0]].dtype for op in ops if op.outputs}
    if any(op.is_custom for op in ops):
        return "a custom operator is its own code"
    if name in CONTROL_FLOW:
        return CONTROL_FLOW[name]
    if name in NO_INT8_KERNEL and dtypes & set(EIGHT_BIT):
        return "XNNPACK has no 8-bit kernel for it; between DEQUANTIZE and QUANTIZE it stays inside"
    if name in LIMITED_INT8_KERNEL and dtypes & set(EIGHT_BIT):
        return "beyond the limits of XNNPACK's 8-bit kernel; between DEQUANTIZE and QUANTIZE it stays inside"
    if dtypes.isdisjoint((*FLOATS, *EIGHT_BIT)) and dtypes:
        return f"XNNPACK does not compute with {', '.join(sorted(dtypes))}"
    if any(_is_shaped_by_others(graph, op) for op in ops):
        return "the shape of its result is not a constant"
    if name == "CONCATENATION" and any(len(op.inputs) > JOINED_TENSORS for op in ops):
        return "XNNPACK joins up to five tensors"
    return WHY.get(name, f"XNNPACK leaves it out (types: {_dtypes(graph, ops)})")


def _is_shaped_by_others(graph: TfliteSubgraph, op: TfliteOperator) -> bool:
    places = [place for place in SHAPE_POSITIONS.get(op.name, ()) if place < len(op.inputs)]
    shaping = [graph.tensors[op.inputs[place]] for place in places if op.inputs[place] >= 0]
    return any(0 not in tensor.shape and not tensor.constant_bytes for tensor in shaping)


def _dtypes(graph: TfliteSubgraph, ops: Iterable[TfliteOperator]) -> str:
    used = {index for op in ops for index in (*op.inputs[:2], *op.outputs) if index >= 0}
    return ", ".join(sorted({graph.tensors[index].dtype for index in used})) or "none"


def counted(names: Iterable[str]) -> str:
    """Names in their first order, each with how often it occurs."""
    groups = _grouped((name, name) for name in names)
    return ", ".join(f"{len(group)} {name}" for name, group in groups.items())


def _weights(graph: TfliteSubgraph, ops: Iterable[str]) -> list[TfliteTensor]:
    """The second inputs of these operators."""
    pairs = [op.inputs[:2] for op in graph.operators if op.name in ops and len(op.inputs) > 1]
    return [graph.tensors[index] for _, index in pairs if index >= 0]


def _is_float(graph: TfliteSubgraph, op: TfliteOperator) -> bool:
    return bool(op.outputs) and graph.tensors[op.outputs[0]].dtype in FLOATS


def _grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
