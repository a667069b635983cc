"""The verb `choose`: the most accurate variants that meet limits of time and size on a device."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_bench.curves import Curve, Fit, Unit, fit, points_needed
from models.registry import MODELS
from pipeline.artifacts import CheckError, UsageError
from pipeline.manifest import Manifest
from pipeline.results import (
    CurveKey,
    Result,
    curves_of,
    key_of,
    load_results,
    manifests_in,
    point_of,
    shown,
    size_of,
)
from pipeline.summary import aligned
from pipeline.variant import PRECISIONS, Variant

LIMITS = {"max_ms": Unit.MILLISECONDS, "max_minsn": Unit.INSTRUCTIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file of a variant with its cost on the device: measured, or what the fitted law says.

    `value` and `highest` are in the device's unit: `highest` is the value itself if measured, the end of the
    law's error band if predicted. `accuracy` is top-1 in percent, None when not known.
    """

    variant: Variant
    precision: str
    value: float
    highest: float
    basis: str
    size_bytes: int
    accuracy: float | None
    dataset: str
    conditions: str


@dataclass(frozen=True, slots=True)
class Law:
    """A fitted curve."""

    curve: Curve
    fit: Fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `choose`."""
    parser.add_argument(
        "--device", required=True, help="a device with recorded results: host, adb:SERIAL, ..."
    )
    parser.add_argument("--model", choices=tuple(MODELS), help="only this network (all that are known)")
    parser.add_argument("--precision", choices=PRECISIONS, help="only this precision (all)")
    parser.add_argument("--max-ms", type=float, default=math.inf, help="longest latency, ms")
    parser.add_argument(
        "--max-minsn", type=float, default=math.inf, help="most instructions, millions, on an emulated core"
    )
    parser.add_argument("--max-mb", type=float, default=math.inf, help="largest file, MB (10^6 bytes)")
    parser.add_argument("--dataset", help="accuracy on this data set (the one that is recorded)")
    parser.add_argument("--build", type=Path, default=Path("build"), help="where results are (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `choose`: prints the variants that fit, best accuracy first. CheckError when none does."""
    results = load_results(arguments.build, arguments.device)
    unit = _checked_unit(results, arguments)
    laws, notes = _laws(results)
    exported = manifests_in(arguments.build)
    candidates = [*_measured(results), *_predicted(results, laws, exported)]
    wanted = [candidate for candidate in candidates if _is_wanted(candidate, arguments)]
    fitting = ranked([candidate for candidate in wanted if _fits(candidate, arguments)])
    _check_data_set(fitting)
    if not fitting:
        raise CheckError(_nothing_fits(wanted, unit))
    print(_table(fitting, unit))
    print("".join(f"{note}\n" for note in notes), end="")
    return 0


def ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Best accuracy first, the cheaper of equals; then those of unknown accuracy, the costliest first."""
    known = [candidate for candidate in candidates if candidate.accuracy is not None]
    others = [candidate for candidate in candidates if candidate.accuracy is None]
    known.sort(key=lambda candidate: (-(candidate.accuracy or 0), candidate.value))
    others.sort(key=lambda candidate: -candidate.value)
    return (*known, *others)


def _checked_unit(results: Sequence[Result], arguments: argparse.Namespace) -> Unit:
    """The unit of the one device that the results are of. UsageError when there is none, or more than one."""
    devices = sorted({result.device for result in results})
    if len(devices) != 1:
        found = f"{len(devices)}: {', '.join(devices)}" if devices else "none"
        raise UsageError(
            f"device {arguments.device!r} must be one with results in {arguments.build / 'bench'}, "
            f"found {found}; give one, or measure first"
        )
    unit = key_of(results[0]).unit
    for option, limited in LIMITS.items():
        if limited is not unit and getattr(arguments, option) < math.inf:
            raise UsageError(
                f"{devices[0]} has results in {unit}, not {limited}; give --{_option_of(unit)} instead"
            )
    return unit


def _option_of(unit: Unit) -> str:
    return next(option for option, limited in LIMITS.items() if limited is unit).replace("_", "-")


def _laws(results: Sequence[Result]) -> tuple[dict[CurveKey, Law], list[str]]:
    """The law of every curve with points enough, and a line for each of the others."""
    found = curves_of(results)
    enough = {key: curve for key, curve in found.items() if len(curve.points) >= points_needed()}
    laws = {key: Law(curve, fit(curve)) for key, curve in enough.items()}
    notes = [
        f"{curve.title}: nothing predicted, {len(curve.points)} of the {points_needed()} points needed"
        for key, curve in found.items()
        if key not in laws
    ]
    return laws, notes


def _measured(results: Sequence[Result]) -> Iterator[Candidate]:
    for result in results:
        point, variant = point_of(result), result.variant
        if point and variant:
            yield Candidate(
                variant=variant,
                precision=result.precision,
                value=point.value,
                highest=point.value,
                basis="measured",
                size_bytes=result.measurement.model.size_bytes,
                accuracy=result.accuracy,
                dataset=result.dataset,
                conditions=result.conditions,
            )


def _predicted(
    results: Sequence[Result], laws: dict[CurveKey, Law], exported: Sequence[Manifest]
) -> Iterator[Candidate]:
    """Every exported file without a valid measurement, for each law of its model and precision."""
    for key, law in laws.items():
        done = {
            result.measurement.model.sha256
            for result in results
            if point_of(result) and key_of(result) == key
        }
        for known in exported:
            artifact = known.artifacts.get(key.precision)
            if known.model == key.model and artifact and artifact.sha256 not in done:
                yield _prediction(known, key, law)


def _prediction(known: Manifest, key: CurveKey, law: Law) -> Candidate:
    variant = Variant(known.model, known.alpha, known.resolution)
    size = size_of(variant, known.num_classes)
    value, band = law.fit.predict(size), law.fit.band
    macs = [point.size.macs for point in law.curve.points]
    beyond = "" if min(macs) <= size.macs <= max(macs) else ", beyond the measured sizes"
    accuracy = known.accuracy.get(key.precision)
    return Candidate(
        variant=variant,
        precision=key.precision,
        value=value,
        highest=value * (1 + band),
        basis=f"predicted ±{band:.1%}{beyond}",
        size_bytes=known.artifacts[key.precision].bytes,
        accuracy=accuracy.top1 if accuracy else None,
        dataset=known.dataset,
        conditions=key.conditions,
    )


def _is_wanted(candidate: Candidate, arguments: argparse.Namespace) -> bool:
    asked = (
        (arguments.model, candidate.variant.model),
        (arguments.precision, candidate.precision),
        (arguments.dataset, candidate.dataset),
    )
    return all(want is None or want == has for want, has in asked)


def _fits(candidate: Candidate, arguments: argparse.Namespace) -> bool:
    """Whether the cost, with the whole error band of a prediction, and the file are within the limits."""
    limit: float = min(arguments.max_ms, arguments.max_minsn)
    largest: float = arguments.max_mb * 1e6
    return candidate.highest <= limit and candidate.size_bytes <= largest


def _check_data_set(candidates: Sequence[Candidate]) -> None:
    found = sorted({candidate.dataset for candidate in candidates if candidate.accuracy is not None})
    if len(found) > 1:
        raise UsageError(
            f"accuracies on {len(found)} data sets cannot be ranked together; give --dataset, "
            f"one of {', '.join(found)}"
        )


def _nothing_fits(wanted: Sequence[Candidate], unit: Unit) -> str:
    if not wanted:
        return "no file has a result or a prediction; measure more, or drop --model, --precision or --dataset"
    fastest = min(wanted, key=lambda candidate: candidate.highest)
    smallest = min(wanted, key=lambda candidate: candidate.size_bytes)
    return (
        f"none of {len(wanted)} files fits: the fastest is {_name(fastest)}, {fastest.highest:.4g} {unit}, "
        f"the smallest {_name(smallest)}, {smallest.size_bytes / 1e6:.2f} MB; raise a limit or export a "
        "smaller one"
    )


def _name(candidate: Candidate) -> str:
    return f"{candidate.variant.name} {candidate.precision}"


def _table(candidates: Sequence[Candidate], unit: Unit) -> str:
    header = ("variant", "precision", "top-1 %", "data set", str(unit), "how known", "MB", "conditions")
    rows = [
        (
            candidate.variant.name,
            candidate.precision,
            "not known" if candidate.accuracy is None else f"{candidate.accuracy:.2f}",
            candidate.dataset,
            shown(candidate.value),
            candidate.basis,
            f"{candidate.size_bytes / 1e6:.2f}",
            candidate.conditions,
        )
        for candidate in candidates
    ]
    return aligned([header, *rows])
