"""Recorded measurements, each joined to what the manifest says of the very same file.

`build/bench/<device>/<variant>.<precision>.json` is one measurement, `build/<variant>/manifest.json` what is
known of a variant. The two are joined by the sha256 of the .tflite file alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import quote

import models
from device_bench.curves import Curve, GridPoint, Size, Unit
from device_bench.device import Measurement, load
from device_bench.records import read_json
from device_bench.statistics import Summary, summarize
from models.cost import cost_of
from pipeline import manifest as manifests
from pipeline.manifest import Manifest
from pipeline.variant import PRECISIONS, Variant

_NAME = re.compile(rf"(\w+)_(\d+\.\d+)_(\d+)\.({'|'.join(PRECISIONS)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A measured quantity with its interval, in the unit of the measurement."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measurement file and what is known of the model file that was run.

    `variant` is None for a file not named as a variant, `size` where the cost is not known, `summary` for
    counts, `accuracy` (top-1, percent) where no manifest knows this very file. `notes` says why.
    `num_classes` is 0 where it is not known.
    """

    path: Path
    measurement: Measurement
    variant: Variant | None
    precision: str
    num_classes: int
    size: Size | None
    summary: Summary | None
    value: Value | None
    accuracy: float | None
    dataset: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the measurement file without its ending."""
        return self.path.name.removesuffix(".json")

    @property
    def device(self) -> str:
        """The device with its model or processor, where known."""
        info = self.measurement.device
        hardware = info.model or info.soc
        return info.name if hardware in info.name else f"{info.name} ({hardware})"

    @property
    def conditions(self) -> str:
        """Threads, CPUs and runtime."""
        spec, runtime = self.measurement.spec, self.measurement.runtime
        threads = f"{spec.threads} thread{'s' * (spec.threads != 1)}"
        cpus = [f"CPU {','.join(map(str, spec.affinity))}"] if spec.affinity else []
        return ", ".join([threads, *cpus, f"{runtime.name} {runtime.version}".strip()])


def shown(value: float) -> str:
    """A quantity with four digits, so that columns of them can be compared."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}"


def path_of(build: Path, device: str, variant: Variant, precision: str) -> Path:
    """Where the measurement of a variant's file on `device` (a device string) is kept."""
    return build / "bench" / quote(device, safe=":@") / f"{variant.name}.{precision}.json"


def load_results(build: Path, device: str = "") -> tuple[Result, ...]:
    """Every measurement below `build/bench`, of `device` or of all, by device, model and size.

    AlpharhoError names a damaged file.
    """
    loaded = ((path, load(path)) for path in sorted((build / "bench").glob("*/*.json")))
    found = (_result(path, measurement, build) for path, measurement in loaded if is_of(measurement, device))
    return tuple(sorted(found, key=_order))


def load_result(path: Path, build: Path) -> Result:
    """The measurement in `path` and what is known of its file. AlpharhoError if one of the two is damaged."""
    return _result(path, load(path), build)


def _result(path: Path, measurement: Measurement, build: Path) -> Result:
    variant, precision = variant_of(path.name.removesuffix(".json"))
    known = manifest_of(build, variant) if variant else None
    joined, notes = _joined(known, precision, measurement)
    num_classes = _classes(measurement, joined)
    size, size_notes = _size(variant, measurement, num_classes)
    accuracy = joined.accuracy.get(precision) if joined else None
    summary = summary_of(measurement)
    return Result(
        path=path,
        measurement=measurement,
        variant=variant,
        precision=precision,
        num_classes=num_classes,
        size=size,
        summary=summary,
        value=value_of(measurement, summary),
        accuracy=accuracy.top1 if accuracy else None,
        dataset=joined.dataset if joined else "",
        notes=(*notes, *size_notes),
    )


def variant_of(name: str) -> tuple[Variant | None, str]:
    """The variant and the precision that `v1_0.50_192.int8` names; None and "" for another kind of name."""
    match = _NAME.fullmatch(name)
    if not match:
        return None, ""
    model, alpha, resolution, precision = match.groups()
    return Variant(model, float(alpha), int(resolution)), precision


def manifests_in(build: Path) -> tuple[Manifest, ...]:
    """What the exports of variants recorded; manifests of another kind are passed over."""
    paths = sorted(build.glob(f"*/{manifests.FILE_NAME}"))
    return tuple(manifests.load(path) for path in paths if "variant" in (read_json(path) or ()))


def manifest_of(build: Path, variant: Variant) -> Manifest | None:
    """What the export recorded of `variant`, None when it was not exported."""
    path = build / variant.name / manifests.FILE_NAME
    return manifests.load(path) if path.exists() else None


def is_of(measurement: Measurement, device: str) -> bool:
    """Whether it was taken on `device`: a whole name, a kind such as `adb`, or "" for every device."""
    return device in ("", measurement.device.name, measurement.device.kind)


def unit_of(measurement: Measurement) -> Unit:
    """What the measurement counts."""
    return Unit.INSTRUCTIONS if measurement.emulated else Unit.MILLISECONDS


def summary_of(measurement: Measurement) -> Summary | None:
    """The statistics of a timed measurement; None for a process without samples, and for counts."""
    sampled = [bool(process.samples_ns) for process in measurement.processes]
    return summarize(measurement) if sampled and all(sampled) else None


def value_of(measurement: Measurement, summary: Summary | None) -> Value | None:
    """Median ms of an inference with its interval, or M instructions; None when nothing was sampled."""
    if summary:
        return Value(value=summary.median_ms, low=summary.low_ms, high=summary.high_ms)
    counts = sorted(count.per_inference / 1e6 for count in measurement.counts)
    return Value(value=median(counts), low=counts[0], high=counts[-1]) if counts else None


@cache
def size_of(variant: Variant, num_classes: int) -> Size:
    """The terms of the law for a variant, from its per-layer costs. AlpharhoError for an unknown model."""
    cost = cost_of(variant.model, variant.alpha, variant.resolution, num_classes)
    by_term = cost.macs_by_term()
    terms = {
        "overhead": 1.0,
        "pixels": variant.resolution**2 / 1e6,
        "linear": by_term["linear"] / 1e6,
        "quadratic": by_term["quadratic"] / 1e6,
        "weights": cost.weight_params / 1e6,
    }
    return Size(terms=terms, macs=cost.macs)


class CurveKey(NamedTuple):
    """What the points of a curve have in common."""

    device: str
    model: str
    conditions: str
    precision: str
    unit: Unit


def key_of(result: Result) -> CurveKey:
    """The curve that the result's point is on, if it is one."""
    model = result.variant.model if result.variant else ""
    unit = unit_of(result.measurement)
    return CurveKey(result.device, model, result.conditions, result.precision, unit)


def point_of(result: Result) -> GridPoint | None:
    """The result as a point of its curve; None when it is not valid, or its cost or value is not known."""
    variant, size, value = result.variant, result.size, result.value
    if not (result.measurement.valid and variant and size and value):
        return None
    return GridPoint(
        variant=variant.name,
        alpha=variant.alpha,
        resolution=variant.resolution,
        size=size,
        value=value.value,
        low=value.low,
        high=value.high,
    )


def curves_of(results: Iterable[Result]) -> dict[CurveKey, Curve]:
    """The valid results as curves, by device, model and conditions; their precisions in the usual order."""
    groups: dict[CurveKey, list[GridPoint]] = defaultdict(list)
    for result in results:
        point = point_of(result)
        if point:
            groups[key_of(result)].append(point)
    return {key: _curve(key, groups[key]) for key in sorted(groups, key=_curve_order)}


def _curve(key: CurveKey, points: Sequence[GridPoint]) -> Curve:
    return Curve(
        model=key.model,
        device=key.device,
        precision=key.precision,
        conditions=key.conditions,
        unit=key.unit,
        points=tuple(points),
    )


def _curve_order(key: CurveKey) -> tuple[str, str, str, int]:
    return key.device, key.model, key.conditions, PRECISIONS.index(key.precision)


def _joined(
    known: Manifest | None, precision: str, measurement: Measurement
) -> tuple[Manifest | None, tuple[str, ...]]:
    """The manifest if it is of the file that was run, else None and the reason."""
    artifact = known.artifacts.get(precision) if known else None
    if artifact is None:
        return None, ("accuracy not known: no manifest of this file",)
    if artifact.sha256 != measurement.model.sha256:
        found, ran = artifact.sha256[:12], measurement.model.sha256[:12]
        return None, (f"accuracy not joined: the manifest is of file {found}, measured was {ran}",)
    return known, ()


def _classes(measurement: Measurement, joined: Manifest | None) -> int:
    """Classes of the network, from its output or else its manifest; 0 where neither says."""
    outputs = measurement.model.outputs
    if outputs and outputs[0].shape:
        return outputs[0].shape[-1]
    return joined.num_classes if joined else 0


def _size(
    variant: Variant | None, measurement: Measurement, num_classes: int
) -> tuple[Size | None, tuple[str, ...]]:
    if variant is None or variant.model not in models.NAMES:
        return None, ("cost not known: the name is not that of a classifier's variant",)
    shapes = [tensor.shape for tensor in measurement.model.inputs]
    if shapes and shapes[0][1:3] != (variant.resolution, variant.resolution):
        return None, (f"cost not known: named {variant.resolution}, but ran at {shapes[0]}",)
    if not num_classes:
        return None, ("cost not known: neither output shape nor manifest says how many classes",)
    return size_of(variant, num_classes), ()


def _order(result: Result) -> tuple[str, str, int, int, str]:
    model = result.variant.model if result.variant else ""
    precision = PRECISIONS.index(result.precision) if result.precision else len(PRECISIONS)
    macs = result.size.macs if result.size else 0
    return result.device, model, precision, -macs, result.name
