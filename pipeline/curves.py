"""The verb `curves`: the grid of alpha and rho on a device, its law, and the points that break it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from device_bench import curves
from device_bench.curves import Agreement, Curve, Fit, Unit, fit, fit_law
from device_bench.device import Measurement, load, save
from models.registry import MODELS
from pipeline.artifacts import CheckError, UsageError, sha256_of
from pipeline.results import PRECISIONS, curves_of, load_results, path_of, size_of
from pipeline.summary import aligned
from pipeline.variant import Variant

ALPHAS = (1.0, 0.75, 0.5, 0.25)
RHOS = (1.0, 6 / 7, 5 / 7, 4 / 7)
BASE_RESOLUTION = 224
NUM_CLASSES = 1000

MeasurePoint = Callable[[Variant, str], Measurement]
"""Measures a variant at a precision on the device: exports the file if there is none, and runs it."""


def grid(model: str) -> tuple[Variant, ...]:
    """The sixteen variants of V1's figure 4, widest and largest first. AlpharhoError for an unknown model."""
    return tuple(Variant.of(model, alpha, rho, BASE_RESOLUTION) for alpha in ALPHAS for rho in RHOS)


def measure_grid(model: str, device: str, build: Path, measure: MeasurePoint) -> None:
    """Measure the points of the grid that have no valid measurement of their present file, and save each.

    `measure(variant, precision)` gives the measurement of `build/<variant>/<precision>.tflite`; an invalid one is
    kept too, and measured again next time.
    """
    points = [(variant, precision) for precision in PRECISIONS for variant in grid(model)]
    for variant, precision in tqdm(points, desc=f"{model} on {device}", unit="file", disable=None):
        path = path_of(build, device, variant, precision)
        if not _is_current(path, build / variant.name / f"{precision}.tflite"):
            save(measure(variant, precision), path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `curves`."""
    parser.add_argument("model", nargs="?", choices=tuple(MODELS), default="v1", help="network (%(default)s)")
    parser.add_argument("--device", default="", help="host, ssh://..., adb, emulated:... (all that are recorded)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=curves.TOLERANCE,
        metavar="SHARE",
        help="how far a point may be off the law (%(default)s)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="fit the published ladders instead, and compare recorded instruction counts with them",
    )
    parser.add_argument("--build", type=Path, default=Path("build"), help="where results are (%(default)s)")


def run(arguments: argparse.Namespace, measure: MeasurePoint | None = None) -> int:
    """The verb `curves`: measures what is missing if it can, prints every curve, and fails on a break."""
    if not arguments.tolerance > 0:
        raise UsageError(f"tolerance is {arguments.tolerance:g}; give a share above 0 such as 0.08")
    if arguments.published:
        return _published(arguments)
    if measure:
        measure_grid(arguments.model, arguments.device, arguments.build, measure)
    found = [curve for curve in _recorded(arguments) if curve.model == arguments.model]
    if not found:
        raise CheckError(
            f"{arguments.build / 'bench'}: no valid result of {arguments.model} on {arguments.device or 'any device'}; "
            "measure first, with 'make curves'"
        )
    return _checked(found, arguments.tolerance)


def describe(curve: Curve, fitted: Fit) -> str:
    """The law with its coefficients, and a table of every point with what the law says."""
    rows = [("variant", "M Mult-Adds", curve.unit, "interval", f"law {curve.unit}", "law is off")]
    rows += [
        (
            point.variant,
            f"{point.size.macs / 1e6:.1f}",
            f"{point.value:.4g}",
            f"{point.low:.4g} - {point.high:.4g}",
            f"{fitted.predict(point.size):.4g}",
            f"{residual:+.1%}",
        )
        for point, residual in zip(curve.points, fitted.residuals, strict=True)
    ]
    return f"{curve.title}\n{formula(curve, fitted)}\n{quality(fitted)}\n{aligned(rows)}"


def formula(curve: Curve, fitted: Fit) -> str:
    """`T = 0.31 ms + 0.021 ms per M linear Mult-Adds + ...`: the terms that are not 0."""
    parts = [
        f"{coefficient:.4g} {curve.unit}{_PER[term]}"
        for term, coefficient in fitted.coefficients.items()
        if coefficient > 0
    ]
    return f"T = {' + '.join(parts)}"


def quality(fitted: Fit) -> str:
    """How well the law explains the points, and how well points that it was not fitted to."""
    return (
        f"{fitted.law} law, R² {fitted.r_squared:.5f}, no point off by more than {fitted.worst:.1%}, "
        f"{fitted.band:.1%} when left out of the fit"
    )


_PER = {
    "overhead": "",
    "pixels": " per M pixels",
    "linear": " per M linear Mult-Adds",
    "quadratic": " per M quadratic Mult-Adds",
    "weights": " per M weights",
}


def _is_current(path: Path, file: Path) -> bool:
    """Whether `path` is a valid measurement of `file` as it is now."""
    if not (path.exists() and file.exists()):
        return False
    recorded = load(path)
    return recorded.valid and recorded.model.sha256 == sha256_of(file)


def _recorded(arguments: argparse.Namespace) -> tuple[Curve, ...]:
    return curves_of(load_results(arguments.build, arguments.device))


def _checked(found: Iterable[Curve], tolerance: float) -> int:
    broken: list[str] = []
    for curve in found:
        fitted = fit(curve)
        print(describe(curve, fitted), end="\n\n")
        broken += curves.breaks(curve, fitted, tolerance)
    return _verdict(broken)


def _verdict(broken: Sequence[str]) -> int:
    if broken:
        raise CheckError(f"{len(broken)} broken: {'; '.join(broken)}")
    return 0


def _published(arguments: argparse.Namespace) -> int:
    ladders = curves.published(
        lambda alpha, resolution: size_of(Variant("v1", alpha, resolution), curves.PUBLISHED_CLASSES)
    )
    fits = [fit(ladder) for ladder in ladders]
    print(_ladder_table(ladders, fits))
    broken = [line for ladder, fitted in zip(ladders, fits, strict=True) for line in _unexplained(ladder, fitted, arguments.tolerance)]
    counted = [curve for curve in _recorded(arguments) if curve.unit is Unit.INSTRUCTIONS and curve.model == "v1"]
    pairs = [(count, ladder) for count in counted for ladder in ladders if count.precision == ladder.precision]
    if pairs:
        rows, lines = _agreements(pairs)
        print(f"\n{aligned(rows)}")
        broken += lines
    elif arguments.device:
        raise CheckError(
            f"{arguments.build / 'bench'}: no valid instruction counts of v1 on {arguments.device}; "
            "count first, with 'make curves MODEL=v1 DEVICE=emulated:cortex-a72'"
        )
    return _verdict(broken)
