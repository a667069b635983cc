from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_bench import statistics
from device_bench.device import ResultClass
from device_bench.statistics import compare, drift, median_deviation, median_interval, outliers, summarize
from pipeline.artifacts import CheckError
from tests.device_bench.measurements import counted, timed

SAMPLES = st.lists(st.integers(1, 10**12), min_size=1, max_size=40).map(
    lambda values: np.array(values, float)
)


def test_known_values() -> None:
    summary = summarize(timed([[1_000_000, 2_000_000, 3_000_000], [4_000_000, 100_000_000]]))
    assert (summary.processes, summary.samples, summary.median_ms) == (2, 5, 3.0)
    assert (summary.mad_ms, summary.min_ms, summary.mean_ms) == (1.0, 1.0, 22.0)
    assert summary.outliers == 1  # 100: the quartiles are 2 and 4
    assert summary.drift is None and summary.p90_ms is None and summary.p99_ms is None


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(35, False, False), (36, True, False), (367, True, False), (368, True, True)]
)
def test_percentiles_only_with_samples_that_back_them(count: int, p90: bool, p99: bool) -> None:
    summary = summarize(timed([range(1, count + 1)]))
    assert (summary.p90_ms is not None, summary.p99_ms is not None) == (p90, p99)


def test_percentiles_against_numpy() -> None:
    samples = [1_000_000 * value for value in range(1, 402)]
    summary = summarize(timed([samples]))
    assert summary.p90_ms == pytest.approx(361.0)
    assert summary.p99_ms == pytest.approx(397.0)


def test_medians_of_many_runs_give_no_percentile() -> None:
    made = timed([range(1, 500)])
    made = replace(made, processes=(replace(made.processes[0], runs_per_sample=50),))
    assert summarize(made).p90_ms is None


@given(SAMPLES)
def test_deviation_and_outliers_are_within_their_bounds(samples: statistics.Samples) -> None:
    assert 0 <= median_deviation(samples) <= samples.max() - samples.min()
    assert outliers(samples) <= len(samples) // 2


@given(SAMPLES, st.floats(0.1, 10))
def test_outliers_do_not_depend_on_the_unit(samples: statistics.Samples, scale: float) -> None:
    assert outliers(samples * 2) == outliers(samples)
    assert median_deviation(samples * scale) == pytest.approx(scale * median_deviation(samples))


def test_drift_compares_the_thirds() -> None:
    assert drift(np.array([10.0, 10, 11, 11, 12, 12])) == 1.2
    assert drift(np.ones(5)) is None
    assert drift(np.ones(6)) == 1.0


@settings(deadline=None, max_examples=20)
@given(st.lists(SAMPLES, min_size=1, max_size=5))
def test_the_interval_is_seeded_and_within_the_samples(groups: list[statistics.Samples]) -> None:
    low, high = median_interval(groups, draws=200)
    pooled = np.concatenate(groups)
    assert pooled.min() <= low <= high <= pooled.max()
    assert (low, high) == median_interval(groups, draws=200)


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    """Processes that differ by 3 %, samples by 1 %: ignoring processes would hold it rarely."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        groups = [rng.normal(100 * rng.normal(1, 0.03), 1, 40) for _ in range(8)]
        low, high = median_interval(groups, draws=200, seed=seed)
        held += low <= 100 <= high
    assert held >= 80


def test_differences_between_processes_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    alike = [rng.normal(100, 1, 50) for _ in range(5)]
    shifted = [group + 5 * number for number, group in enumerate(alike)]
    widths = [high - low for low, high in (median_interval(groups, draws=300) for groups in (alike, shifted))]
    assert widths[1] > 5 * widths[0]


def test_the_resampled_medians_are_those_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    groups = [rng.lognormal(3, 0.3, size) * (1 + 0.05 * size) for size in (9, 20, 33)]
    chosen = rng.integers(3, size=(4000, 3))
    plain = [
        np.median(np.concatenate([rng.choice(groups[k], len(groups[k])) for k in row])) for row in chosen
    ]
    found = statistics._resampled_medians(groups, chosen, rng)
    marks = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(found, marks), np.quantile(plain, marks), rtol=0.03)


def _noisy(seed: int, level: float) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[int(value) for value in rng.normal(level, 0.01 * level, 40)] for _ in range(6)]


def test_a_faster_model_is_called_faster() -> None:
    found = compare(timed(_noisy(1, 5e6)), timed(_noisy(2, 4e6)))
    assert found.low < found.ratio < found.high and found.ratio == pytest.approx(0.8, abs=0.01)
    assert (found.blocks, found.verdict) == (6, "faster")
    assert compare(timed(_noisy(2, 4e6)), timed(_noisy(1, 5e6))).verdict == "slower"


@pytest.mark.parametrize("level", [5e6, 5.05e6], ids=["the same", "one percent"])
def test_small_differences_are_not_called_any(level: float) -> None:
    assert compare(timed(_noisy(1, 5e6)), timed(_noisy(2, level))).verdict == "no difference shown"


def test_block_effects_cancel() -> None:
    """The machine slows down threefold over the run; the ratio within each block stays."""
    a = [[int(value * (1 + block)) for value in group] for block, group in enumerate(_noisy(1, 5e6))]
    b = [[int(value * (1 + block)) for value in group] for block, group in enumerate(_noisy(2, 4e6))]
    assert compare(timed(a), timed(b)).verdict == "faster"


def test_what_is_not_comparable_is_refused() -> None:
    made = timed([[1], [2]])
    with pytest.raises(CheckError, match="invalid"):
        compare(made, made.marked(ResultClass.INVALID, "too hot"))
    with pytest.raises(CheckError, match="another device"):
        compare(made, replace(made, device=replace(made.device, name="adb")))
    with pytest.raises(CheckError, match="another spec"):
        compare(made, timed([[1]]))
    with pytest.raises(CheckError, match="2 and 1 processes"):
        compare(made, replace(made, processes=made.processes[:1]))


def test_counts_are_never_times() -> None:
    with pytest.raises(CheckError, match="instruction counts are not times"):
        summarize(counted(10, 10))
    with pytest.raises(CheckError, match="instruction counts are not times"):
        compare(counted(10, 10), counted(12, 12))


def test_nothing_measured_is_said() -> None:
    with pytest.raises(CheckError, match=r"no samples \(timeout\)"):
        summarize(timed([]).marked(ResultClass.TIMEOUT))


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([10_000_000] * 9 + [30_000_000], ("standard deviation", "slowest")),
        ([10_000_000] * 9 + [2_000_000], ("standard deviation", "fastest")),
        ([500_000] * 10, ("below 1 ms",)),
        ([10_000_000, 10_100_000], ()),
    ],
)
def test_warnings(samples: list[int], said: tuple[str, ...]) -> None:
    warnings = summarize(timed([samples])).warnings
    assert len(warnings) == len(said)
    assert all(word in text for word, text in zip(said, warnings, strict=True))
