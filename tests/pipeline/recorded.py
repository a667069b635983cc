"""Result folders as bench and export leave them, with the published Pixel 2 times as what was measured."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from device_bench.curves import PUBLISHED
from device_bench.device import (
    BenchSpec,
    DeviceInfo,
    DeviceState,
    InstructionCount,
    Measurement,
    ModelInfo,
    ProcessSamples,
    ResultClass,
    RuntimeInfo,
    TensorInfo,
    save,
)
from pipeline import manifest
from pipeline.manifest import Accuracy, Artifact, Manifest, Quantised, Weights
from pipeline.results import path_of
from pipeline.variant import Variant

PIXEL = DeviceInfo(
    kind="adb",
    name="adb:HT7A1",
    model="Google Pixel 2",
    soc="msm8998",
    machine="aarch64",
    cores=8,
    features=("asimd", "crc32"),
    max_frequencies_khz=(1900800,) * 4 + (2457600,) * 4,
    memory_bytes=3_800_000_000,
    os="Android 11",
)
A72 = DeviceInfo(kind="emulated", name="emulated:cortex-a72", machine="aarch64")
CLASSES = 1001  # classes of the published models


def published_ms(precision: str) -> dict[Variant, float]:
    """The sixteen Pixel 2 times of `float32` or `int8`."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return {
            Variant("v1", float(row["alpha"]), int(row["resolution"])): float(row["latency_ms"])
            for row in csv.DictReader(file)
            if row["device"] == "Pixel 2" and row["precision"] == precision
        }


def sha256_of_name(variant: Variant, precision: str) -> str:
    """Stands for the hash of the file: another one for each name."""
    return hashlib.sha256(f"{variant.name}.{precision}".encode()).hexdigest()


def timed(variant: Variant, precision: str, ms: float, info: DeviceInfo = PIXEL) -> Measurement:
    """Two processes of eleven samples within 1 % of `ms`, which is their median."""
    spread = tuple(round(ms * 1e6 * (1 + 0.002 * ((7 * i) % 11 - 5))) for i in range(11))
    processes = tuple(ProcessSamples(samples_ns=spread, affinity=(4,)) for _ in range(2))
    return replace(_blank(variant, precision, info), processes=processes)


def counted(variant: Variant, precision: str, instructions: int) -> Measurement:
    """Two emulated counts of `instructions` an inference."""
    counts = tuple(
        InstructionCount(
            low_runs=2,
            low_instructions=10**9,
            high_runs=12,
            high_instructions=10**9 + 10 * instructions,
        )
        for _ in range(2)
    )
    return replace(_blank(variant, precision, A72), counts=counts, emulated=True)


def _blank(variant: Variant, precision: str, info: DeviceInfo) -> Measurement:
    state = DeviceState(utc="2026-11-22T03:00:00+00:00", boot_id="1", temperatures_c={"cpu": 41.5})
    shape = (1, variant.resolution, variant.resolution, 3)
    return Measurement(
        model=ModelInfo(
            name=f"{variant.name}.{precision}.tflite",
            sha256=sha256_of_name(variant, precision),
            size_bytes=4_000_000,
            inputs=(TensorInfo(name="image", dtype="float32", shape=shape),),
            outputs=(TensorInfo(name="logits", dtype="float32", shape=(1, CLASSES)),),
        ),
        device=info,
        runtime=RuntimeInfo(name="ai-edge-litert", version="2.3.0"),
        spec=BenchSpec(affinity=(4,)),
        before=state,
        after=replace(state, temperatures_c={"cpu": 44.0}),
    )


def save_ladder(build: Path, precision: str, leave_out: Sequence[Variant] = ()) -> None:
    """Measurements of the sixteen published times but those of `leave_out`."""
    for variant, ms in published_ms(precision).items():
        if variant not in leave_out:
            save(timed(variant, precision, ms), path_of(build, PIXEL.name, variant, precision))


def save_counts(build: Path, precision: str, leave_out: Sequence[Variant] = ()) -> None:
    """Counts of a million instructions for each of the published milliseconds, which need no bootstrap."""
    for variant, ms in published_ms(precision).items():
        if variant not in leave_out:
            save(counted(variant, precision, round(1e6 * ms)), path_of(build, A72.name, variant, precision))


def save_invalid(build: Path, measurement: Measurement, variant: Variant, reason: str) -> None:
    """The measurement, of an int8 file, marked invalid."""
    path = path_of(build, measurement.device.name, variant, "int8")
    save(measurement.marked(ResultClass.INVALID, reason), path)


def save_manifest(
    build: Path, variant: Variant, top1: dict[str, float], size_bytes: int, dataset: str = "flowers"
) -> None:
    """What the export records of `variant`, with the hashes that `timed` has."""
    manifest.save(
        Manifest(
            variant=variant.name,
            model=variant.model,
            alpha=variant.alpha,
            rho=variant.resolution / 224,
            resolution=variant.resolution,
            dataset=dataset,
            num_classes=CLASSES,
            seed=0,
            weights=Weights(source="weights.safetensors", sha256="0" * 64),
            macs=1,
            params=1,
            artifacts={
                precision: Artifact(
                    path=f"{precision}.tflite",
                    sha256=sha256_of_name(variant, precision),
                    bytes=size_bytes,
                    seconds=1.0,
                )
                for precision in top1
            },
            accuracy={
                precision: Accuracy(top1=percent, top5=99.0, samples=2000)
                for precision, percent in top1.items()
            },
            agreement={},
            parity={},
            delegate={},
            quantised=Quantised(recipe="default", calibration_images=200, input="uint8", output="float32"),
        ),
        build / variant.name,
    )
