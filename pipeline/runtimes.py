"""The verb `runtimes`: every exported file on every TFLite runtime that people have: docs/runtimes.md.

Files are the shipped variants' and those of two networks at ImageNet's size. The reference is ONNX Runtime on
the float32 network; what the runtimes answer for the same real images is compared with it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from device_bench import emulator_setup
from export.runtime import Logits, dequantised, input_values, run_onnx
from pipeline.artifacts import AlpharhoError, CheckError, sha256_of, write_bytes, write_text
from pipeline.convert import CALIBRATION_IMAGES, Calibration, convert_graph, load_graph
from pipeline.data import REPOSITORY, Images, evenly, normalise, open_dataset, open_fashion_mnist_sample
from pipeline.evaluate import agreement_of, batched
from pipeline.job import SHIPPED_WEIGHTS, Request, calibration_images, export
from pipeline.markdown import markdown_table
from pipeline.peers import conversion, environments
from pipeline.progress import say
from pipeline.subjects import photographed
from pipeline.variant import IMAGENET_RESOLUTION, PRECISIONS, Variant
from quantize.int8 import Io
from quantize.recipes import RECIPES

PAGE = REPOSITORY / "docs" / "runtimes.md"
FOLDER = REPOSITORY / "build" / "runtimes"
KINDS = (*PRECISIONS, "int8_full")
IMAGES, LARGE_IMAGES = 100, 16  # of a shipped variant, of ImageNet's size
WEIGHTS = ".fashion_mnist.safetensors"
CORE = "cortex-a76"  # the emulated one: it computes in half precision

# Least agreement of the first class with ONNX Runtime, in percent, and the largest difference from the
# project's own runtime, in parts of the logits' range.
LEAST_AGREEMENT = {"float32": 100.0, "float16": 98.0, "int8": 90.0, "int8_full": 90.0}
MOST_APART = {"float32": 0.001, "float16": 0.05, "int8": 0.15, "int8_full": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A TFLite runtime: its distribution, and whose Python runs it.

    `environment` is one of `peers.environments.NAMES`, empty for the project's own; `emulated` means the
    aarch64 wheel on CORE instead. `divides` are the kinds of file that its delegate takes in more than one
    partition or not at all.
    """

    name: str
    distribution: str
    environment: str = ""
    emulated: bool = False
    divides: tuple[str, ...] = ()


INT8 = ("int8", "int8_full")  # tflite-runtime 2.14's delegate takes little of them
RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(name="own", distribution="ai-edge-litert"),
        Runtime(name="litert_2_1_6", distribution="ai-edge-litert", environment="litert_2_1_6"),
        Runtime(name="litert_1_4_0", distribution="ai-edge-litert", environment="litert_1_4_0"),
        Runtime(name="tensorflow", distribution="tensorflow", environment="tensorflow"),
        Runtime(
            name="tflite_runtime",
            distribution="tflite-runtime",
            environment="tflite_runtime",
            divides=INT8,
        ),
        Runtime(name="arm_litert", distribution="ai-edge-litert", emulated=True),
        Runtime(
            name="arm_tflite_runtime",
            distribution="tflite-runtime",
            emulated=True,
            divides=INT8,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A network's files by kind, real images uint8 [N, R, R, 3], and ONNX Runtime's logits of them."""

    name: str
    files: Mapping[str, Path]
    pixels: Images
    reference: Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One file on one runtime. `refused` is the runtime's own word where it does not run.

    `agreement` is of the first class with the reference, in percent; `largest` the largest difference of a
    logit from the project's own runtime, as a share of the logits' range.
    """

    subject: str
    kind: str
    runtime: str
    sha256: str
    images: int
    version: str = ""
    partitions: int = 0
    agreement: float = 0.0
    largest: float = 0.0
    refused: str = ""


def shipped(name: str) -> Subject:
    """The files that `export` makes of shipped weights, and `int8_full` beside them; all made anew."""
    variant, dataset = _variant(name), open_dataset("fashion_mnist")
    folder = FOLDER / variant.name
    export(Request(model=variant.model, alpha=variant.alpha, out=folder), say=say)
    pixels, _ = dataset.test.take(evenly(len(dataset.test), IMAGES), variant.resolution)
    images = calibration_images(dataset.calibration, CALIBRATION_IMAGES, variant.resolution, 0)
    files = {precision: folder / f"{precision}.tflite" for precision in PRECISIONS}
    files |= _converted(folder / "model.onnx", images, folder, ("int8_full",))
    return Subject(variant.name, files, pixels, run_onnx(folder / "model.onnx", normalise(pixels)))


def _variant(name: str) -> Variant:
    model, alpha, resolution = name.rsplit("_", 2)
    return Variant(model, float(alpha), int(resolution))


def pictured() -> Subject:
    """MobileNetV2 with ImageNet weights, on crops of photographs."""
    subject = photographed()
    crops, network = subject.splits[0], subject.model
    path = FOLDER / subject.name / "model.onnx"
    write_bytes(path, network.SerializeToString())
    files = _converted(path, normalise(crops.calibration), path.parent, KINDS)
    pixels = crops.test[evenly(len(crops.test), LARGE_IMAGES)]
    return Subject(subject.name, files, pixels, run_onnx(path, normalise(pixels)))


def untrained(model: str) -> Subject:
    """A network at ImageNet's size with seeded weights."""
    source = conversion.prepared(model, conversion.FOLDER)
    images = np.load(source / "calibration.npy", allow_pickle=False)
    files = _converted(source / "model.onnx", images, FOLDER / model, KINDS)
    sample = open_fashion_mnist_sample().test
    pixels, _ = sample.take(evenly(len(sample), LARGE_IMAGES), IMAGENET_RESOLUTION)
    reference = run_onnx(source / "model.onnx", normalise(pixels))
    return Subject(f"{model}_1.00_{IMAGENET_RESOLUTION}", files, pixels, reference)


def _converted(onnx: Path, images: Any, folder: Path, kinds: Iterable[str]) -> dict[str, Path]:
    """Files of the ONNX network by kind: a precision, or a recipe of int8."""
    graph, made = load_graph(onnx), {}
    for kind in kinds:
        calibration = Calibration(batched(images), RECIPES.get(kind, RECIPES["int8"]), Io())
        precision = kind if kind in PRECISIONS else "int8"
        made[kind] = folder / f"{kind}.tflite"
        write_bytes(made[kind], convert_graph(precision, graph, calibration).content)
    return made


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    **{
        path.name.removesuffix(WEIGHTS): partial(shipped, path.name.removesuffix(WEIGHTS))
        for path in sorted(SHIPPED_WEIGHTS.glob(f"*{WEIGHTS}"))
    },
    f"v2_1.00_{IMAGENET_RESOLUTION}": pictured,
    f"micronet_m2_1.00_{IMAGENET_RESOLUTION}": partial(untrained, "micronet_m2"),
}


def run_cell(subject: Subject, kind: str, runtime: Runtime, own: Logits | None) -> tuple[Cell, Logits | None]:
    """Run one file on one runtime; `own` are the project's runtime's logits of the same file, if known."""
    path = subject.files[kind]
    cell = partial(
        Cell,
        subject=subject.name,
        kind=kind,
        runtime=runtime.name,
        sha256=sha256_of(path),
        images=len(subject.pixels),
    )
    with tempfile.TemporaryDirectory(prefix="alpharho-") as scratch:
        inputs, outputs = Path(scratch) / "inputs.npy", Path(scratch) / "outputs.npy"
        np.save(inputs, input_values(path, subject.pixels, normalise))
        request = {
            "runtime": runtime.distribution,
            "model": str(path.resolve()),
            "inputs": str(inputs),
            "outputs": str(outputs),
        }
        try:
            answer = asked(runtime, request)
        except AlpharhoError as error:
            return cell(refused=str(error)), None
        if answer["refused"]:
            return cell(version=answer["version"], refused=answer["refused"]), None
        logits = dequantised(path, np.load(outputs, allow_pickle=False))
    nearest = logits if own is None else own
    found = cell(
        version=answer["version"],
        partitions=answer["partitions"],
        agreement=agreement_of(logits, subject.reference),
        largest=float(np.abs(logits - nearest).max() / np.ptp(nearest)),
    )
    return found, logits


def asked(runtime: Runtime, request: Mapping[str, object]) -> dict[str, Any]:
    """The answer of `peers/run_tflite.py` on the runtime. AlpharhoError where it is not there or dies."""
    if not runtime.emulated:
        own = Path(sys.executable)
        python = environments.python_of(runtime.environment) if runtime.environment else own
        return environments.ask([str(python)], "run_tflite", request)
    if emulator_setup.installed() is None:
        raise AlpharhoError("the emulator is not set up; set it up: make emulator")
    command = emulator_setup.command(emulator_setup.FOLDER, CORE)
    variables = emulator_setup.environment(emulator_setup.FOLDER, runtime.distribution)
    return environments.ask(command, "run_tflite", request, variables)


# --- the page -----------------------------------------------------------------------------------------------


def complaint(cell: Cell) -> str:
    """What a cell that must work falls short of; empty where all is well."""
    runtime = RUNTIMES[cell.runtime]
    if cell.refused:
        return f"does not run: {cell.refused}"
    if cell.partitions != 1 and cell.kind not in runtime.divides:
        return f"{cell.partitions} delegate partitions instead of 1"
    if cell.largest > MOST_APART[cell.kind]:
        return f"{100 * cell.largest:.1f} % of the range from the project's runtime"
    if _is_small(cell) and cell.agreement < LEAST_AGREEMENT[cell.kind]:
        return f"agrees with ONNX Runtime on {cell.agreement:.0f} % of the images"
    return ""


def _is_small(cell: Cell) -> bool:
    """Whether the network is run on images enough to count how often its first class agrees."""
    return not cell.subject.endswith(f"_{IMAGENET_RESOLUTION}")


def page(cells: Sequence[Cell]) -> str:
    """The Markdown page of all cells, a table a network."""
    subjects = list(dict.fromkeys(cell.subject for cell in cells))
    refusals = dict.fromkeys(
        f"* {_shown(cell)}, {cell.kind}: {cell.refused}" for cell in cells if cell.refused
    )
    parts = [HEAD, *(f"## {subject}\n\n{_table(subject, cells)}" for subject in subjects)]
    if refusals:
        parts.append("## Refused\n\n" + "\n".join(refusals))
    return "\n\n".join(parts) + "\n"


def _table(subject: str, cells: Sequence[Cell]) -> str:
    found = {(cell.runtime, cell.kind): cell for cell in cells if cell.subject == subject}
    rows = []
    for runtime in RUNTIMES:
        row = [found.get((runtime, kind)) for kind in KINDS]
        named = [cell for cell in row if cell is not None]
        if named:
            rows.append((_shown(named[0]), *(_cell(cell) for cell in row)))
    return markdown_table(("runtime", *KINDS), rows)


def _shown(cell: Cell) -> str:
    runtime = RUNTIMES[cell.runtime]
    place = (
        f", emulated {CORE}" if runtime.emulated else ", the project's own" if cell.runtime == "own" else ""
    )
    return f"{runtime.distribution} {cell.version}{place}"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    measured = f"{cell.agreement:.0f} % · {1000 * cell.largest:.1f} ‰ · {cell.partitions}"
    shown = "refused" if cell.refused else measured
    return f"**{shown}**" if complaint(cell) else shown


HEAD = f"""# Every exported file on every runtime

Made by `make runtimes`; do not edit. A cell says: the share of real images whose first class is that of the
float32 network in ONNX Runtime · the largest difference of a logit from the project's own runtime with the
same file, in thousandths of the logits' range · delegate partitions. Bold is what is not as it must be.

Shipped variants answer {IMAGES} test images of Fashion-MNIST. V2 at {IMAGENET_RESOLUTION} has ImageNet
weights and answers {LARGE_IMAGES} crops of photographs; MicroNet there is untrained and has no clear first
class. `int8` and `int8_full` are recipes. The delegate of tflite-runtime 2.14, of 2023, leaves most of an
8-bit file to that runtime's own kernels, which round a little otherwise. Half precision is real only on the
emulated {CORE}: x86 computes float16 files in single precision."""


# --- the verb -----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `runtimes`."""
    parser.add_argument("--runtime", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--subject", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (docs/runtimes.md)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `runtimes`: runs everything, writes the page; CheckError where what must work does not."""
    chosen = [RUNTIMES[name] for name in RUNTIMES if name in {"own", *arguments.runtime}]
    for runtime in chosen:
        if runtime.environment:
            environments.make(runtime.environment, say)
    cells: list[Cell] = []
    for name in arguments.subject:
        subject = SUBJECTS[name]()
        for kind in KINDS:
            cells += _column(subject, kind, chosen)
        write_text(arguments.out, page(cells))
    wrong = [
        f"{cell.subject} {cell.kind} on {_shown(cell)}: {text}" for cell in cells if (text := complaint(cell))
    ]
    print(f"{len(cells)} cells, {len(wrong)} of them wrong, {arguments.out}")
    if wrong:
        print("\n".join(wrong))
        raise CheckError(f"{len(wrong)} of {len(cells)} files do not run as they must; they are named above")
    return 0


def _column(subject: Subject, kind: str, runtimes: Sequence[Runtime]) -> list[Cell]:
    """One file on all runtimes, the project's own first."""
    cells: list[Cell] = []
    own: Logits | None = None
    for runtime in runtimes:
        say(f"{subject.name} {kind} on {runtime.name}")
        cell, logits = run_cell(subject, kind, runtime, own)
        cells.append(cell)
        own = logits if own is None else own
    return cells
