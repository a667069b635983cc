"""The verb `report`: one HTML page, complete in itself, of all results, and its drawings as PNG files."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from device_bench import curves
from device_bench.curves import Curve, Fit, Unit, breaks, fit, fit_law, points_needed
from device_bench.device import ADVICE, DeviceState
from pipeline.artifacts import CheckError, write_bytes, write_text
from pipeline.curves import formula, published_ladders
from pipeline.page import Column, Markup, Row, bullets, facts, figure, heading, page, paragraph, table
from pipeline.plots import Scored, accuracy_plot, heat_map, law_plot, png, svg
from pipeline.results import CurveKey, Result, curves_of, key_of, load_results, point_of, shown

PAGE_NAME = "report.html"
BADGES = {
    Unit.MILLISECONDS: "measured in milliseconds",
    Unit.INSTRUCTIONS: "emulated: instruction counts, not time",
}
UNITS_OF_MEASURE = {
    False: (Column("median ms"), Column("95 % interval"), Column("MAD"), Column("p90"), Column("samples")),
    True: (Column("M instructions"), Column("lowest to highest"), Column("counts")),
}
LAW_COLUMNS = (
    Column("precision", "text"),
    Column("points"),
    Column("law", "text"),
    Column("R²"),
    Column("worst point"),
    Column("left out"),
    Column("three-term R²"),
    Column("worst point"),
    Column("formula", "text"),
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with what it shows; `slug` is the end of its file name."""

    figure: Figure
    slug: str
    caption: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `report`."""
    parser.add_argument("--device", default="", help="only this device (all that are recorded)")
    parser.add_argument("--build", type=Path, default=Path("build"), help="where results are (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the page and the PNGs (BUILD/report)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `report`: writes the page and the PNGs, and prints where they are."""
    results = load_results(arguments.build, arguments.device)
    if not results:
        raise CheckError(
            f"{arguments.build / 'bench'}: no results of {arguments.device or 'any device'}; measure first, "
            "with 'make bench' or 'make curves'"
        )
    out = arguments.out or arguments.build / "report"
    print(*write_report(results, out), sep="\n")
    return 0


def write_report(results: Sequence[Result], out: Path) -> tuple[Path, ...]:
    """Write `out/report.html` and a PNG of each of its drawings; the paths, the page first."""
    drawings: list[Drawing] = []
    sections = [
        part
        for _, group in groupby(results, lambda result: result.device)
        for part in _device(list(group), drawings)
    ]
    name = out / PAGE_NAME
    write_text(name, page("On-device results", _summary(results), *sections, *_published()))
    files = [out / f"{number:02d}-{drawing.slug}.png" for number, drawing in enumerate(drawings, start=1)]
    for file, drawing in zip(files, drawings, strict=True):
        write_bytes(file, png(drawing.figure))
    return name, *files


def _summary(results: Sequence[Result]) -> Markup:
    invalid = sum(not result.measurement.valid for result in results)
    devices = len({result.device for result in results})
    return paragraph(
        f"{len(results)} results on {devices} device{'s' * (devices != 1)}, {invalid} of them not valid: "
        "struck out, and in no drawing, fit or ranking. Times are medians of all runs of all processes, with "
        "the bootstrap 95 % interval. Counts of emulated cores are not times: none is in a ranking with them."
    )


def _device(results: Sequence[Result], drawings: list[Drawing]) -> Iterator[Markup]:
    """Heading, facts, curves and table of one device; adds to the drawings."""
    unit = Unit.INSTRUCTIONS if results[0].measurement.emulated else Unit.MILLISECONDS
    yield heading(2, results[0].device, BADGES[unit])
    yield facts(_facts(results))
    found = curves_of(results)
    fits = {key: fit(curve) for key, curve in found.items() if len(curve.points) >= points_needed()}
    for (model, conditions), group in groupby(found, lambda key: (key.model, key.conditions)):
        keys = tuple(group)
        yield heading(3, f"{model}: {conditions}")
        yield from _curves({key: found[key] for key in keys}, fits, drawings)
    yield from _accuracy(results, unit, drawings)
    for conditions in sorted({result.conditions for result in results}):
        yield heading(3, f"All results: {conditions}")
        yield _table([result for result in results if result.conditions == conditions], fits)


def _facts(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """What the device is, and the range of what changes on it."""
    info = results[-1].measurement.device
    states = [state for result in results for state in (result.measurement.before, result.measurement.after)]
    yield "model", info.model
    yield "processor", info.soc or info.machine
    yield "cores", _cores(info.cores, info.max_frequencies_khz)
    yield "features", " ".join(info.features)
    yield "memory", f"{info.memory_bytes / 2**30:.1f} GiB" if info.memory_bytes else ""
    yield "system", ", ".join(part for part in (info.os, info.kernel, info.libc) if part)
    yield "userland", f"{info.word_bits} bits" if info.word_bits else ""
    yield "governors", ", ".join(sorted({name for state in states for name in state.governors}))
    yield "temperatures", _temperatures(states)
    yield "measured", _range(sorted(state.utc for state in states))
    yield "harness", ", ".join(sorted({result.measurement.harness_version for result in results}))


def _cores(cores: int, frequencies_khz: Sequence[int]) -> str:
    clusters = [
        f"{len(list(group))} x {khz / 1e6:.2f} GHz" for khz, group in groupby(sorted(frequencies_khz))
    ]
    return " + ".join(clusters) or (str(cores) if cores else "")


def _temperatures(states: Iterable[DeviceState]) -> str:
    found = sorted(celsius for state in states for celsius in state.temperatures_c.values())
    return _range([f"{celsius:.1f}" for celsius in found]) + " °C" * bool(found)


def _range(values: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys((values[0], values[-1]))) if values else ""


def _curves(
    found: Mapping[CurveKey, Curve], fits: Mapping[CurveKey, Fit], drawings: list[Drawing]
) -> Iterator[Markup]:
    """Drawings and law of the precisions of one model under the same conditions."""
    group = tuple(found.values())
    slug, what = f"{_slug(group[0].device)}-{group[0].model}", f"{group[0].model} on {group[0].device}"
    law = law_plot(group, [fits.get(key) for key in found])
    yield _drawn(
        drawings, law, f"{slug}-law", f"{what}: cost against Mult-Adds; the lines are the fitted law."
    )
    grid = heat_map(group)
    yield _drawn(drawings, grid, f"{slug}-grid", f"{what}: cost over width α and resolution ρ.")
    yield table(LAW_COLUMNS, (_law_row(curve, fits.get(key)) for key, curve in found.items()))
    fitted = [(curve, fits[key]) for key, curve in found.items() if key in fits]
    broken = [line for curve, law in fitted for line in breaks(curve, law)]
    if broken:
        yield bullets(broken, kind="break")
    elif fitted:
        yield paragraph(
            f"No point is off the law by more than {curves.TOLERANCE:.0%}, and no network is faster than a "
            "smaller one beyond the noise."
        )


def _law_row(curve: Curve, fitted: Fit | None) -> Row:
    if fitted is None:
        needed = f"no law: it needs {points_needed()} points"
        return Row((curve.precision, str(len(curve.points)), needed, *[""] * (len(LAW_COLUMNS) - 3)))
    plain = fit_law(curve, "three-term")
    return Row(
        (
            curve.precision,
            str(len(curve.points)),
            fitted.law,
            f"{fitted.r_squared:.5f}",
            f"{fitted.worst:.1%}",
            f"{fitted.band:.1%}",
            f"{plain.r_squared:.5f}",
            f"{plain.worst:.1%}",
            formula(curve, fitted),
        )
    )


def _accuracy(results: Sequence[Result], unit: Unit, drawings: list[Drawing]) -> Iterator[Markup]:
    """A drawing for each data set that at least two valid results of like conditions have an accuracy on."""
    known: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for result in results:
        point, top1 = point_of(result), result.accuracy
        if point and top1 is not None:
            item = Scored(variant=point.variant, precision=result.precision, value=point.value, top1=top1)
            known[result.dataset, result.conditions].append(item)
    for (dataset, conditions), scored in known.items():
        if len(scored) > 1:
            device = results[0].device
            drawn = accuracy_plot(scored, unit, f"accuracy on {dataset} against cost\n{device}, {conditions}")
            caption = f"Accuracy on {dataset} against cost on {device}: nothing beats the filled points."
            yield _drawn(drawings, drawn, f"{_slug(device)}-accuracy-{_slug(dataset)}", caption)


def _drawn(drawings: list[Drawing], drawing: Figure, slug: str, caption: str) -> Markup:
    drawings.append(Drawing(drawing, slug, caption))
    return figure(svg(drawing), caption)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9_.]+", "-", words.lower()).strip("-")


def _table(results: Sequence[Result], fits: Mapping[CurveKey, Fit]) -> Markup:
    """Every result, the invalid ones last and struck out."""
    columns = (
        Column("file", "text"),
        Column("precision", "text"),
        Column("M Mult-Adds"),
        Column("size kB"),
        *UNITS_OF_MEASURE[results[0].measurement.emulated],
        Column("law"),
        Column("law is off"),
        Column("top-1 %"),
        Column("sha256", "text"),
        Column("notes", "text"),
    )
    ordered = sorted(results, key=lambda result: not result.measurement.valid)
    return table(columns, (_result_row(result, fits) for result in ordered))


def _result_row(result: Result, fits: Mapping[CurveKey, Fit]) -> Row:
    measurement, fitted = result.measurement, fits.get(key_of(result))
    law = fitted.predict(result.size) if fitted and result.size and measurement.valid else None
    return Row(
        (
            result.name.removesuffix(f".{result.precision}"),
            result.precision,
            f"{result.size.macs / 1e6:.1f}" if result.size else "",
            f"{measurement.model.size_bytes / 1000:,.0f}",
            *_quantities(result),
            "" if law is None else shown(law),
            "" if law is None or result.value is None else f"{law / result.value.value - 1:+.1%}",
            "" if result.accuracy is None else f"{result.accuracy:.2f}",
            measurement.model.sha256[:12],
            "; ".join(_notes(result)),
        ),
        kind="" if measurement.valid else "invalid",
    )


def _quantities(result: Result) -> tuple[str, ...]:
    """The cells of UNITS_OF_MEASURE."""
    measurement, value, summary = result.measurement, result.value, result.summary
    if value is None:
        return ("",) * len(UNITS_OF_MEASURE[measurement.emulated])
    interval = f"{shown(value.low)} – {shown(value.high)}"
    if measurement.emulated:
        return shown(value.value), interval, str(len(measurement.counts))
    assert summary
    return (
        shown(value.value),
        interval,
        f"{summary.mad_ms:.2g}",
        "n/a" if summary.p90_ms is None else shown(summary.p90_ms),
        f"{summary.processes} × {summary.samples // summary.processes}",
    )


def _notes(result: Result) -> Iterator[str]:
    measurement = result.measurement
    if not measurement.valid:
        yield f"{measurement.result}: {', '.join(measurement.reasons) or ADVICE[measurement.result].message}"
    if result.summary:
        yield from result.summary.warnings
    yield from result.notes


def _published() -> Iterator[Markup]:
    """The law on the ladders that others published."""
    yield heading(2, "The law on published ladders", "not measured by this project")
    yield paragraph(
        "Sixteen MobileNet V1 models on two phones, as printed on TensorFlow Lite's page of hosted models: "
        f"the law has to explain them with an R² of {curves.PUBLISHED_R_SQUARED} or more and no point off by "
        f"more than {curves.TOLERANCE:.0%}."
    )
    rows = []
    for ladder in published_ladders():
        law = _law_row(ladder, fit(ladder))
        rows.append(Row((ladder.title, *law.cells)))
    yield table((Column("ladder", "text"), *LAW_COLUMNS), rows)
