"""`make bench-export`: how long the way from a network to its .tflite files takes on this machine.

Some figures, each the median of fresh runs, beside its target on 2 cores. A missed target is said, not
failed: a time depends on what else the machine does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import models
from export.to_onnx import to_onnx
from export.write_tflite import write_tflite
from pipeline.convert import Calibration, convert_graph, load_graph
from pipeline.evaluate import batched
from pipeline.summary import aligned
from pipeline.variant import IMAGENET_RESOLUTION, PRECISIONS
from quantize.float16 import FLOAT16_METADATA, to_float16
from quantize.int8 import Io, to_int8
from quantize.ranges import observe_ranges
from quantize.recipes import RECIPES

CALIBRATION_IMAGES = 200
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Figure:
    """A timed piece of work and its target in seconds on 2 cores."""

    what: str
    target_s: float
    repeats: int
    work: Callable[[], object]


def figures(folder: Path) -> tuple[Figure, ...]:
    """The figures; networks and images are made here, outside the timed work."""
    torch.manual_seed(0)
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(models.build("v2"), IMAGENET_RESOLUTION).SerializeToString())
    generator = np.random.default_rng(0)
    shape = (CALIBRATION_IMAGES, IMAGENET_RESOLUTION, IMAGENET_RESOLUTION, 3)
    images = generator.uniform(-1, 1, shape).astype(np.float32)
    ranges = observe_ranges(load_graph(path), [images[:1]])
    batches = batched(images)

    def without_calibration() -> None:
        graph = load_graph(path)
        write_tflite(graph)
        write_tflite(to_float16(graph), FLOAT16_METADATA)
        write_tflite(to_int8(graph, ranges))

    def with_calibration(recipe: str) -> None:
        graph = load_graph(path)
        calibration = Calibration(batches, RECIPES[recipe], Io())
        for precision in PRECISIONS:
            convert_graph(precision, graph, calibration)

    def whole_job() -> None:
        words = [sys.executable, "-m", "pipeline", "export", "v3_small", "--out", str(folder / "v3_small")]
        subprocess.run(words, check=True, capture_output=True)

    return (
        Figure(
            "model.onnx to three .tflite files, V2 1.0 at 224, ranges known",
            1.0,
            REPEATS,
            without_calibration,
        ),
        Figure(
            "the same, 200 images, recipe int8_min_max", 15.0, 1, partial(with_calibration, "int8_min_max")
        ),
        Figure("the same, 200 images, recipe int8", 15.0, 1, partial(with_calibration, "int8")),
        Figure("make export MODEL=v3_small with shipped weights", 60.0, 1, whole_job),
    )


def main() -> int:
    """Measure and print the table."""
    rows = [("what", "median s", "target s", "met")]
    with tempfile.TemporaryDirectory() as folder:
        for figure in figures(Path(folder)):
            seconds = statistics.median(_timed(figure.work) for _ in range(figure.repeats))
            met = "yes" if seconds <= figure.target_s else "no"
            rows.append((figure.what, f"{seconds:.2f}", f"{figure.target_s:.0f}", met))
    print(aligned(rows))
    print(f"on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    return 0


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
