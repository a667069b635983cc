"""The runtimes on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.runtime import load_tflite_predictor, run_tflite
from export.write_tflite import write_tflite
from pipeline.data import normalise
from quantize.int8 import Io, to_int8
from quantize.ranges import observe_ranges
from tests.quantize.networks import RESOLUTION, inverted_residuals


@pytest.mark.parametrize("door", ["uint8", "int8"])
def test_real_values_of_camera_bytes_go_in_as_the_bytes(door: str, tmp_path: Path) -> None:
    graph = inverted_residuals()
    pixels = np.random.default_rng(5).integers(0, 256, (4, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    path = tmp_path / "int8.tflite"
    path.write_bytes(write_tflite(to_int8(graph, observe_ranges(graph, [normalise(pixels)]), Io(input=door))))
    of_bytes = load_tflite_predictor(path, normalise)(pixels)
    np.testing.assert_array_equal(run_tflite(path, normalise(pixels)), of_bytes)
