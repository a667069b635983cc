"""The verb `inspect`: what is in a .tflite file, and what the runtime on this machine makes of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.check import DelegateAudit, audit_delegate
from export.read_tflite import TfliteFile, TfliteTensor, read_tflite
from pipeline.summary import aligned

LISTED_CHANNELS = 1


def report(file: TfliteFile, audit: DelegateAudit) -> str:
    """Operators with shapes and quantisation, counts, doors, signatures, metadata, size, partitions."""
    rows = [("operator", "version", "output", "shape", "type")]
    rows += [
        (op.name, str(op.version), output.name, "x".join(map(str, output.shape)), _type(output))
        for op in file.operators
        for output in (file.tensors[index] for index in op.outputs)
    ]
    left_out = ", ".join(audit.undelegated_ops) or "none"
    return "\n".join(
        (
            aligned(rows),
            "",
            *(f"input   {_tensor(file.tensors[index])}" for index in file.inputs),
            *(f"output  {_tensor(file.tensors[index])}" for index in file.outputs),
            f"signatures: {', '.join(file.signatures) or 'none'}",
            f"metadata: {', '.join(file.metadata) or 'none'}",
            f"operators: {', '.join(f'{count} {name}' for name, count in file.op_counts().items())}",
            f"size: {file.bytes:,} bytes, of which constants {file.constant_bytes:,}",
            f"XNNPACK partitions: {audit.partitions}, operators outside: {left_out}",
        )
    )


def _tensor(tensor: TfliteTensor) -> str:
    return f"{tensor.name} {'x'.join(map(str, tensor.shape))} {_type(tensor)}"


def _type(tensor: TfliteTensor) -> str:
    if not tensor.scales:
        return tensor.dtype
    if len(tensor.scales) > LISTED_CHANNELS:
        return f"{tensor.dtype}, {len(tensor.scales)} scales"
    return f"{tensor.dtype}, scale {tensor.scales[0]:.6g}, zero point {tensor.zero_points[0]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE.tflite")


def run(arguments: argparse.Namespace) -> int:
    """The verb `inspect`: prints the report."""
    file = read_tflite(arguments.file)
    print(report(file, audit_delegate(arguments.file)))
    return 0
