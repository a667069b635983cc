"""The verb `diagnose`: where int8 loses accuracy, layer by layer, with a picture of the ranges and advice."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.graph import Graph
from export.run import Program
from pipeline.artifacts import UsageError, write_bytes, write_text
from pipeline.convert import (
    CALIBRATION_IMAGES,
    add_rescue_argument,
    load_calibration,
    open_foreign,
    parsed_shape,
)
from pipeline.data import MEAN, STD, normalise
from pipeline.evaluate import batched
from pipeline.measures import Quality, compare
from pipeline.page import Column, Markup, Row, figure, heading, page, paragraph
from pipeline.page import table as page_table
from pipeline.plots import png, svg
from pipeline.range_plots import Ranges, range_figure
from pipeline.rescue import HELD_OUT, is_held_out, rescue
from pipeline.subjects import Subject, subject_named
from pipeline.summary import aligned
from pipeline.variant import BUILD
from quantize.advice import LOSSY_DB, Advice, advise
from quantize.diagnose import BEST_DB, LayerReport, activation_widths, diagnose, weight_widths, worst
from quantize.int8 import Io
from quantize.recipes import RECIPES, Recipe, quantize
from quantize.rescue import Step

GOOD_AGREEMENT = 99.0  # percent
LADDER = (
    "What keeping the worst layers in float gains and costs: add --rescue here. export --rescue (convert "
    "--rescue for an .onnx file) then keeps in float what pays."
)
DIAGNOSED = 16  # test images; their values at every layer are held at once


@dataclass(frozen=True, slots=True)
class Case:
    """A float graph, images to calibrate on and others to look at, float32 [N, H, W, C], and its doors."""

    name: str
    graph: Graph
    calibration: NDArray[np.float32]
    test: NDArray[np.float32]
    io: Io


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found: the 8-bit simulator against the float network, layer by layer and at the end."""

    case: Case
    recipe: Recipe
    reports: list[LayerReport]
    quality: Quality
    advice: list[Advice]
    ranges: Ranges
    steps: Sequence[Step] = ()  # of the rescue ladder, where it was climbed


def case_of(subject: Subject, number: int) -> Case:
    """The case of a network on one of its splits."""
    if number not in range(len(subject.splits)):
        raise UsageError(f"there is no split {number}; {subject.name} has {len(subject.splits)}")
    part = subject.splits[number]
    test = part.test[:: max(1, len(part.test) // DIAGNOSED)][:DIAGNOSED]
    return Case(subject.name, subject.graph(), normalise(part.calibration), normalise(test), Io())


def foreign_case(arguments: argparse.Namespace) -> Case:
    """The case of an ONNX file, whose images are parted into calibration and test."""
    if arguments.calibration is None:
        raise UsageError("--calibration is missing; an .onnx file needs images to be diagnosed on")
    foreign = open_foreign(Path(arguments.network), parsed_shape(arguments.shape))
    images = load_calibration(arguments.calibration, foreign.shape, arguments.mean, arguments.std)
    images = np.ascontiguousarray(images.transpose(foreign.order))
    if len(images) < HELD_OUT:
        raise UsageError(
            f"{arguments.calibration}: {len(images)} images; {HELD_OUT} are the least, 200 are good"
        )
    low, high = ((byte - arguments.mean) / arguments.std for byte in (0, 255))
    held_out = is_held_out(len(images))
    test = images[held_out][:DIAGNOSED]
    return Case(foreign.source.stem, foreign.graph, images[~held_out], test, Io(low=low, high=high))


def examine(case: Case, recipe: Recipe) -> Diagnosis:
    """Quantise, compare every layer, judge."""
    model = quantize(case.graph, batched(case.calibration), recipe, case.io)
    reports = diagnose(model.exact, model.plain, case.test)
    logits = [Program(graph)(case.test) for graph in (model.graph, model.exact)]
    weights = tuple(
        {name: weight_widths(graph, name) for name in graph.producers()}
        for graph in (case.graph, model.exact)
    )
    activations = tuple(activation_widths(graph, case.test) for graph in (case.graph, model.exact))
    return Diagnosis(
        case,
        recipe,
        reports,
        compare(*logits),
        advise(reports, recipe),
        Ranges((weights[0], weights[1]), (activations[0], activations[1])),
    )


# --- what is shown ------------------------------------------------------------------------------------------

LAYER_COLUMNS = (
    Column("layer", "text"),
    Column("operator", "text"),
    Column("8-bit", "text"),
    Column("SQNR dB"),
    Column("alone dB"),
    Column("weights dB"),
    Column("clipped %"),
    Column("mean shift %"),
    Column("unevenness"),
    Column("of weights"),
)
ADVICE_COLUMNS = (
    Column("symptom", "text"),
    Column("measured here", "prose"),
    Column("cause", "prose"),
    Column("remedy", "prose"),
)
LEGEND = (
    "SQNR: the layer's result in the 8-bit model against the float model's, with all errors before it; "
    "alone: this layer alone in 8 bits; weights: nothing but its weights in 8 bits. Unevenness: the widest "
    "channel's range over the median's."
)


STEP_COLUMNS = (
    Column("kept out of int8", "text"),
    Column("agreement, points"),
    Column("SQNR, dB"),
    Column("bytes"),
    Column("instructions"),
    Column("what became of it", "prose"),
)


def _cells(report: LayerReport) -> tuple[str, ...]:
    return (
        report.module,
        report.op,
        "float" if report.in_float else "int8",
        f"{report.sqnr_db:.1f}",
        "exact" if report.alone_db >= BEST_DB else f"{report.alone_db:.1f}",
        "" if report.weights_db >= BEST_DB else f"{report.weights_db:.1f}",
        f"{100 * report.clipped:.2f}",
        f"{100 * report.shift:.1f}",
        f"{report.unevenness:.1f}",
        f"{report.weight_unevenness:.1f}",
    )


def _verdict(found: Diagnosis) -> str:
    quality = found.quality
    good = quality.sqnr_db >= LOSSY_DB and quality.agreement >= GOOD_AGREEMENT
    return (
        f"{found.case.name}, recipe {found.recipe.name}: on {quality.crops} images the simulator agrees with "
        f"float32 on {quality.agreement:.1f} %, logits at {quality.sqnr_db:.1f} dB: "
        f"{'good, nothing has to be mended' if good else 'see the advice'}"
    )


def _worst(reports: list[LayerReport]) -> str:
    named = ", ".join(f"{report.module} ({report.alone_db:.1f} dB)" for report in worst(reports))
    return f"most is lost at: {named}"


def _counted(advice: Advice) -> str:
    return f"{len(advice.layers)} {'layer' if len(advice.layers) == 1 else 'layers'}"


def text(found: Diagnosis) -> str:
    """The diagnosis for a terminal."""
    rows = [tuple(column.heading for column in LAYER_COLUMNS), *map(_cells, found.reports)]
    lines = [aligned(rows), "", _verdict(found), _worst(found.reports)]
    for advice in found.advice:
        lines += [f"* {advice.symptom} ({_counted(advice)}; {advice.figures})"]
        lines += [f"  cause: {advice.cause}", f"  remedy: {advice.remedy}"]
    if not found.advice:
        lines += ["no layer shows a symptom"]
    return "\n".join(lines)


def _step(step: Step) -> tuple[str, ...]:
    return (
        step.candidate,
        f"{step.agreement_points:+.2f}",
        f"{step.sqnr_db:+.2f}",
        f"{step.bytes:+,}",
        "not counted" if step.instructions is None else f"{step.instructions:+,.0f}",
        f"{'kept in float' if step.kept else 'left in int8'}: {step.reason}",
    )


def html(found: Diagnosis, picture: bytes) -> str:
    """The diagnosis as a page that is complete in itself."""
    advice = [Row((a.symptom, f"{_counted(a)}; {a.figures}", a.cause, a.remedy)) for a in found.advice]
    body: list[Markup] = [
        paragraph(_verdict(found)),
        paragraph(_worst(found.reports)),
        heading(2, "Advice"),
        page_table(ADVICE_COLUMNS, advice) if advice else paragraph("No layer shows a symptom."),
        heading(2, "Layers kept in float"),
        page_table(STEP_COLUMNS, [Row(_step(step)) for step in found.steps])
        if found.steps
        else paragraph(LADDER),
        heading(2, "Ranges per channel, and the error of each layer"),
        figure(
            picture, "One mark a channel, a dot at the median: bits below the widest channel of the tensor."
        ),
        heading(2, "Every layer"),
        paragraph(LEGEND),
        page_table(LAYER_COLUMNS, [Row(_cells(report)) for report in found.reports]),
    ]
    return page(f"Diagnosis of {found.case.name} in int8", *body)


def write(found: Diagnosis, out: Path) -> tuple[Path, Path]:
    """Write the page, and its picture as PNG too, into `out`; their paths."""
    title = f"{found.case.name}, recipe {found.recipe.name}"
    drawn = range_figure(title, found.reports, found.ranges)
    paths = out / "diagnosis.html", out / "ranges.png"
    write_text(paths[0], html(found, svg(drawn)))
    write_bytes(paths[1], png(drawn))
    return paths


# --- the verb -----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `diagnose`."""
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="v2 (ImageNet), a shipped one (v3_small, v1_0.25), a .safetensors checkpoint or an .onnx file",
    )
    parser.add_argument("--recipe", default="int8", choices=list(RECIPES), help="(%(default)s)")
    parser.add_argument("--split", type=int, default=0, help="of the photographs, for v2 (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (build/diagnosis/NETWORK)")
    parser.add_argument(
        "--calibration", type=Path, metavar="IMAGES", help=f"for an .onnx file, {CALIBRATION_IMAGES} are used"
    )
    parser.add_argument("--mean", type=float, default=MEAN, help="of an .onnx file's pixels (%(default)s)")
    parser.add_argument("--std", type=float, default=STD, help="of an .onnx file's pixels (%(default)s)")
    parser.add_argument("--shape", metavar="N,C,H,W", help="fixes the input of an .onnx file")
    add_rescue_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """The verb `diagnose`: prints the layers, the worst and advice; writes the page and the picture.

    With `--rescue` it climbs the rescue ladder too, and writes what each of its steps brings.
    """
    foreign = arguments.network.endswith(".onnx")
    case = foreign_case(arguments) if foreign else case_of(subject_named(arguments.network), arguments.split)
    recipe = RECIPES[arguments.recipe]
    found = examine(case, recipe)
    print(text(found))
    if arguments.rescue:
        ladder = rescue(case.graph, batched(case.calibration), recipe, case.io, print)
        found = replace(found, steps=ladder.steps)
    else:
        print(LADDER)
    paths = write(found, arguments.out or BUILD / "diagnosis" / case.name)
    print(f"written: {', '.join(map(str, paths))}")
    return 0
