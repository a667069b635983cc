"""TensorFlow's and LiteRT's `benchmark_model` programs: what to ask of them and what their text means.

Both loop in the same way and give only aggregates, so one process is one sample. TFLite's is an interpreter
with `--use_xnnpack`; LiteRT's is a CompiledModel with `--use_cpu`, and lists rounded milliseconds as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from device_bench.device import BenchSpec, DeviceError, ResultClass
from device_bench.process import death
from device_bench.runner_client import last_lines

SOURCE = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/lite/tools/nightly/latest/"
    "android_aarch64_benchmark_model"
)


class Tool(NamedTuple):
    """One of the programs, told by a flag that only it has."""

    name: str
    flag: str  # that puts the model on the CPU kernels; without it the program chooses


TOOLS = (Tool("tflite", "use_xnnpack"), Tool("litert", "use_cpu"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one process measured. Times in ns; unknown ones 0."""

    runs: int
    inference_ns: int
    statistic: str  # of the runs: median, or mean where the program gives no median
    init_ns: int = 0
    first_ns: int = 0
    delegated: str = ""  # "64 of 65 nodes, 2 partitions"


def tool_in(help_text: str) -> Tool:
    """The program that printed this `--help`. Raises DeviceError(no-runtime) for any other program."""
    flags = set(re.findall(r"--(\w+)=", help_text))
    for tool in TOOLS:
        if {"graph", "num_threads", tool.flag} <= flags:
            return tool
    known = " or ".join(f"--{tool.flag}" for tool in TOOLS)
    shown = last_lines(help_text).splitlines()[-1:] or "nothing"
    found = f"the binary has no --graph, --num_threads and {known}; its --help ends with {shown}"
    raise DeviceError(ResultClass.NO_RUNTIME, found, remedy=f"give a benchmark_model, such as {SOURCE}")


def arguments(tool: Tool, graph: str, spec: BenchSpec) -> list[str]:
    """The flags of one process; `graph` is the model's path on the device."""
    return [
        f"--graph={graph}",
        f"--num_threads={spec.threads}",
        f"--{tool.flag}=true",
        f"--num_runs={spec.runs}",
        f"--min_secs={spec.seconds:.3f}",
        f"--max_secs={spec.max_seconds:.3f}",
        f"--warmup_runs={spec.warm_up.runs}",
        f"--warmup_min_secs={spec.warm_up.seconds:.3f}",
    ]


def report(text: str) -> Report:
    """What a process that ended well printed, standard output and error together.

    Raises DeviceError: parse-error when no usable figure stands there, no-runtime when a flag was ignored.
    """
    _refuse_ignored_flags(text)
    found = _from_counts(text) or _from_listing(text)
    if found is None:
        shown = last_lines(text).splitlines()[-1:] or "nothing"
        raise _unreadable(f"no inference time in its text, which ends with {shown}", text)
    return found


def failure(code: int, text: str) -> DeviceError:
    """The error of a process that ended with `code`, not 0, having printed `text`.

    `code` is a shell's: 124 for a deadline that passed, 126 and 127 for a program that does not start,
    128 + n for death by signal n.
    """
    log = last_lines(text)
    if name := death(code):
        found = f"benchmark_model ended by {name}"
        return DeviceError(ResultClass.CRASHED, found, remedy=_CRASHES.get(name, ""), log=log)
    if code in _EXIT_CODES:
        result, meaning = _EXIT_CODES[code]
        return DeviceError(result, f"{meaning}: {_reason(text)}", remedy=_REMEDIES.get(result, ""), log=log)
    for pattern, result in _SIGNS:
        if re.search(pattern, text):
            return DeviceError(result, f"exit code {code}: {_reason(text)}", log=log)
    return DeviceError(ResultClass.CRASHED, f"benchmark_model: exit code {code}: {_reason(text)}", log=log)


_CRASHES: Mapping[str, str] = {
    "SIGILL": "give a benchmark_model built for this CPU",
    "SIGKILL": "free memory on the device or take a smaller model: it was killed from outside",
}
_EXIT_CODES: Mapping[int, tuple[ResultClass, str]] = {
    124: (ResultClass.TIMEOUT, "benchmark_model did not end"),
    126: (ResultClass.NO_RUNTIME, "benchmark_model does not start"),
    127: (ResultClass.NO_RUNTIME, "benchmark_model does not start"),
}
_REMEDIES: Mapping[ResultClass, str] = {
    ResultClass.NO_RUNTIME: f"give one for the device's ABI in BENCHMARK_MODEL, such as {SOURCE}",
}
_SIGNS = (
    (r"CANNOT LINK EXECUTABLE|[Ee]xec format error|not executable", ResultClass.NO_RUNTIME),
    (r"failed to set .*affinity", ResultClass.INVALID),
    (r"No space left on device", ResultClass.NO_SPACE),
    (
        r"not a valid [Ff]latbuffer|Didn't find op for builtin opcode|Select TensorFlow op"
        r"|Failed to (load|compile)|AllocateTensors|unresolved custom op|Benchmarking failed",
        ResultClass.MODEL_UNSUPPORTED,
    ),
)

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_DELEGATED = re.compile(
    r"Replacing (\d+) out of (\d+) node\(s\) with delegate \(TfLiteXNNPackDelegate\)"
    r".*?yielding (\d+) partition"
)
# In order of how much a line tells; "general" ones hide the reason that stands before them.
_REASONS = (r"(?:ERROR|FATAL)\b(?!: Benchmarking failed).*", r"(?:ERROR|FATAL)\b.*", r"\S.*")


def _refuse_ignored_flags(text: str) -> None:
    ignored = re.search(r"Unconsumed cmdline flags:\s*(.*)", text)
    if ignored is not None:
        found = f"this benchmark_model ignores {ignored[1].strip()}"
        remedy = f"give a newer one in BENCHMARK_MODEL, such as {SOURCE}"
        raise DeviceError(ResultClass.NO_RUNTIME, found, remedy=remedy, log=last_lines(text))


def _from_counts(text: str) -> Report | None:
    """From the `count=` lines, in µs: the last is of the measured runs, the one before of the warm-up."""
    lines = re.findall(r"\bcount=(\d+)([^\n]*)", text)
    if len(lines) < 2:
        return None
    runs, rest = int(lines[-1][0]), lines[-1][1]
    values = dict(re.findall(rf"\b(\w+)=({_NUMBER})", rest))
    # All runs alike, or a single one, print `curr` alone.
    statistic, centre = next(
        ((name, values[key]) for key, name in _CENTRES if key in values),
        ("median", values.get("curr", "nan")),
    )
    if runs == 0:
        raise _unreadable("no run was measured (count=0)", text)
    listed = dict(re.findall(rf"(Init|First inference): ({_NUMBER})", text))
    return Report(
        runs=runs,
        inference_ns=_ns(centre, 1e3, text),
        statistic=statistic,
        init_ns=_ns(listed.get("Init", "0"), 1e3, text) or _listed_ns(text, "Model initialization"),
        first_ns=_ns(listed.get("First inference", "0"), 1e3, text) or _listed_ns(text, "Warmup (first)"),
        delegated=_delegated(text),
    )


_CENTRES = (("median", "median"), ("avg", "mean"))


def _from_listing(text: str) -> Report | None:
    """From LiteRT's `BENCHMARK RESULTS`, in ms."""
    inference = re.search(rf"Inference \(avg\):\s*({_NUMBER}) ms \((\d+) runs\)", text)
    if inference is None:
        return None
    if int(inference[2]) == 0:
        raise _unreadable("no run was measured (0 runs)", text)
    return Report(
        runs=int(inference[2]),
        inference_ns=_ns(inference[1], 1e6, text),
        statistic="mean",
        init_ns=_listed_ns(text, "Model initialization"),
        first_ns=_listed_ns(text, "Warmup (first)"),
        delegated=_delegated(text),
    )


def _listed_ns(text: str, name: str) -> int:
    listed = re.search(rf"{re.escape(name)}:\s*({_NUMBER}) ms", text)
    return _ns(listed[1], 1e6, text) if listed else 0


def _delegated(text: str) -> str:
    return "; ".join(
        f"{taken} of {nodes} nodes, {partitions} partitions"
        for taken, nodes, partitions in _DELEGATED.findall(text)
    )


def _ns(number: str, scale: float, text: str) -> int:
    value = float(number) * scale
    if not math.isfinite(value) or value < 0:
        raise _unreadable(f"{number} where a time should stand", text)
    return round(value)


def _unreadable(found: str, text: str) -> DeviceError:
    return DeviceError(ResultClass.PARSE_ERROR, f"benchmark_model: {found}", log=last_lines(text))


def _reason(text: str) -> str:
    """The line that says most about why it failed."""
    for pattern in _REASONS:
        lines = re.findall(pattern, text)
        if lines:
            return str(lines[0] if pattern is not _REASONS[-1] else lines[-1]).strip()[:200]
    return "nothing printed"
