"""Records for tests: a timed and a counted measurement, to be varied with dataclasses.replace."""

from __future__ import annotations

from collections.abc import Sequence

from device_bench.device import (
    BenchSpec,
    DeviceInfo,
    DeviceState,
    InstructionCount,
    Measurement,
    ModelInfo,
    ProcessSamples,
    RuntimeInfo,
    TensorInfo,
)

MODEL = ModelInfo(
    name="int8.tflite",
    sha256="0f" * 32,
    size_bytes=1234,
    inputs=(TensorInfo(name="input", dtype="int8", shape=(1, 8, 8, 16)),),
    outputs=(TensorInfo(name="Ausgang 端", dtype="int8", shape=(1, 10)),),
)
BEFORE = DeviceState(
    utc="2026-01-02T03:04:05+00:00", boot_id="a", frequency_limits_khz=(2_400_000, 2_400_000)
)
AFTER = DeviceState(utc="2026-01-02T03:05:05+00:00", boot_id="a", frequency_limits_khz=(2_400_000, 2_400_000))


def timed(processes: Sequence[Sequence[int]]) -> Measurement:
    """A host measurement with these samples, ns."""
    return Measurement(
        model=MODEL,
        device=DeviceInfo(kind="host", name="host", cores=2, features=("avx2",), extra={"note": "x"}),
        runtime=RuntimeInfo(name="ai-edge-litert", version="2.3.0", python="3.11.7", numpy="2.4.6"),
        spec=BenchSpec(processes=len(processes)),
        processes=tuple(ProcessSamples(samples_ns=tuple(samples)) for samples in processes),
        before=BEFORE,
        after=AFTER,
    )


def counted(*per_inference: int, core: str = "cortex-a76") -> Measurement:
    """An emulated measurement with these counts."""
    counts = tuple(
        InstructionCount(low_runs=2, low_instructions=1000, high_runs=12, high_instructions=1000 + 10 * count)
        for count in per_inference
    )
    return Measurement(
        model=MODEL,
        device=DeviceInfo(kind="emulated", name=f"emulated:{core}", model=core),
        runtime=RuntimeInfo(name="ai-edge-litert", version="2.1.6"),
        spec=BenchSpec(processes=len(counts)),
        counts=counts,
        emulated=True,
        before=BEFORE,
        after=AFTER,
    )
