"""What the runtime makes of any .tflite file, asked in a process of its own: a damaged file may crash it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from export.check import DelegateAudit, audit_delegate
from pipeline.artifacts import AlpharhoError

RUNTIME_SECONDS = 120
RUNTIME_BYTES = 8 << 30  # of address space, besides four times the file's size; a phone has less
AUDIT = "import sys; from pipeline.audit_apart import print_audit; sys.exit(print_audit(sys.argv[1]))"


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


def print_audit(path: str) -> int:
    """What `audit_apart` runs: the audit as one line of JSON, or the reason why there is none."""
    limit = _limit_memory(RUNTIME_BYTES + 4 * os.path.getsize(path))
    try:
        found = audit_delegate(Path(path))
    except MemoryError:
        print(f"{path}: the TFLite runtime needs more than {limit / 2**30:.0f} GiB of memory for it")
        return 1
    except AlpharhoError as error:
        print(error)
        return 1
    print(json.dumps([found.partitions, found.undelegated_ops]))
    return 0


def _limit_memory(wanted: int) -> int:
    """Give this process at most so many bytes of address space, fewer where it has fewer already."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return limit
