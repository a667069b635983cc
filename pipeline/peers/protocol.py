"""What runs inside another environment: reads a JSON request, answers in JSON. Standard library only."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from importlib.metadata import version
from pathlib import Path
from typing import Any

Work = Callable[[Mapping[str, Any]], dict[str, Any]]
Load = Callable[..., Any]
LOADING: tuple[tuple[type, str], ...] = (  # the methods in which a module's code runs
    (SourceFileLoader, "exec_module"),
    (ExtensionFileLoader, "create_module"),
    (ExtensionFileLoader, "exec_module"),
)
KIB = 1024  # ru_maxrss counts in these


def serve(work: Work) -> None:
    """Answer the request in the file of the first argument into the file of the second."""
    request, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(work(json.loads(request.read_text()))))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time that `work` takes, and of processors, child processes with them.

    The bodies of modules that it imports are not counted: converters import some on their first call only.
    """
    with _imports_timed() as importing:
        started, started_cpu = time.perf_counter(), _cpu_seconds()
        work()
        seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds() - started_cpu
    return seconds - importing.seconds, cpu_seconds - importing.cpu_seconds


@dataclass(slots=True)
class _Importing:
    """Time spent in imports so far; one import within another is counted once."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    depth: int = 0

    def around(self, load: Load) -> Load:
        """The loader's method `load`, its time added up."""

        def timed_load(*arguments: Any) -> Any:
            started, started_cpu = time.perf_counter(), _cpu_seconds()
            self.depth += 1
            try:
                return load(*arguments)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.perf_counter() - started
                    self.cpu_seconds += _cpu_seconds() - started_cpu

        return timed_load


@contextmanager
def _imports_timed() -> Iterator[_Importing]:
    importing = _Importing()
    methods = [(loader, name, getattr(loader, name)) for loader, name in LOADING]
    for loader, name, method in methods:
        setattr(loader, name, importing.around(method))
    try:
        yield importing
    finally:
        for loader, name, method in methods:
            setattr(loader, name, method)


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
