"""One narrow Protocol for every place that can run a .tflite file, and the one schema of what it answers.

Backends: `host.py`, `ssh.py`, `adb.py`, `emulated.py`. Samples are stored raw; statistics are derived
(`statistics.py`), never stored.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self, cast

from device_bench.records import RecordError, from_plain, read_json, to_plain, write_json
from pipeline.artifacts import AlpharhoError, UsageError

SCHEMA = 1  # 1: the first
HARNESS_VERSION = "0.1.0"


class ResultClass(StrEnum):
    """How a measurement ended."""

    OK = "ok"
    INVALID = "invalid"
    TRANSPORT_LOST = "transport-lost"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    NO_SPACE = "no-space"
    NO_RUNTIME = "no-runtime"
    MODEL_UNSUPPORTED = "model-unsupported"
    CRASHED = "crashed"
    PARSE_ERROR = "parse-error"


class Advice(NamedTuple):
    """What a result class means, and what to do about it."""

    message: str
    remedy: str


# fmt: off
ADVICE: Mapping[ResultClass, Advice] = {
    ResultClass.OK: Advice("measured", "nothing to do"),
    ResultClass.INVALID: Advice(
        "measured, but the samples cannot be trusted",
        "let the device cool down and idle, then measure again"),
    ResultClass.TRANSPORT_LOST: Advice(
        "the connection broke before the run had ended",
        "check cable, network and power, then measure again"),
    ResultClass.UNREACHABLE: Advice(
        "the device does not answer", "check that it is on, connected and that you may log in"),
    ResultClass.TIMEOUT: Advice(
        "the run did not end in its time", "give a longer --timeout, or a smaller model or fewer runs"),
    ResultClass.NO_SPACE: Advice(
        "no space left for the model", "free space on the device (twice the size of the file)"),
    ResultClass.NO_RUNTIME: Advice(
        "no TFLite runtime works there",
        "install ai-edge-litert, or tflite-runtime with numpy < 2, for its Python"),
    ResultClass.MODEL_UNSUPPORTED: Advice(
        "the runtime refuses the model", "export the model again or use a newer runtime"),
    ResultClass.CRASHED: Advice(
        "the runtime died", "check the wheel or binary against the CPU, and free memory"),
    ResultClass.PARSE_ERROR: Advice(
        "the device's answer cannot be read", "run once more and report the answer if it stays so"),
}
# fmt: on


class DeviceError(AlpharhoError):
    """A run that gave no complete measurement. `partials` hold what did finish, already marked."""

    def __init__(
        self,
        result: ResultClass,
        found: str,
        *,
        remedy: str = "",
        log: str = "",
        partials: tuple[Measurement, ...] = (),
    ) -> None:
        """`found`: what was seen; `remedy` replaces the class's own; `log`: the last lines of its text."""
        advice = ADVICE[result]
        super().__init__(" ".join(f"{result}: {advice.message}: {found}; {remedy or advice.remedy}".split()))
        self.result = result
        self.found = found
        self.log = log
        self.partials = partials


def as_device_error(error: DeviceError | KeyboardInterrupt) -> DeviceError:
    """`error` itself, or the DeviceError that an interrupt by the user amounts to."""
    if isinstance(error, DeviceError):
        return error
    return DeviceError(ResultClass.INVALID, "interrupted", remedy="measure again")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Invokes before the samples: `runs` and `seconds`, then until steady, at most `max_runs` more.

    Steady: the medians of the last two windows of `window` invokes differ by less than `tolerance`.
    `max_seconds` bound the whole of it.
    """

    runs: int = 5
    seconds: float = 1.0
    window: int = 10
    tolerance: float = 0.02
    max_runs: int = 100
    max_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpec:
    """What to run. Every process samples until it has `runs` and `seconds`, or `max_seconds` are over."""

    threads: int = 1
    processes: int = 5
    runs: int = 50
    seconds: float = 1.0
    max_seconds: float = 30.0
    warm_up: WarmUp = field(default_factory=WarmUp)
    affinity: tuple[int, ...] = ()  # CPU numbers; empty: the backend chooses
    seed: int = 0  # of the random input
    runtime: str = ""  # ai-edge-litert or tflite-runtime; empty: the first that works
    timeout_s: float = 120.0  # one process, start to end


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What the device is. Unknown texts are empty, unknown numbers 0."""

    kind: str  # host, ssh, adb, emulated
    name: str  # the device string
    model: str = ""
    soc: str = ""
    machine: str = ""
    cores: int = 0
    features: tuple[str, ...] = ()  # /proc/cpuinfo words: asimd, asimdhp, asimddp, i8mm, avx2, ...
    max_frequencies_khz: tuple[int, ...] = ()  # per core
    memory_bytes: int = 0
    os: str = ""
    kernel: str = ""
    libc: str = ""
    word_bits: int = 0  # of the userland, which may be 32 under a 64-bit kernel
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What may change during a run, read before and after it."""

    utc: str  # ISO 8601, the device's clock
    uptime_s: float = 0.0
    boot_id: str = ""
    governors: tuple[str, ...] = ()  # per core
    frequencies_khz: tuple[int, ...] = ()  # per core, as the kernel asked for
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    frequency_limits_khz: tuple[int, ...] = ()  # per core, falls under thermal pressure
    throttle_flags: int | None = None  # Raspberry Pi: vcgencmd get_throttled
    thermal_status: int | None = None  # Android: 0 none .. 6 shutdown
    load_1min: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What executed the model."""

    name: str  # ai-edge-litert, tflite-runtime, benchmark_model
    version: str = ""
    python: str = ""
    numpy: str = ""
    binary_sha256: str = ""  # of a binary given by the user


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor of the model as it was really run."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The file that was run; `sha256` was taken of the bytes on the device."""

    name: str
    sha256: str
    size_bytes: int
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSamples:
    """Raw times of one fresh process, in order, nothing deleted."""

    samples_ns: tuple[int, ...]
    runs_per_sample: int = 1  # more when the tool gives only the median of its runs
    warm_up_ns: tuple[int, ...] = ()
    steady: bool = True
    import_ns: int = 0
    init_ns: int = 0  # interpreter built and tensors allocated
    first_ns: int = 0  # first invoke
    affinity: tuple[int, ...] = ()  # CPUs the process really had


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionCount:
    """Two emulated runs that differ only in the number of invokes. Instructions, not time."""

    low_runs: int
    low_instructions: int
    high_runs: int
    high_instructions: int

    @property
    def per_inference(self) -> float:
        """Instructions of one invoke."""
        return (self.high_instructions - self.low_instructions) / (self.high_runs - self.low_runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Raw samples and all that produced them: `processes` of a timed one, `counts` of an emulated one."""

    model: ModelInfo
    device: DeviceInfo
    runtime: RuntimeInfo
    spec: BenchSpec
    processes: tuple[ProcessSamples, ...] = ()
    counts: tuple[InstructionCount, ...] = ()
    emulated: bool = False
    before: DeviceState
    after: DeviceState
    result: ResultClass = ResultClass.OK
    reasons: tuple[str, ...] = ()
    harness_version: str = HARNESS_VERSION

    def __post_init__(self) -> None:
        """Times and instruction counts never share a record."""
        assert self.emulated or not self.counts
        assert not (self.emulated and self.processes)

    @property
    def valid(self) -> bool:
        """Whether the result may be ranked, fitted and compared."""
        return self.result is ResultClass.OK

    def marked(self, result: ResultClass, *reasons: str) -> Self:
        """The same samples with another result class and further reasons."""
        return replace(self, result=result, reasons=(*self.reasons, *reasons))


class Device(Protocol):
    """A place that can run a .tflite file. Entering connects, leaving removes all that was put there."""

    def __enter__(self) -> Self:
        """Connect. Raises DeviceError."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was put on the device and disconnect."""
        ...

    def info(self) -> DeviceInfo:
        """What the device is. Raises DeviceError."""
        ...

    def run(self, model: Path, spec: BenchSpec) -> Measurement:
        """Run `model` in `spec.processes` fresh processes; `measure.py` judges. Raises DeviceError."""
        ...


class _Backend(NamedTuple):
    pattern: str  # of the device string
    shown: str  # how the help writes it
    module: str  # has `connect(device_string) -> Device`
    spec: BenchSpec  # when nothing else is asked


BACKENDS = (
    _Backend(r"host", "host", "device_bench.host", BenchSpec()),
    _Backend(r"ssh://.+", "ssh://[user@]host[:port]", "device_bench.ssh", BenchSpec()),
    _Backend(r"adb(:.+)?", "adb[:SERIAL]", "device_bench.adb", BenchSpec()),
    _Backend(
        r"emulated:.+",
        "emulated:cortex-a76|cortex-a72|cortex-a53",
        "device_bench.emulated",
        BenchSpec(processes=2, timeout_s=600),  # counts repeat almost exactly: the second pair proves it
    ),
)


def connect(name: str) -> Device:
    """The device that `name` means, not yet entered. Raises UsageError for a string that no backend knows."""
    # Imported on use: a backend imports this module.
    return cast(Device, importlib.import_module(_backend(name).module).connect(name))


def default_spec(name: str) -> BenchSpec:
    """What to run on the device `name` when nothing else is asked. Raises UsageError for an unknown one."""
    return _backend(name).spec


def _backend(name: str) -> _Backend:
    for backend in BACKENDS:
        if re.fullmatch(backend.pattern, name):
            return backend
    known = ", ".join(backend.shown for backend in BACKENDS)
    raise UsageError(f"device {name!r} is unknown; give one of {known}")


def to_json(measurement: Measurement) -> dict[str, object]:
    """The JSON object of a measurement: its fields, `schema`, and `valid` for readers that are not ours."""
    return {"schema": SCHEMA, "valid": measurement.valid, **to_plain(measurement)}


def from_json(plain: object, where: str = "measurement") -> Measurement:
    """The inverse of `to_json`. Raises RecordError naming the field that does not fit."""
    if not isinstance(plain, dict):
        raise RecordError(f"{where}: not a measurement, which is a JSON object; give a file that bench wrote")
    if plain.get("schema") != SCHEMA:
        raise RecordError(f"{where}: schema {plain.get('schema')!r}, supported is {SCHEMA}; measure again")
    fields = {name: item for name, item in plain.items() if name not in ("schema", "valid")}
    measurement = from_plain(Measurement, _checked_kind(fields, where), where)
    valid, result = plain.get("valid"), measurement.result
    if valid is not measurement.valid:
        raise RecordError(f"{where}: valid is {valid!r} but result is {result}; measure again")
    return measurement


def _checked_kind(fields: dict[str, object], where: str) -> dict[str, object]:
    timed, counted, emulated = (bool(fields.get(name)) for name in ("processes", "counts", "emulated"))
    if (timed and (counted or emulated)) or (counted and not emulated):
        raise RecordError(f"{where}: times and instruction counts are mixed; measure again")
    return fields


def save(measurement: Measurement, path: Path) -> None:
    """Write the measurement as JSON, whole or not at all."""
    write_json(path, to_json(measurement))


def load(path: Path) -> Measurement:
    """Read what `save` wrote. Raises RecordError that names the file and the field."""
    return from_json(read_json(path), str(path))
