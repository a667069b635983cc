"""What CI holds instruction counts to: `baselines/instructions.json`, by variant, precision and core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from device_bench.device import Measurement
from device_bench.records import from_plain, read_json, to_plain, write_json
from pipeline.artifacts import CheckError

TOLERANCE = 0.02  # a count may rise by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Instructions of one inference by `<variant>.<precision>.<core>`, counted with one runtime version."""

    runtime: str
    instructions: Mapping[str, int] = field(default_factory=dict)


def key(variant: str, precision: str, measurement: Measurement) -> str:
    """The baseline's key of a measurement: `v1_0.25_128.int8.cortex-a76`."""
    return f"{variant}.{precision}.{measurement.device.model}"


def instructions(measurement: Measurement) -> int:
    """Instructions of one inference, the median of the counts. Raises CheckError unless counted and valid."""
    if not measurement.emulated or not measurement.valid:
        reasons = "; ".join(measurement.reasons) or "not an instruction count"
        raise CheckError(
            f"{measurement.model.name}: {measurement.result} ({reasons}); count it on an emulated core"
        )
    return round(median(count.per_inference for count in measurement.counts))


def baseline_of(measurements: Mapping[str, Measurement]) -> Baseline:
    """The baseline that these measurements by key make. Raises CheckError when their runtimes differ."""
    runtimes = sorted({f"{m.runtime.name} {m.runtime.version}" for m in measurements.values()})
    if len(runtimes) != 1:
        raise CheckError(f"counted with {', '.join(runtimes) or 'nothing'}; count all with one runtime")
    return Baseline(
        runtime=runtimes[0], instructions={name: instructions(m) for name, m in measurements.items()}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key before and after; None where it is not there."""

    key: str
    before: int | None
    after: int | None

    @property
    def ratio(self) -> float | None:
        """After over before."""
        return self.after / self.before if self.after is not None and self.before else None

    @property
    def text(self) -> str:
        """`v1_0.25_128.int8.cortex-a76: 3,900,000 -> 4,000,000 instructions (+2.56 %)`."""
        if self.before is None:
            return f"{self.key}: new, {self.after:,} instructions"
        if self.after is None:
            return f"{self.key}: no longer counted, was {self.before:,} instructions"
        percent = 100 * (self.after / self.before - 1)
        return f"{self.key}: {self.before:,} -> {self.after:,} instructions ({percent:+.2f} %)"


def changes(before: Baseline, after: Baseline) -> tuple[Change, ...]:
    """Every key whose count differs, by key."""
    keys = sorted(before.instructions.keys() | after.instructions.keys())
    pairs = ((name, before.instructions.get(name), after.instructions.get(name)) for name in keys)
    return tuple(Change(key=name, before=old, after=new) for name, old, new in pairs if old != new)


def check(recorded: Baseline, counted: Baseline, tolerance: float = TOLERANCE) -> None:
    """Raise CheckError naming every counted variant that is not recorded or has risen beyond `tolerance`.

    Recorded keys that were not counted are left alone, so that a part can be checked. Another runtime is
    refused: its kernels are other ones.
    """
    if recorded.runtime != counted.runtime:
        found = f"recorded with {recorded.runtime or 'nothing'}, counted with {counted.runtime}"
        raise CheckError(f"instruction baseline: {found}; run make baseline and look at the change")
    known = changes(recorded, counted)
    bad = [change for change in known if change.after is not None and _worse(change, tolerance)]
    if bad:
        listed = "; ".join(change.text for change in bad)
        raise CheckError(
            f"instruction baseline, +{100 * tolerance:g} % allowed: {listed}; or run make baseline"
        )


def _worse(change: Change, tolerance: float) -> bool:
    return change.ratio is None or change.ratio > 1 + tolerance


def difference(before: Baseline, after: Baseline) -> str:
    """What a rewrite changes, one line a variant, for a person to read; empty when nothing does."""
    lines = [change.text for change in changes(before, after)]
    if before.runtime != after.runtime:
        lines.insert(0, f"runtime: {before.runtime or 'none'} -> {after.runtime}")
    return "\n".join(lines)


def joined(recorded: Baseline, counted: Baseline) -> Baseline:
    """`recorded` with the counted keys put in place. Counts of another runtime are dropped, not mixed in."""
    kept: Iterable[tuple[str, int]] = (
        recorded.instructions.items() if recorded.runtime == counted.runtime else ()
    )
    return Baseline(runtime=counted.runtime, instructions={**dict(kept), **counted.instructions})


def load(path: Path) -> Baseline:
    """The recorded baseline, empty where there is no file. Raises RecordError for a damaged one."""
    return from_plain(Baseline, read_json(path), str(path)) if path.exists() else Baseline(runtime="")


def save(baseline: Baseline, path: Path) -> None:
    """Write the baseline, keys sorted, whole or not at all."""
    write_json(path, to_plain(baseline))
