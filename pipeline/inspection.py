"""The verb `inspect`: what is in any .tflite file, what this machine's runtime makes of it, what is wrong.

The file may be foreign or damaged. It is read without running it; the runtime, which may crash on a damaged
file, is asked in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from export.check import DelegateAudit
from export.read_tflite import TfliteFile, TfliteOperator, TfliteSubgraph, TfliteTensor, read_tflite
from pipeline.artifacts import AlpharhoError
from pipeline.audit_apart import audit_apart
from pipeline.file_cost import decoded_constants, mult_adds, size_by_part, uncounted, unsized
from pipeline.findings import UNDIVIDED, WARNING, counted, findings, shortened
from pipeline.summary import aligned

LISTED_SUBGRAPHS = 20
LISTED_FILES = 20
HEADER = ("operator", "version", "output", "shape", "type")
EXIT_CODES = (
    "any TFLite file; exit code 0: at most notes, 1: a warning, or damaged, or refused by the runtime"
)


def report(file: TfliteFile, audit: DelegateAudit | None) -> str:
    """Operators with shapes and quantisation, doors, signatures, metadata, size, cost, partitions, findings.

    Without an audit, because the runtime does not take the file, it tells what the file alone tells.
    """
    parts = ", ".join(f"{part} {size:,}" for part, size in size_by_part(file).items() if size)
    return "\n".join(
        (
            *_subgraphs(file),
            f"signatures: {', '.join(file.signatures) or 'none'}",
            f"metadata: {', '.join(file.metadata) or 'none'}",
            *(f"  {line}" for line in file.about),
            f"attached: {_listed(file.attached)}",
            f"size: {file.bytes:,} bytes: {parts}",
            _divided(file, audit),
            *(f"{finding.level}: {finding.text}" for finding in findings(file, audit or UNDIVIDED)),
        )
    )


def _subgraphs(file: TfliteFile) -> Iterable[str]:
    for number, graph in enumerate(file.subgraphs[:LISTED_SUBGRAPHS]):
        if len(file.subgraphs) > 1:
            yield f"subgraph {number}: {shortened(graph.name)}"
        yield from _subgraph(graph)
    if len(file.subgraphs) > LISTED_SUBGRAPHS:
        yield f"and {len(file.subgraphs) - LISTED_SUBGRAPHS} more subgraphs"


def _subgraph(graph: TfliteSubgraph) -> Iterable[str]:
    decoded = decoded_constants(graph)
    listed = [op for op in graph.operators if decoded.keys().isdisjoint(op.outputs)]
    rows = [row for op in listed for row in _rows(graph, op)]
    if rows:
        yield aligned([HEADER, *rows])
    if len(listed) < len(graph.operators):
        yield f"and {len(graph.operators) - len(listed)} that make float32 of constants, not listed"
    yield ""
    yield from (f"input   {_tensor(graph.tensors[index])}" for index in graph.inputs)
    yield from (f"output  {_tensor(graph.tensors[index])}" for index in graph.outputs)
    yield f"operators: {counted(sorted(op.name for op in graph.operators)) or 'none'}"
    yield f"Mult-Adds: {mult_adds(graph):,}{_without(graph)}"
    yield ""


def _rows(graph: TfliteSubgraph, op: TfliteOperator) -> Iterable[tuple[str, ...]]:
    outputs = [graph.tensors[index] for index in op.outputs]
    if not outputs:
        yield op.name, str(op.version), "none", "", ""
    for output in outputs:
        yield op.name, str(op.version), shortened(output.name), _shape(output), _type(output)


def _without(graph: TfliteSubgraph) -> str:
    """What the count of Mult-Adds does not hold."""
    names = ", ".join(f"{count} {name}" for name, count in uncounted(graph).items())
    small = unsized(graph)
    return (f", not counted: {names}" if names else "") + (
        f", too few: {small} operators have a size that is known only when it runs" if small else ""
    )


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - LISTED_FILES} more" if len(names) > LISTED_FILES else ""
    return f"{', '.join(names[:LISTED_FILES]) or 'none'}{more}"


def _divided(file: TfliteFile, audit: DelegateAudit | None) -> str:
    if audit is None:
        return "the runtime does not take it"
    of = f" of subgraph 0 of {len(file.subgraphs)}" if len(file.subgraphs) > 1 else ""
    return (
        f"XNNPACK partitions{of}: {audit.partitions}, operators outside: "
        f"{counted(audit.undelegated_ops) or 'none'}"
    )


def _tensor(tensor: TfliteTensor) -> str:
    return f"{tensor.name} {_shape(tensor)} {_type(tensor)}"


def _shape(tensor: TfliteTensor) -> str:
    """Sizes that are known only when it runs as ?."""
    return "x".join("?" if size < 0 else str(size) for size in tensor.signature or tensor.shape) or "scalar"


def _type(tensor: TfliteTensor) -> str:
    if not tensor.scales:
        return tensor.dtype
    if len(tensor.scales) > 1:
        return f"{tensor.dtype}, {len(tensor.scales)} scales"
    zero = tensor.zero_points[0] if tensor.zero_points else 0
    return f"{tensor.dtype}, scale {tensor.scales[0]:.6g}, zero point {zero}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE.tflite", help=EXIT_CODES)


def run(arguments: argparse.Namespace) -> int:
    """The verb `inspect`: prints the report; 1 if it has a warning."""
    file = read_tflite(arguments.file)
    try:
        audit = audit_apart(arguments.file)
    except AlpharhoError:
        print(report(file, None))
        raise
    print(report(file, audit))
    return 1 if any(finding.level == WARNING for finding in findings(file, audit)) else 0
