"""Table 2: what the files of each maker cost: operators, host latency, instructions on emulated ARM cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TypeVar

from device_bench import emulated, host
from device_bench.device import BenchSpec, WarmUp
from device_bench.measure import measure
from device_bench.records import from_plain, read_json, to_plain, write_json
from device_bench.statistics import ratio_interval, samples_by_process, summarize
from export.check import audit_delegate
from export.read_tflite import read_tflite
from pipeline.artifacts import sha256_of
from pipeline.peers.conversion import MAKERS, NETWORKS, OURS, Say, Wanted

CORES = ("cortex-a76", "cortex-a72")
COUNTED_OPS = ("TRANSPOSE", "PAD", "DEQUANTIZE")
SPEC = BenchSpec(
    processes=5, runs=30, seconds=0.5, warm_up=WarmUp(runs=5, seconds=0.3, max_runs=50, max_seconds=5.0)
)
WIDEST_INTERVAL = 0.1  # of a ratio of times
COUNTING = BenchSpec(processes=1, timeout_s=1800, runtime=emulated.RUNTIME)
FILED = [maker for maker in MAKERS if MAKERS[maker].is_compared]
# What matters first: where int8 and half precision pay, and the networks that are in use.
ORDER = tuple(product(("int8", "float16", "float32"), NETWORKS))

T = TypeVar("T", "Operators", "Latency", "Instructions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """How a file is made up; `outside` are operators that the delegate leaves out."""

    sha256: str
    total: int
    counted: Mapping[str, int]
    partitions: int
    outside: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Times on this machine of a maker's file and of ours, interleaved; `ratio` is ours over theirs."""

    sha256: str
    ours_sha256: str
    median_ms: float
    ours_median_ms: float
    ratio: float
    low: float
    high: float
    doubts: tuple[str, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether the machine was quiet enough for the ratio to say something."""
        return not self.doubts and self.high - self.low <= WIDEST_INTERVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """Millions of instructions of one inference on an emulated core."""

    sha256: str
    runtime: str
    millions: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """All that is known of one maker's file; what was not measured is None or missing."""

    operators: Operators | None = None
    latency: Latency | None = None
    instructions: Mapping[str, Instructions] = field(default_factory=dict)


def file_of(model: str, maker: str, precision: str, folder: Path) -> Path:
    """Where the conversion has put the file."""
    return folder / model / maker / f"{precision}.tflite"


def costs(model: str, maker: str, precision: str, folder: Path) -> Cost:
    """What has been measured of the file as it is now."""
    path = file_of(model, maker, precision, folder)
    if not path.is_file():
        return Cost()
    now = sha256_of(path)
    latency = _remembered(Latency, path, "latency", now)
    if latency is not None and latency.ours_sha256 != sha256_of(file_of(model, OURS, precision, folder)):
        latency = None
    counts = {core: _remembered(Instructions, path, core, now) for core in CORES}
    return Cost(
        operators=_remembered(Operators, path, "operators", now),
        latency=latency,
        instructions={core: count for core, count in counts.items() if count is not None},
    )


def measure_operators(model: str, maker: str, precision: str, folder: Path) -> None:
    """Read the file and ask the host runtime how its delegate divides it."""
    path = file_of(model, maker, precision, folder)
    counts, audit = read_tflite(path).op_counts(), audit_delegate(path)
    found = Operators(
        sha256=sha256_of(path),
        total=sum(counts.values()),
        counted={op: counts.get(op, 0) for op in COUNTED_OPS},
        partitions=audit.partitions,
        outside=len(audit.undelegated_ops),
    )
    write_json(_record(path, "operators"), to_plain(found))


def measure_latency(model: str, precision: str, folder: Path) -> None:
    """Time every maker's file against ours, all interleaved process by process in one session."""
    paths = {maker: file_of(model, maker, precision, folder) for maker in FILED}
    present = {maker: path for maker, path in paths.items() if path.is_file()}
    with host.connect("host") as device:
        found = dict(zip(present, measure(device, list(present.values()), SPEC), strict=True))
    ours = found[OURS]
    for maker, path in present.items():
        groups = zip(samples_by_process(found[maker]), samples_by_process(ours), strict=True)
        ratio, low, high = ratio_interval(list(groups))
        record = Latency(
            sha256=sha256_of(path),
            ours_sha256=sha256_of(present[OURS]),
            median_ms=summarize(found[maker]).median_ms,
            ours_median_ms=summarize(ours).median_ms,
            ratio=ratio,
            low=low,
            high=high,
            doubts=tuple(dict.fromkeys((*found[maker].reasons, *ours.reasons))),
        )
        write_json(_record(path, "latency"), to_plain(record))


def measure_instructions(model: str, maker: str, precision: str, core: str, folder: Path) -> None:
    """Count instructions of one inference on an emulated core; DeviceError where it cannot be."""
    path = file_of(model, maker, precision, folder)
    with emulated.EmulatedDevice(core=core) as device:
        found = device.run(path, COUNTING)
    record = Instructions(
        sha256=sha256_of(path),
        runtime=f"{found.runtime.name} {found.runtime.version}",
        millions=found.counts[0].per_inference / 1e6,
    )
    write_json(_record(path, core), to_plain(record))


def time_missing(folder: Path, wanted: Wanted, say: Say) -> None:
    """Time what has no settled ratio yet, or everything again, in order of importance; each result is kept.

    Whoever is wanted, all makers' files of a network are timed together: a ratio needs both.
    """
    for precision, model in ORDER:
        known = _known(model, precision, folder)
        settled = all(found.latency is not None and found.latency.is_settled for found in known.values())
        if OURS in known and (wanted.again or not settled):
            say(f"{model} {precision}: latency of {len(known)} files")
            measure_latency(model, precision, folder)


def count_missing(folder: Path, wanted: Wanted, say: Say) -> None:
    """Count operators and instructions of what is not counted yet, or everything again, each result kept."""
    for core, (precision, model) in product(CORES, ORDER):
        for maker, found in _known(model, precision, folder).items():
            if wanted.wants(MAKERS[maker], core in found.instructions):
                say(f"{model} {precision} of {maker}: instructions on {core}")
                measure_instructions(model, maker, precision, core, folder)


def _known(model: str, precision: str, folder: Path) -> dict[str, Cost]:
    """What is known of the files that are there, their operators at least."""
    makers = [maker for maker in FILED if file_of(model, maker, precision, folder).is_file()]
    for maker in makers:
        if costs(model, maker, precision, folder).operators is None:
            measure_operators(model, maker, precision, folder)
    return {maker: costs(model, maker, precision, folder) for maker in makers}


def _record(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}.json")


def _remembered(kind: type[T], path: Path, name: str, sha256: str) -> T | None:
    record = _record(path, name)
    if not record.is_file():
        return None
    found = from_plain(kind, read_json(record), str(record))
    return found if found.sha256 == sha256 else None
