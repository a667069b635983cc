"""One or several models on one device: interleaved runs, one judgement, partial results kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from device_bench.device import BenchSpec, Device, DeviceError, Measurement, ResultClass, as_device_error
from device_bench.statistics import DRIFT_LIMIT, drift

MIN_PROCESSES = 5
MIN_COUNTS = 2
COUNT_TOLERANCE = 0.005  # of repeated instruction counts

# vcgencmd get_throttled: these bits say what is so now, the same ones shifted by 16 what was so since boot.
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def measure(device: Device, models: Sequence[Path], spec: BenchSpec) -> tuple[Measurement, ...]:
    """Measure every model on a connected device, judged, in the order given.

    Several models are interleaved by process in ABBA order, so that process i of each is one block for
    `statistics.compare`. Raises DeviceError; its `partials` are the measurements that were cut short.
    """
    if len(models) == 1:
        return (judged(device.run(models[0], spec)),)
    parts: list[list[Measurement]] = [[] for _ in models]
    try:
        for index in _interleaved(len(models), spec.processes):
            parts[index].append(device.run(models[index], replace(spec, processes=1)))
    except (DeviceError, KeyboardInterrupt) as error:
        failure = as_device_error(error)
        failure.partials = _cut_short(parts, spec, failure)
        raise failure from error.__cause__
    return tuple(judged(merged(runs, spec)) for runs in parts)


def _cut_short(
    parts: Sequence[Sequence[Measurement]], spec: BenchSpec, failure: DeviceError
) -> tuple[Measurement, ...]:
    """What there is of every model that ran at all, marked with why there is no more."""
    return tuple(
        merged(runs, spec).marked(
            failure.result, f"{len(runs)} of {spec.processes} processes: {failure.found}"
        )
        for runs in parts
        if runs
    )


def _interleaved(models: int, blocks: int) -> Iterator[int]:
    for block in range(blocks):
        yield from range(models) if block % 2 == 0 else reversed(range(models))


def merged(parts: Sequence[Measurement], spec: BenchSpec) -> Measurement:
    """One measurement of several runs of the same file, with the spec that asked for them all."""
    first, last = parts[0], parts[-1]
    assert all(part.model == first.model for part in parts)
    worst = next((part.result for part in parts if not part.valid), first.result)
    return replace(
        first,
        result=worst,
        reasons=tuple(dict.fromkeys(reason for part in parts for reason in part.reasons)),
        spec=replace(first.spec, processes=spec.processes),
        processes=tuple(process for part in parts for process in part.processes),
        counts=tuple(count for part in parts for count in part.counts),
        after=last.after,
    )


def judged(measurement: Measurement) -> Measurement:
    """The measurement, marked invalid when something makes its samples untrustworthy."""
    reasons = [reason for rule in RULES for reason in rule(measurement)]
    return measurement.marked(ResultClass.INVALID, *reasons) if reasons else measurement


def _too_few(measurement: Measurement) -> Iterator[str]:
    """A process samples where memory fell this time; five are the least that say how much that matters."""
    if measurement.emulated and len(measurement.counts) < MIN_COUNTS:
        yield f"counted {len(measurement.counts)} times, at least {MIN_COUNTS} are needed"
    if not measurement.emulated and len(measurement.processes) < MIN_PROCESSES:
        yield f"{len(measurement.processes)} processes, at least {MIN_PROCESSES} are needed"


def _unsteady(measurement: Measurement) -> Iterator[str]:
    for number, process in enumerate(measurement.processes, start=1):
        if not process.steady:
            yield f"process {number} had no steady pace after {len(process.warm_up_ns)} runs of warm-up"


def _drifting(measurement: Measurement) -> Iterator[str]:
    samples = [sample for process in measurement.processes for sample in process.samples_ns]
    change = drift(np.array(samples, np.float64))
    if change is not None and change > DRIFT_LIMIT:
        yield f"drift: the last third ran {100 * (change - 1):.0f} % slower than the first"


def _throttled(measurement: Measurement) -> Iterator[str]:
    before, after = measurement.before, measurement.after
    flags_before, flags_after = before.throttle_flags or 0, after.throttle_flags or 0
    for bit, name in THROTTLE_BITS.items():
        newly = (flags_after & ~flags_before) >> (16 + bit) & 1
        if (flags_before | flags_after) >> bit & 1 or newly:
            yield f"{name} (throttled=0x{flags_before:x} before, 0x{flags_after:x} after)"
    status = max(before.thermal_status or 0, after.thermal_status or 0)
    if status:
        yield f"thermal status {status} of 6"
    limits = zip(before.frequency_limits_khz, after.frequency_limits_khz, strict=False)
    for core, (limit_before, limit_after) in enumerate(limits):
        if limit_after < limit_before:
            yield f"CPU {core} was capped from {limit_before // 1000} to {limit_after // 1000} MHz"


def _rebooted(measurement: Measurement) -> Iterator[str]:
    if measurement.before.boot_id != measurement.after.boot_id:
        yield "the device rebooted during the run"


def _unrepeatable(measurement: Measurement) -> Iterator[str]:
    counts = [count.per_inference for count in measurement.counts]
    if counts and max(counts) - min(counts) > COUNT_TOLERANCE * min(counts):
        shown = ", ".join(f"{count:.0f}" for count in counts)
        yield f"instruction counts differ by more than {100 * COUNT_TOLERANCE:.1f} %: {shown}"


RULES: tuple[Callable[[Measurement], Iterator[str]], ...] = (
    _too_few,
    _unsteady,
    _drifting,
    _throttled,
    _rebooted,
    _unrepeatable,
)
