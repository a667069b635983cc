"""The verb `convert`: any model.onnx to float32, float16 and int8 .tflite, verified with ONNX Runtime."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from device_bench.records import to_plain, write_json
from export.check import Parity, audit_delegate, check_parity, parity
from export.graph import Graph, added_operators
from export.head import HEADS, has_softmax, with_head
from export.metadata import LABELS_FILE, Metadata, entries, with_labels
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import input_order, input_shape, load_onnx, read_onnx, refusals, with_shape
from export.runtime import run_onnx_as_it_is, run_tflite
from export.write_tflite import write_tflite
from pipeline import data
from pipeline.artifacts import AlpharhoError, UsageError, locked, sha256_of, write_bytes, write_text
from pipeline.evaluate import batched, softmax
from pipeline.finite import check_inputs, check_weights
from pipeline.manifest import FILE_NAME, Artifact, Conversion
from pipeline.rescue import Ladder, rescue
from pipeline.variant import PRECISIONS
from quantize.float16 import FLOAT16_METADATA, to_float16
from quantize.half import prepared
from quantize.int8 import IO_TYPES, Io
from quantize.ranges import observe
from quantize.recipes import IMAGES, RECIPES, Recipe, quantize, spread

VERIFIED_IMAGES = 64  # of the calibration images, the first ones
CALIBRATION_IMAGES = 256
FLOAT16_IMAGES = 32  # of them, to see in what order half precision sums best

Images = NDArray[np.float32]  # [N, H, W, C]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What int8 and float16 need beside the graph: images in the model input's own scale, in batches."""

    batches: Sequence[Images]
    recipe: Recipe
    io: Io
    ladder: Ladder = field(default_factory=Ladder)

    @property
    def images(self) -> int:
        """Number of images in all batches."""
        return sum(len(batch) for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Converted:
    """A graph in one precision, the bytes of its .tflite file, and how int8 was made, as JSON values."""

    graph: Graph
    content: bytes
    report: Mapping[str, object] = field(default_factory=dict)


def convert_graph(
    precision: str, graph: Graph, calibration: Calibration, about: Metadata | None = None
) -> Converted:
    """The float graph in one of PRECISIONS, as a file that says of itself what `about` holds."""
    graph, report = TO_PRECISION[precision](graph, calibration)
    buffers = dict(FLOAT16_METADATA) if precision == "float16" else {}
    if about is None:
        return Converted(graph, write_tflite(graph, buffers), report)
    content = write_tflite(
        graph, {**buffers, **entries(about, graph.inputs[0], graph.outputs[0])}, about.name
    )
    return Converted(graph, with_labels(content, about.labels), report)


Precise = tuple[Graph, dict[str, object]]


def _int8(graph: Graph, calibration: Calibration) -> Precise:
    ladder = calibration.ladder
    model = quantize(graph, calibration.batches, calibration.recipe, calibration.io, ladder.keep_float)
    tried = {"rescue": to_plain(ladder.steps)} if ladder.steps else {}
    return model.graph, {**model.report, **tried}


def _float16(graph: Graph, calibration: Calibration) -> Precise:
    images = IMAGES[calibration.recipe.images](graph, calibration.batches, calibration.io)
    exact = prepared(graph, observe(graph, spread(images, FLOAT16_IMAGES)))
    return to_float16(exact), {"added_operators": added_operators(graph, exact)}


TO_PRECISION: Mapping[str, Callable[[Graph, Calibration], Precise]] = {
    "float32": lambda graph, calibration: (graph, {}),
    "float16": _float16,
    "int8": _int8,
}


def rescued(graph: Graph, calibration: Calibration, say: Callable[[str], None]) -> Calibration:
    """The calibration with what the rescue ladder keeps in float; `say` hears of every step."""
    ladder = rescue(graph, calibration.batches, calibration.recipe, calibration.io, say)
    return replace(calibration, ladder=ladder)


def load_graph(path: Path) -> Graph:
    """The float graph of an ONNX file after all exact rewrites."""
    return run_passes(read_onnx(load_onnx(path)), FLOAT_PASSES)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A third party's ONNX model, fixed to one input shape, and its float graph.

    `order` is the permutation from the ONNX input's axes to the graph's.
    """

    source: Path
    content: bytes
    shape: tuple[int, ...]
    order: tuple[int, ...]
    graph: Graph
    ends_in_softmax: bool


def open_foreign(source: Path, shape: Sequence[int] | None = None, head: str | None = None) -> Foreign:
    """Read an ONNX file, fix its input to `shape`, rewrite it; AlpharhoError for what cannot be converted."""
    model = with_shape(load_onnx(source), shape)
    try:
        graph = run_passes(read_onnx(model), FLOAT_PASSES)
    except AlpharhoError as error:
        others = len(refusals(model)) - 1
        more = f" (and {others} more; list all with --explain)" if others > 0 else ""
        raise AlpharhoError(f"{source}: {error}{more}") from error
    if refused := _too_many_outputs(model):
        raise AlpharhoError(f"{source}: {refused[0]}")
    check_weights(graph, source)
    return Foreign(
        source=source,
        content=model.SerializeToString(),
        shape=input_shape(model),
        order=input_order(model),
        graph=with_head(graph, head),
        ends_in_softmax=has_softmax(graph),
    )


def _too_many_outputs(model: ModelProto) -> list[AlpharhoError]:
    """The one error of a model that gives more than one result."""
    names = [value.name for value in model.graph.output]
    if len(names) == 1:
        return []
    return [
        AlpharhoError(
            f"it has {len(names)} outputs ({', '.join(names)}), one is supported; "
            "cut the others off, for example with onnx.utils.extract_model"
        )
    ]


def convert(
    foreign: Foreign, out: Path, calibration: Calibration, about: Metadata, say: Callable[[str], None]
) -> Conversion:
    """Write three files and a manifest into `out`; CheckError where float32 is not ONNX Runtime's result."""
    images = np.concatenate(calibration.batches)[:VERIFIED_IMAGES]
    say(f"{foreign.source}: running {len(images)} calibration inputs in ONNX Runtime")
    as_onnx = np.ascontiguousarray(images.transpose([0, *np.argsort(foreign.order)[1:]]))
    reference = _with_head_of(foreign, run_onnx_as_it_is(foreign.content, as_onnx))
    artifacts, parities, audits = {}, {}, {}
    with locked(out):
        (out / FILE_NAME).unlink(missing_ok=True)  # it speaks of files that are about to be replaced
        if about.labels:
            write_text(out / LABELS_FILE, "".join(f"{label}\n" for label in about.labels))
        for precision in PRECISIONS:
            say(f"{precision}.tflite: converting and checking")
            path, started = out / f"{precision}.tflite", time.perf_counter()
            converted = convert_graph(precision, foreign.graph, calibration, about)
            write_bytes(path, converted.content)
            artifacts[precision] = Artifact.of(path, started)
            audits[precision] = audit_delegate(path)
            parities[precision] = parity(_as_reference(foreign, run_tflite(path, images)), reference)
            if precision == "float32":
                check_parity(parities[precision], f"{path} against ONNX Runtime")
        finished = Conversion(
            source=foreign.source.name,
            source_sha256=sha256_of(foreign.source),
            recipe=calibration.recipe.name,
            calibration_images=calibration.images,
            report=converted.report,
            artifacts=artifacts,
            parity=parities,
            delegate=audits,
        )
        write_json(out / FILE_NAME, {"schema": 1, **to_plain(finished)})
    return finished


def _with_head_of(foreign: Foreign, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """ONNX Runtime's result as the files give it: with a softmax where one was added."""
    return softmax(values) if has_softmax(foreign.graph) and not foreign.ends_in_softmax else values


def _as_reference(foreign: Foreign, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A file's result as ONNX Runtime gives it: with a softmax where one was taken off."""
    return softmax(values) if foreign.ends_in_softmax and not has_softmax(foreign.graph) else values


def load_calibration(source: Path, shape: Sequence[int], mean: float, std: float) -> NDArray[np.float32]:
    """Inputs for calibration, float32 [N, ...] in the ONNX input's own layout.

    `source` is an .npy array in that layout and in the model's own values, or a folder of pictures, which are
    shown as (pixel - mean) / std. `shape` is the ONNX input's, [1, ...]. AlpharhoError for what does not fit.
    """
    if source.is_dir():
        return _pictures(source, shape, mean, std)
    if source.suffix != ".npy" or not source.is_file():
        raise AlpharhoError(
            f"{source}: calibration images are a folder of pictures or an .npy array; this is neither"
        )
    try:
        array = np.load(source, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise AlpharhoError(f"{source}: not a readable .npy array of numbers ({error})") from error
    if array.ndim != len(shape) or array.shape[1:] != tuple(shape[1:]) or not len(array):
        raise AlpharhoError(
            f"{source}: has shape {list(array.shape)}, "
            f"the model takes [N, {', '.join(map(str, shape[1:]))}]; give images in that layout"
        )
    if array.dtype.kind not in "fiu":
        raise AlpharhoError(f"{source}: holds {array.dtype}, calibration needs numbers; save it as float32")
    check_inputs(array[:CALIBRATION_IMAGES], source)
    return np.ascontiguousarray(array[:CALIBRATION_IMAGES], np.float32)


def _pictures(folder: Path, shape: Sequence[int], mean: float, std: float) -> NDArray[np.float32]:
    orders: dict[tuple[int, ...], tuple[int, ...]] = {
        (1, 3, shape[-1], shape[-1]): (0, 3, 1, 2),
        (1, shape[1], shape[1], 3): (0, 1, 2, 3),
    }
    order = orders.get(tuple(shape))
    if order is None:
        raise AlpharhoError(
            f"pictures fit square RGB inputs, the model takes {list(shape)}; give an .npy array instead"
        )
    paths = data.pictures(folder)[:CALIBRATION_IMAGES]
    if not paths:
        raise AlpharhoError(f"{folder}: no pictures; give a folder with some, 200 or more are good")
    pixels = np.stack([data.load_image(path, shape[2]) for path in paths])
    return np.ascontiguousarray(((pixels.astype(np.float32) - mean) / std).transpose(order), np.float32)


def load_labels(path: Path, classes: int) -> tuple[str, ...]:
    """The lines of a label file; AlpharhoError unless there is one per class."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AlpharhoError(f"{path}: not a UTF-8 text file ({error.reason}); save it as UTF-8") from error
    labels = tuple(line.strip() for line in lines)
    if len(labels) != classes or not all(labels):
        raise AlpharhoError(
            f"{path}: has {len(labels)} lines, {sum(map(bool, labels))} of them not empty, the model has "
            f"{classes} classes; give one label a line, in the order of the output"
        )
    return labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `convert`."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the three files and the manifest")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="IMAGES",
        help="folder of pictures, or .npy in the ONNX input's own layout and values",
    )
    parser.add_argument("--mean", type=float, default=data.MEAN, help="of the pixels, 0 to 255 (%(default)s)")
    parser.add_argument("--std", type=float, default=data.STD, help="of the pixels, 0 to 255 (%(default)s)")
    parser.add_argument(
        "--shape", metavar="N,C,H,W", help="fixes an input of dynamic size, for example 1,3,224,224"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one a line, for the metadata"
    )
    add_head_argument(parser, "as in the model")
    parser.add_argument(
        "--recipe", default="int8", choices=list(RECIPES), help="how int8 is made (%(default)s)"
    )
    add_rescue_argument(parser)
    parser.add_argument(
        "--explain", action="store_true", help="list every node that cannot be converted, and write nothing"
    )
    add_io_arguments(parser)


def add_head_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """The option for what the files give, logits or probabilities."""
    parser.add_argument("--head", choices=HEADS, help=f"what the files give ({default})")


def add_rescue_argument(parser: argparse.ArgumentParser) -> None:
    """The option that lets layers stay in float."""
    parser.add_argument(
        "--rescue",
        action="store_true",
        help="try to keep the worst layers of int8 in float, each only where it pays",
    )


class _BothDoors(argparse.Action):
    """Sets `input_type` and `output_type` together."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.input_type = namespace.output_type = values


def add_io_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for the types at the int8 file's doors."""
    parser.add_argument(
        "--io",
        action=_BothDoors,
        choices=list(IO_TYPES),
        help="both --input-type and --output-type",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--input-type", default="uint8", choices=list(IO_TYPES), help="of the int8 file (%(default)s)"
    )
    parser.add_argument(
        "--output-type", default="float32", choices=list(IO_TYPES), help="of the int8 file (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """The verb `convert`: prints what was written and how far it is from ONNX Runtime."""
    shape = parsed_shape(arguments.shape)
    if arguments.explain:
        return explain(arguments.model, shape)
    for name in ("out", "calibration"):
        if getattr(arguments, name) is None:
            raise UsageError(f"--{name} is missing; it is needed for all but --explain")
    if not arguments.std > 0:
        raise UsageError(f"--std is {arguments.std}; choose a number above 0")
    foreign = open_foreign(arguments.model, shape, arguments.head)
    images = load_calibration(arguments.calibration, foreign.shape, arguments.mean, arguments.std)
    images = np.ascontiguousarray(images.transpose(foreign.order))
    io = Io(
        input=arguments.input_type,
        output=arguments.output_type,
        low=(0 - arguments.mean) / arguments.std,
        high=(255 - arguments.mean) / arguments.std,
    )
    calibration = Calibration(batched(images), RECIPES[arguments.recipe], io)
    if arguments.rescue:
        calibration = rescued(foreign.graph, calibration, print)
    finished = convert(foreign, arguments.out, calibration, _about(arguments, foreign), print)
    for precision, artifact in finished.artifacts.items():
        print(_row(arguments.out / artifact.path, artifact, finished.parity[precision]))
    return 0


def explain(source: Path, shape: Sequence[int] | None) -> int:
    """Print one line for every node that cannot be converted; 1 if there is any."""
    model = with_shape(load_onnx(source), shape)
    refused = [*refusals(model), *_too_many_outputs(model)]
    for error in refused:
        print(error)
    print(
        f"{source}: cannot be converted ({len(refused)} found)" if refused else f"{source}: can be converted"
    )
    return 1 if refused else 0


def parsed_shape(text: str | None) -> tuple[int, ...] | None:
    """The sizes of `--shape`; None without it, UsageError for what is not whole numbers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise UsageError(f"--shape is {text!r}; give whole numbers, for example 1,3,224,224") from None


def _about(arguments: argparse.Namespace, foreign: Foreign) -> Metadata:
    classes = foreign.graph.tensors[foreign.graph.outputs[0]].shape[-1]
    return Metadata(
        name=foreign.source.stem,
        description=f"Converted from {foreign.source.name}.",
        mean=arguments.mean,
        std=arguments.std,
        labels=() if arguments.labels is None else load_labels(arguments.labels, classes),
        details={"source_sha256": sha256_of(foreign.source), "recipe": arguments.recipe},
    )


def _row(path: Path, artifact: Artifact, found: Parity) -> str:
    return (
        f"{path}: {artifact.bytes:,} bytes in {artifact.seconds:.2f} s, "
        f"max difference {found.max_abs_diff:.3g} of a range of {found.logit_range:.3g}, "
        f"cosine {found.cosine:.6f}"
    )
