"""The verb `arm`: what the ARM kernels answer, against this machine's, on the same test images.

x86 kernels are not ARM kernels, and only there is float16 arithmetic real. Nothing is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_bench.device import connect
from device_bench.emulated import EmulatedDevice
from export.read_tflite import read_tflite
from export.runtime import dequantised, input_values, load_tflite_predictor
from pipeline.artifacts import AlpharhoError, UsageError
from pipeline.data import Batch, Labels, Split, evenly, normalise, open_dataset
from pipeline.evaluate import accuracy_of, agreement_of, check_classes, file_predictor
from pipeline.summary import aligned

IMAGES = 200


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file on two kinds of kernels: top-1 in percent on each, agreement, largest difference.

    `largest` is in steps of the int8 logits where the file has such, else in thousandths of the logit range.
    """

    file: Path
    host_top1: float
    arm_top1: float
    agreement: float
    largest: float
    unit: str


def compare(file: Path, device: EmulatedDevice, pixels: NDArray[np.uint8], labels: Labels) -> Comparison:
    """Run `file` here and on the emulated core on uint8 NHWC `pixels`; AlpharhoError if either cannot."""
    here = load_tflite_predictor(file, normalise)(pixels)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npy", Path(folder) / "outputs.npy"
        np.save(inputs, input_values(file, pixels, normalise))
        device.outputs(file, inputs, outputs)
        there = dequantised(file, np.load(outputs, allow_pickle=False).reshape(here.shape))
    step, unit = _step(file, here)
    return Comparison(
        file=file,
        host_top1=accuracy_of(here, labels).top1,
        arm_top1=accuracy_of(there, labels).top1,
        agreement=agreement_of(there, here),
        largest=float(np.abs(there - here).max() / step),
        unit=unit,
    )


def _step(file: Path, logits: NDArray[np.float32]) -> tuple[float, str]:
    """One step of the quantised logits, or a thousandth of the range of float ones."""
    parsed = read_tflite(file)
    last = parsed.operators[-1]
    tensors = [parsed.tensors[index] for index in {*last.inputs, *last.outputs} if index >= 0]
    steps = [t.scales[0] for t in tensors if t.dtype in ("int8", "uint8") and len(t.scales) == 1]
    return (steps[0], "steps") if steps else (float(np.ptp(logits)) / 1000, "thousandths of the range")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `arm`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.tflite|DIR", help="files, or folders with such files"
    )
    parser.add_argument("--device", default="emulated:cortex-a76", help="emulated:CORE (%(default)s)")
    parser.add_argument("--dataset", default="fashion_mnist", help="of the test images (%(default)s)")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="test images (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `arm`: a row a file."""
    if arguments.images < 1:
        raise UsageError(f"--images is {arguments.images}; choose at least 1, 200 or more tell something")
    device = connect(arguments.device)
    if not isinstance(device, EmulatedDevice):
        raise UsageError(f"--device is {arguments.device}; outputs are compared on emulated:CORE only")
    dataset = open_dataset(arguments.dataset)
    rows: list[tuple[str, ...]] = [
        ("file", "top-1 % here", f"top-1 % {device.core}", "agreement %", "largest difference", "")
    ]
    with device:
        for file in _files(arguments.files):
            _, resolution = file_predictor(file)
            pixels, labels = _spread(dataset.test, arguments.images, resolution)
            check_classes(load_tflite_predictor(file, normalise)(pixels[:1]), dataset, file)
            rows.append(_row(compare(file, device, pixels, labels)))
    print(aligned(rows))
    return 0


def _spread(split: Split, count: int, resolution: int) -> Batch:
    """`count` images from all over the split, or all of them if there are fewer."""
    return split.take(evenly(len(split), count), resolution)


def _files(paths: list[Path]) -> list[Path]:
    files = [file for path in paths for file in (sorted(path.glob("*.tflite")) if path.is_dir() else [path])]
    if not files:
        raise AlpharhoError(f"no .tflite file in {', '.join(map(str, paths))}; export one first")
    return files


def _row(found: Comparison) -> tuple[str, ...]:
    return (
        str(found.file),
        f"{found.host_top1:.2f}",
        f"{found.arm_top1:.2f}",
        f"{found.agreement:.2f}",
        f"{found.largest:.2f}",
        found.unit,
    )
