"""The alpha/rho law on the published ladders, and on costs that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_bench import curves
from device_bench.curves import Curve, GridPoint, Size, Unit, agreement, breaks, fit, fit_law
from models.cost import cost_of
from pipeline.artifacts import CheckError

GRID = [(alpha, resolution) for alpha in (1.0, 0.75, 0.5, 0.25) for resolution in (224, 192, 160, 128)]


def size_of(alpha: float, resolution: int) -> Size:
    cost = cost_of("v1", alpha, resolution, curves.PUBLISHED_CLASSES)
    by_term = cost.macs_by_term()
    terms = {
        "overhead": 1.0,
        "pixels": resolution**2 / 1e6,
        "linear": by_term["linear"] / 1e6,
        "quadratic": by_term["quadratic"] / 1e6,
        "weights": cost.weight_params / 1e6,
    }
    return Size(terms=terms, macs=cost.macs)


SIZES = {point: size_of(*point) for point in GRID}
LADDERS = curves.published(lambda alpha, resolution: SIZES[alpha, resolution])


def curve_of(values: Sequence[float], unit: Unit = Unit.MILLISECONDS, noise: float = 0.0) -> Curve:
    """The V1 grid with these values, whose intervals are `noise` times the value wide to either side."""
    points = tuple(
        GridPoint(
            variant=f"v1_{alpha:.2f}_{resolution}",
            alpha=alpha,
            resolution=resolution,
            size=SIZES[alpha, resolution],
            value=value,
            low=value * (1 - noise),
            high=value * (1 + noise),
        )
        for (alpha, resolution), value in zip(GRID, values, strict=True)
    )
    return Curve(model="v1", device="d", precision="int8", conditions="1 thread", unit=unit, points=points)


def costs(coefficients: dict[str, float]) -> list[float]:
    return [sum(c * SIZES[point].terms[term] for term, c in coefficients.items()) for point in GRID]


LAWFUL = costs({"overhead": 0.4, "linear": 0.8, "quadratic": 0.2})


# --- The published ladders ----------------------------------------------------------------------------------


def test_there_are_four_published_ladders_of_sixteen() -> None:
    assert [(ladder.device, ladder.precision, len(ladder.points)) for ladder in LADDERS] == [
        ("Pixel 2", "float32", 16),
        ("Pixel 2", "int8", 16),
        ("Pixel 3", "float32", 16),
        ("Pixel 3", "int8", 16),
    ]


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder.title)
def test_the_law_explains_the_published_times(ladder: Curve) -> None:
    fitted = fit(ladder)
    assert fitted.r_squared >= curves.PUBLISHED_R_SQUARED
    assert fitted.worst <= curves.TOLERANCE
    assert not breaks(ladder, fitted)


# The figures known to be reachable for c0 + c1 alpha rho^2 + c2 alpha^2 rho^2 alone.
@pytest.mark.parametrize(("ladder", "worst"), [*zip(LADDERS, (0.070, 0.046, 0.070, 0.076), strict=True)])
def test_the_three_term_law_leaves_what_is_known_of_it(ladder: Curve, worst: float) -> None:
    assert fit_law(ladder, "three-term").worst == pytest.approx(worst, abs=5e-4)


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder.title)
def test_pixels_and_weights_pay_for_themselves_on_points_left_out(ladder: Curve) -> None:
    assert fit_law(ladder, "four-term").spread < 0.75 * fit_law(ladder, "three-term").spread


# --- The fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", curves.LAWS)
def test_coefficients_are_found_again(law: str) -> None:
    truth = dict(zip(curves.LAWS[law], (0.4, 0.9, 0.2, 3.0, 1.1), strict=False))
    fitted = fit_law(curve_of(costs(truth)), law)
    assert fitted.coefficients == pytest.approx(truth, rel=1e-6)
    assert fitted.r_squared == pytest.approx(1)
    assert fitted.band < 1e-6


def test_a_law_predicts_a_variant_that_was_not_measured() -> None:
    size = size_of(0.35, 96)
    expected = 0.4 + 0.8 * size.terms["linear"] + 0.2 * size.terms["quadratic"]
    assert fit(curve_of(LAWFUL)).predict(size) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=16, max_size=16), st.sampled_from(sorted(curves.LAWS)))
def test_no_coefficients_at_or_above_0_fit_better(factors: list[float], law: str) -> None:
    """The conditions of Karush, Kuhn and Tucker, which only the optimum meets."""
    curve = curve_of([value * factor for value, factor in zip(LAWFUL, factors, strict=True)])
    fitted = fit_law(curve, law)
    found = np.array(list(fitted.coefficients.values()))
    assert (found >= 0).all()
    matrix = np.array([[p.size.terms[term] / p.value for term in curves.LAWS[law]] for p in curve.points])
    matrix /= np.linalg.norm(matrix, axis=0)
    gradient = matrix.T @ np.array(fitted.residuals)
    assert (gradient > -1e-8).all()
    assert abs(gradient[found > 0]).max() < 1e-8


@settings(max_examples=5, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_the_unit_of_time_changes_no_residual(scale: float) -> None:
    noisy = [value * (1 + 0.03 * (-1) ** i) for i, value in enumerate(LAWFUL)]
    assert fit(curve_of([value * scale for value in noisy])).residuals == pytest.approx(
        fit(curve_of(noisy)).residuals, abs=1e-9
    )


def test_too_few_points_are_refused() -> None:
    curve = curve_of(LAWFUL)
    with pytest.raises(CheckError, match=r"4 valid points, the law needs 5"):
        fit(replace(curve, points=curve.points[:4]))
    assert fit(replace(curve, points=curve.points[:5])).law == "three-term"


def test_one_resolution_alone_can_be_fitted() -> None:
    curve = curve_of(LAWFUL)
    doubled = tuple(replace(p, variant=f"{p.variant}b") for p in curve.points[::4])
    fitted = fit(replace(curve, points=(*curve.points[::4], *doubled)))
    assert fitted.worst < 1e-6


# --- The checks ---------------------------------------------------------------------------------------------


def test_a_lawful_curve_breaks_nothing() -> None:
    curve = curve_of(LAWFUL)
    assert breaks(curve, fit(curve)) == ()


def test_a_point_off_the_law_is_named_first() -> None:
    values = list(LAWFUL)
    values[5] *= 1.3
    curve = curve_of(values)
    first = breaks(curve, fit(curve))[0]
    assert first.startswith("v1 int8 on d, 1 thread: v1_0.75_192 is off the law by more than 8.0%")
    assert f"measured {values[5]:.4g} ms" in first


def test_a_bigger_network_that_is_faster_is_named() -> None:
    values = list(LAWFUL)
    values[0] = values[1] * 0.99
    curve = curve_of(values)
    found = breaks(curve, fit(curve), tolerance=10)
    assert len(found) == 1
    assert "v1_1.00_224 is faster than the smaller v1_1.00_192 beyond the noise" in found[0]


def test_faster_within_the_noise_is_not_a_break() -> None:
    values = list(LAWFUL)
    values[0] = values[1] * 0.99
    curve = curve_of(values, noise=0.02)
    assert breaks(curve, fit(curve), tolerance=10) == ()


def test_a_wider_network_at_a_lower_resolution_may_be_faster() -> None:
    """1.0-128 has more weights and less pixels than 0.75-192: neither is the bigger one."""
    values = list(LAWFUL)
    assert SIZES[0.75, 192].macs > SIZES[1.0, 128].macs
    values[GRID.index((0.75, 192))] = values[GRID.index((1.0, 128))] * 0.99
    curve = curve_of(values)
    assert not [line for line in breaks(curve, fit(curve), tolerance=10) if "1.00_128" in line]


# --- Counts against times -----------------------------------------------------------------------------------


def test_counts_that_follow_the_times_agree() -> None:
    counts = curve_of([3 * value**1.1 for value in LAWFUL], Unit.INSTRUCTIONS)
    found = agreement(counts, curve_of(LAWFUL))
    assert found.points == 16
    assert [found.spearman, found.r_squared] == pytest.approx([1, 1])


def test_agreement_is_by_rank_and_by_logarithm() -> None:
    """Against hand-worked values: 1, 2, 3 against 1, 100, 10 have a rank correlation of 1/2."""
    small = replace(curve_of(LAWFUL), points=curve_of(LAWFUL).points[:3])
    times = replace(
        small, points=tuple(replace(p, value=v) for p, v in zip(small.points, (1, 2, 3), strict=True))
    )
    values = zip(small.points, (1, 100, 10), strict=True)
    counts = replace(small, unit=Unit.INSTRUCTIONS, points=tuple(replace(p, value=v) for p, v in values))
    found = agreement(counts, times)
    assert found.spearman == pytest.approx(0.5)
    assert found.r_squared == pytest.approx(
        np.corrcoef(np.log10([1, 100, 10]), np.log10([1, 2, 3]))[0, 1] ** 2
    )


def test_equal_values_share_a_rank() -> None:
    """Ranks 0.5, 0.5, 2 against 0, 1, 2: sqrt(3)/2."""
    small = replace(curve_of(LAWFUL), points=curve_of(LAWFUL).points[:3])
    times = replace(
        small, points=tuple(replace(p, value=v) for p, v in zip(small.points, (5, 5, 9), strict=True))
    )
    values = zip(small.points, (1, 2, 3), strict=True)
    counts = replace(small, unit=Unit.INSTRUCTIONS, points=tuple(replace(p, value=v) for p, v in values))
    assert agreement(counts, times).spearman == pytest.approx(3**0.5 / 2)


def test_a_missing_count_is_named() -> None:
    counts = curve_of(LAWFUL, Unit.INSTRUCTIONS)
    with pytest.raises(CheckError, match=r"no valid count of v1_1.00_224, v1_1.00_192; all 16 are needed"):
        agreement(replace(counts, points=counts.points[2:]), curve_of(LAWFUL))


def test_times_do_not_pass_for_counts() -> None:
    with pytest.raises(AssertionError):
        agreement(curve_of(LAWFUL), curve_of(LAWFUL))
