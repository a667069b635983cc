"""docs/compare.md: three tables of what has been measured, and the targets they reach or miss."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from device_bench.statistics import EFFECT_FLOOR
from pipeline.machine import parse_cpuinfo
from pipeline.measures import Quality
from pipeline.peers import accuracy, conversion, cost
from pipeline.peers.conversion import MAKERS, NETWORKS, OURS, Conversion
from pipeline.peers.cost import CORES, COUNTED_OPS, FILED, Cost, Latency
from pipeline.peers.page import markdown_table
from pipeline.summary import aligned
from pipeline.variant import PRECISIONS

CONVERSION_FACTOR = 10.0
COUNT_TOLERANCE = 0.002  # processes that count differ by less
COST_RATIO, HALF_RATIO, V3_RATIO = 1.00, 0.60, 0.50
PEERS = tuple(maker for maker in FILED if MAKERS[maker].is_peer)


@dataclass(frozen=True, slots=True)
class Target:
    """Something to reach, what was found, and whether that is enough."""

    what: str
    found: str
    verdict: str  # reached, missed or inconclusive


def page(folder: Path) -> tuple[str, str]:
    """The Markdown page of the results in `folder`, and its targets as text for a terminal."""
    targets = [*conversion_targets(folder), *cost_targets(folder)]
    costly = {model: _cost_rows(model, folder) for model in NETWORKS}
    rows = [("target", "found", ""), *((target.what, target.found, target.verdict) for target in targets)]
    parts = [
        HEAD.format(machine=_machine()),
        "## Targets",
        markdown_table(rows),
        CONVERSION_HEAD,
        markdown_table(_conversion_rows(folder)),
        COST_HEAD,
        *(f"### {model}\n\n{markdown_table(found)}" for model, found in costly.items() if len(found) > 1),
        ACCURACY_HEAD,
        markdown_table(_accuracy_rows(folder)),
    ]
    return "\n\n".join(parts) + "\n", aligned(rows)


# --- conversion ---------------------------------------------------------------------------------------------


def from_module(found: Conversion, folder: Path) -> tuple[float, float] | None:
    """Seconds of wall time and of processors from the module to float32 and int8.

    Our export to ONNX is part of it where a maker starts from that.
    """
    exported = conversion.recorded(found.model, OURS, folder) if _starts_from_onnx(found) else found
    if found.refused or exported is None:
        return None
    return exported.onnx_seconds + found.seconds, exported.onnx_cpu_seconds + found.cpu_seconds


def _starts_from_onnx(found: Conversion) -> bool:
    return MAKERS[found.maker].starts_from_onnx


def conversion_targets(folder: Path) -> Iterator[Target]:
    """How many times faster than the fastest peer, for every network that both have converted."""
    for model in NETWORKS:
        records = [conversion.recorded(model, maker, folder) for maker in (OURS, *PEERS)]
        ours, *peers = (record and from_module(record, folder) for record in records)
        timed = [spent for spent in peers if spent]
        if not ours or not timed:
            continue
        factor, cpu_factor = (min(theirs[i] for theirs in timed) / ours[i] for i in range(2))
        what = f"{model}: conversion at least {CONVERSION_FACTOR:g} times faster than the fastest peer"
        found = f"{factor:.1f} times ({cpu_factor:.1f} in processor time)"
        yield Target(what, found, "reached" if factor >= CONVERSION_FACTOR else "missed")


def _conversion_rows(folder: Path) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [CONVERSION_COLUMNS]
    for model, maker in product(NETWORKS, MAKERS):
        found = conversion.recorded(model, maker, folder)
        if found is None:
            continue
        if found.refused:
            rows.append((model, MAKERS[maker].shown, f"refused: {found.refused}", *[""] * 5))
            continue
        spent = from_module(found, folder)
        rows.append(
            (
                model,
                f"{MAKERS[maker].shown} ({_versions(found.versions)})",
                *(("", "") if spent is None else (f"{seconds:.1f}" for seconds in spent)),
                f"{found.process_seconds:.1f}",
                f"{found.peak_bytes / 1e6:,.0f}",
                *(f"{found.sizes[precision] / 1000:,.0f}" for precision in ("float32", "int8")),
            )
        )
    return rows


def _versions(versions: object) -> str:
    assert isinstance(versions, dict)
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# --- cost ---------------------------------------------------------------------------------------------------


@cache
def _cost(model: str, maker: str, precision: str, folder: Path) -> Cost:
    return cost.costs(model, maker, precision, folder)


def cost_targets(folder: Path) -> Iterator[Target]:
    """Ours against the best peer in every cell that was measured for both."""
    for precision, model in product(PRECISIONS, NETWORKS):
        for core in CORES:
            yield from _instruction_targets(model, precision, core, folder)
        yield from _latency_targets(model, precision, folder)


def _instruction_targets(model: str, precision: str, core: str, folder: Path) -> Iterator[Target]:
    counts = {maker: _cost(model, maker, precision, folder).instructions.get(core) for maker in FILED}
    ours = counts.pop(OURS)
    peers = [count.millions for count in counts.values() if count is not None]
    if ours is None or not peers:
        return
    ratio = ours.millions / min(peers)
    wanted = HALF_RATIO if (precision, core) == ("float16", "cortex-a76") else COST_RATIO
    what = f"{model} {precision}: instructions on {core} at most {wanted:.2f} of the best peer's"
    yield Target(
        what,
        f"{ratio:.3f} of {len(peers)} peers",
        "reached" if ratio <= wanted + COUNT_TOLERANCE else "missed",
    )


def _latency_targets(model: str, precision: str, folder: Path) -> Iterator[Target]:
    found = {maker: _cost(model, maker, precision, folder).latency for maker in PEERS}
    peers = {maker: latency for maker, latency in found.items() if latency is not None}
    if not peers:
        return
    worst = max(peers.values(), key=lambda latency: latency.ratio)
    what = f"{model} {precision}: host latency at most {COST_RATIO:.2f} of the best peer's"
    yield Target(what, _interval(worst), _verdict(worst, COST_RATIO))
    if precision == "int8" and model.startswith("v3") and "litert_torch" in peers:
        theirs = peers["litert_torch"]
        what = f"{model} int8: host latency at most {V3_RATIO:.2f} of litert-quantizer's"
        yield Target(what, _interval(theirs), _verdict(theirs, V3_RATIO))


def _verdict(latency: Latency, wanted: float) -> str:
    """An interval on both sides of the wanted ratio decides nothing; 2 % are no difference."""
    if latency.high <= wanted + EFFECT_FLOOR:
        return "reached"
    return "missed" if latency.low > wanted + EFFECT_FLOOR else "inconclusive"


def _interval(latency: Latency) -> str:
    return f"{latency.ratio:.2f} ({latency.low:.2f} to {latency.high:.2f})"


def _cost_rows(model: str, folder: Path) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [COST_COLUMNS]
    for precision, maker in product(PRECISIONS, FILED):
        found = _cost(model, maker, precision, folder)
        if found.operators is not None:
            rows.append(
                (f"{precision}, {MAKERS[maker].shown}", *_cost_cells(model, maker, precision, folder))
            )
    return rows


def _cost_cells(model: str, maker: str, precision: str, folder: Path) -> list[str]:
    found, ours = (_cost(model, who, precision, folder) for who in (maker, OURS))
    operators, latency = found.operators, found.latency
    assert operators is not None
    cells = [str(operators.total), *(str(operators.counted[op]) for op in COUNTED_OPS)]
    cells += [str(operators.partitions), str(operators.outside)]
    doubt = "?" if latency is not None and latency.doubts else ""
    cells.append("" if latency is None else f"{latency.median_ms:.2f}{doubt}")
    cells.append("" if latency is None or maker == OURS else _interval(latency))
    for core in CORES:
        count, our_count = found.instructions.get(core), ours.instructions.get(core)
        cells.append("" if count is None else f"{count.millions:.2f}")
        shown = count is not None and our_count is not None and maker != OURS
        cells.append(f"{our_count.millions / count.millions:.2f}" if shown and count and our_count else "")
    return cells


# --- accuracy -----------------------------------------------------------------------------------------------


def _accuracy_rows(folder: Path) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [ACCURACY_COLUMNS]
    for number, contender in product(accuracy.SPLITS, accuracy.CONTENDERS):
        found = accuracy.recorded(contender, number, folder)
        if found is None:
            continue
        shown = (str(number), accuracy.CONTENDERS[contender].shown)
        if found.quality is None:
            rows.append((*shown, f"refused: {found.refused}", *[""] * 4))
            continue
        rows.append((*shown, *_quality_cells(found.quality)))
    return rows


def _quality_cells(quality: Quality) -> tuple[str, ...]:
    confident = quality.confident_agreement
    return (
        f"{quality.agreement:.1f}",
        "" if confident is None else f"{confident:.1f} ({quality.confident_crops})",
        f"{quality.top5_overlap:.1f}",
        f"{quality.kl:.3f}",
        f"{quality.sqnr_db:.1f}",
    )


def _machine() -> str:
    names = parse_cpuinfo(Path("/proc/cpuinfo").read_text()).names
    return f"{', '.join(names)}, {os.cpu_count()} CPUs"


CONVERSION_COLUMNS = (
    "network",
    "maker",
    "module to files s",
    "processor s",
    "whole process s",
    "peak MB",
    "float32 kB",
    "int8 kB",
)
COST_COLUMNS = (
    "file",
    "operators",
    *COUNTED_OPS,
    "partitions",
    "outside",
    "host ms",
    "ours / theirs",
    *(column for core in CORES for column in (f"{core} M instructions", "ours / theirs")),
)
ACCURACY_COLUMNS = (
    "split",
    "int8 file by",
    "agreement %",
    "of the confident % (crops)",
    "top-5 overlap %",
    "KL",
    "SQNR dB",
)
HEAD = """# Beside the peers

Made by `make compare`; do not edit. Everything was measured on one machine ({machine}), the peers in
environments of their own with the versions pinned in `pipeline/peers/requirements/`. Empty cells have not
been measured. Ratios are ours over theirs; below 1 is better for us."""
CONVERSION_HEAD = f"""## Conversion

The same module with the same weights, 224 x 224, to float32 and int8 files with
{conversion.CALIBRATION_IMAGES} calibration images; imports and the making of the module are not counted.
TensorFlow starts from the Keras network of the same name with weights of its own. The time of onnx2tf, which
starts from ONNX, has our export to ONNX in it. The whole process has the imports, and float16 too."""
COST_HEAD = """## Cost

The same files. Outside: operators that the delegate of the host's runtime leaves out. Times are medians of
fresh processes, one thread, all makers interleaved, with the 95 % interval of the ratio; a question mark
says that the machine was not quiet. Instructions are of one inference with ai-edge-litert on an emulated
core; they are not times."""
ACCURACY_HEAD = """## Accuracy

MobileNetV2 with torchvision's ImageNet weights, the same 256 calibration crops and 180 test crops of other
photographs; agreement with ONNX Runtime's float32 network."""
