"""What must hold for an exported file: parity with its source, operator budget, one delegate partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from export.runtime import load_interpreter
from pipeline.artifacts import CheckError

PARITY_TOLERANCE = 1e-3  # of the range of the reference's logits
DELEGATE = "DELEGATE"
DOOR_CONVERSIONS = (
    "QUANTIZE",
    "DEQUANTIZE",
    "CAST",
)  # allowed outside the partition at a graph input or output


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two stages' logits are apart on the same images."""

    max_abs_diff: float
    cosine: float
    logit_range: float


@dataclass(frozen=True, slots=True)
class DelegateAudit:
    """How the runtime divided the file: delegate partitions, and the operators left out, in order."""

    partitions: int
    undelegated_ops: tuple[str, ...]


def parity(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> Parity:
    """Largest difference, cosine similarity over all values, and the range of `reference`; same shapes."""
    a, b = logits.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(a @ b / norms) if norms > 0 else float(np.array_equal(a, b))
    return Parity(float(np.abs(a - b).max()), cosine, float(np.ptp(b)))


def check_parity(found: Parity, what: str) -> None:
    """CheckError unless the largest difference is at most 1e-3 of the logit range."""
    limit = PARITY_TOLERANCE * found.logit_range
    if not found.max_abs_diff <= limit:
        raise CheckError(
            f"{what}: logits differ by {found.max_abs_diff:.3g}, at most {limit:.3g} "
            f"({PARITY_TOLERANCE:g} of their range) is expected"
        )


def audit_delegate(path: Path) -> DelegateAudit:
    """Partitions and undelegated operators of a .tflite file under the host runtime with XNNPACK."""
    return _audit(load_interpreter(path))


def _audit(interpreter: Interpreter) -> DelegateAudit:
    """A partition holds what is reached backwards from its outputs without crossing its inputs."""
    ops = interpreter._get_ops_details()  # the runtime has no public call that lists delegated nodes
    partitions = [op for op in ops if op["op_name"] == DELEGATE]
    plain = [op for op in ops if op["op_name"] != DELEGATE]
    producer = {int(tensor): position for position, op in enumerate(plain) for tensor in op["outputs"]}
    inside: set[int] = set()
    for partition in partitions:
        borders = {int(tensor) for tensor in partition["inputs"]}
        pending = [int(tensor) for tensor in partition["outputs"]]
        while pending:
            position = producer.get(pending.pop())
            if position is not None and position not in inside:
                inside.add(position)
                pending += [int(t) for t in plain[position]["inputs"] if int(t) not in borders]
    return DelegateAudit(
        len(partitions), tuple(op["op_name"] for position, op in enumerate(plain) if position not in inside)
    )


def check_delegate(found: DelegateAudit, path: Path) -> None:
    """CheckError unless the file is one partition; one type conversion at each door may stand outside."""
    outside = Counter(found.undelegated_ops)
    doors = sum(outside[op] for op in DOOR_CONVERSIONS)
    if found.partitions != 1 or len(found.undelegated_ops) != doors or doors > 2:
        left_out = ", ".join(f"{count} {op}" for op, count in outside.items()) or "no operator"
        raise CheckError(
            f"{path}: {found.partitions} delegate partitions with {left_out} outside, "
            "expected 1 with at most a type conversion at each door outside"
        )


def check_op_budget(found: Mapping[str, int], budget: Mapping[str, int], path: Path) -> None:
    """CheckError unless every operator of `budget` occurs exactly so often in the file's counts `found`."""
    wrong = [
        f"{found.get(op, 0)} {op} (expected {expected})"
        for op, expected in budget.items()
        if found.get(op, 0) != expected
    ]
    if wrong:
        raise CheckError(f"{path}: operator budget not met: it has {', '.join(wrong)}")
