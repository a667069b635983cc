"""The verb `inspect`: what is in any .tflite file, what this machine's runtime makes of it, what is wrong.

The file may be foreign or damaged. It is read without running it; the runtime, which may crash on a damaged
file, is asked in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.check import DelegateAudit, audit_delegate
from export.read_tflite import TfliteFile, TfliteOperator, TfliteTensor, read_tflite
from pipeline.artifacts import AlpharhoError
from pipeline.summary import aligned
from quantize.int8 import LIMITED_INT8_KERNEL, NO_INT8_KERNEL

LISTED_CHANNELS = 1
RUNTIME_SECONDS = 120
EIGHT_BIT = ("int8", "uint8")
FLOATS = ("float32", "float16")
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "CAST")
PER_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
WEIGHTED = (*PER_CHANNEL, "FULLY_CONNECTED")
WEIGHT_POSITIONS = {"TRANSPOSE_CONV": (1, 3)}  # weights and bias; 1 and 2 for the others
SATURATED = 0.5  # of a channel's values at the limit; one of nine is normal for a 3x3 filter

UNDIVIDED = DelegateAudit(1, ())
WARNING, NOTE = "warning", "note"
WHY = {
    "CONCATENATION": "XNNPACK joins up to five tensors",
    "CUSTOM": "a custom operator is its own code",
    "RESIZE_NEAREST_NEIGHBOR": "XNNPACK has no nearest-neighbour kernel; RESIZE_BILINEAR it has",
    "STRIDED_SLICE": "XNNPACK takes steps of one only",
    "MIRROR_PAD": "XNNPACK pads with zeros only",
    "PADV2": "XNNPACK pads with zeros only",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know (`note`) or to put right (`warning`) about a file."""

    level: str
    text: str


def findings(file: TfliteFile, audit: DelegateAudit) -> list[Finding]:
    """All that the rules below find, in their order."""
    return [finding for rule in RULES for finding in rule(file, audit)]


def _float_operators(file: TfliteFile, audit: DelegateAudit) -> Iterable[Finding]:
    computed = {index for op in file.operators for index in op.outputs}
    if not any(file.tensors[index].dtype in EIGHT_BIT for index in computed):
        return
    level = NOTE if audit.partitions == 1 else WARNING
    found = [op for op in file.operators if op.name not in CONVERSIONS and _is_float(file, op)]
    for name, names in _grouped((op.name, file.tensors[op.outputs[0]].name) for op in found).items():
        yield Finding(
            level, f"{len(names)} {name} compute in float in an 8-bit file, for example {names[0]!r}"
        )


def _transposes(file: TfliteFile, audit: DelegateAudit) -> Iterable[Finding]:
    names = [file.tensors[op.outputs[0]].name for op in _computing(file) if op.name == "TRANSPOSE"]
    if names:
        yield Finding(
            WARNING, f"{len(names)} TRANSPOSE move data without computing, the first is {names[0]!r}"
        )


def _per_tensor_weights(file: TfliteFile, audit: DelegateAudit) -> Iterable[Finding]:
    weights = [
        file.tensors[op.inputs[1]] for op in file.operators if op.name in PER_CHANNEL and len(op.inputs) > 1
    ]
    names = [
        t.name for t in weights if t.dtype in EIGHT_BIT and len(t.scales) == 1 and max(t.shape, default=1) > 1
    ]
    if names:
        yield Finding(
            WARNING, f"{len(names)} convolutions have one scale for all channels, the first is {names[0]!r}"
        )


def _saturated_ranges(file: TfliteFile, audit: DelegateAudit) -> Iterable[Finding]:
    names = [tensor.name for tensor in file.tensors if tensor.saturated > SATURATED]
    if names:
        yield Finding(
            WARNING,
            f"{len(names)} constants have a channel with most values at the limit, the first is {names[0]!r}",
        )
    scales = [t.name for t in file.tensors if any(not (math.isfinite(s) and s > 0) for s in t.scales)]
    if scales:
        yield Finding(
            WARNING, f"{len(scales)} tensors have a scale that is not above 0, the first is {scales[0]!r}"
        )


def _dynamic_shapes(file: TfliteFile, audit: DelegateAudit) -> Iterable[Finding]:
    dynamic = [file.tensors[index].name for index in file.inputs if file.tensors[index].is_dynamic]
    if dynamic:
        yield Finding(
            WARNING, f"input {dynamic[0]!r} has a dynamic shape: a benchmark may time it at the smallest size"
        )


def _partitions(file: TfliteFile, audit: DelegateAudit) -> Iterable[Finding]:
    outside = [name for name in audit.undelegated_ops if name not in CONVERSIONS]
    level = WARNING if audit.partitions > 1 else NOTE
    for name in dict.fromkeys(outside):
        count = outside.count(name)
        yield Finding(level, f"{count} {name} run outside the delegate: {_why(file, name)}")
    if audit.partitions == 0:
        yield Finding(NOTE, "the delegate takes no operator of this file")


RULES: tuple[Callable[[TfliteFile, DelegateAudit], Iterable[Finding]], ...] = (
    _float_operators,
    _transposes,
    _per_tensor_weights,
    _saturated_ranges,
    _dynamic_shapes,
    _partitions,
)


def _why(file: TfliteFile, name: str) -> str:
    dtypes = {file.tensors[op.outputs[0]].dtype for op in file.operators if op.name == name and op.outputs}
    if name in NO_INT8_KERNEL and dtypes & set(EIGHT_BIT):
        return "XNNPACK has no 8-bit kernel for it; between DEQUANTIZE and QUANTIZE it stays inside"
    if name in LIMITED_INT8_KERNEL and dtypes & set(EIGHT_BIT):
        return "beyond the limits of XNNPACK's 8-bit kernel; between DEQUANTIZE and QUANTIZE it stays inside"
    if any(tensor.is_dynamic for tensor in file.tensors):
        return "its shape is dynamic"
    return WHY.get(name, f"XNNPACK does not take it with these types ({', '.join(sorted(dtypes)) or 'none'})")


def _is_float(file: TfliteFile, op: TfliteOperator) -> bool:
    return bool(op.outputs) and file.tensors[op.outputs[0]].dtype in FLOATS


def _computing(file: TfliteFile) -> list[TfliteOperator]:
    """The operators that have a result."""
    return [op for op in file.operators if op.outputs]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


# --- cost ---------------------------------------------------------------------------------------------------


def mult_adds(file: TfliteFile) -> int:
    """Multiply-adds of convolutions and fully connected layers for one run; 0 where a shape does not tell."""
    return sum(_mult_adds(file, op) for op in _computing(file) if op.name in WEIGHTED and len(op.inputs) > 2)


def _mult_adds(file: TfliteFile, op: TfliteOperator) -> int:
    weights, result = file.tensors[op.inputs[1]].shape, file.tensors[op.outputs[0]].shape
    source = file.tensors[op.inputs[2]].shape
    if op.name != "FULLY_CONNECTED" and (len(weights) != 4 or min((*weights, *result), default=0) < 1):
        return 0
    costs: Mapping[str, Callable[[], int]] = {
        "CONV_2D": lambda: math.prod(result) * math.prod(weights[1:]),
        "DEPTHWISE_CONV_2D": lambda: math.prod(result) * weights[1] * weights[2],
        "TRANSPOSE_CONV": lambda: math.prod(source) * math.prod(weights[:3]),
        "FULLY_CONNECTED": lambda: math.prod(result) * math.prod(weights[1:]),
    }
    return max(costs[op.name](), 0)


def size_by_part(file: TfliteFile) -> dict[str, int]:
    """Bytes of the file by what they are for; they add up to its size."""
    roles: dict[int, str] = {}
    for op in file.operators:
        positions = WEIGHT_POSITIONS.get(op.name, (1, 2)) if op.name in WEIGHTED else ()
        for position, role in zip(positions, ("weights", "biases"), strict=False):
            if position < len(op.inputs):
                roles.setdefault(_source(file, op.inputs[position]), role)
    parts = {"weights": 0, "biases": 0, "other constants": 0}
    for index, tensor in enumerate(file.tensors):
        parts[roles.get(index, "other constants")] += tensor.constant_bytes
    parts |= {"metadata": file.metadata_bytes, "attached files": file.attached_bytes}
    return {**parts, "structure": file.bytes - sum(parts.values())}


def _source(file: TfliteFile, index: int) -> int:
    """The constant behind a DEQUANTIZE, as float16 files have them."""
    producers = (op for op in file.operators if op.name == "DEQUANTIZE" and index in op.outputs)
    return next((op.inputs[0] for op in producers if op.inputs), index)


# --- the report ---------------------------------------------------------------------------------------------


def report(file: TfliteFile, audit: DelegateAudit | None) -> str:
    """Operators with shapes and quantisation, doors, signatures, metadata, size, cost, partitions, findings.

    Without an audit, because the runtime does not take the file, it tells what the file alone tells.
    """
    rows = [("operator", "version", "output", "shape", "type")]
    rows += [
        (op.name, str(op.version), output.name, "x".join(map(str, output.shape)), _type(output))
        for op in file.operators
        for output in (file.tensors[index] for index in op.outputs)
    ]
    parts = ", ".join(f"{part} {size:,}" for part, size in size_by_part(file).items() if size)
    return "\n".join(
        (
            aligned(rows),
            "",
            *(f"input   {_tensor(file.tensors[index])}" for index in file.inputs),
            *(f"output  {_tensor(file.tensors[index])}" for index in file.outputs),
            f"signatures: {', '.join(file.signatures) or 'none'}",
            f"metadata: {', '.join(file.metadata) or 'none'}",
            *(f"  {line}" for line in file.about),
            f"attached: {', '.join(file.attached) or 'none'}",
            f"operators: {', '.join(f'{count} {name}' for name, count in file.op_counts().items())}",
            f"Mult-Adds: {mult_adds(file):,}",
            f"size: {file.bytes:,} bytes: {parts}",
            "the runtime does not take it" if audit is None else _divided(audit),
            *(f"{finding.level}: {finding.text}" for finding in findings(file, audit or UNDIVIDED)),
        )
    )


def _divided(audit: DelegateAudit) -> str:
    left_out = ", ".join(audit.undelegated_ops) or "none"
    return f"XNNPACK partitions: {audit.partitions}, operators outside: {left_out}"


def _tensor(tensor: TfliteTensor) -> str:
    return f"{tensor.name} {'x'.join(map(str, tensor.shape))} {_type(tensor)}"


def _type(tensor: TfliteTensor) -> str:
    if not tensor.scales:
        return tensor.dtype
    if len(tensor.scales) > LISTED_CHANNELS:
        return f"{tensor.dtype}, {len(tensor.scales)} scales"
    zero = tensor.zero_points[0] if tensor.zero_points else 0
    return f"{tensor.dtype}, scale {tensor.scales[0]:.6g}, zero point {zero}"


def audit_apart(path: Path, seconds: float = RUNTIME_SECONDS) -> DelegateAudit:
    """As `audit_delegate`, in a process of its own; AlpharhoError if it refuses, crashes or hangs."""
    command = [sys.executable, "-c", AUDIT, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise AlpharhoError(f"{path}: the TFLite runtime hangs on it ({seconds:g} s); get it again") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise AlpharhoError(f"{path}: the TFLite runtime crashes on it ({name}); get it again")
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not lines:
        error = done.stderr.decode(errors="replace").strip().splitlines()
        reason = error[-1] if error else "no reason"
        raise AlpharhoError(lines[-1] if lines else f"{path}: cannot be run ({reason})")
    partitions, outside = json.loads(lines[-1])
    return DelegateAudit(partitions, tuple(outside))


AUDIT = "import sys; from pipeline.inspection import print_audit; sys.exit(print_audit(sys.argv[1]))"


def print_audit(path: str) -> int:
    """What `audit_apart` runs: the audit as one line of JSON, or the reason why there is none."""
    try:
        found = audit_delegate(Path(path))
    except AlpharhoError as error:
        print(error)
        return 1
    print(json.dumps([found.partitions, found.undelegated_ops]))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE.tflite")


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
