"""What raw samples say: derived when asked, never stored. Samples are counted as outliers, never deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_bench.device import Measurement
from pipeline.artifacts import CheckError

Samples = NDArray[np.float64]  # of one process, ns, in order

DRAWS = 2000
SEED = 20170417  # of the bootstrap: the same samples always give the same interval
CONFIDENCE = 0.95
# The fewest samples for a two-sided 95 % interval of the percentile from order statistics.
SAMPLES_FOR_P90 = 36
SAMPLES_FOR_P99 = 368
SAMPLES_FOR_DRIFT = 6
DRIFT_LIMIT = 1.05
EFFECT_FLOOR = 0.02  # a smaller difference is never called one
NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Times of one inference over all processes; `low_ms` to `high_ms` is the 95 % interval of the median.

    `p90_ms` and `p99_ms` are None without enough samples; `drift` is the median of the last third of the
    samples over that of the first, None below six samples.
    """

    processes: int
    samples: int
    median_ms: float
    low_ms: float
    high_ms: float
    mad_ms: float
    min_ms: float
    mean_ms: float
    p90_ms: float | None
    p99_ms: float | None
    outliers: int
    drift: float | None
    warnings: tuple[str, ...]


def summarize(measurement: Measurement) -> Summary:
    """The statistics of a timed measurement. Raises CheckError for one without times, such as emulated."""
    groups = samples_by_process(measurement)
    pooled = np.concatenate(groups)
    low, high = median_interval(groups)
    # A median of 50 runs says nothing of the slowest single run.
    single_runs = len(pooled) if all(p.runs_per_sample == 1 for p in measurement.processes) else 0
    return Summary(
        processes=len(groups),
        samples=len(pooled),
        median_ms=float(np.median(pooled)) / NS_PER_MS,
        low_ms=low / NS_PER_MS,
        high_ms=high / NS_PER_MS,
        mad_ms=median_deviation(pooled) / NS_PER_MS,
        min_ms=float(pooled.min()) / NS_PER_MS,
        mean_ms=float(pooled.mean()) / NS_PER_MS,
        p90_ms=float(np.quantile(pooled, 0.90)) / NS_PER_MS if single_runs >= SAMPLES_FOR_P90 else None,
        p99_ms=float(np.quantile(pooled, 0.99)) / NS_PER_MS if single_runs >= SAMPLES_FOR_P99 else None,
        outliers=outliers(pooled),
        drift=drift(pooled),
        warnings=_warnings(pooled),
    )


def samples_by_process(measurement: Measurement) -> list[Samples]:
    """The samples, ns, one array a process. Raises CheckError when there are none."""
    if measurement.emulated:
        name = measurement.model.name
        raise CheckError(f"{name}: emulated, instruction counts are not times; measure on a device for times")
    groups = [np.array(process.samples_ns, np.float64) for process in measurement.processes]
    if not groups or not all(len(group) for group in groups):
        raise CheckError(f"{measurement.model.name}: no samples ({measurement.result}); measure again")
    return groups


def median_deviation(samples: Samples) -> float:
    """Median absolute deviation from the median, not scaled."""
    return float(np.median(np.abs(samples - np.median(samples))))


def outliers(samples: Samples) -> int:
    """How many lie more than 1.5 interquartile ranges outside the quartiles."""
    first, third = np.quantile(samples, [0.25, 0.75])
    reach = 1.5 * (third - first)
    return int(np.count_nonzero((samples < first - reach) | (samples > third + reach)))


def drift(samples: Samples) -> float | None:
    """Median of the last third over the median of the first third; None below six samples."""
    third = len(samples) // 3
    if len(samples) < SAMPLES_FOR_DRIFT:
        return None
    return float(np.median(samples[-third:]) / np.median(samples[:third]))


def median_interval(groups: Sequence[Samples], draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """95 % interval of the pooled median by hierarchical bootstrap: processes, then their samples."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(groups), size=(draws, len(groups)))
    return _interval(_resampled_medians(groups, chosen, rng))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Time of B over time of A: the median over blocks, with its 95 % interval. Below 1, B is faster."""

    blocks: int
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`faster` or `slower` of B, unless the interval holds 1 or the effect is below 2 %."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) <= EFFECT_FLOOR:
            return "no difference shown"
        return "faster" if self.ratio < 1 else "slower"


def compare(a: Measurement, b: Measurement) -> Comparison:
    """B against A, both measured interleaved, process i of A and of B being one block.

    Raises CheckError for those not comparable: emulated, invalid, other device, runtime, spec or blocks.
    """
    _refuse_unlike(a, b)
    pairs = list(zip(samples_by_process(a), samples_by_process(b), strict=True))
    ratio, low, high = ratio_interval(pairs)
    return Comparison(blocks=len(pairs), ratio=ratio, low=low, high=high)


def ratio_interval(
    pairs: Sequence[tuple[Samples, Samples]], draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float, float]:
    """Median over blocks of median(B) / median(A), and its 95 % interval by hierarchical bootstrap."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(pairs), size=(draws * len(pairs), 1))
    a, b = (_resampled_medians([pair[side] for pair in pairs], chosen, rng) for side in (0, 1))
    ratios = np.median((b / a).reshape(draws, len(pairs)), axis=1)
    found = float(np.median([np.median(b) / np.median(a) for a, b in pairs]))
    return found, *_interval(ratios)


def _resampled_medians(
    groups: Sequence[Samples], chosen: NDArray[np.int64], rng: np.random.Generator
) -> Samples:
    """For each row of `chosen`, the median of these groups, each drawn anew with replacement, together.

    It is found by halving, without drawing each value: how many of those in a range lie in its lower half is
    binomial. Of an even number of values, one of the two in the middle.
    """
    sizes = np.array([len(group) for group in groups])
    pooled = np.concatenate(groups)
    order = np.argsort(pooled)
    owners = np.repeat(np.arange(len(groups)), sizes)[order]
    below = np.zeros((len(groups), len(pooled) + 1), np.int64)
    np.cumsum(owners == np.arange(len(groups))[:, None], axis=1, out=below[:, 1:])
    inside = sizes[chosen]
    wanted = (inside.sum(1) - rng.integers(2, size=len(chosen))) // 2
    low, high = np.zeros(len(chosen), np.int64), np.full(len(chosen), len(pooled))
    while (high - low > 1).any():
        middle = (low + high) // 2
        first, half, last = (below[chosen, edge[:, None]] for edge in (low, middle, high))
        lower = rng.binomial(inside, (half - first) / np.maximum(last - first, 1))
        count = lower.sum(1)
        down = wanted < count
        low, high = np.where(down, low, middle), np.where(down, middle, high)
        inside = np.where(down[:, None], lower, inside - lower)
        wanted = np.where(down, wanted, wanted - count)
    return np.asarray(pooled[order][low])


def _interval(drawn: Samples) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _refuse_unlike(a: Measurement, b: Measurement) -> None:
    names = f"{a.model.name} and {b.model.name}"
    for measurement in (a, b):
        if not measurement.valid:
            reasons = "; ".join(measurement.reasons)
            raise CheckError(f"{measurement.model.name}: {measurement.result} ({reasons}); measure again")
    unlike = [name for name in ("device", "runtime", "spec") if getattr(a, name) != getattr(b, name)]
    if unlike:
        raise CheckError(f"{names}: measured with another {', '.join(unlike)}; measure both in one bench")
    if len(a.processes) != len(b.processes):
        found = f"{len(a.processes)} and {len(b.processes)} processes"
        raise CheckError(f"{names}: {found}; measure both in one bench")


def _warnings(samples: Samples) -> tuple[str, ...]:
    """What makes a result less certain without making it invalid."""
    mean, spread = samples.mean(), samples.std()
    smallest, largest = samples.min(), samples.max()
    rules = (
        (spread >= 0.1 * mean, f"standard deviation is {100 * spread / mean:.0f} % of the mean"),
        (smallest <= 0.5 * mean, f"the fastest run took {100 * smallest / mean:.0f} % of the mean"),
        (largest >= 1.5 * mean, f"the slowest run took {100 * largest / mean:.0f} % of the mean"),
        (smallest < NS_PER_MS, "runs below 1 ms are at the mercy of timer and scheduler"),
    )
    return tuple(text for applies, text in rules if applies)
