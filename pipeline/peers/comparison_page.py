"""docs/compare.md: three tables of what has been measured, and the targets they reach or miss."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean

from device_bench.statistics import EFFECT_FLOOR
from pipeline.machine import this_processor
from pipeline.markdown import markdown_table
from pipeline.measures import Quality
from pipeline.peers import accuracy, conversion, cost
from pipeline.peers.accuracy import CONTENDERS, Accuracy
from pipeline.peers.conversion import MAKERS, NETWORKS, OURS, Conversion
from pipeline.peers.cost import CORES, COUNTED_OPS, FILED, Cost, Latency
from pipeline.summary import aligned
from pipeline.variant import PRECISIONS

CONVERSION_FACTOR = 10.0
COUNT_TOLERANCE = 0.002  # processes that count differ by less
COST_RATIO, HALF_RATIO, V3_RATIO = 1.00, 0.60, 0.50
PEERS = tuple(maker for maker in FILED if not MAKERS[maker].is_ours)
VERDICTS = ("reached", "missed", "inconclusive")


@dataclass(frozen=True, slots=True)
class Target:
    """Something to reach, what was found, and whether that is enough."""

    what: str
    found: str
    verdict: str  # one of VERDICTS


def page(folder: Path) -> tuple[str, str]:
    """The Markdown page of the results in `folder`, and its targets as text for a terminal."""
    targets = [*conversion_targets(folder), *cost_targets(folder), *accuracy_targets(folder)]
    costly = {model: _cost_rows(model, folder) for model in NETWORKS}
    parts = [
        HEAD.format(machine=f"{this_processor()}, {os.cpu_count()} CPUs", versions=_versions(folder)),
        f"## Targets: {_tally(targets)}",
        markdown_table(TARGET_COLUMNS, [_target_cells(target) for target in targets], (0, 1, 2)),
        CONVERSION_HEAD,
        markdown_table(CONVERSION_COLUMNS, _conversion_rows(folder), (0, 1)),
        COST_HEAD,
        *(f"### {model}\n\n{markdown_table(COST_COLUMNS, rows)}" for model, rows in costly.items() if rows),
        ACCURACY_HEAD.format(confident=_confident_crops(folder)),
        markdown_table(ACCURACY_COLUMNS, _accuracy_rows(folder)),
    ]
    shown = aligned([TARGET_COLUMNS, *((target.what, target.found, target.verdict) for target in targets)])
    return "\n\n".join(parts) + "\n", shown


def _tally(targets: Sequence[Target]) -> str:
    counts = Counter(target.verdict for target in targets)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def _target_cells(target: Target) -> tuple[str, str, str]:
    return (
        target.what,
        target.found,
        f"**{target.verdict}**" if target.verdict == "missed" else target.verdict,
    )


def _aged(text: str, is_current: bool) -> str:
    """Says so where the project's code has changed since."""
    return text if is_current else f"{text} (earlier code)"


def _versions(folder: Path) -> str:
    """A line a maker: what was installed; from its conversions."""
    found = [conversion.recorded(model, maker, folder) for maker, model in product(FILED, NETWORKS)]
    lines = {
        MAKERS[each.maker].shown: ", ".join(f"{name} {version}" for name, version in each.versions.items())
        for each in found
        if each is not None and each.versions
    }
    return "\n".join(f"* {shown}: {versions}" for shown, versions in lines.items())


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
    """How many times faster each recipe is than the fastest peer, for what both have converted."""
    for model, maker in product(NETWORKS, (maker for maker in MAKERS if MAKERS[maker].is_ours)):
        ours = conversion.recorded(model, maker, folder)
        peers = [conversion.recorded(model, peer, folder) for peer in PEERS]
        spent = ours and from_module(ours, folder)
        timed = [theirs for theirs in (peer and from_module(peer, folder) for peer in peers) if theirs]
        if not ours or not spent or not timed:
            continue
        factor, cpu_factor = (min(theirs[i] for theirs in timed) / spent[i] for i in range(2))
        recipe = f"recipe {MAKERS[maker].options['recipe']}, {MAKERS[maker].does}"
        yield Target(
            f"{model}: conversion {CONVERSION_FACTOR:g} times faster than the fastest peer ({recipe})",
            _aged(f"{factor:.1f} times ({cpu_factor:.1f} in processor time)", ours.is_current),
            "reached" if factor >= CONVERSION_FACTOR else "missed",
        )


def _conversion_rows(folder: Path) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
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
                _aged(MAKERS[maker].with_recipe, found.is_current),
                *(("", "") if spent is None else (f"{seconds:.1f}" for seconds in spent)),
                f"{found.process_seconds:.1f}",
                f"{found.peak_bytes / 1e6:,.0f}",
                *(f"{found.sizes[precision] / 1000:,.0f}" for precision in ("float32", "int8")),
            )
        )
    return rows


# --- cost ---------------------------------------------------------------------------------------------------


@cache
def _cost(model: str, maker: str, precision: str, folder: Path) -> Cost:
    return cost.costs(model, maker, precision, folder)


def _is_current(model: str, maker: str, folder: Path) -> bool:
    """Whether the files are not of earlier code."""
    converted = conversion.recorded(model, maker, folder)
    return converted is None or converted.is_current


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
        _aged(f"{ratio:.3f} of {len(peers)} peers", _is_current(model, OURS, folder)),
        "reached" if ratio <= wanted + COUNT_TOLERANCE else "missed",
    )


def _latency_targets(model: str, precision: str, folder: Path) -> Iterator[Target]:
    found = {maker: _cost(model, maker, precision, folder).latency for maker in PEERS}
    peers = {maker: latency for maker, latency in found.items() if latency is not None}
    if not peers:
        return
    worst = max(peers.values(), key=lambda latency: latency.ratio)
    what = f"{model} {precision}: host latency at most {COST_RATIO:.2f} of the best peer's"
    is_current = _is_current(model, OURS, folder)
    yield Target(what, _aged(_interval(worst), is_current), _verdict(worst, COST_RATIO))
    if precision == "int8" and model.startswith("v3") and "litert_torch" in peers:
        theirs = peers["litert_torch"]
        what = f"{model} int8: host latency at most {V3_RATIO:.2f} of litert-quantizer's"
        yield Target(what, _aged(_interval(theirs), is_current), _verdict(theirs, V3_RATIO))


def _verdict(latency: Latency, wanted: float) -> str:
    """An interval on both sides of the wanted ratio decides nothing; 2 % are no difference."""
    if latency.high <= wanted + EFFECT_FLOOR:
        return "reached"
    return "missed" if latency.low > wanted + EFFECT_FLOOR else "inconclusive"


def _interval(latency: Latency) -> str:
    return f"{latency.ratio:.2f} ({latency.low:.2f} to {latency.high:.2f})"


def _cost_rows(model: str, folder: Path) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for precision, maker in product(PRECISIONS, FILED):
        if _cost(model, maker, precision, folder).operators is not None:
            shown = _aged(f"{precision}, {MAKERS[maker].shown}", _is_current(model, maker, folder))
            rows.append((shown, *_cost_cells(model, maker, precision, folder)))
    return rows


def _cost_cells(model: str, maker: str, precision: str, folder: Path) -> list[str]:
    found, ours = (_cost(model, who, precision, folder) for who in (maker, OURS))
    operators = found.operators
    assert operators is not None
    cells = [
        str(operators.total),
        ", ".join(str(operators.counted[op]) for op in COUNTED_OPS),
        f"{operators.partitions} + {operators.outside}",
        _latency_cell(found.latency, maker),
    ]
    for core in CORES:
        count, our_count = found.instructions.get(core), ours.instructions.get(core)
        shown = "" if count is None else f"{count.millions:.2f}"
        if count is not None and our_count is not None and maker != OURS:
            shown += f" · {our_count.millions / count.millions:.2f}"
        cells.append(shown)
    return cells


def _latency_cell(latency: Latency | None, maker: str) -> str:
    if latency is None:
        return ""
    shown = f"{latency.median_ms:.2f}{'?' if latency.doubts else ''}"
    return shown if maker == OURS else f"{shown} · {_interval(latency)}"


# --- accuracy -----------------------------------------------------------------------------------------------


def accuracy_targets(folder: Path) -> Iterator[Target]:
    """Our default recipe against the best peer on every split that was measured for both."""
    for number in accuracy.SPLITS:
        ours = accuracy.recorded(OURS, number, folder)
        peers = [
            found.quality.agreement
            for name, contender in CONTENDERS.items()
            if not contender.is_ours
            and (found := accuracy.recorded(name, number, folder)) is not None
            and found.quality is not None
        ]
        if ours is None or ours.quality is None or not peers:
            continue
        agreement, best = ours.quality.agreement, max(peers)
        yield Target(
            f"v2 int8, split {number}: agrees with float32 on more photographs than any peer's",
            _aged(f"{agreement:.1f} % to {best:.1f} % of {len(peers)} peers", ours.is_current),
            "reached" if agreement > best else "missed",
        )


def _accuracy_rows(folder: Path) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, contender in CONTENDERS.items():
        found = [accuracy.recorded(name, number, folder) for number in accuracy.SPLITS]
        there = [each for each in found if each is not None]
        if not there:
            continue
        shown = _aged(contender.with_recipe, all(each.is_current for each in there))
        qualities = [each.quality for each in there if each.quality is not None]
        agreement = [_agreement(each) for each in found]
        rows.append((shown, *agreement, *(_confident(each) for each in found), *_means(qualities)))
    return rows


def _agreement(found: Accuracy | None) -> str:
    if found is None:
        return ""
    return f"refused: {found.refused}" if found.quality is None else f"{found.quality.agreement:.1f}"


def _confident(found: Accuracy | None) -> str:
    share = found and found.quality and found.quality.confident_agreement
    return "" if share is None else f"{share:.1f}"


def _means(qualities: Sequence[Quality]) -> tuple[str, ...]:
    if not qualities:
        return ("", "", "")
    return (
        f"{mean(quality.top5_overlap for quality in qualities):.1f}",
        f"{mean(quality.kl for quality in qualities):.3f}",
        f"{mean(quality.sqnr_db for quality in qualities):.1f}",
    )


def _confident_crops(folder: Path) -> str:
    """How many of a split's crops float32 is sure of, split by split."""
    counts = {
        number: found.quality.confident_crops
        for number, name in product(accuracy.SPLITS, CONTENDERS)
        if (found := accuracy.recorded(name, number, folder)) is not None and found.quality is not None
    }
    return ", ".join(str(count) for count in counts.values())


TARGET_COLUMNS = ("target", "found", "verdict")
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
    f"of them {', '.join(COUNTED_OPS)}",
    "partitions + outside",
    "host ms · ours / theirs",
    *(f"{core} M instructions · ours / theirs" for core in CORES),
)
ACCURACY_COLUMNS = (
    "int8 file by",
    *(f"agrees % split {number}" for number in accuracy.SPLITS),
    *(f"of the confident % split {number}" for number in accuracy.SPLITS),
    "top-5 overlap %",
    "KL",
    "SQNR dB",
)
HEAD = """# Beside the peers

Made by `make compare`; do not edit. The same networks converted, measured and tested by this project and by
others, all on one machine ({machine}). Empty cells have not been measured. *Ours / theirs* below 1 is better
for us; *(earlier code)* says that our row was made before our code last changed (`make compare ONLY=ours`
makes it anew). Every maker runs in an environment of its own with the versions pinned in
`pipeline/peers/requirements/`:

{versions}"""
CONVERSION_HEAD = f"""## Conversion

The same module with the same weights, 224 x 224, to float32 and int8 files with
{conversion.CALIBRATION_IMAGES} calibration images. Not counted, for anybody: making the module and importing
Python modules, not even those that a converter imports on its first call; the whole process has them, and
float16 too. *Processor s* is the time of all cores, which other work on the machine disturbs less.

The peers take ranges from the smallest and largest values seen and are done. Our recipe `int8_min_max` does
that same work; our default, `int8`, also equalises layers, rounds weights so that errors cancel and corrects
biases. TensorFlow starts from the Keras network of the same name with weights of its own. onnx2tf starts
from ONNX, so our export to ONNX is in its time; its one call makes float16 and more int8 variants too."""
COST_HEAD = """## Cost

The same files. Fewer operators are better, TRANSPOSE and PAD above all. *Partitions* is into how many pieces
the delegate (XNNPACK, the fast path) divides a file, 1 at best; *outside* is how many operators it leaves to
slow reference code (one that only turns input bytes into int8 does not matter). *Host ms* are medians of
fresh processes, one thread, all makers interleaved, *ours / theirs* with its 95 % interval; a question mark
says that the machine was not quiet. *Instructions* are millions for one inference with ai-edge-litert on an
emulated core: exact and repeatable, but no times. cortex-a76 computes float16 in half precision, cortex-a72
cannot."""
ACCURACY_HEAD = """## Accuracy

MobileNetV2 with torchvision's ImageNet weights in int8. Each split calibrates on the same 256 crops of
photographs and tests on 180 crops of other photographs. *Agrees*: the same first class as ONNX Runtime's
float32 network; *of the confident*: of those crops to which float32 gives more than half of its softmax
({confident} crops). Top-5 overlap, KL of the softmax (nats) and SQNR of the logits are means of splits."""
