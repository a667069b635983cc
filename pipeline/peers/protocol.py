"""What runs inside another environment: reads a JSON request, answers in JSON. Standard library only."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

Work = Callable[[Mapping[str, Any]], dict[str, Any]]
KIB = 1024  # ru_maxrss counts in these


def serve(work: Work) -> None:
    """Answer the request in the file of the first argument into the file of the second."""
    request, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(work(json.loads(request.read_text()))))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time that `work` takes, and of processors, child processes with them."""
    started, started_cpu = time.perf_counter(), _cpu_seconds()
    work()
    return time.perf_counter() - started, _cpu_seconds() - started_cpu


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_bytes() -> int:
    """The most memory that this process or one of its children has held so far."""
    return KIB * max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions."""
    return {name: version(name) for name in names}
