"""The verb `convert`: any model.onnx to float32, float16 and int8 .tflite, verified with ONNX Runtime."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_bench.records import to_plain, write_json
from export.check import Parity, audit_delegate, check_parity, parity
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import input_shape, load_onnx, read_onnx
from export.runtime import run_onnx, run_tflite
from export.write_tflite import write_tflite
from pipeline import data
from pipeline.artifacts import AlpharhoError, UsageError, locked, sha256_of, write_bytes
from pipeline.manifest import Artifact, Conversion
from quantize.float16 import FLOAT16_METADATA, to_float16
from quantize.int8 import IO_TYPES, Io
from quantize.recipes import RECIPES, Recipe, quantize

PRECISIONS = ("float32", "float16", "int8")
BATCH = 64
VERIFIED_IMAGES = 64  # of the calibration images, the first ones
CALIBRATION_IMAGES = 256

Images = NDArray[np.float32]  # [N, H, W, C]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What int8 needs beside the graph: images in the model input's own scale, in batches."""

    batches: Sequence[Images]
    recipe: Recipe
    io: Io

    @property
    def images(self) -> int:
        """Number of images in all batches."""
        return sum(len(batch) for batch in self.batches)


def convert_graph(precision: str, graph: Graph, calibration: Calibration) -> tuple[Graph, bytes]:
    """The float graph in one of PRECISIONS, and the bytes of its .tflite file."""
    if precision == "int8":
        graph = quantize(graph, calibration.batches, calibration.recipe, calibration.io).graph
    if precision == "float16":
        graph = to_float16(graph)
    return graph, write_tflite(graph, FLOAT16_METADATA if precision == "float16" else None)


def load_graph(path: Path) -> Graph:
    """The float graph of an ONNX file after all exact rewrites."""
    return run_passes(read_onnx(load_onnx(path)), FLOAT_PASSES)


def batched(images: Images) -> list[Images]:
    """The images in batches of 64."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def convert(source: Path, out: Path, calibration: Calibration, say: Callable[[str], None]) -> Conversion:
    """Write three files and a manifest into `out`; CheckError where float32 is not ONNX Runtime's result."""
    say(f"{source}: reading")
    graph = load_graph(source)
    images = np.concatenate(calibration.batches)[:VERIFIED_IMAGES]
    reference = run_onnx(source, images)
    artifacts, parities, audits = {}, {}, {}
    with locked(out):
        for precision in PRECISIONS:
            say(f"{precision}.tflite: converting and checking")
            path, started = out / f"{precision}.tflite", time.perf_counter()
            write_bytes(path, convert_graph(precision, graph, calibration)[1])
            artifacts[precision] = Artifact.of(path, started)
            audits[precision] = audit_delegate(path)
            parities[precision] = parity(run_tflite(path, images), reference)
        check_parity(parities["float32"], f"{out / 'float32.tflite'} against ONNX Runtime")
        finished = Conversion(
            source=source.name,
            source_sha256=sha256_of(source),
            recipe=calibration.recipe.name,
            calibration_images=calibration.images,
            artifacts=artifacts,
            parity=parities,
            delegate=audits,
        )
        write_json(out / "manifest.json", {"schema": 1, **to_plain(finished)})
    return finished


def load_calibration(source: Path, shape: Sequence[int], mean: float, std: float) -> Images:
    """Images for calibration, float32 NHWC.

    `source` is an .npy array in the ONNX input's own layout and values [N, C, H, W], or a folder of pictures,
    which are shown as (pixel - mean) / std. `shape` is the ONNX input's, [1, C, H, W]. AlpharhoError for what
    does not fit.
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
    if array.ndim != 4 or array.shape[1:] != tuple(shape[1:]) or not len(array):
        raise AlpharhoError(
            f"{source}: has shape {list(array.shape)}, the model takes [N, {', '.join(map(str, shape[1:]))}]"
        )
    return np.ascontiguousarray(array[:CALIBRATION_IMAGES].transpose(0, 2, 3, 1), np.float32)


def _pictures(folder: Path, shape: Sequence[int], mean: float, std: float) -> Images:
    if shape[1] != 3 or shape[2] != shape[3]:
        raise AlpharhoError(
            f"pictures fit square RGB inputs, the model takes {list(shape)}; give an .npy array instead"
        )
    paths = data.pictures(folder)[:CALIBRATION_IMAGES]
    if not paths:
        raise AlpharhoError(f"{folder}: no pictures; give a folder with some, 200 or more are good")
    pixels = np.stack([data.load_image(path, shape[2]) for path in paths])
    return ((pixels.astype(np.float32) - mean) / std).astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `convert`."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the three files and the manifest"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        metavar="IMAGES",
        help="folder of pictures, or .npy [N, C, H, W]",
    )
    parser.add_argument("--mean", type=float, default=data.MEAN, help="of the pixels, 0 to 255 (%(default)s)")
    parser.add_argument("--std", type=float, default=data.STD, help="of the pixels, 0 to 255 (%(default)s)")
    parser.add_argument(
        "--recipe", default="int8", choices=list(RECIPES), help="how int8 is made (%(default)s)"
    )
    add_io_arguments(parser)


def add_io_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for the types at the int8 file's doors."""
    parser.add_argument(
        "--input-type", default="uint8", choices=list(IO_TYPES), help="of the int8 file (%(default)s)"
    )
    parser.add_argument(
        "--output-type", default="float32", choices=list(IO_TYPES), help="of the int8 file (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """The verb `convert`: prints what was written and how far it is from ONNX Runtime."""
    if not arguments.std > 0:
        raise UsageError(f"--std is {arguments.std}; choose a number above 0")
    shape = input_shape(load_onnx(arguments.model))
    images = load_calibration(arguments.calibration, shape, arguments.mean, arguments.std)
    io = Io(
        input=arguments.input_type,
        output=arguments.output_type,
        low=(0 - arguments.mean) / arguments.std,
        high=(255 - arguments.mean) / arguments.std,
    )
    calibration = Calibration(batched(images), RECIPES[arguments.recipe], io)
    finished = convert(arguments.model, arguments.out, calibration, print)
    for precision, artifact in finished.artifacts.items():
        print(_row(arguments.out / artifact.path, artifact, finished.parity[precision]))
    return 0


def _row(path: Path, artifact: Artifact, found: Parity) -> str:
    return (
        f"{path}: {artifact.bytes:,} bytes in {artifact.seconds:.2f} s, "
        f"max difference {found.max_abs_diff:.3g} of a range of {found.logit_range:.3g}, "
        f"cosine {found.cosine:.6f}"
    )
