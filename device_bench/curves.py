"""The alpha/rho law of a network's cost, fitted per device and precision, and what must hold on it.

From Mult-Adds = D_K^2 alpha M rho^2 D_F^2 + alpha M alpha N rho^2 D_F^2 (V1 equation 7) the cost of an
inference is T = c0 + c1 alpha rho^2 + c2 alpha^2 rho^2. The two products are not taken from alpha and rho but
counted layer by layer, with the rounding of channels. Times and instruction counts are never in one fit.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import CheckError

TOLERANCE = 0.08
"""How far a point may lie from the law, as a share of the point."""

PUBLISHED_R_SQUARED = 0.998
PUBLISHED_CLASSES = 1001
PUBLISHED = Path(__file__).parent / "published" / "mobilenet_v1_pixel.csv"
AGREEMENT_LEAST = 0.99
"""Least rank correlation, and least R² on logarithms, of instruction counts with times of the same models."""

Array = NDArray[np.float64]

# Without `pixels` and `weights` the law leaves 5 to 8 % on the published ladders, with them 2 to 4 %.
TERMS: Mapping[str, str] = {
    "overhead": "free of the network: one inference",
    "pixels": "ρ²: input pixels, in millions, which cost the same at every width",
    "linear": "αρ²: Mult-Adds of stem and depthwise layers, in millions",
    "quadratic": "α²ρ²: Mult-Adds of pointwise layers, in millions",
    "weights": "free of ρ: weights, the classifier's among them, in millions, read once an inference",
}

LAWS: Mapping[str, tuple[str, ...]] = {
    "three-term": ("overhead", "linear", "quadratic"),
    "four-term": ("pixels", "linear", "quadratic", "weights"),
    "five-term": ("overhead", "pixels", "linear", "quadratic", "weights"),
}
SPARE_POINTS = 2  # more points than coefficients, or leaving one out says nothing


class Unit(StrEnum):
    """What a curve counts. Curves of different units are never fitted or ranked together."""

    MILLISECONDS = "ms"
    INSTRUCTIONS = "M instructions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a variant costs whatever runs it: a value for every key of TERMS, and the Mult-Adds."""

    terms: Mapping[str, float]
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPoint:
    """One variant on one device: `value` and its interval `low` to `high`, in the unit of its curve."""

    variant: str
    alpha: float
    resolution: int
    size: Size
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points that may be compared: one model, device and precision under the same conditions.

    `device` says which one it was, `conditions` all else that changes the values: threads, CPUs, runtime.
    """

    model: str
    device: str
    precision: str
    conditions: str
    unit: Unit
    points: tuple[GridPoint, ...]

    @property
    def title(self) -> str:
        """`v1 int8 on Pixel 2, 1 thread`."""
        return f"{self.model} {self.precision} on {self.device}, {self.conditions}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law with its coefficients, in the curve's unit per unit of the term, none below 0.

    `residuals` are fitted / measured - 1 in the order of the points; `left_out` the same with each point
    predicted by the fit to all others. `r_squared` weights squares by 1 / measured^2, and the mean too.
    """

    law: str
    coefficients: Mapping[str, float]
    r_squared: float
    residuals: tuple[float, ...]
    left_out: tuple[float, ...]

    @property
    def worst(self) -> float:
        """Largest residual, without its sign."""
        return max(abs(residual) for residual in self.residuals)

    @property
    def band(self) -> float:
        """Share by which a prediction may be off: the largest error on a point left out."""
        return max(abs(residual) for residual in self.left_out)

    @property
    def spread(self) -> float:
        """Root mean square of the errors on points left out."""
        return math.sqrt(sum(residual**2 for residual in self.left_out) / len(self.left_out))

    def predict(self, size: Size) -> float:
        """The law's value for a network of this size, in the curve's unit."""
        return sum(coefficient * size.terms[term] for term, coefficient in self.coefficients.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well one quantity follows another over the same models: by rank, and as a line on logarithms."""

    points: int
    spearman: float
    r_squared: float


def points_needed(law: str = "three-term") -> int:
    """Fewest points that `law` is fitted to."""
    return len(LAWS[law]) + SPARE_POINTS


def fit(curve: Curve) -> Fit:
    """The one of LAWS that predicts left-out points best. CheckError when the curve has too few points."""
    laws = [law for law in LAWS if len(curve.points) >= points_needed(law)]
    if not laws:
        raise CheckError(
            f"{curve.title}: {len(curve.points)} valid points, the law needs {points_needed()}; "
            "measure more of the grid"
        )
    return min((fit_law(curve, law) for law in laws), key=lambda fitted: fitted.spread)


def fit_law(curve: Curve, law: str) -> Fit:
    """Least squares of fitted / measured - 1 over the points, with coefficients >= 0."""
    matrix = np.array([[point.size.terms[term] for term in LAWS[law]] for point in curve.points])
    values = np.array([point.value for point in curve.points])
    coefficients = _coefficients(matrix, values)
    residuals = matrix @ coefficients / values - 1
    return Fit(
        law=law,
        coefficients=dict(zip(LAWS[law], coefficients.tolist(), strict=True)),
        r_squared=_r_squared(residuals, values),
        residuals=tuple(residuals.tolist()),
        left_out=tuple(_left_out(matrix, values)),
    )


def breaks(curve: Curve, fitted: Fit, tolerance: float = TOLERANCE) -> tuple[str, ...]:
    """A line for every point off the law by more than `tolerance`, and for each one faster than a smaller."""
    return (*_off_the_law(curve, fitted, tolerance), *_out_of_order(curve))


def agreement(counts: Curve, times: Curve) -> Agreement:
    """How instruction counts follow the times of the same variants. CheckError for a variant not counted."""
    assert counts.unit is Unit.INSTRUCTIONS and times.unit is Unit.MILLISECONDS
    counted = {point.variant: point.value for point in counts.points}
    missing = [point.variant for point in times.points if point.variant not in counted]
    if missing:
        raise CheckError(
            f"{counts.title}: no valid count of {', '.join(missing)}; all {len(times.points)} are needed, "
            "count them first"
        )
    x = np.array([counted[point.variant] for point in times.points])
    y = np.array([point.value for point in times.points])
    return Agreement(
        points=len(x),
        spearman=_correlation(_ranks(x), _ranks(y)),
        r_squared=_correlation(np.log(x), np.log(y)) ** 2,
    )


def published(size_of: Callable[[float, int], Size]) -> tuple[Curve, ...]:
    """The ladders of `published/`, V1 only; `size_of(alpha, resolution)` with PUBLISHED_CLASSES classes."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Curve(
            model="v1",
            device=device,
            precision=precision,
            conditions=f"{threads} thread{'s' * (threads != '1')}, published",
            unit=Unit.MILLISECONDS,
            points=tuple(_published_point(row, size_of) for row in ladder),
        )
        for (device, precision, threads), ladder in groupby(
            rows, lambda row: (row["device"], row["precision"], row["threads"])
        )
    )


def _published_point(row: Mapping[str, str], size_of: Callable[[float, int], Size]) -> GridPoint:
    alpha, resolution, printed = float(row["alpha"]), int(row["resolution"]), row["latency_ms"]
    rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return GridPoint(
        variant=f"v1_{alpha:.2f}_{resolution}",
        alpha=alpha,
        resolution=resolution,
        size=size_of(alpha, resolution),
        value=float(printed),
        low=float(printed) - rounding,
        high=float(printed) + rounding,
    )


def _coefficients(matrix: Array, values: Array) -> Array:
    """Minimises |matrix c / values - 1| over c >= 0: plain least squares on the support that is best."""
    scale: Array = matrix.max(axis=0)
    relative = matrix / scale / values[:, None]
    best, least = np.zeros(len(scale)), math.inf
    for chosen in _supports(len(scale)):
        part = relative[:, chosen]
        solution, _, rank, _ = np.linalg.lstsq(part, np.ones(len(values)), rcond=None)
        error = float(((part @ solution - 1) ** 2).sum())
        if rank == len(chosen) and (solution >= 0).all() and error < least:
            best, least = np.zeros(len(scale)), error
            best[chosen] = solution
    return best / scale


def _supports(terms: int) -> Iterator[list[int]]:
    for size in range(1, terms + 1):
        yield from map(list, combinations(range(terms), size))


def _left_out(matrix: Array, values: Array) -> Iterator[float]:
    for i in range(len(values)):
        coefficients = _coefficients(np.delete(matrix, i, axis=0), np.delete(values, i))
        yield float(matrix[i] @ coefficients / values[i] - 1)


def _r_squared(residuals: Array, values: Array) -> float:
    weights = values**-2
    mean = (weights * values).sum() / weights.sum()
    total = (weights * (values - mean) ** 2).sum()
    return float(1 - (residuals**2).sum() / total) if total else math.nan


def _off_the_law(curve: Curve, fitted: Fit, tolerance: float) -> Iterator[str]:
    pairs = sorted(zip(fitted.residuals, curve.points, strict=True), key=lambda pair: -abs(pair[0]))
    for residual, point in pairs:
        if abs(residual) > tolerance:
            law = point.value * (1 + residual)
            yield (
                f"{curve.title}: {point.variant} is off the law by more than {tolerance:.1%}: "
                f"law {law:.4g}, measured {point.value:.4g} {curve.unit} ({residual:+.1%})"
            )


def _out_of_order(curve: Curve) -> Iterator[str]:
    for small in curve.points:
        for big in curve.points:
            if _is_bigger(big, small) and big.high < small.low:
                yield (
                    f"{curve.title}: {big.variant} is faster than the smaller {small.variant} beyond the "
                    f"noise: {_interval(big)} against {_interval(small)} {curve.unit}"
                )


def _is_bigger(big: GridPoint, small: GridPoint) -> bool:
    """Whether `big` has more Mult-Adds and less of nothing."""
    terms = zip(big.size.terms.values(), small.size.terms.values(), strict=True)
    return big.size.macs > small.size.macs and all(more >= less for more, less in terms)


def _interval(point: GridPoint) -> str:
    return f"{point.value:.4g} [{point.low:.4g}, {point.high:.4g}]"


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values share the mean of theirs."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def _correlation(x: Array, y: Array) -> float:
    """Pearson's."""
    return float(np.corrcoef(x, y)[0, 1])
