"""The verb `curves`: the grid of alpha and rho on a device, its law, and the points that break it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from tqdm import tqdm

from device_bench import curves
from device_bench.curves import Curve, Fit, Unit, fit, fit_law
from device_bench.device import Measurement, default_spec, load, save
from models.registry import MODELS
from pipeline.artifacts import CheckError, UsageError, sha256_of
from pipeline.bench import measure_point
from pipeline.results import curves_of, load_results, path_of, shown, size_of
from pipeline.summary import aligned
from pipeline.variant import IMAGENET_RESOLUTION, PRECISIONS, Variant

ALPHAS = (1.0, 0.75, 0.5, 0.25)
RHOS = (1.0, 6 / 7, 5 / 7, 4 / 7)

MeasurePoint = Callable[[Variant, str], Measurement]
"""Measures a variant at a precision on the device: exports the file if there is none, and runs it."""


def grid(model: str) -> tuple[Variant, ...]:
    """The sixteen variants of V1's figure 4, widest and largest first. AlpharhoError for an unknown model."""
    return tuple(Variant.of(model, alpha, rho, IMAGENET_RESOLUTION) for alpha in ALPHAS for rho in RHOS)


def measure_grid(model: str, device: str, build: Path, measure: MeasurePoint) -> None:
    """Measure the points of the grid that have no valid measurement of their present file, and save each.

    `measure(variant, precision)` gives the measurement of `build/<variant>/<precision>.tflite`; one
    that is invalid is kept too, and measured again next time.
    """
    points = [(variant, precision) for precision in PRECISIONS for variant in grid(model)]
    for variant, precision in tqdm(points, desc=f"{model} on {device}", unit="file", disable=None):
        path = path_of(build, device, variant, precision)
        if not _is_current(path, build / variant.name / f"{precision}.tflite"):
            save(measure(variant, precision), path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `curves`."""
    parser.add_argument("model", nargs="?", choices=tuple(MODELS), default="v1", help="network (%(default)s)")
    parser.add_argument(
        "--device",
        default="",
        help="where to measure what is missing: host, ssh://..., adb, emulated:... (all that is recorded)",
    )
    parser.add_argument("--recorded", action="store_true", help="measure nothing, fit what there is")
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
    """The verb `curves`: measures what is missing on the device, prints every curve, and fails on a break.

    `measure` stands in for the device.
    """
    if not arguments.tolerance > 0:
        raise UsageError(f"tolerance is {arguments.tolerance:g}; give a share above 0 such as 0.08")
    if arguments.published:
        return _published(arguments)
    if arguments.device and not arguments.recorded:
        device, build = arguments.device, arguments.build
        point = measure or measure_point(device, default_spec(device), build)
        measure_grid(arguments.model, device, build, point)
    found = [curve for curve in _recorded(arguments) if curve.model == arguments.model]
    if not found:
        raise CheckError(
            f"{arguments.build / 'bench'}: no valid result of {arguments.model} on "
            f"{arguments.device or 'any device'}; measure first, with 'make curves'"
        )
    return _checked(found, arguments.tolerance)


def published_ladders() -> tuple[Curve, ...]:
    """The published times of the sixteen V1 models, with what each model costs."""
    return curves.published(
        lambda alpha, resolution: size_of(Variant("v1", alpha, resolution), curves.PUBLISHED_CLASSES)
    )


def describe(curve: Curve, fitted: Fit) -> str:
    """The law with its coefficients, and a table of every point with what the law says."""
    rows = [("variant", "M Mult-Adds", str(curve.unit), "interval", f"law {curve.unit}", "law is off")]
    rows += [
        (
            point.variant,
            f"{point.size.macs / 1e6:.1f}",
            shown(point.value),
            f"{shown(point.low)} - {shown(point.high)}",
            shown(fitted.predict(point.size)),
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
    return tuple(curves_of(load_results(arguments.build, arguments.device)).values())


def _checked(found: Iterable[Curve], tolerance: float) -> int:
    broken: list[str] = []
    for curve in found:
        fitted = fit(curve)
        print(describe(curve, fitted), end="\n\n")
        broken += curves.breaks(curve, fitted, tolerance)
    return _verdict(broken)


def _verdict(broken: Sequence[str]) -> int:
    if not broken:
        return 0
    print(*broken, sep="\n")
    others = f"; {len(broken) - 1} more above" if broken[1:] else ""
    raise CheckError(f"{broken[0]}{others}")


def _published(arguments: argparse.Namespace) -> int:
    ladders = published_ladders()
    fits = [fit(ladder) for ladder in ladders]
    print(_ladder_table(ladders, fits))
    broken = [
        line
        for ladder, fitted in zip(ladders, fits, strict=True)
        for line in _unexplained(ladder, fitted, arguments.tolerance)
    ]
    if arguments.device:
        broken += _compared(_counts(arguments), ladders)
    return _verdict(broken)


def _ladder_table(ladders: Sequence[Curve], fits: Sequence[Fit]) -> str:
    header = ("ladder", "law", "R²", "worst point", "left out", "three-term R²", "worst point")
    rows = []
    for ladder, fitted in zip(ladders, fits, strict=True):
        plain = fit_law(ladder, "three-term")
        rows.append((ladder.title, fitted.law, *_figures(fitted), f"{fitted.band:.1%}", *_figures(plain)))
    return aligned([header, *rows])


def _figures(fitted: Fit) -> tuple[str, str]:
    return f"{fitted.r_squared:.5f}", f"{fitted.worst:.1%}"


def _unexplained(ladder: Curve, fitted: Fit, tolerance: float) -> Iterator[str]:
    if fitted.r_squared < curves.PUBLISHED_R_SQUARED:
        yield f"{ladder.title}: R² is {fitted.r_squared:.5f}, expected {curves.PUBLISHED_R_SQUARED} or more"
    yield from curves.breaks(ladder, fitted, tolerance)


def _counts(arguments: argparse.Namespace) -> tuple[Curve, ...]:
    found = tuple(
        curve for curve in _recorded(arguments) if curve.unit is Unit.INSTRUCTIONS and curve.model == "v1"
    )
    if not found:
        raise CheckError(
            f"{arguments.build / 'bench'}: no valid instruction count of v1 on {arguments.device}; "
            "count first, with 'make curves MODEL=v1 DEVICE=emulated:cortex-a72'"
        )
    return found


def _compared(counts: Sequence[Curve], ladders: Sequence[Curve]) -> list[str]:
    """Prints how the counts follow the ladders of their precision; a line for each pair that does not."""
    rows, lines = [("instructions against published times", "Spearman", "log-log R²")], []
    for count, ladder in product(counts, ladders):
        if count.precision != ladder.precision:
            continue
        pair, found = f"{count.title} against {ladder.title}", curves.agreement(count, ladder)
        rows.append((pair, f"{found.spearman:.4f}", f"{found.r_squared:.4f}"))
        if min(found.spearman, found.r_squared) < curves.AGREEMENT_LEAST:
            lines.append(
                f"{pair}: Spearman {found.spearman:.4f}, log-log R² {found.r_squared:.4f}, "
                f"expected {curves.AGREEMENT_LEAST} or more"
            )
    print(f"\n{aligned(rows)}")
    return lines
